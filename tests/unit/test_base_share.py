"""What is said of a fine-tune in words: the base share, and the floor of leaving one out."""

import numpy as np
import pytest

from mucs_ray.evaluation.base_share import is_of_base, sentence, shares
from mucs_ray.results.loo import remark


def test_the_share_is_the_difference_of_the_losses_over_their_sum():
    found = shares(np.array([3.0, 1.0, 1.0]), np.array([1.0, 1.0, 3.0]))
    assert found.tolist() == [0.5, 0.0, -0.5]


@pytest.mark.parametrize(("share", "median", "expected"), [
    (0.01, 0.2, True), (0.02, 0.2, True), (0.03, 0.2, False), (-0.1, 0.2, True), (0.1, -0.1, False), (-0.1, -0.1, True),
])  # fmt: skip
def test_the_base_alone_explains_what_the_fine_tune_explains_hardly_better(share: float, median: float, expected: bool):
    assert is_of_base(share, median) is expected


def test_what_a_share_means_is_said_in_words():
    of_base = sentence("a.png", base=0.5, own=0.49, share=0.0101, median=0.2)
    assert of_base.startswith("a.png: the base alone explains it; the training images did not make this")
    assert "0.5 under the base and 0.49 under the fine-tuned model, a base share of 0.010" in of_base
    assert "explains it better than the base alone" in sentence("b", base=3.0, own=1.0, share=0.5, median=0.2)
    assert "does not explain its own training images" in sentence("c", base=1.0, own=1.0, share=0.0, median=-0.01)


def test_what_another_seed_changes_is_the_floor_of_leaving_one_out():
    said = remark([0.3, 0.05, -0.2, 0.11], 0.1)
    assert "rises by 0.3 at most" in said and "alone changes it by 0.1." in said
    assert "2 of 4 images are above that floor" in said
