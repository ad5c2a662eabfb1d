"""The check of a model that is given: the table of wrong readings (spec/models 2.6), and what is said of each.

The network here is a function of its input and the time it is told, as a trained one is: it knows that every image is
one pattern or its negative, and answers what it was trained to.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

from mucs_ray.cli.app import app
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import Condition
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.gate import REFUSED, other_readings, ratio
from mucs_ray.diffusion.model import DiffusionModel, Selector
from mucs_ray.diffusion.noise import generator, normal
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.rows import per_row
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_continuous import TIME_SCALE, ContinuousVP
from mucs_ray.errors import InputError
from mucs_ray.models.adapters import adapter
from mucs_ray.run.model_check import check, codec_error, refuse, some_images
from mucs_ray.spaces.pixels import PIXELS
from mucs_ray.store import checkpoint
from tiny import tiny_dataset, tiny_recipe, tiny_toml

SHAPE = (3, 4, 4)
PATTERN = torch.sin(torch.arange(48.0)).view(SHAPE)
PATTERN = PATTERN / PATTERN.square().mean().sqrt()
SIZE = 0.5
"""Of the pattern in an image, so that the mean square of images is .25."""


def level_of(process: Process, time: Tensor) -> Tensor:
    """The level that a network thinks it is at when it is told a time."""
    if isinstance(process, EDM):
        return (4 * time.double()).exp().clamp(1e-3, 1e3)
    return (time / TIME_SCALE).clamp(1e-5, 1) if isinstance(process, ContinuousVP) else time.clamp(0, 999)


class Trained(DiffusionModel):
    """Trained on one process, and perhaps read on another."""

    def __init__(self, trained: Process, read: Process | None = None, *, limit: float | None = None) -> None:
        super().__init__(nn.Identity())
        self.trained, self.process = trained, read or trained
        self.limit = limit  # type: ignore[misc]

    @property
    def shape(self) -> tuple[int, ...]:
        return SHAPE

    def raw(self, noisy: Tensor, at: Coefficients, condition: Condition, stem: Any = None) -> Tensor:
        own = self.trained.at(level_of(self.trained, at.time).double())
        x = per_row(at.c_in, noisy) * noisy / per_row(own.c_in, noisy)
        along = (x * PATTERN).mean((1, 2, 3))
        multiple = SIZE * torch.tanh(48 * own.alpha * SIZE * along / own.s**2)  # Bayes
        denoised = multiple[:, None, None, None] * PATTERN
        return ((per_row(own.q, x) * x - per_row(own.det, x) * denoised) / per_row(own.s, x)).to(noisy.dtype)

    def nothing(self, num: int) -> Condition:
        return {}

    def names(self, which: Selector) -> list[str]:
        return []


def images(num: int = 32) -> Batch:
    multiples = SIZE * normal(generator(1, "multiples"), num).sign()
    z = multiples[:, None, None, None] * PATTERN
    return Batch(idx=torch.arange(num), z=z, condition={})


PROCESSES = {
    "epsilon": VP(),
    "v_prediction": VP(prediction="v_prediction"),
    "sample": VP(prediction="sample"),
    "EDM": EDM(),
    "continuous": ContinuousVP(),
}


@pytest.mark.parametrize("name", PROCESSES)
def test_the_right_reading_is_far_below_one_and_any_other_above(name: str):
    process = PROCESSES[name]
    model, batch = Trained(process), images()
    right = ratio(model, batch, seed=1)
    assert right < 0.4
    others = {other.name: other.ratio for other in other_readings(model, batch, seed=1)}
    assert len(others) >= 4 and all(found > REFUSED for found in others.values()), others


def test_the_table_of_wrong_readings_of_a_noise_prediction():
    """In the order of the spec's table: velocity, image, scaled twice, not scaled, time reversed, output negated."""
    found = {other.name: other.ratio for other in other_readings(Trained(VP()), images(), seed=1)}
    assert list(found) == [
        "as a prediction of the velocity",
        "as a prediction of the image",
        "with time reversed",
        "with its output negated",
        "with z not scaled (5.49 times)",
        "with z scaled twice (0.182 times)",
    ]
    assert all(value > 1 for value in found.values()), found


@pytest.mark.parametrize(
    ("trained", "read", "told"),
    [
        ("v_prediction", "epsilon", "as a prediction of the velocity it would be"),
        ("epsilon", "v_prediction", "as a prediction of the noise it would be"),
        ("sample", "epsilon", "as a prediction of the image it would be"),
        ("epsilon", "sample", "as a prediction of the noise it would be"),
        ("EDM", "continuous", "on the EDM process it would be"),
        ("continuous", "EDM", "on the VP process it would be"),
    ],
)
def test_a_model_that_is_read_as_another_is_refused_with_what_to_set(trained: str, read: str, told: str):
    checked = check(Trained(PROCESSES[trained], PROCESSES[read]), images(), seed=1)
    with pytest.raises(InputError) as refused:
        refuse(checked, "weights.safetensors")
    line = str(refused.value)
    assert line.startswith("weights.safetensors: the model's loss on training images is") and "\n" not in line
    assert told in line and "--set model." in line


def test_a_right_reading_passes_and_says_its_number():
    checked = check(Trained(VP()), images(), seed=1)
    refuse(checked, "x")
    assert checked.others == ()
    assert checked.line.startswith("model check: 0.") and checked.facts()["check_ratio"] == checked.ratio


def test_pixels_in_zero_to_one_are_named():
    """A model whose z has bounds was perhaps trained without the step to [-1, 1]."""
    names = [other.name for other in other_readings(Trained(VP(), limit=1.0), images(), seed=1)]
    assert names[-1] == "with pixels in [0, 1]"


class Knowing(Trained):
    """Answers as the best linear denoiser does, times a factor: R is 1 if that is 1."""

    def raw(self, noisy: Tensor, at: Coefficients, condition: Condition, stem: Any = None) -> Tensor:
        best = at.alpha * SIZE**2 / (at.alpha**2 * SIZE**2 + at.s**2)
        denoised = per_row(best, noisy) * noisy
        return (per_row(at.q, noisy) * noisy - per_row(at.det, noisy) * denoised) / per_row(at.s, noisy)


@pytest.mark.parametrize("name", PROCESSES)
def test_a_model_that_knows_only_the_mean_square_has_one_and_no_better_reading(name: str):
    batch = images(256)
    batch = replace(batch, z=batch.z * (0.25 / batch.z.square().mean()).sqrt())
    model = Knowing(PROCESSES[name])
    assert ratio(model, batch, seed=1) == pytest.approx(1, abs=0.05)
    with pytest.raises(InputError, match="and no other reading is better"):
        refuse(check(model, batch, seed=1), "x")


def test_a_loss_that_is_no_number_is_refused():
    class Broken(Trained):
        def raw(self, noisy: Tensor, at: Coefficients, condition: Condition, stem: Any = None) -> Tensor:
            return noisy * float("nan")

    with pytest.raises(InputError):
        refuse(check(Broken(VP()), images(2), seed=1), "x")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


def test_the_images_are_spread_over_the_data_set(dataset: Dataset):
    batch = some_images(dataset, PIXELS)
    assert len(batch) == 32 and len(set(batch.idx.tolist())) == 32
    assert {idx // 16 for idx in batch.idx.tolist()} == {0, 1, 2, 3}
    assert batch.condition["condition"].shape == (32, 3)


def test_the_codec_of_pixels_loses_nothing(dataset: Dataset):
    psnr, error = codec_error(PIXELS, some_images(dataset, PIXELS))
    assert psnr == float("inf") and error < 1e-5


def test_a_file_of_other_images_is_read_all_the_same(tmp_path: Path):
    """Fewer images than are asked for."""
    small = tiny_dataset(tmp_path, rows_per_unit=60, rows_per_shard=60)
    assert len(some_images(small, PIXELS)) == 32


def command(*arguments: str) -> tuple[int, str, str]:
    """Run `mucs-ray model check` in this process; it needs no Ray."""
    found = CliRunner().invoke(app, ["model", "check", *arguments])
    return found.exit_code, found.stdout, found.stderr


def saved(folder: Path, values: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    path = str(folder / "weights.safetensors")
    checkpoint.save(path, tensors, {"model": values})
    return path


def test_the_command_tells_what_it_finds_and_saves_a_picture(dataset: Dataset, tmp_path: Path):
    """An untrained network puts out zero, which for EDM is nearly the best linear denoiser: R is about 1."""
    recipe = tiny_recipe(dataset.url)
    first = adapter(recipe.model).untrained(1, torch.device("cpu"))
    assert first is not None
    path = saved(tmp_path, recipe.model.to_dict(), dict(first.network.state_dict()))
    (tmp_path / "tiny.toml").write_text(tiny_toml(dataset.url))
    picture = tmp_path / "sampled.png"
    code, told, error = command(
        "--recipe", str(tmp_path / "tiny.toml"), "--weights", path, "--picture", str(picture), "--json"
    )
    assert code == 2 and "and no other reading is better" in error
    found = json.loads(told)
    assert 0.9 < found["check_ratio"] < 1.3 and found["codec_psnr"] is None
    assert Image.open(picture).size == (8, 8)


def test_there_is_nothing_to_check_of_a_recipe_that_trains(dataset: Dataset, tmp_path: Path):
    (tmp_path / "tiny.toml").write_text(tiny_toml(dataset.url))
    code, _, error = command("--recipe", str(tmp_path / "tiny.toml"))
    assert code == 2 and "no weights to check" in error
