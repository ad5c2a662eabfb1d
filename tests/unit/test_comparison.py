"""The report names retrainings that went badly."""

from types import SimpleNamespace
from typing import Any

from mucs_ray.results.counterfactual import bad_retrainings

LABELS = {"random": "Random", "mucs": "MUCS", "das": "DAS"}


def retraining(loss: float) -> Any:
    """Return a finished training with this lowest validation loss."""
    facts = {"updates": 12, "best_loss": loss, "best_step": 8, "workers": 1}
    return SimpleNamespace(facts=lambda: facts, url=lambda file: file)


def run(seed: int, losses: dict[str, list[float]]) -> Any:
    """Return a run of which only the lowest validation losses of its retrainings are known."""
    stages = {
        f"retrain/{method}/{number}": retraining(loss)
        for method, of_method in losses.items()
        for number, loss in enumerate(of_method)
    }
    return SimpleNamespace(
        recipe=SimpleNamespace(seed=seed),
        stages=stages,
        retrained=lambda test: [name for name in stages if name.split("/")[1] == test.method],
    )


def test_a_retraining_far_above_the_best_of_its_seed_is_named():
    runs = [
        run(1, {"random": [0.5], "mucs": [0.59], "das": [0.4917]}),  # 0.59 is 1.19999 times the best
        run(2, {"random": [0.408], "mucs": [0.392], "das": [0.523]}),
        run(3, {"random": [0.5], "mucs": [0.39], "das": [0.4]}),
    ]
    assert bad_retrainings(runs, LABELS, "union") == [
        "Seed 2, DAS: its retraining ended at a validation loss of 0.523, the best one of this seed at 0.392. A model "
        "that is worse overall changes every image, whichever training images it lacks.",
        "Seed 3, Random: its retraining ended at a validation loss of 0.500, the best one of this seed at 0.390. A "
        "model that is worse overall changes every image, whichever training images it lacks.",
    ]


def test_of_a_retraining_for_each_item_the_worst_counts():
    per_item = run(1, {"random": [0.4, 0.41], "mucs": [0.4, 0.6], "das": [0.4, 0.4]})
    (sentence,) = bad_retrainings([per_item], LABELS, "per-item")
    assert sentence.startswith("Seed 1, MUCS: its retraining ended at a validation loss of 0.600")
