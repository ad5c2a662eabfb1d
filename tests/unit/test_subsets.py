"""The subsets of the linear datamodeling score: uniform halves, and halves of whole blocks of look-alikes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mucs_ray.data.table import Dataset
from mucs_ray.data.thumbnails import thumbnails
from mucs_ray.diffusion.noise import generator
from mucs_ray.evaluation.subsets import chosen, find_blocks, num_chosen, repeat_seed
from tiny import tiny_dataset

IDX = np.arange(100, 160)
BLOCK = np.repeat(np.arange(12), 5)


def subset(number: int, *, share: float = 0.5, seed: int = 1, block: np.ndarray = BLOCK) -> frozenset[int]:
    return chosen(number, IDX, block, share=share, seed=seed)


@given(number=st.integers(0, 500), share=st.floats(0.05, 0.95), seed=st.integers(0, 9))
def test_every_subset_has_its_share_of_the_images(number: int, share: float, seed: int):
    kept = subset(number, share=share, seed=seed)
    assert len(kept) == num_chosen(60, share) and kept <= set(IDX.tolist())
    assert kept == subset(number, share=share, seed=seed)


@given(number=st.integers(0, 200), seed=st.integers(0, 9))
def test_odd_subsets_take_whole_blocks_but_for_one(number: int, seed: int):
    kept = subset(2 * number + 1, share=0.45, seed=seed)  # 27 images are 5 blocks and 2 images
    counts = [sum(idx in kept for idx in IDX[block == BLOCK]) for block in range(12)]
    assert sorted(counts) == [0] * 6 + [2] + [5] * 5


def test_an_even_subset_is_the_beginning_of_a_named_order():
    order = generator(3, "lds/subset=4").permutation(60)
    assert subset(4, seed=3) == set(IDX[order[:30]].tolist())
    assert subset(4, seed=3, block=BLOCK[::-1]) == subset(4, seed=3)  # blocks do not matter there


def test_subsets_and_seeds_differ():
    subsets = [subset(number, seed=seed) for number in range(20) for seed in (1, 2)]
    assert len(set(subsets)) == 40
    assert repeat_seed(1) not in (1, repeat_seed(2))


def test_each_image_is_left_out_about_half_the_time():
    for first in (0, 1):
        counts = np.sum([[idx in subset(number) for idx in IDX] for number in range(first, 400, 2)], axis=0)
        assert abs(counts / 200 - 0.5).max() < 0.15


def test_planted_groups_of_a_class_become_blocks():
    """Two classes of 20 and 40 images; each ten images are near one point."""
    stream = np.random.default_rng(5)
    group, label = np.repeat(np.arange(6), 10), np.repeat([7, -1, -1], 20)
    features = 100.0 * stream.standard_normal((6, 4))[group] + stream.standard_normal((60, 4))
    mixed = stream.permutation(60)
    block = find_blocks(features[mixed], label[mixed], 6, seed=1)
    assert (block == find_blocks(features[mixed], label[mixed], 6, seed=1)).all()
    of_class = [set(block[label[mixed] == value].tolist()) for value in (7, -1)]
    assert not of_class[0] & of_class[1] and set().union(*of_class) == set(range(int(block.max()) + 1))
    purity = [np.unique(block[group[mixed] == each]).size for each in range(6)]
    assert purity == [1] * 6  # k-means keeps look-alikes together


@pytest.mark.filterwarnings("error")
def test_a_class_with_few_images_has_a_block_of_its_own():
    block = find_blocks(np.zeros((12, 3)), np.asarray([0] * 11 + [1]), 3, seed=1)
    assert block[-1] not in block[:-1] and len(set(block.tolist())) == 2  # equal images cannot be told apart


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return tiny_dataset(tmp_path_factory.mktemp("data"))


def test_images_are_described_by_their_pixels(data: Dataset):
    idx, label, pixels = thumbnails(data)
    assert idx.tolist() == list(range(60)) and label.tolist() == [0, 1, 2] * 20 and pixels.shape == (60, 3 * 64)
    (row,) = data.find({7}, "train").values()
    np.testing.assert_array_equal(pixels[7], row.image.reshape(-1))  # 8 px already
