"""An answer in which nothing was unlearned is said to be none."""

from mucs_ray.attribution.registry import METHODS
from mucs_ray.results.warnings import nothing_unlearned


def attribution(*highest: float) -> dict[str, object]:
    return {"items": [{"item": number, "top": [[7, score], [8, 0.0]]} for number, score in enumerate(highest)]}


def test_highest_scores_of_zero_are_told_for_methods_that_unlearn():
    told = list(
        nothing_unlearned(
            {"mucs": attribution(0.0, 0.2, -0.0004), "mucs/mutual": attribution(0.3), "abu": attribution(0.0, 0.0),
             "pixel": attribution(0.0), "das": attribution(0.0)},
            METHODS,
        )
    )  # fmt: skip
    assert [line.split(",")[0] for line in told] == [
        "mucs: the highest score is 0.000 for image 0",
        "abu: the highest score is 0.000 for all images",
    ]
    assert "image 0, 2, so that nothing was unlearned" in told[0]
