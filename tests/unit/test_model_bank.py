"""The inner loop of scoring equals a plain loop over the models, whatever is shared, cast, split or compiled."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mucs_ray.attribution import fixed_pass, tuning
from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.model_bank import ModelBank, matrix_names, swapped
from mucs_ray.attribution.model_slots import ModelSlots
from mucs_ray.attribution.skew import noise_losses
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.noise import NoiseSet, generator, normal
from mucs_ray.diffusion.replay import Replay
from mucs_ray.diffusion.schedule import scoring_sigmas
from mucs_ray.errors import RunFailed
from mucs_ray.models.dit import DiTConfig, unlearned_names
from mucs_ray.training.config import Precision
from tiny import lively

MODEL = DiTConfig(
    image_size=8, patch_size=4, width=16, depth=2, num_heads=2, registers=1, condition_channels=16, condition_dim=3,
    kernel_size=3, dropout=0.0,
)  # fmt: skip
CONFIG = ScoreConfig(noises=6)
NOISES = NoiseSet.draw(1, "noise", scoring_sigmas(6, 0.7), (3, 8, 8))
IMAGES = Batch(
    idx=torch.arange(9),
    z=normal(generator(1, "images"), 9, 3, 8, 8).tanh(),
    condition={"condition": torch.eye(3).repeat(3, 1)},
)


DENOISER = lively(MODEL)
ALL = [name for name, _ in DENOISER.network.named_parameters()]


def changed(names: list[str], number: int) -> dict[str, Tensor]:
    stream = generator(4, f"item={number}")
    own = {name: DENOISER.network.get_parameter(name) for name in names}
    return {name: tensor + 0.05 * normal(stream, *tensor.shape) for name, tensor in own.items()}


BANK = [changed(unlearned_names(DENOISER.network), number) for number in range(3)]


def plain(bank: list[dict[str, Tensor]], precision: Precision = "fp32") -> Tensor:
    """Compute the losses one model after the other, one image a forward, with nothing shared and weights cast by
    autocast.
    """
    tables = []
    for tensors in [{}, *bank]:
        with swapped(DENOISER.network, tensors):
            tables.append(noise_losses(DENOISER, IMAGES, NOISES, precision=precision))
    return torch.stack(tables)


@contextmanager
def memory_for(rows: int) -> Iterator[list[int]]:
    """Stand in for a device that holds so many pairs at once, and yield the sizes of the forwards that it was sizes
    for.
    """
    sizes = []

    def refuse(module: object, inputs: tuple[Tensor, ...], kwargs: object) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > rows:
            raise torch.OutOfMemoryError("artificial")

    handle = DENOISER.network.register_forward_pre_hook(refuse, with_kwargs=True)
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.mark.parametrize("names", [unlearned_names(DENOISER.network), ALL, ["last.proj.weight"]])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_equals_a_plain_loop_bit_for_bit(names: list[str], precision: Precision):
    """This holds whether the models share the stem (the first and the last set of tensors) or not."""
    bank = [changed(names, number) for number in range(2)]
    models = ModelBank(DENOISER, bank, replace(CONFIG, precision=precision))
    assert models.stem_is_shared == (names != ALL)
    assert torch.equal(models.losses(IMAGES, NOISES), plain(bank, precision))


def test_the_stem_is_computed_once_for_all_models():
    calls = []
    handle = DENOISER.network.encoder.register_forward_hook(lambda *_: calls.append(1))
    ModelBank(DENOISER, BANK, replace(CONFIG, images_per_forward=3)).losses(IMAGES, NOISES)
    handle.remove()
    assert len(calls) == 3  # of 9 images, 3 at once, under 4 models


def test_only_matrices_are_lowered_and_the_model_is_left_as_it_was():
    before = {name: tensor.clone() for name, tensor in DENOISER.network.state_dict().items()}
    models = ModelBank(DENOISER, BANK, replace(CONFIG, precision="bf16"))
    models.losses(IMAGES[:1], NOISES)
    for name, tensor in DENOISER.network.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert {name for name in models.first} == matrix_names(DENOISER.network)
    assert all(tensor.dtype == torch.bfloat16 and tensor.ndim >= 2 for tensor in models.first.values())


def test_chosen_models_only():
    models = ModelBank(DENOISER, BANK, CONFIG)
    assert torch.equal(models.losses(IMAGES, NOISES, [2, 0]), plain(BANK)[[2, 0]])


# --- captured forwards, and models that take turns --------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("images", [1, 2])
def test_captured_forwards_equal_eager_ones_bit_for_bit(images: int, precision: Precision):
    """Each call has other images; the last of 9 images, two at once, is alone and is captured at the second call."""
    config = replace(CONFIG, images_per_forward=images, precision=precision)
    eager, captured = ModelBank(DENOISER, BANK, config), ModelBank(DENOISER, BANK, config, captures=True)
    for order in (torch.arange(9), torch.arange(9).flip(0), torch.tensor([4, 4, 1])):
        assert torch.equal(captured.losses(IMAGES[order], NOISES), eager.losses(IMAGES[order], NOISES))
    for some in (slice(0, 2), slice(2, 4), slice(4, 6)):  # as a round of screening, under some of the models
        assert torch.equal(captured.losses(IMAGES, NOISES[some], [3, 0]), eager.losses(IMAGES, NOISES[some], [3, 0]))
    assert all(each is not None for each in captured.captured.values())


def test_captured_forwards_read_and_write_the_same_addresses():
    """A graph knows only the addresses of its inputs, of every model's tensors, and of its results."""
    models = ModelBank(DENOISER, BANK, CONFIG, captures=True, resident=2)
    models.losses(IMAGES, NOISES)
    (captured,) = models.captured.values()
    assert captured is not None

    def addresses() -> list[int]:
        fixed = [
            captured.batch.z,
            captured.batch.condition["condition"],
            captured.noises.level,
            captured.noises.unit,
        ]
        results = [each for replay in (captured.shared, *captured.in_slot.values()) for each in replay.results.values()]
        slots = [each for tensors in models.slots.slots for each in tensors.values()]
        return [each.data_ptr() for each in (*fixed, *results, *slots) if each is not None]

    before = addresses()
    models.losses(IMAGES[torch.arange(9).flip(0)], NOISES)
    assert addresses() == before
    assert set(captured.in_slot) == {-1, 0, 1}  # F1 and two slots for three models


def test_what_cannot_be_captured_runs_eagerly(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_1: object, **_2: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setattr(fixed_pass, "Replay", refuse)
    models = ModelBank(DENOISER, BANK, CONFIG, captures=True)
    with pytest.warns(UserWarning, match="not captured as a CUDA graph.*: operation not permitted when"):
        assert torch.equal(models.losses(IMAGES, NOISES), plain(BANK))
    assert not models.captures


def test_a_result_that_is_not_read_in_time_is_overwritten():
    """A replay has this rule on the CPU as on a GPU."""
    source = torch.zeros(3)
    replay = Replay(lambda: {"next": source + 1}, torch.device("cpu"))
    first = replay()["next"]
    source.fill_(5)
    second = replay()["next"]
    assert second is first
    assert torch.equal(first, torch.full((3,), 6.0))


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("resident", [1, 2, 3])
def test_models_that_take_turns_equal_models_that_all_fit_bit_for_bit(resident: int, captures: bool):
    config = replace(CONFIG, precision="bf16")
    models = ModelBank(DENOISER, BANK, config, resident=resident, captures=captures)
    assert models.slots.all_fit == (resident == 3)
    for _ in range(2):
        assert torch.equal(models.losses(IMAGES, NOISES), plain(BANK, "bf16"))
    assert torch.equal(models.losses(IMAGES, NOISES, [3, 1, 0]), plain(BANK, "bf16")[[3, 1, 0]])


@pytest.mark.parametrize(
    ("numbers", "turns"),
    [
        ([0, 1, 2, 3], [(0, [0, 1, 2]), (3, [3])]),
        ([3, 1, 0], [(0, [3]), (1, [1, 0])]),  # 1 and 3 have one slot
        ([0], [(0, [0])]),
        ([], []),
    ],
)
def test_turns(numbers: list[int], turns: list[tuple[int, list[int]]]):
    slots = ModelSlots(BANK, torch.device("cpu"), resident=2)
    assert [(start, list(some)) for start, some in slots.turns(numbers)] == turns


def test_the_losses_of_f1_are_computed_once_when_models_take_turns():
    calls = []
    handle = DENOISER.network.register_forward_hook(lambda *_: calls.append(1))
    ModelBank(DENOISER, BANK, replace(CONFIG, images_per_forward=9), resident=1).losses(IMAGES, NOISES)
    handle.remove()
    assert len(calls) == 4  # F1 and three F2s, each for all images at once


def test_progress_is_reported_after_each_piece():
    calls = []
    ModelBank(DENOISER, BANK, CONFIG, on_progress=lambda: calls.append(1)).losses(IMAGES, NOISES)
    assert len(calls) == 9  # an image each


# --- too little memory ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "memory", "most"), [(8, 100, 48), (8, 20, 12), (8, 5, 3), (1, 5, 3), (1, 1, 1)])
def test_too_little_memory_is_survived_and_remembered(images: int, memory: int, most: int):
    """9 images at 6 noises are cut into whole images while they fit, then into some of an image's noises."""
    models, expected = ModelBank(DENOISER, BANK, replace(CONFIG, images_per_forward=images)), plain(BANK)
    with memory_for(memory) as sizes:
        table = models.losses(IMAGES, NOISES)
        torch.testing.assert_close(table, expected, rtol=1e-5, atol=1e-6)
        assert models.max_pairs == most
        failures = sum(rows > memory for rows in sizes)
        assert failures <= 4
        models.losses(IMAGES, NOISES)
        assert sum(rows > memory for rows in sizes) == failures  # not tried again


def test_a_forward_of_one_image_holds_one_image_on_fewer_noises_too():
    """Screening asks for fewer noises: a loss must not depend on which images are together."""
    with memory_for(100) as sizes:
        ModelBank(DENOISER, BANK, CONFIG).losses(IMAGES, NOISES[slice(0, 2)])
    assert sizes == [2] * 9 * 4


def test_a_device_too_small_for_one_pair_is_an_error():
    with memory_for(0), pytest.raises(RunFailed, match="one image at one noise does not fit"):
        ModelBank(DENOISER, BANK, CONFIG).losses(IMAGES, NOISES)


@pytest.mark.parametrize(("memory", "most"), [(100, 8), (26, 4), (6, 1)])
def test_tuning_takes_no_more_than_fits(memory: int, most: int, monkeypatch: pytest.MonkeyPatch):
    """Larger forwards are taken if they are faster and while they fit (6 noises an image)."""
    monkeypatch.setattr(tuning, "time_forward", quick(tuning.time_forward))
    monkeypatch.setattr(tuning, "MIN_SPEEDUP", 0.0)  # whatever the clock says, larger is faster
    with memory_for(memory):
        actual = tuning.tune(DENOISER, IMAGES, ScoreConfig(noises=6, images_per_forward="auto"), share=1)
    assert (actual.images_per_forward, actual.compile) == (most, "off")


def quick(timed: Callable[..., tuple[float, bool]]) -> Callable[..., tuple[float, bool]]:
    """Time a forward once, with a clock that says one microsecond a forward."""

    def once(*arguments: object, **_: object) -> tuple[float, bool]:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(tuning, "TRY_S", 0.0)
            return 1e-6, timed(*arguments)[1]

    return once


def test_a_forward_that_takes_long_is_large_enough(monkeypatch: pytest.MonkeyPatch):
    """At 6 noises an image, 0.1 s a forward of one: two images take longer than TRY_S, so four are not tried."""
    monkeypatch.setattr(tuning, "time_forward", lambda *_1, **_2: (0.1, True))
    monkeypatch.setattr(tuning, "MIN_SPEEDUP", 0.0)
    actual = tuning.tune(DENOISER, IMAGES, ScoreConfig(noises=6, images_per_forward="auto"), share=1)
    assert (actual.images_per_forward, actual.seconds_a_forward) == (2, 0.1)


def test_a_larger_forward_must_be_faster(monkeypatch: pytest.MonkeyPatch):
    """Two images are faster by more than 3 %; four are faster, but not by enough."""
    speeds = {1: 0.0100, 2: 0.0090, 4: 0.0089, 8: 0.0010}
    monkeypatch.setattr(
        tuning, "time_forward", lambda _1, _2, _3, config, **_4: (speeds[config.images_per_forward], True)
    )
    actual = tuning.tune(DENOISER, IMAGES, ScoreConfig(noises=6, images_per_forward="auto"), share=1)
    assert (actual.images_per_forward, actual.seconds_a_forward) == (2, 0.009)


def test_compiling_is_tried_for_a_long_pass_and_taken_if_it_is_faster(monkeypatch: pytest.MonkeyPatch):
    config = ScoreConfig(noises=6, compile="auto")
    speeds = {"off": 0.2, "on": 0.1}
    monkeypatch.setattr(tuning, "time_forward", lambda _1, _2, _3, config, **_4: (speeds[config.compile], True))
    long, short = int(tuning.COMPILE_PAYS_S / 0.2) + 1, int(tuning.COMPILE_PAYS_S / 0.2) - 1
    assert tuning.tune(DENOISER, IMAGES, config, share=long).compile == "on"
    assert tuning.tune(DENOISER, IMAGES, config, share=short).compile == "off"
    speeds["on"] = 0.199
    assert tuning.tune(DENOISER, IMAGES, config, share=long).compile == "off"


def test_the_faster_precision_is_taken_and_tried_on_a_few_noises(monkeypatch: pytest.MonkeyPatch):
    """fp32 takes 0.3 s a forward, so bf16 is tried on 3 of 6 noises, before the rest is tried in the faster one."""
    tried: list[tuple[str, int, object]] = []

    def timed(denoiser: object, batch: object, noises: NoiseSet, config: ScoreConfig, **_: bool) -> tuple[float, bool]:
        tried.append((config.precision, len(noises.level), config.images_per_forward))
        return speeds[config.precision], True

    monkeypatch.setattr(tuning, "time_forward", timed)
    config = ScoreConfig(noises=6, precision="auto", images_per_forward="auto")
    speeds = {"fp32": 0.3, "bf16": 1.2}
    actual = tuning.tune(DENOISER, IMAGES, config, share=1)
    assert (actual.precision, actual.seconds_a_forward) == ("fp32", 0.3)
    assert tried == [("fp32", 6, 1), ("fp32", 3, 1), ("bf16", 3, 1)]
    speeds["bf16"] = 0.1
    tried.clear()
    actual = tuning.tune(DENOISER, IMAGES, config, share=1)
    assert (actual.precision, actual.seconds_a_forward) == ("bf16", 0.1)
    assert tried[3:] == [("bf16", 6, 1), ("bf16", 6, 2)]


def test_precisions_to_try():
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    auto = ScoreConfig(precision="auto")
    assert tuning.precisions(auto, gpu) == ("bf16",)  # the paper's, whatever the clock says
    assert tuning.precisions(auto, cpu) == ("fp32", "bf16")
    assert tuning.precisions(ScoreConfig(precision="fp32"), gpu) == ("fp32",)
    assert tuning.precisions(ScoreConfig(precision="bf16"), cpu) == ("bf16",)


@pytest.mark.parametrize(("bf16_noise", "precision"), [(0.0, "bf16"), (1.0, "fp32")])
def test_bf16_is_taken_only_where_scores_keep_their_order(
    bf16_noise: float, precision: str, monkeypatch: pytest.MonkeyPatch
):
    """The clock says that bf16 is faster; with losses that are mostly noise it is still not taken."""
    speeds = {"fp32": 0.3, "bf16": 0.1}
    monkeypatch.setattr(tuning, "time_forward", lambda _1, _2, _3, config, **_4: (speeds[config.precision], True))
    exact = ModelBank.losses

    def losses(self: ModelBank, batch: Batch, noises: NoiseSet) -> Tensor:
        table = exact(self, batch, noises)
        low = self.precision == "bf16"
        return table * (1 + low * bf16_noise * normal(generator(9, "rounding"), *table.shape).abs())

    monkeypatch.setattr(ModelBank, "losses", losses)
    actual = tuning.tune(DENOISER, IMAGES, ScoreConfig(noises=6, precision="auto"), share=1, bank=BANK)
    assert (actual.precision, actual.seconds_a_forward) == (precision, speeds[precision])
    assert actual.rank_correlation is not None
    assert (actual.rank_correlation > 0.99) == (precision == "bf16")
    monkeypatch.undo()
    monkeypatch.setattr(tuning, "time_forward", lambda _1, _2, _3, config, **_4: (speeds[config.precision], True))
    assert (
        tuning.tune(DENOISER, IMAGES, ScoreConfig(noises=6, precision="bf16"), share=1, bank=BANK).rank_correlation
        is None
    )


def test_a_machine_that_cannot_compile_goes_without(monkeypatch: pytest.MonkeyPatch):
    def timed(denoiser: object, batch: object, noises: object, config: ScoreConfig, **_: bool) -> tuple[float, bool]:
        if config.compile == "on":
            raise RuntimeError("no C++ compiler")
        return 1.0, True

    monkeypatch.setattr(tuning, "time_forward", timed)
    assert tuning.tune(DENOISER, IMAGES, ScoreConfig(noises=6, compile="auto"), share=10**9).compile == "off"


def test_tuning_leaves_what_is_set(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tuning, "TRY_S", 0.0)
    actual = tuning.tune(DENOISER, IMAGES, ScoreConfig(noises=6, images_per_forward=3, compile="auto"), share=1)
    assert (actual.images_per_forward, actual.compile) == (3, "off")  # a pass too short for compiling
    assert not tuning.has_auto(CONFIG)


@pytest.mark.slow
def test_compiled_equals_eager():
    models = ModelBank(lively(MODEL), BANK, replace(CONFIG, compile="on", images_per_forward=3))
    torch.testing.assert_close(models.losses(IMAGES, NOISES), plain(BANK), rtol=1e-5, atol=1e-6)
