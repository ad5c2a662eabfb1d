"""Trainings on subsets for the linear datamodeling score equal the plain loop, and more can be added later."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mucs_ray.data.table import Dataset
from mucs_ray.data.thumbnails import thumbnails
from mucs_ray.engine import trainings
from mucs_ray.engine.ray_train import TrainJob
from mucs_ray.engine.session import Cluster
from mucs_ray.evaluation.subsets import chosen, find_blocks, repeat_seed
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.store import checkpoint
from mucs_ray.store.run import Stage
from tiny_run import open_tiny, train_all_plainly, train_plainly, work

SUBSETS = {"subsets": 4, "repeats": 1, "blocks": 6}


@pytest.fixture(scope="module")
def trained(data: Dataset, copied: Callable[[], Path], cluster: Cluster) -> Pipeline:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "train_all", train_all_plainly)
        pipeline = open_tiny(data, copied(), lds=SUBSETS, evaluate={"metrics": ["mse"]})
        work(pipeline, "lds", cluster)
    return pipeline


@pytest.mark.parametrize(("name", "number"), [("lds/train/0003", 3), ("lds/train/0000-repeat", 0)])
def test_a_training_on_a_subset_equals_the_plain_loop(trained: Pipeline, name: str, number: int, tmp_path: Path):
    recipe, every = trained.recipe, thumbnails(trained.dataset)
    idx, label, pixels = every
    kept = chosen(number, idx, find_blocks(pixels, label, 6, seed=recipe.seed), share=0.5, seed=recipe.seed)
    stage = Stage(run_url=str(tmp_path), name="retrain/x", reads={}, inputs={})
    seed = repeat_seed(recipe.seed) if "repeat" in name else recipe.seed
    removed = frozenset(idx.tolist()) - kept
    job = TrainJob(
        dataset=trained.dataset, stage=stage, model=recipe.model, train=recipe.train, seed=seed, removed=removed
    )
    expected = train_plainly(job).average.network.state_dict()
    tensors, _ = checkpoint.load(trained.stage(name).url(trained.stage(name).part("last", "safetensors")))
    assert len(removed) == 30 and all(torch.equal(tensors[key], value) for key, value in expected.items())


def test_more_subsets_can_be_added(trained: Pipeline, data: Dataset):
    more = open_tiny(data, Path(trained.run_url), lds={**SUBSETS, "subsets": 6}, evaluate={"metrics": ["mse"]})
    missing = [name for name, state in more.plan("lds").items() if state.status != "done"]
    assert missing == ["lds/train/0004", "lds/train/0005"]
