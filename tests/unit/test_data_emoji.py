"""The embedded data set: how many emoji, which classes, which tenth is held out, and that each is drawn."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from mucs_ray.data.sources import emoji
from mucs_ray.data.table import Row
from mucs_ray.errors import InputError, MachineError

COUNTS = {
    "Activities": 85,
    "Animals & Nature": 153,
    "Component": 5,
    "Flags": 269,
    "Food & Drink": 135,
    "Objects": 262,
    "People & Body": 385,
    "Smileys & Emotion": 168,
    "Symbols": 223,
    "Travel & Places": 218,
}


@pytest.fixture(scope="module")
def listing():
    return emoji.plan(None, None)


@pytest.fixture(scope="module")
def rows(listing):
    found = [each for task in listing.tasks for each in emoji.read(task)]
    assert all(isinstance(each, Row) for each in found)
    return found


def test_1903_pictures_in_10_classes(listing, rows):
    assert listing.classes == tuple(COUNTS) and listing.condition_dim == 10 and listing.condition == "label"
    assert Counter(listing.classes[row.label] for row in rows) == COUNTS
    assert len(rows) == 1903


def test_idx_counts_train_then_test(listing, rows):
    assert [row.idx for row in rows] == list(range(1903))
    assert [task.split for task in listing.tasks] == ["train", "test"]


def test_the_held_out_tenth_is_fixed_for_life(listing):
    first_idx, members, _ = listing.tasks[1].payload
    assert (first_idx, len(members)) == (1715, 188)
    assert [name for _, name, _, _ in members[:3]] == [
        "NEGATIVE SQUARED LATIN CAPITAL LETTER A",
        "NEGATIVE SQUARED LATIN CAPITAL LETTER O",
        "SQUARED VS",
    ]


def test_pictures_fill_the_square_on_white(rows):
    assert {row.image.shape for row in rows} == {(3, 16, 16)}
    for row in rows:
        ink = (row.image < 250).any(axis=0)
        assert ink.any(axis=1).sum() >= 14 or ink.any(axis=0).sum() >= 14, row.text
    corners = np.stack([row.image[:, 0, 0] for row in rows])
    assert (corners == 255).all(axis=1).mean() > 0.7


def test_the_french_flag_is_blue_white_red(rows):
    (flag,) = [row for row in rows if row.text == ("France Flag",)]
    left, middle, right = (flag.image[:, 8, column].astype(int) for column in (3, 7, 12))
    assert left[2] > 120 > left[0] and middle.min() > 240 and right[0] > 150 > 100 > right[2]


def test_sequences_are_drawn_as_one_picture(rows):
    """Without text shaping a joined sequence would be several pictures side by side."""
    (family,) = [row for row in rows if row.text == ("FAMILY: MAN, WOMAN, BOY",)]
    columns = (family.image < 250).any(axis=0).any(axis=0)
    lines = (family.image < 250).any(axis=0).any(axis=1)
    assert columns.sum() >= 10 and lines.sum() >= 10


def test_the_same_bytes_at_any_time(listing, rows):
    again = pickle.loads(pickle.dumps(listing.tasks[1]))
    for row, other in zip(rows[1715:], emoji.read(again), strict=True):
        assert row.idx == other.idx and row.label == other.label and row.text == other.text
        np.testing.assert_array_equal(row.image, other.image)


@pytest.mark.parametrize("size", [8, 32, 96])
def test_other_sizes(size):
    task = emoji.plan(None, size).tasks[1]
    few = replace(task, payload=(task.payload[0], task.payload[1][:5], task.payload[2]))
    assert {row.image.shape for row in emoji.read(few)} == {(3, size, size)}


def test_an_enormous_size_is_refused():
    with pytest.raises(InputError, match="up to 512 px"):
        emoji.plan(None, 4096)


def test_a_pillow_without_shaping_is_refused(monkeypatch):
    monkeypatch.setattr(emoji.features, "check", lambda name: False)
    with pytest.raises(MachineError, match="Raqm"):
        emoji.plan(None, None)


def test_an_emoji_the_font_lacks_is_a_reject(listing, monkeypatch):
    monkeypatch.setattr(emoji, "draw", lambda char, px: None)
    rejects = list(emoji.read(listing.tasks[1]))
    assert len(rejects) == 188 and rejects[0].idx == 1715 and "font" in rejects[0].reason
