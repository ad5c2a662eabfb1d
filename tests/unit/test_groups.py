"""Groups of training images: where they are from, what is refused, and their manifests."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fixture_files import document
from mucs_ray.data.group_manifests import QueryManifest, TrainManifest, derangement, with_noise
from mucs_ray.data.groups import Groups, find_groups
from mucs_ray.data.prepare import prepare
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError
from tiny import CLASSES, rows, tiny_dataset, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("pets")
    for number, name in enumerate(("train/cat/a.png", "train/cat/b.png", "train/dog/a.png", "test/dog/c.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (50 * number, 0, 0)).save(root / name)
    return prepare("folder", where=str(root), out=str(root / "out"), size=8)


def write(folder: Path, text: str) -> str:
    (folder / "artists.csv").write_text(text)
    return str(folder / "artists.csv")


def test_labels_are_groups_in_the_order_of_the_classes(dataset: Dataset):
    groups = find_groups(dataset, "label")
    assert (groups.names, groups.sizes, groups.overlapping) == (CLASSES, [20, 20, 20], False)
    assert groups.members(1) == set(range(1, 60, 3))  # rows take the classes in turn
    assert groups.num_images == groups.num_grouped == 60


def test_a_class_without_training_images_is_no_group(tmp_path: Path):
    two_classes = [row for row in rows(30, first_idx=0, seed=1) if row.label != 1]
    groups = find_groups(write_dataset(str(tmp_path), two_classes, []), "label")
    assert (groups.names, groups.sizes) == (("red", "blue"), [10, 10])


def test_texts_and_folders_are_groups(dataset: Dataset, pets: Dataset):
    assert find_groups(dataset, "text").names == tuple(f"{c} {side}" for c in sorted(CLASSES) for side in (3, 4, 5, 6))
    groups = find_groups(pets, "folder")
    assert (groups.names, groups.sizes) == (("train/cat", "train/dog"), [2, 1])


def test_a_file_makes_groups_that_may_overlap_and_leave_images_out(dataset: Dataset, tmp_path: Path):
    url = write(tmp_path, "\ufeffgroup, idx\n10,3\n2,3\n2,0\n2,0\nAnna, 5 \n")
    groups = find_groups(dataset, url)
    assert groups.names == ("2", "10", "Anna")  # numbers by value, then the others
    assert (groups.idx.tolist(), groups.group.tolist()) == ([0, 3, 3, 5], [0, 0, 1, 2])
    assert groups.overlapping and groups.num_grouped == 3
    table = pa.table({"idx": [3, 3, 0, 5], "group": ["10", "2", "2", "Anna"]})
    pq.write_table(table, tmp_path / "artists.parquet")
    from_parquet = find_groups(dataset, str(tmp_path / "artists.parquet"))
    assert from_parquet.names == groups.names and (from_parquet.group == groups.group).all()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("idx,group\n1,a\n2,b\n,c\n", "group 'c' .* has no training image"),
        ("idx,group\n1,a\n2,a\n", "one group only, 'a'; expected two or more"),
        ("idx,group\n1,a\n60,b\n", "line 3: expected the idx of a training image; found '60'"),
        ("idx,group\n1,a\n-2,b\n", "line 3: expected the idx of a training image; found '-2'"),
        ("idx,group\n1,a\n2\n", "line 3: expected the name of a group; found none"),
        ("idx,artist\n1,a\n", "no column 'group'; there are idx, artist"),
        ("", "no column 'idx'; there are none"),
        ("idx,group\n", "names no group"),
        ("idx,group\n" + "".join(f"{idx},all\n" for idx in range(60)) + "1,b\n", "'all' .* is the whole training set"),
        ('idx,group\n1,"a\n', "is not a CSV"),
    ],
)
def test_a_bad_file_is_one_line(dataset: Dataset, tmp_path: Path, text: str, told: str):
    with pytest.raises(InputError, match=told) as caught:
        find_groups(dataset, write(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("by", ["artist", "folder"])
def test_a_column_that_is_not_there_is_told_with_those_that_are(dataset: Dataset, by: str):
    with pytest.raises(InputError, match=f"no column '{by}' to make groups by; there are label, text, or give a .csv"):
        find_groups(dataset, by)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_file_that_is_not_there_or_not_readable_is_one_line(dataset: Dataset, tmp_path: Path, ending: str):
    file = tmp_path / f"gone.{ending}"
    with pytest.raises(InputError, match="no file of groups at"):
        find_groups(dataset, str(file))
    file.write_bytes(b"\xff\xfe\x00PAR1 no such thing")
    with pytest.raises(InputError, match="is not a"):
        find_groups(dataset, str(file))


def test_the_manifest_has_the_reference_digest():
    expected = document("guda_u/groups")
    manifest = TrainManifest(**expected["manifest"])
    assert manifest.digest == expected["hash12"]
    other = {**expected["manifest"], "group_ids": [0, 1, *expected["manifest"]["group_ids"][2:]]}
    assert TrainManifest(**other).digest != expected["hash12"]


def test_manifests_say_what_was_compared(dataset: Dataset):
    manifest = TrainManifest.of(find_groups(dataset, "label"), "tiny")
    assert manifest.train_ids == tuple(range(60)) and manifest.group_ids == (0, 1, 2) * 20
    assert manifest.to_json()["digest"] == manifest.digest
    first = QueryManifest(query_ids=(0,), image_paths=("0.png",), seeds=(1,), prompts=("",))
    second = QueryManifest(query_ids=(0,), image_paths=("0.png",), seeds=(2,), prompts=("",))
    assert first.digest != second.digest and first.to_json()["seeds"] == (1,)


def of_sizes(*sizes: int) -> Groups:
    group = np.repeat(np.arange(len(sizes)), sizes)
    names = tuple(f"g{number}" for number in range(len(sizes)))
    return Groups(by="test", names=names, idx=np.arange(len(group)), group=group, num_images=len(group))


def test_noisy_groups_keep_their_sizes_and_no_block_stays_at_home():
    """The published proportions: 5 % of each group, in ten blocks."""
    groups = of_sizes(500, 500, 500, 500, 800)
    noisy = with_noise(groups, seed=42)
    moved = noisy.group != groups.group
    assert noisy.sizes == groups.sizes
    assert np.bincount(groups.group[moved]).tolist() == [25] * 5
    ways = {(a, b) for a, b in zip(groups.group[moved], noisy.group[moved], strict=True)}
    assert len(ways) > 10  # an image may go to any group, and not all of a group go to the same
    assert (with_noise(groups, seed=42).group == noisy.group).all()
    assert (with_noise(groups, seed=43).group != noisy.group).any()


def test_noise_in_tiny_groups_moves_one_image_of_each():
    noisy = with_noise(of_sizes(3, 4), seed=1)
    assert (noisy.group != of_sizes(3, 4).group).sum() == 2 and noisy.sizes == [3, 4]


def test_all_derangements_are_drawn():
    drawn = {tuple(derangement(4, seed, "x").tolist()) for seed in range(200)}
    assert len(drawn) == 9  # of the 24 permutations of four


def test_groups_that_overlap_cannot_be_made_noisy():
    groups = Groups(by="x", names=("a", "b"), idx=np.array([0, 0, 1]), group=np.array([0, 1, 1]), num_images=3)
    with pytest.raises(InputError, match="overlap"):
        with_noise(groups, seed=1)
