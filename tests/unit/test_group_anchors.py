"""Anchors of a prepared data set: which conditions and images stand for those of a group, and what is refused."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mucs_ray.attribution.forgetting.config import GroupsConfig, Unlearner
from mucs_ray.attribution.forgetting.losses import Anchors
from mucs_ray.data import caption_embedding
from mucs_ray.data.anchor_checks import check_anchors
from mucs_ray.data.group_anchors import anchors_of
from mucs_ray.data.group_images import GroupImages
from mucs_ray.data.groups import Groups, find_groups
from mucs_ray.data.local import LocalImages
from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import Choices
from mucs_ray.data.table import Dataset
from mucs_ray.diffusion.noise import generator
from mucs_ray.errors import InputError

AXES = {"Ash": 0, "Birch": 1, "Cedar": 2, "Dune": 3, "Dogs": 4, "Cats": 5}
HALF = math.sqrt(0.5)


def by_words(captions: Sequence[str]) -> np.ndarray:
    """Embed texts by the words in them, which have an axis each; Birch is half Ash."""
    vectors = np.zeros((len(captions), 768), np.float32)
    for vector, caption in zip(vectors, captions, strict=True):
        for word, axis in AXES.items():
            vector[axis] += word in caption
        if "Birch" in caption:
            vector[AXES["Ash"]] += 1
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def canvas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw four styles of two objects; the red of a picture is its style, the green its object and number."""
    root = tmp_path_factory.mktemp("canvas")
    for style, name in enumerate(("Ash", "Birch", "Cedar", "Dune")):
        for thing, of in enumerate(("Dogs", "Cats")):
            (root / name / of).mkdir(parents=True)
            for number in range(5):
                colour = (60 * style + 30, 100 * thing + 15 * number, 0)
                Image.new("RGB", (8, 8), colour).save(root / name / of / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def captioned(canvas: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(caption_embedding, "find_weights", lambda: "somewhere.safetensors")
        patch.setattr(caption_embedding, "embed", by_words)
        return prepare("unlearncanvas", where=str(canvas), out=str(tmp_path_factory.mktemp("captioned")), size=8)


@pytest.fixture(scope="module")
def labelled(canvas: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    out = str(tmp_path_factory.mktemp("labelled"))
    return prepare("unlearncanvas", where=str(canvas), out=out, size=8, choices=Choices(text_column="none"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MUCS_RAY_CACHE", str(tmp_path))


def nothing(num: int) -> dict[str, Tensor]:
    return {"condition": torch.zeros(num, 4)}


def drawn(
    dataset: Dataset, unlearner: Unlearner, *, number: int = 0, num: int = 4000, by: str = "style", **config: Any
) -> tuple[Tensor, Anchors]:
    """Draw anchors of images of a group; also return which images."""
    groups = find_groups(dataset, by)
    cut = GroupImages(LocalImages(dataset, "train"), groups.members(number))
    of = anchors_of(
        unlearner, cut, dataset, groups.names, number, GroupsConfig(**config), nothing=nothing, embed=by_words
    )  # fmt: skip
    own = torch.tensor(sorted(groups.members(number)))
    idx = own[torch.arange(num) % len(own)]
    return idx, of(idx, generator(3, "anchors"))


def shares(condition: Tensor) -> np.ndarray:
    """Return how often each style's axis is in conditions."""
    return (condition[:, :4] > 0).float().mean(dim=0).numpy()


def test_uniform_draws_all_other_classes_alike(labelled: Dataset):
    _, anchors = drawn(labelled, "uniform", number=1, by="label")
    assert anchors.z is None and set(anchors.condition["condition"].sum(dim=1).tolist()) == {1.0}
    np.testing.assert_allclose(shares(anchors.condition["condition"]), [1 / 3, 0, 1 / 3, 1 / 3], atol=0.03)


def test_awss_draws_classes_whose_words_are_alike(labelled: Dataset):
    """The cosine of Ash with Birch is sqrt(1/2), with the others 0; the class is described by its name."""
    _, anchors = drawn(labelled, "awss", by="label", beta=2.0, eta=0.3)
    weights = np.array([0, math.exp(2 * HALF), 1, 1])
    np.testing.assert_allclose(
        shares(anchors.condition["condition"]), 0.7 * weights / weights.sum() + 0.1 * (weights > 0), atol=0.03
    )


def test_descriptors_stand_for_the_name(labelled: Dataset):
    """Ash is described as Dune is, so that beta makes all others but Dune unlikely."""
    words = {"Ash": ["Dune"]}
    _, anchors = drawn(labelled, "awss", by="label", beta=50.0, eta=0.0, descriptors=words)
    np.testing.assert_allclose(shares(anchors.condition["condition"]), [0, 0, 0, 1], atol=1e-6)


def test_prompts_keep_the_content_and_have_the_words_of_another_group(captioned: Dataset):
    idx, anchors = drawn(captioned, "uniform", number=2, num=600)
    objects = {row["idx"]: row["object"] for table in captioned.stream("train") for row in table.to_pylist()}
    found = anchors.condition["condition"]
    for number, vector in zip(idx.tolist(), found, strict=True):
        assert vector[AXES[objects[number]]] > 0
    assert not (found[:, AXES["Cedar"]] > 0).any()
    np.testing.assert_allclose((found[:, [1, 3]] > 0).float().mean(dim=0), [1 / 3, 1 / 3], atol=0.06)
    again = drawn(captioned, "uniform", number=2, num=600)[1]
    assert torch.equal(again.condition["condition"], found)


def test_awss_looks_at_the_words_of_the_caption(captioned: Dataset):
    _, anchors = drawn(captioned, "awss", num=3000, beta=4.0, eta=0.0)
    birch = math.exp(4 * HALF)
    share = (anchors.condition["condition"][:, AXES["Birch"]] > 0).float().mean()
    assert share == pytest.approx(birch / (birch + 2), abs=0.03)


def test_prompts_have_as_many_words_of_a_group_as_they_should(captioned: Dataset):
    words = {name: ["Ash", "Cedar", "Dune"] for name in ("Ash", "Cedar", "Dune")}
    _, anchors = drawn(captioned, "uniform", number=1, num=200, descriptors=words, words=2)
    assert Counter((anchors.condition["condition"][:, [0, 2, 3]] > 0).sum(dim=1).tolist()) == {2: 200}


def test_without_its_style_a_prompt_is_its_content(captioned: Dataset):
    idx, anchors = drawn(captioned, "style-removed", num=8)
    assert not anchors.condition["condition"][:, :4].any()
    objects = {row["idx"]: row["object"] for table in captioned.stream("train") for row in table.to_pylist()}
    expected = by_words([f"A depiction of {objects[number]}" for number in idx.tolist()])
    np.testing.assert_array_equal(anchors.condition["condition"], expected)


def test_without_its_class_an_image_has_no_condition(labelled: Dataset):
    _, anchors = drawn(labelled, "style-removed", by="label", num=3)
    assert torch.equal(anchors.condition["condition"], torch.zeros(3, 4))


@pytest.mark.parametrize("content", [("object", "number"), ("object",)])
def test_matched_draws_images_of_other_groups_with_the_same_content(labelled: Dataset, content: tuple[str, ...]):
    idx, anchors = drawn(labelled, "matched", num=400, content=content)
    rows = {row["idx"]: row for table in labelled.stream("train") for row in table.to_pylist()}
    assert anchors.z is not None
    red, green = (((anchors.z[:, channel, 4, 4] + 1) * 127.5).round().int().tolist() for channel in (0, 1))
    assert set(red) == {90, 150, 210}  # all styles but the first
    for number, seen in zip(idx.tolist(), green, strict=True):
        thing, own = ("Dogs", "Cats").index(rows[number]["object"]), int(rows[number]["number"])
        assert seen == 100 * thing + 15 * own if len(content) == 2 else seen // 100 == thing
    styles = (torch.tensor(red) - 30) // 60
    assert torch.equal(anchors.condition["condition"], torch.eye(4)[styles])


def test_an_image_without_its_like_is_told(labelled: Dataset):
    with pytest.raises(InputError, match=r"of group 'Ash' have no like of the same label in other groups, e.g. idx="):
        drawn(labelled, "matched", content=("label",))


def test_captions_of_another_form_or_encoder_are_refused(captioned: Dataset, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"do not have the form of groups\.template, '{content} by"):
        drawn(captioned, "uniform", template="{content} by {group}")
    monkeypatch.setitem(AXES, "depiction", 9)
    with pytest.raises(InputError, match="not embedded by CLIP's text tower"):
        drawn(captioned, "uniform")


@pytest.mark.parametrize(
    ("by", "conditional", "config", "problem"),
    [
        ("label", False, {"unlearners": ["uniform"]}, "uniform, which needs a model with classes or captions"),
        (
            "object",
            True,
            {"unlearners": ["awss"]},
            "awss, which shows images as another class, and groups are by object",
        ),
        ("label", True, {"unlearners": ["matched"]}, "needs groups.content, .* there are style, object, number, label"),
        (
            "label",
            True,
            {"unlearners": ["matched"], "content": ["artist"]},
            "groups.content has 'artist', expected the",
        ),
        ("label", True, {"unlearners": ["awss"], "descriptors": {"Oak": ["a"]}}, "'Oak', which is no group of label"),
        ("label", True, {"unlearners": ["awss"], "descriptors": {"Ash": []}}, "no word for 'Ash'"),
    ],
)
def test_what_the_data_set_lacks_is_told_at_once(
    labelled: Dataset, by: str, conditional: bool, config: dict[str, Any], problem: str
):
    groups = find_groups(labelled, by)
    with pytest.raises(InputError, match=problem):
        check_anchors(GroupsConfig(**config), groups, labelled.card, conditional=conditional)


def test_a_wrong_template_is_refused_where_it_is_read(captioned: Dataset, labelled: Dataset):
    groups: Groups = find_groups(captioned, "style")
    wrong = GroupsConfig(unlearners=("style-removed",), template="{group}")
    with pytest.raises(InputError, match=r"groups\.template is '{group}'; expected {content} and {group} once"):
        check_anchors(wrong, groups, captioned.card, conditional=True)
    check_anchors(wrong, find_groups(labelled, "label"), labelled.card, conditional=True)
    by_style = GroupsConfig(unlearners=("awss", "uniform"))  # the styles are the classes
    check_anchors(by_style, find_groups(labelled, "style"), labelled.card, conditional=True)
    check_anchors(GroupsConfig(unlearners=("zero",), template=""), groups, captioned.card, conditional=False)
