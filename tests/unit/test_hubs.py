"""Hubs: counts by hand, shares by chance against the exact distribution and drawn lists, and the report's section."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from mucs_ray.attribution.random import random_scores
from mucs_ray.evaluation.hubs import Frequent, Hubs, find_hubs, most_by_chance, share_by_chance
from mucs_ray.report.document import HubSection
from mucs_ray.report.html import render
from mucs_ray.report.hub_tables import TrainingImage, hub_section
from report_samples import EVIL, Page, evaluation, holds, picture, pictures, report, section


def lists(*each: list[int]) -> list[np.ndarray]:
    return [np.asarray(one, dtype=np.int64) for one in each]


def random_lists(num_images: int, k: int, num_lists: int, *, seed: int) -> list[np.ndarray]:
    scores = random_scores(np.arange(num_images), seed=seed, num_items=num_lists)
    return list(np.argsort(-scores, axis=0)[:k].T)


def test_hubs_by_hand():
    """Of 200 images: 7 in all four lists, 50 in two and higher up than 30 in two; 2 images are the top 1 %."""
    actual = find_hubs(lists([7, 30, 1], [50, 7, 30], [50, 7, 2], [7, 3, 4]), num_images=200, num_frequent=4)
    assert actual.most_frequent == (
        Frequent(idx=7, lists=4), Frequent(idx=50, lists=2), Frequent(idx=30, lists=2), Frequent(idx=3, lists=1),
    )  # fmt: skip
    assert (actual.num_lists, actual.num_images, actual.top_k, actual.union) == (4, 200, 3, 7)
    assert actual.expected_lists == pytest.approx(4 * 3 / 200)
    assert actual.share == pytest.approx((4 + 2) / 12)
    assert actual.union_by_chance == round(200 * (1 - 0.985**4))


def test_an_image_in_more_lists_than_chance_gives_is_a_hub():
    """N = 100, k = 2, m = 3: P(X > 1) = 3 x 0.02^2 x 0.98 + 0.02^3 = 0.001184, of 100 images 0.12; P(X > 2) 0.0008."""
    assert most_by_chance(100, 2, 3) == 2
    assert find_hubs(lists([1, 2], [1, 3], [4, 5]), num_images=100).num_hubs == 0
    assert find_hubs(lists([1, 2], [1, 3], [4, 1]), num_images=100).num_hubs == 1


@pytest.mark.parametrize(("num_images", "k", "num_lists"), [(50_000, 1000, 20), (1715, 34, 8), (60, 6, 2), (10, 10, 3)])
def test_the_bound_against_the_binomial_distribution(num_images: int, k: int, num_lists: int):
    """The smallest count that N P(X > c) keeps below 5 %."""
    p = k / num_images

    def any_above(count: int) -> float:
        terms = (math.comb(num_lists, c) * p**c * (1 - p) ** (num_lists - c) for c in range(count + 1, num_lists + 1))
        return num_images * sum(terms)

    bound = most_by_chance(num_images, k, num_lists)
    assert any_above(bound) <= 0.05 and (bound == 0 or any_above(bound - 1) > 0.05)


def test_random_lists_have_no_hubs_but_once_in_twenty_times():
    """And their share is the one by chance. 40 sets: more than 7 with a hub have a probability of 1e-3."""
    all_hubs = [find_hubs(random_lists(2000, 40, 20, seed=seed), num_images=2000) for seed in range(40)]
    assert sum(hubs.num_hubs > 0 for hubs in all_hubs) <= 7
    mean = np.mean([hubs.share for hubs in all_hubs])
    assert mean == pytest.approx(all_hubs[0].share_by_chance, rel=0.03)
    assert np.mean([hubs.union for hubs in all_hubs]) == pytest.approx(all_hubs[0].union_by_chance, rel=0.01)


def test_share_by_chance_by_hand():
    """N = 100, k = 10, m = 2: one image of 100 is expected in both lists, and it is the 1 %: 2 of 20 places."""
    assert share_by_chance(100, 10, 2) == pytest.approx(2 / 20)
    assert share_by_chance(100, 100, 3) == pytest.approx(0.01)
    # N = 1000, k = 20, m = 2: 0.4 expected in both, 39.2 in one; 10 images take 0.4 x 2 + 9.6 of 40 places
    assert share_by_chance(1000, 20, 2) == pytest.approx((0.8 + 9.6) / 40)


def test_lists_that_are_one_list_are_all_hubs():
    actual = find_hubs(lists(*[list(range(20))] * 10), num_images=1000)
    assert (actual.num_hubs, actual.union, actual.share) == (20, 20, 0.5)
    assert len(actual.most_frequent) == 8 and actual.most_frequent[0] == Frequent(idx=0, lists=10)


@pytest.mark.parametrize("top", [lists(), lists([1, 2], [3]), lists([1, 1]), lists(list(range(11))), lists([])])
def test_what_is_no_set_of_lists_is_refused(top: list[np.ndarray]):
    with pytest.raises(ValueError, match="list"):
        find_hubs(top, num_images=10)


def found_hubs() -> Hubs:
    return find_hubs(lists([7, 1, 2], [7, 3, 1], [7, 4, 5]), num_images=200)


def images(hubs: Hubs, *, label: str = "apple", text: str = "a red apple") -> dict[int, TrainingImage]:
    return {one.idx: TrainingImage(label=label, text=text, image=picture(300 + one.idx)) for one in hubs.most_frequent}


def built(method: str = "MUCS", **words: str) -> HubSection:
    hubs = found_hubs()
    made = hub_section({method: hubs, "Random": hubs}, images(hubs, **words))
    assert made is not None
    return made


def test_the_section_shows_the_numbers_and_the_images():
    """By chance: N P(X > 1) = 0.13 and N P(X > 2) = 0.0007; 2 images take 3 x 0.0007 + 2 x 0.133 + 1.867 places."""
    made = built()
    first = made.table.rows[0]
    assert [cell.text for cell in first] == ["MUCS", "3", "3", "1", "55.6\u00a0%", "6"]
    assert [cell.note for cell in first] == [
        "", "of 3", "by chance 2", "", "by chance 23.7\u00a0%", "by chance 9",
    ]  # fmt: skip
    shown = [(image.idx, image.lists) for image in made.rows[0].images]
    assert shown == [(7, 3), (1, 2), (3, 1), (4, 1), (2, 1), (5, 1)]
    html = render(report(hubs=made))
    texts = Page(html).texts
    assert {"of 3", "idx 7", "apple", "a red apple", "55.6\u00a0%", "by chance 9"} <= set(texts)
    assert [re.findall(r"<h3>(\w+)</h3>", html).count(name) for name in ("MUCS", "Random")] == [1, 1]
    assert all(holds(pictures(html), image.image) for image in made.rows[0].images)


def test_the_section_stands_between_the_test_and_the_items():
    html = render(report(section(1), evaluations=(evaluation(),), hubs=built()))
    places = [html.index(part) for part in ('id="evaluation"', 'id="hubs"', 'id="table-hubs"', 'id="item-1"')]
    assert places == sorted(places)
    assert 'id="hubs"' not in render(report())


def test_foreign_text_is_inert_among_hubs():
    html = render(report(hubs=built(EVIL, label=EVIL, text=EVIL + ".")))
    page = Page(html)
    assert "<script" not in html.lower() and "<img" not in html.lower()
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    # the method in the table and over its images, and label and text of 6 images by two methods
    assert "".join(page.texts).count(EVIL) == 2 + 2 * 6 * 2
    assert f"{EVIL}: {EVIL}." in [attributes.get("title") for _, attributes in page.tags]


def test_large_pictures_are_small_among_hubs():
    hubs = found_hubs()
    large = {idx: replace(one, image=picture(idx, 256, 200)) for idx, one in images(hubs).items()}
    html = render(report(section(), hubs=hub_section({"MUCS": hubs}, large)))
    assert max(max(image.shape) for image in pictures(html)) == 128


def test_one_list_has_no_hubs_to_tell_of():
    one = find_hubs(lists([7, 1]), num_images=10)
    assert hub_section({"MUCS": one}, {}) is None
