"""Stages are grouped into passes over the training set."""

import pytest

from mucs_ray.pipeline.passes import in_passes

DAS = {"das/features": ("data",), "das/solve": ("das/features",), "das/score": ("das/features", "das/solve")}
MUCS = {"mucs/unlearn": (), "mucs/score": ("mucs/unlearn",), "mucs": ("mucs/score",)}
STREAMED = {"das/features", "das/score", "mucs/score", "pixel/score"}


def test_what_streams_at_the_same_level_is_one_pass():
    order = list(in_passes({**DAS, "das": ("das/score",), **MUCS, "pixel/score": ()}, STREAMED))
    assert order == [
        ("mucs/unlearn",),
        ("das/features", "mucs/score", "pixel/score"),
        ("das/solve",),
        ("mucs",),
        ("das/score",),
        ("das",),
    ]


def test_what_is_done_already_is_not_waited_for():
    missing = {name: read for name, read in {**DAS, **MUCS}.items() if name not in ("das/features", "mucs/unlearn")}
    order = list(in_passes(missing, STREAMED))
    assert order == [("das/solve",), ("das/score", "mucs/score"), ("mucs",)]


def test_a_pass_has_no_more_stages_than_asked():
    order = list(in_passes({"a": (), "b": (), "c": (), "d": ("a",)}, "abc", 2))
    assert order == [("a", "b"), ("d",), ("c",)]


def test_stages_that_do_not_stream_keep_their_order():
    assert list(in_passes({"b": (), "a": (), "c": ("a",)}, ())) == [("b",), ("a",), ("c",)]
    assert list(in_passes({}, STREAMED)) == []


def test_a_circle_is_an_error_and_not_an_endless_loop():
    with pytest.raises(AssertionError, match="wait for each other: a, b"):
        list(in_passes({"a": ("b",), "b": ("a",)}, ()))
