"""A group of a prepared data set is unlearned and scored in a plain loop, as a stage of a run would do."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.forgetting.config import GroupsConfig
from mucs_ray.attribution.forgetting.forget import forget_group
from mucs_ray.attribution.forgetting.losses import Help
from mucs_ray.attribution.forgetting.score import group_score, query_errors, score_grid
from mucs_ray.data.group_images import GroupImages
from mucs_ray.data.groups import Groups, find_groups
from mucs_ray.data.local import LocalImages
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.batch import Item
from mucs_ray.models.adapters import adapter
from mucs_ray.models.dit_edm import DiTEDM
from tiny import lively, tiny_dataset, tiny_recipe

SEED = 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def images(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalImages:
    monkeypatch.setenv("MUCS_RAY_CACHE", str(tmp_path))
    return LocalImages(dataset, "train")


@pytest.fixture(scope="module")
def groups(dataset: Dataset) -> Groups:
    return find_groups(dataset, "label")


def test_batches_hold_images_of_the_group_or_others_only(images: LocalImages, groups: Groups):
    cut = GroupImages(images, groups.members(1))
    for part, inside in (("forget", True), ("retain", False)):
        batches = cut.batches(part, group=1, batch_size=16, seed=SEED)  # type: ignore[arg-type]
        first, second = batches(0), batches(1)
        assert len(set(first.idx.tolist())) == 16
        assert all((idx % 3 == 1) == inside for idx in [*first.idx.tolist(), *second.idx.tolist()])
        assert first.idx.tolist() == batches(0).idx.tolist() != second.idx.tolist()
        row = int(first.idx[0])  # idx count from 0
        assert torch.equal(first.z[0], images.batch(np.array([row])).z[0])


def test_neighbours_are_the_nearest_pictures_of_other_groups(images: LocalImages, groups: Groups):
    cut = GroupImages(images, groups.members(2))
    found = cut.neighbours(4)
    z = images.batch(np.arange(60)).z.flatten(1).double().numpy()
    own, others = np.arange(2, 60, 3), np.flatnonzero(np.arange(60) % 3 != 2)
    distance = np.linalg.norm(z[own][:, None] - z[others][None], axis=2)
    expected = others[np.argsort(distance, axis=1, kind="stable")[:, :4]]
    assert found.idx.tolist() == expected.tolist()
    of_images = cut.neighbours_of(found)
    near = of_images(torch.tensor([5, 2]))
    assert near.shape == (2, 4, 3, 8, 8)
    assert torch.equal(near[0], images.batch(expected[1]).z) and torch.equal(near[1], images.batch(expected[0]).z)


def model(dataset: Dataset) -> DiTEDM:
    spec = tiny_recipe(dataset.url).model
    fresh = adapter(spec).untrained(1, torch.device("cpu"))
    assert isinstance(fresh, DiTEDM)
    return lively(fresh.network.config)


def test_every_group_has_a_score_and_the_scores_depend_on_the_group_alone(
    dataset: Dataset, images: LocalImages, groups: Groups
):
    full, config, score = (
        model(dataset),
        GroupsConfig(updates=2, batch_size=8, learning_rate=1e-3, levels=6),
        ScoreConfig(),
    )
    grid = score_grid(full.process, config, score)
    query = Item(number=0, idx=61, condition={"condition": torch.eye(3)[0]}, z=images.batch(np.array([0])).z[0])
    errors = query_errors(full, query, grid, seed=SEED)

    def score_of(number: int) -> float:
        cut = GroupImages(images, groups.members(number))
        forgotten = forget_group(
            full, number, "retrack",
            retain=cut.batches("retain", group=number, batch_size=8, seed=SEED),
            forget=cut.batches("forget", group=number, batch_size=8, seed=SEED),
            config=config, seed=SEED,
            helped=Help(neighbours=cut.neighbours_of(cut.neighbours(3)), mirror=lambda z: z.flip(-1)),
        )  # fmt: skip
        without = model(dataset)
        without.network.load_state_dict(forgotten.tensors, strict=False)
        after = query_errors(without, query, grid, seed=SEED)
        return group_score(config, score, full.process, grid, errors, after, query.z.numel())

    scores = [score_of(number) for number in range(3)]
    assert len(set(scores)) == 3 and np.isfinite(scores).all() and 0 not in scores
    assert score_of(1) == scores[1]
