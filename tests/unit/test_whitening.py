"""Whitening over the items is the formula by hand, does not depend on the parts, and takes hubs out."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mucs_ray.attribution.whitening import Moments, Part, Whitening, whitened
from mucs_ray.errors import RunFailed


def moments(scores: np.ndarray, *cuts: int) -> Moments:
    """Return the moments of scores that come in parts."""
    seen = Moments.empty(scores.shape[1])
    for part in np.split(np.arange(len(scores)), cuts):
        seen = seen.add(part, scores[part])
    return seen


def of_matrix(scores: list[list[float]] | np.ndarray, delta: float = 1.0) -> np.ndarray:
    table = np.asarray(scores, dtype=np.float32)
    return Whitening.of(moments(table), delta)(table)


def some_scores(num_images: int, num_items: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((num_images, num_items)).astype(np.float32)


def test_two_items_by_hand():
    """The columns have mean 2 and 10, deviation 1 and 10, and correlation 1/2.

    C + I has the eigenvalues 2.5 for (1, 1) and 1.5 for (1, -1), so its inverse root has p = (.4^.5 + (2/3)^.5) / 2 on
    the diagonal and q = (.4^.5 - (2/3)^.5) / 2 beside it.
    """
    scaled = np.asarray([[1, 1], [1, 1], [1, 1], [-1, -1], [-1, -1], [-1, -1], [1, -1], [-1, 1]])
    scores = scaled * [1, 10] + [2, 10]
    p, q = (0.4**0.5 + (2 / 3) ** 0.5) / 2, (0.4**0.5 - (2 / 3) ** 0.5) / 2
    np.testing.assert_allclose(of_matrix(scores), scaled @ [[p, q], [q, p]], rtol=1e-6)


def test_with_a_tiny_delta_columns_no_longer_correlate_and_with_a_huge_one_they_are_only_scaled():
    scores = some_scores(500, 4) @ np.asarray([[2, 0, 0, 0], [1, 1, 0, 0], [1, 1, 3, 0], [1, 0, 0, 1]])
    np.testing.assert_allclose(np.cov(of_matrix(scores, 1e-9).T, bias=True), np.eye(4), atol=1e-4)
    scaled = (scores - scores.mean(0)) / scores.std(0)
    np.testing.assert_allclose(of_matrix(scores, 1e8) * 1e4, scaled, atol=1e-3)


def test_one_item_keeps_its_order():
    scores = np.float32([[0.1], [-0.9], [0.7], [0.3]])
    found = of_matrix(scores)
    np.testing.assert_allclose(found, (scores - 0.05) / scores.std() / 2**0.5, rtol=1e-5)
    assert found.dtype == np.float32


def test_items_without_anything_in_common_keep_their_order():
    """The columns are orthogonal, so that C = I, as where lists hardly overlap."""
    scores = np.asarray([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * [1, 5, 0.1] + [0, 3, 7]
    np.testing.assert_allclose(of_matrix(scores) * 2**0.5, np.sign(scores - scores.mean(0)), rtol=1e-5)


def test_a_hub_comes_down_and_each_items_own_image_is_first():
    """Image 0 is first for all six items, and image 1 + q second for item q alone."""
    scores = 0.1 * some_scores(60, 6)
    scores[0] = 1.2
    scores[np.arange(1, 7), np.arange(6)] = 1.0
    assert (scores.argmax(axis=0) == 0).all()
    assert (of_matrix(scores, 0.1).argmax(axis=0) == np.arange(1, 7)).all()


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(1, 19), unique=True, max_size=5).map(sorted), st.floats(-1e4, 1e4))
def test_moments_do_not_depend_on_the_parts(cuts: list[int], offset: float):
    """Neither does a large mean hide what differs, as a difference of sums of squares would."""
    scores = some_scores(20, 3).astype(np.float64) + offset
    parts = moments(scores, *cuts)
    assert parts.count == 20
    np.testing.assert_allclose(parts.mean, scores.mean(0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(parts.products / 20, np.cov(scores.T, bias=True), rtol=1e-7, atol=1e-9)


def test_an_item_for_which_all_images_are_equal_stays_so():
    scores = some_scores(30, 3)
    scores[:, 1] = 0.25
    found = of_matrix(scores)
    np.testing.assert_allclose(found[:, 1], 0, atol=1e-7)
    np.testing.assert_allclose(found[:, [0, 2]], of_matrix(scores[:, [0, 2]]), rtol=1e-5, atol=1e-7)


def test_a_score_that_is_not_finite_is_named():
    scores = np.float32([[0.1, 0.2], [np.nan, 0.1]])
    with pytest.raises(RunFailed, match="training image idx=31 is not finite"):
        Moments.empty(2).add(np.asarray([30, 31]), scores)


def test_streamed_parts_are_whitened_as_a_whole():
    """The parts are read twice, and come in their order."""
    scores, read = some_scores(10, 3), []

    def parts() -> Iterator[Part]:
        read.append(1)
        yield from ((rows + 100, scores[rows]) for rows in (np.arange(0, 4), np.arange(4, 10)))

    found = list(whitened(parts, 3, 0.3))
    assert [idx.tolist() for idx, _ in found] == [[*range(100, 104)], [*range(104, 110)]]
    np.testing.assert_allclose(np.concatenate([part for _, part in found]), of_matrix(scores, 0.3), rtol=1e-5)
    assert len(read) == 2
