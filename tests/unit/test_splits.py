"""Which split a file belongs to and which class folder it is in, by its path alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mucs_ray.data.sources.splits import named_splits, place, refuse_configurations, split_of
from mucs_ray.errors import InputError

HELD = ["test", "Testing", "val", "valid", "Validation", "VALIDATION", "dev", "eval", "test_set", "val2017", "testset"]


def placed(*paths: str) -> dict[str, tuple[str, str]]:
    """Split and class folder by path."""
    return {path: (each.split, "/".join(each.inside[:1])) for path, each in place(paths, "root").items()}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("train", ["train", "Train", "TRAINING", "train_images", "train2017"])
def test_folders_of_splits_beside_each_other(held: str, train: str) -> None:
    found = placed(f"{train}/cat/1.png", f"{train}/dog/2.png", f"{held}/cat/3.png")
    split = split_of(held)
    assert split in ("test", "validation")
    assert list(found.values()) == [("train", "cat"), ("train", "dog"), (split, "cat")]
    assert list(placed(f"{train}/1.png", f"{held}/3.png").values()) == [("train", ""), (split, "")]


@pytest.mark.parametrize("held", HELD)
def test_a_held_out_folder_among_classes_or_loose_images(held: str) -> None:
    split = split_of(held)
    for root in ("", "train/"):
        assert list(placed(f"{root}cat/1.png", f"{root}dog/2.png", f"{root}{held}/cat/3.png").values()) == [
            ("train", "cat"), ("train", "dog"), (split, "cat")]  # fmt: skip
        assert list(placed(f"{root}1.png", f"{root}{held}/3.png").values()) == [("train", ""), (split, "")]


def test_splits_under_each_class_and_under_a_folder_of_all() -> None:
    each = ("cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/val/4.png")
    expected = [("train", "cat"), ("test", "cat"), ("train", "dog"), ("validation", "dog")]
    assert list(placed(*each).values()) == expected
    assert list(placed(*(f"pets/{path}" for path in each)).values()) == expected
    assert list(placed("pets/Train/cat/1.png", "pets/Valid/dog/2.png").values()) == [
        ("train", "cat"), ("validation", "dog")]  # fmt: skip
    assert list(placed("train/images/cat/1.png", "test/images/dog/2.png").values()) == [
        ("train", "cat"), ("test", "dog")]  # fmt: skip


def test_all_three_splits_are_told_apart_and_what_is_beside_them_is_left_out() -> None:
    found = placed("train/a/1.png", "val/a/2.png", "test/a/3.png", "samples/4.png")
    assert [split for split, _ in found.values()] == ["train", "validation", "test"]
    assert "samples/4.png" not in found


def test_a_class_may_have_the_name_of_a_split_or_a_word_of_one() -> None:
    assert placed("train/1.png", "car/2.png") == {"train/1.png": ("train", "train"), "car/2.png": ("train", "car")}
    names = ("train_station", "test_tube", "evaluate", "developer", "valley", "testament")
    assert [split_of(name) for name in names] == [None] * len(names)


@pytest.mark.parametrize("paths", [["test/a/1.png", "test/b/2.png"], ["x/val/1.png"], ["val/1.png", "test/2.png"]])
def test_only_held_out_images_are_refused_with_what_to_do(paths: list[str]) -> None:
    with pytest.raises(InputError, match=r"no training files.* --source root/\S*(val|test)") as told:
        place(paths, "root/")
    assert "\n" not in str(told.value)


PART = st.sampled_from(["train", "test", "cat", "dog", "images", "val", "x y", "[x]", "é"])


@given(st.lists(st.lists(PART, max_size=4).map(lambda parts: "/".join([*parts, "1.png"])), min_size=1, unique=True))
def test_every_file_has_a_place_or_lies_beside_the_splits(paths: list[str]) -> None:
    try:
        found = place(paths, "root")
    except InputError:
        return
    assert set(found) <= set(paths) and any(each.split == "train" for each in found.values())
    if not any(split_of(part) for path in paths for part in path.split("/")[:-1]):
        assert set(found) == set(paths) and {each.split for each in found.values()} == {"train"}


@pytest.mark.parametrize(
    ("name", "split"),
    [("data/train-00000-of-00001-0a1b2c.parquet", "train"), ("default/validation/0000.parquet", "validation"),
     ("en/partial-test/0003.parquet", "test"), ("0000.parquet", "train"), ("cifar-test.tar", "test"),
     ("Val/000.tar", "validation"), ("testimonials.parquet", "train")],
)  # fmt: skip
def test_the_split_of_a_file_is_in_its_name_or_its_folder(name: str, split: str) -> None:
    assert named_splits([name, "train/0001.parquet"], "root")[name] == split


def test_several_data_sets_in_one_folder_are_refused() -> None:
    with pytest.raises(InputError, match=r"cifar10/, cifar100/; give the folder of one"):
        refuse_configurations(["cifar10/train/0.parquet", "cifar100/train/0.parquet"], "root")
    refuse_configurations(["default/train/0.parquet", "default/test/0.parquet"], "root")
    refuse_configurations(["data/a/0.parquet", "data/b/0.parquet"], "root")
