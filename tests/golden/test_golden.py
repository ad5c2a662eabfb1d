"""The numbers of the package are those of the files: a refactoring moves none of them.

Where this machine computes as the one on which the files were made, every number and digest is equal bit for bit;
elsewhere numbers are equal within the tolerances of compare.RULES. Files are made by tests/golden/make.py.
"""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golden.compare import (
    RULES,
    as_recorded,
    differences,
    read,
    recorded_machine,
    reduced,
    rule_of,
    same_bits,
    this_machine,
    write,
    write_machine,
)
from golden.compute import CASES, compute, method_names, undisturbed
from golden.make import compared, main

FILES = Path(__file__).parent / "files"
MOST_BYTES = 1_000_000


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def golden(case: str) -> dict[str, Any]:
    return read(FILES, case)


def test_no_number_moved(case: str, golden: dict[str, Any]):
    if recorded_machine(FILES)["architecture"] != platform.machine():
        pytest.skip(
            "dropout draws other masks on another architecture: its random numbers come from MKL where there is one"
        )
    exact = as_recorded(FILES)
    found = differences(case, reduced(compute(case)), golden, exact=exact)
    how = "bit for bit" if exact else f"within tolerances: {recorded_machine(FILES)} is not {this_machine()}"
    told = "\n".join(f"{name} {difference}" for name, difference in found.items())
    assert not found, f"{len(found)} of {len(golden)} golden numbers differ ({how}):\n{told}"


def test_every_method_has_golden_scores_and_lists():
    names = {*read(FILES, "tiny")}
    for method in method_names():
        assert {f"{method}/score", *(f"{method}/item={number}/top-k" for number in range(3))} <= names, method


def test_golden_numbers_say_something(golden: dict[str, Any]):
    """All are finite, and scores tell images and items apart: of a model that was not changed all would be 0."""
    assert all(value.isfinite().all() for value in golden.values() if isinstance(value, torch.Tensor))
    for name, scores in golden.items():
        if name.endswith("/score"):
            assert scores.std(dim=0).min() > 1e-6 * scores.abs().max() > 0, name
            assert (scores[:, 0] != scores[:, 1]).any(), name


def test_unlearning_ends_in_every_way():
    outcomes = {value for name, value in read(FILES, "tiny").items() if name.endswith("/outcome")}
    assert outcomes == {"reached", "bound hit", "fixed"}


def test_files_are_small():
    assert sum(file.stat().st_size for file in FILES.iterdir()) < MOST_BYTES


def test_every_number_has_a_tolerance_and_every_tolerance_a_number():
    used = {id(rule_of(case, name)) for case in CASES for name in read(FILES, case)}
    assert used == {id(rule) for _, rule in RULES}


def test_what_is_computed_leaves_the_process_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUCS_RAY_CACHE", "mine")
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with undisturbed(tmp_path):
        torch.rand(3)
        assert os.environ["MUCS_RAY_CACHE"] != "mine"
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert os.environ["MUCS_RAY_CACHE"] == "mine"


# --- whether the comparison can fail ------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["bit for bit", "within tolerances"])
def exact(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_files_are_equal_to_themselves(case: str, golden: dict[str, Any], exact: bool):
    assert differences(case, golden, read(FILES, case), exact=exact) == {}


def nudged(value: Any, share: float) -> Any:
    """Every number changed by this share of itself; texts and whole numbers as they are."""
    if isinstance(value, torch.Tensor):
        return value * (1 + share) if value.is_floating_point() else value
    if isinstance(value, list):
        return [nudged(each, share) for each in value]
    return value * (1 + share) if isinstance(value, float) else value


def test_rounding_is_seen_bit_for_bit_only(golden: dict[str, Any], case: str):
    rounded = {name: nudged(value, 3e-7) for name, value in golden.items() if not name.startswith(("data/", "random/"))}
    told = differences(case, golden | rounded, golden, exact=True)
    assert {"train/losses", "generate/z", "mucs/score", "mucs/item=0/item_loss"} <= told.keys()
    loose = {name for name in rounded if name.endswith(("/weights", "/before", "/after"))}
    assert differences(case, golden | rounded, golden, exact=False).keys() <= loose


@pytest.mark.parametrize(
    "name",
    [
        "train/losses", "train/validation", "train/ema/norms", "train/ema/picked", "generate/z", "mucs/skew",
        "mucs/score", "mucs/prepared", "mucs/item=0/null_loss", "mucs/item=1/item_loss", "mucs/item=1/train_loss",
        "mucs/item=0/adapted/picked", "das/features/feature", "dtrak/prepared", "abu/total", "forward-inf/difference",
        "mucs/screen/bounds/threshold", "noise/unit",
    ],
)  # fmt: skip
def test_a_changed_value_is_found(name: str, exact: bool):
    golden = read(FILES, "tiny")
    told = differences("tiny", golden | {name: nudged(golden[name], 0.2)}, golden, exact=exact)
    assert told.keys() == {name}


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("mucs/item=0/outcome", "reached"),
        ("mucs/item=0/updates", 5),
        ("train/losses", [1.0]),
        ("mucs/item=0/null_loss", float("nan")),
        ("mucs/score", torch.full((54, 3), torch.nan)),
        ("mucs/score", torch.zeros(54, 2)),
        ("generate/idx", [0, 1, 2]),
    ],
)
def test_another_kind_or_outcome_is_found(name: str, changed: Any, exact: bool):
    golden = read(FILES, "tiny")
    assert differences("tiny", golden | {name: changed}, golden, exact=exact).keys() == {name}


def test_one_last_bit_is_found():
    golden = read(FILES, "tiny")
    score = golden["mucs/score"].clone()
    score[7, 1] = torch.nextafter(score[7, 1], torch.tensor(1.0))
    told = differences("tiny", golden | {"mucs/score": score}, golden, exact=True)
    assert told.keys() == {"mucs/score"} and "in 1 of 162 entries" in told["mucs/score"]
    assert not same_bits(torch.tensor(0.0), torch.tensor(-0.0))


def test_one_bit_of_a_large_tensor_is_found(case: str, exact: bool):
    whole = torch.linspace(0, 1, 5000)
    other = whole.clone()
    other[4321] = torch.nextafter(other[4321], torch.tensor(2.0))
    one, two = reduced({"train/ema": whole}), reduced({"train/ema": other})
    assert differences(case, one, reduced({"train/ema": whole.clone()}), exact=exact) == {}
    assert ("train/ema/sha256" in differences(case, two, one, exact=exact)) is exact


def test_an_absent_number_is_found(golden: dict[str, Any], case: str, exact: bool):
    fewer = {name: value for name, value in golden.items() if name != "mucs/score"}
    assert differences(case, fewer, golden, exact=exact) == {"mucs/score": "is absent"}


def test_an_extra_number_is_found(golden: dict[str, Any], case: str, exact: bool):
    told = differences(case, golden | {"mucs/new": 1.0}, golden, exact=exact)
    assert told == {"mucs/new": "is not among the golden numbers"}


def test_two_entries_of_a_list_swapped_are_found_bit_for_bit(golden: dict[str, Any], case: str):
    """Elsewhere the order inside a list is not looked at: scores are."""
    name = "mucs/item=0/top-k"
    first, second, *others = golden[name]
    swapped = golden | {name: [second, first, *others]}
    assert differences(case, swapped, golden, exact=True).keys() == {name}
    assert differences(case, swapped, golden, exact=False) == {}


@pytest.mark.parametrize("replaced", [2, 3])
def test_a_list_with_other_members_is_found(replaced: int, exact: bool):
    """Elsewhere one in five may be another."""
    golden, name = read(FILES, "tiny"), "mucs/item=0/top-k"
    assert len(golden[name]) == 10
    others = golden | {name: [*range(100, 100 + replaced), *golden[name][replaced:]]}
    told = differences("tiny", others, golden, exact=exact)
    assert told.keys() == ({name} if exact or replaced > 2 else set())


def test_two_images_exchanged_are_found(golden: dict[str, Any], case: str, exact: bool):
    """The scores of another image are not within any tolerance."""
    score = golden["mucs/score"]
    best, worst = score[:, 0].argmax(), score[:, 0].argmin()
    order = torch.arange(len(score))
    order[best], order[worst] = worst, best
    told = differences(case, golden | {"mucs/score": score[order]}, golden, exact=exact)
    assert told.keys() == {"mucs/score"}


@pytest.mark.parametrize(
    "name", ["ensemble/A/score", "ensemble/learned/score", "mucs/mutual/score", "mucs/screen/score"]
)
def test_another_order_of_the_images_is_found(name: str, exact: bool):
    """Of scores that jump where others are close, some may be anything elsewhere, but not all."""
    golden = read(FILES, "tiny")
    told = differences("tiny", golden | {name: golden[name].flip(0)}, golden, exact=exact)
    assert told.keys() == {name}


def test_a_name_without_a_tolerance_is_refused():
    with pytest.raises(LookupError, match="tiny/mucs/new"):
        differences("tiny", {"mucs/new": 1.0}, {"mucs/new": 1.0}, exact=False)


def test_files_hold_what_was_written(tmp_path: Path):
    values = reduced({"train/losses": [0.1, 1 / 3], "mucs/score": torch.rand(3, 2), "train/ema": torch.rand(5000)})
    write(tmp_path, "made", values)
    write_machine(tmp_path)
    assert differences("made", read(tmp_path, "made"), values, exact=True) == {}
    assert as_recorded(tmp_path)


@pytest.mark.parametrize("fact", this_machine())
def test_any_other_machine_or_version_is_compared_within_tolerances(
    fact: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write_machine(tmp_path)
    here: Callable[[], dict[str, str]] = this_machine
    monkeypatch.setattr("golden.compare.this_machine", lambda: here() | {fact: "another"})
    assert not as_recorded(tmp_path)


def test_the_script_tells_what_differs(capsys: pytest.CaptureFixture[str]):
    values = {case: read(FILES, case) for case in CASES}
    assert compared(values, FILES) == 0
    assert f"0 of {sum(map(len, values.values()))} " in capsys.readouterr().out
    values["emoji"]["mucs/score"] += 1
    assert compared(values, FILES) == 1
    assert "emoji/mucs/score differs in 128 of 128 entries, by at most 1 where" in capsys.readouterr().out


def test_the_script_refuses_a_folder_without_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as refused:
        main(["--against", str(tmp_path)])
    assert refused.value.code == 2
    assert f"no golden files in {tmp_path}" in capsys.readouterr().err
