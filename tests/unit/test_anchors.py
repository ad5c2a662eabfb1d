"""What a model is to see in place of a group: how likely each other group is, and prompts (spec/backbones 5)."""

import math

import numpy as np
import pytest

from fixture_files import document
from mucs_ray.attribution.forgetting.anchors import Prompt, Template, alike, any_other, mean_direction

REFERENCE = document("guda_c/awss")
STYLES = REFERENCE["style_names"]
PROTOTYPES = np.array(REFERENCE["prototypes"], dtype=np.float32)
GUDA = Template("A depiction of {content}, artistic style featuring {group}")
PHOTO = Template("a photo of {content} in {group} style")


@pytest.mark.parametrize("number", range(len(REFERENCE["cases"])))
def test_probabilities_are_the_reference_ones(number: int):
    case = REFERENCE["cases"][number]
    own = STYLES.index(case["forget"])
    if case["mode"] == "uniform":
        found = any_other(len(STYLES), own)
    else:
        query = np.array(REFERENCE["queries"][case["query"]], dtype=np.float32)
        found = alike(query, PROTOTYPES, own, beta=case["beta"], eta=case["eta"])
    np.testing.assert_allclose(found, case["probabilities"], rtol=0, atol=1e-6)
    assert found[own] == 0
    assert found.sum() == pytest.approx(1, abs=1e-12)


def test_probabilities_by_hand():
    """Cosines of 1, 0 and -1 with beta = ln 2 are weights of 2, 1 and 1/2; the own group, of cosine 1, has none."""
    prototypes = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    query = np.array([1.0, 0.0])
    found = alike(query, prototypes, 0, beta=math.log(2), eta=0.0)
    np.testing.assert_allclose(found, [0, 2 / 3.5, 1 / 3.5, 0.5 / 3.5], atol=1e-15)
    mixed = alike(query, prototypes, 0, beta=math.log(2), eta=0.3)
    np.testing.assert_allclose(mixed, [0, 0.5, 0.3, 0.2], atol=1e-15)


@pytest.mark.parametrize(("beta", "eta", "query"), [(0.0, 0.0, 1.0), (5.0, 1.0, 1.0), (5.0, 0.0, 0.0)])
def test_groups_are_equally_likely_without_a_preference(beta: float, eta: float, query: float):
    found = alike(query * PROTOTYPES[1], PROTOTYPES, 2, beta=beta, eta=eta)
    np.testing.assert_allclose(found, any_other(6, 2), atol=1e-12)
    np.testing.assert_allclose(any_other(6, 2), [0.2, 0.2, 0, 0.2, 0.2, 0.2], atol=1e-15)


def test_the_direction_of_a_group_is_that_of_its_normalised_descriptions():
    found = mean_direction(np.array(REFERENCE["feature_rows"], dtype=np.float32))
    np.testing.assert_allclose(found, REFERENCE["embedding_of_feature_rows"], rtol=0, atol=1e-6)
    by_hand = mean_direction(np.array([[2.0, 0.0], [0.0, 5.0]]))
    np.testing.assert_allclose(by_hand, [math.sqrt(0.5), math.sqrt(0.5)])
    assert not mean_direction(np.zeros((0, 3))).any()


@pytest.mark.parametrize("number", range(5))
def test_prompts_are_taken_apart_as_in_the_reference(number: int):
    """The template of the third prompt is another one, in which it also tells its style."""
    expected = REFERENCE["prompts"][number]
    template = PHOTO if number == 2 else GUDA
    found = template.take_apart(expected["prompt"])
    assert found.content == expected["object"]
    assert list(found.words) == (["Van Gogh"] if number == 2 else expected["descriptors"])
    assert template.without_group(expected["prompt"]) == expected["style_removed"]


def test_a_filled_template_is_taken_apart_into_what_it_was_filled_with():
    assert GUDA.filled("Dogs", ["d5", "d3", "d4"]) == REFERENCE["synthesised"][0]
    assert GUDA.filled("Dogs", ["d2", "d1"]) == REFERENCE["synthesised"][1]
    assert GUDA.take_apart(REFERENCE["synthesised"][0]) == Prompt(content="Dogs", words=("d5", "d3", "d4"))
    assert PHOTO.take_apart(PHOTO.filled("a dog", ["Van Gogh"])) == Prompt(content="a dog", words=("Van Gogh",))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("A depiction of {content}", "once each"),
        ("{content}, {content} by {group}", "once each"),
        ("By {group}: {content}", "{content} before {group}"),
        ("{content} {group}", "words between"),
        (GUDA.text, None),
    ],
)
def test_a_template_that_cannot_be_found_again_is_refused(text: str, problem: str | None):
    found = Template(text).problem()
    assert (found is None) if problem is None else (problem in (found or ""))
