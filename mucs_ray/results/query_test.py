"""What the counterfactual test of pictures of the user's compared, in words and numbers."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from mucs_ray.evaluation.config import Mode
from mucs_ray.pipeline.graph import Pipeline, RemovalTest
from mucs_ray.report.document import Cell, Table
from mucs_ray.store.facts import LossFacts, RemovalFacts, read_facts

SHOWN_LOSSES = 50
"""The number of pictures in the table of losses."""


def compared_by(pipeline: Pipeline) -> str:
    """Return by what the pictures were compared, in one sentence."""
    noises, fresh = pipeline.recipe.evaluate.noises, pipeline.recipe.evaluate.fresh
    loss = f"the mean loss of each picture by the model before and after, on the same {noises} noises as in training"
    match pipeline.regeneration:
        case "same":
            return f"Compared: {loss}, and the picture generated again from its own noise, which this run knows."
        case "fresh":
            return f"Compared: {loss}, and {fresh} fresh images of each picture's condition, from the same noise."
        case "none":
            return f"Compared: {loss}. The noise that the pictures were made from is not known."


def procedure(pipeline: Pipeline) -> str:
    """Return what was done, and what a method that found the right images would show."""
    return (
        "Each method’s highest ranked training images were removed, and the model was trained again from scratch"
        f" without them. {compared_by(pipeline)} A method that found the right images raises the loss more, and changes"
        " the images more, than random removal does."
    )


def losses(pipeline: Pipeline, modes: Collection[Mode]) -> dict[RemovalTest, LossFacts]:
    """Return the losses of the pictures before and after, of each test in these modes that is done."""
    stages = {test: pipeline.evaluated.get(f"evaluate/{key}") for key, test in pipeline.tests.items()}
    done = {test: stage for test, stage in stages.items() if stage is not None and stage.state().status == "done"}
    return {test: read_facts(stage, LossFacts) for test, stage in done.items() if test.mode in modes}


def as_json(pipeline: Pipeline) -> dict[str, Any]:
    """Return by what the pictures were compared, and their losses, as JSON values."""
    measured = losses(pipeline, pipeline.recipe.remove.modes)
    after = {pipeline.key(test): each.after for test, each in measured.items()}
    before = next(iter(measured.values())).before
    return {"compared_by": compared_by(pipeline), "loss_before": before, "loss_after": after}


def loss_table(pipeline: Pipeline, mode: Mode, names: Mapping[str, str]) -> Table:
    """Lay out the loss of each picture, before and after the removal for each method."""
    measured = {test: each for test, each in losses(pipeline, [mode]).items() if test.method in names}
    stages = {test: pipeline.stage(f"evaluate/{pipeline.key(test)}") for test in measured}
    titles = [
        f"{names[test.method]} (without {read_facts(stage, RemovalFacts).removed:,})" for test, stage in stages.items()
    ]
    before = next(iter(measured.values())).before
    rows = tuple(
        (Cell(text=query.name), Cell(text=f"{before[number]:.4f}"), *loss_cells(measured.values(), number))
        for number, query in enumerate(pipeline.queries[:SHOWN_LOSSES])
    )
    more = len(pipeline.queries) - len(rows)
    return Table(
        key="losses",
        title="How well does the model know the pictures?",
        note=(
            "Mean loss of a picture by the model before, and after training without the images that a method names."
            f" Higher is worse known.{f' {more} more pictures are in report.json.' if more else ''}"
        ),
        columns=("Picture", "Before", *titles),
        rows=rows,
    )


def loss_cells(measured: Iterable[LossFacts], number: int) -> list[Cell]:
    """Lay out a picture's losses after each removal, with the relative change."""
    return [
        Cell(text=f"{each.after[number]:.4f}", note=change(each.before[number], each.after[number]))
        for each in measured
    ]


def change(before: float, after: float) -> str:
    """Write the relative change of a loss, e.g. "+12.3 %"."""
    return f"{100 * (after / before - 1):+.1f}\u00a0%".replace("-", "\u2212") if before else ""
