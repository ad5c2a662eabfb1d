"""Down to which noise images are scored, and what is said of it before any work."""

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.loss_change import scored_levels
from mucs_ray.config.recipe import build, check_fits
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.levels import keep_above, range_text, relative_range, sigmas
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.vp import VP
from mucs_ray.diffusion.vp_config import Betas
from mucs_ray.diffusion.vp_continuous import ContinuousVP
from mucs_ray.errors import InputError
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.notices import notices
from tiny import tiny_dataset, tiny_recipe

SD = VP(betas=Betas(schedule="scaled_linear", first=0.00085, last=0.012))
COSINE = VP(betas=Betas(schedule="squaredcos_cap_v2"))
COSINE_4000 = VP(betas=Betas(schedule="squaredcos_cap_v2", steps=4000))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("process", "lowest"),
    [(EDM(), 0.31), (ContinuousVP(), 1.23), (VP(), 1.23), (SD, 0.83), (COSINE, 0.52), (COSINE_4000, 0.52)],
    ids=["EDM", "continuous", "linear", "SD", "cosine", "cosine 4000"],
)
def test_the_lowest_noise_of_seven_tenths_of_a_schedule(process: Process, lowest: float):
    """The numbers of spec/backbones 2.5."""
    assert sigmas(process, process.scoring_levels(100, 0.7))[-1].item() == pytest.approx(lowest, abs=0.006)


@pytest.mark.parametrize(
    ("process", "keep"),
    [(EDM(), 0.7), (ContinuousVP(), 0.91), (VP(), 0.91), (COSINE, 0.81)],
    ids=["EDM", "continuous", "linear", "cosine"],
)
def test_how_much_of_a_schedule_reaches_the_lowest_noise_of_edm(process: Process, keep: float):
    found = keep_above(process, 100, 0.31)
    assert found == pytest.approx(keep, abs=0.006)
    lowest = sigmas(process, process.scoring_levels(100, found))[-1].item()
    assert lowest >= 0.31
    longer = round(100 / found) - 1  # a schedule of one level fewer goes further down
    assert sigmas(process, process.scoring_levels(100, 100 / longer))[-1].item() < 0.31


def test_a_lowest_noise_in_place_of_a_share():
    score = ScoreConfig(lowest_sigma=0.31)
    for process in (EDM(), VP()):
        assert sigmas(process, scored_levels(process, score, 1))[-1].item() == pytest.approx(0.31, rel=0.02)
    assert torch.equal(scored_levels(EDM(), ScoreConfig(), 1), EDM().scoring_levels(100, 0.7))
    assert keep_above(EDM(), 10, 0.001) == 1.0  # below the schedule's end: all of it
    with pytest.raises(InputError, match=r"score\.lowest_sigma is 200, but .* its highest is 80$"):
        keep_above(EDM(), 10, 200)


def test_the_range_on_the_axis_that_all_share():
    """EDM's v is .25: 80 / .5 and .31 / .5 (spec/models 2.3)."""
    high, low = relative_range(EDM(), EDM().scoring_levels(100, 0.7))
    assert (high, low) == (pytest.approx(160), pytest.approx(0.62, abs=0.005))
    assert range_text(EDM(), EDM().scoring_levels(100, 0.7)) == "sigma / std(z) from 160 down to 0.62"
    high, low = relative_range(SD, SD.scoring_levels(100, 0.7))
    assert (high, low) == (pytest.approx(14.6, abs=0.05), pytest.approx(0.83, abs=0.005))


def lines(dataset: Dataset, folder: Path, **changes: object) -> list[str]:
    recipe = tiny_recipe(dataset.url, **changes)
    pipeline = Pipeline.open(recipe, dataset, str(folder), console=Console(file=io.StringIO()))
    return list(notices(pipeline, pipeline.plan("attribute")))


def test_a_run_says_on_which_noise_it_scores(dataset: Dataset, tmp_path: Path):
    (line,) = lines(dataset, tmp_path)
    assert line == "scores at sigma / std(z) from 160 down to 0.94"


def test_images_so_small_that_no_item_could_count_as_unlearned(dataset: Dataset, tmp_path: Path):
    """192 numbers: .4 sqrt(2 / 192) = .0408 is missing."""
    assert len(lines(dataset, tmp_path, method={"mucs": {"tolerance": 0.041}})) == 1
    _, line = lines(dataset, tmp_path, method={"mucs": {"tolerance": 0.04}})
    assert "images of 192 numbers" in line and "95.9% of the bound" in line and "asks for 96.0%" in line
    assert "all 6 updates; set it to 0.06" in line
    for other in ({"clamp": False}, {"fixed_updates": 3}):
        assert len(lines(dataset, tmp_path, method={"mucs": {"tolerance": 0.04, **other}})) == 1


def test_a_sampler_that_does_not_go_with_the_model_is_refused_before_any_work(dataset: Dataset, tmp_path: Path):
    with pytest.raises(InputError, match=r"generate\.sampler is ddim"):
        lines(dataset, tmp_path, generate={"sampler": "ddim"})


def test_a_bound_that_the_model_has_not_is_refused_before_any_work(dataset: Dataset):
    values = {
        "name": "x",
        "data": dataset.url,
        "model": {"kind": "waves:Waves"},
        "generate": {"items": 1, "controls": 1},
    }
    check_fits(build(values), dataset.card)
    drawn = build({**values, "method": {"mucs": {"bound": "drawn"}}})
    with pytest.raises(InputError, match=r"model\.kind waves:Waves has none; set it to \"linear\""):
        check_fits(drawn, dataset.card)
