"""Pipelines on the tiny data set, run inside a Ray that is already there."""

import io
from pathlib import Path

from rich.console import Console

from mucs_ray import driver
from mucs_ray.data.table import Dataset
from mucs_ray.engine.session import Cluster
from mucs_ray.pipeline import Pipeline
from tiny import tiny_recipe


def open_tiny(
    dataset: Dataset,
    run: Path,
    *,
    methods: tuple[str, ...] = ("mucs",),
    weights_dir: str | None = None,
    **changes: object,
) -> Pipeline:
    """A pipeline on the tiny data set; with one training worker and one scorer unless changed, which start sooner."""
    changes = {"engine": {"train_workers": 1, "actors": [1, 1]}, **changes}
    console = Console(file=io.StringIO())
    recipe = tiny_recipe(dataset.url, **changes)
    return Pipeline.open(recipe, dataset, str(run), console=console, methods=methods, weights_dir=weights_dir)


def work(pipeline: Pipeline, target: str, cluster: Cluster) -> list[str]:
    """driver.run inside the running session, up to a command's goal or to a part of MUCS's attribution."""
    part = target.startswith("attribute/")
    todo = driver.missing([pipeline], "attribute" if part else target)
    names = [name for _, name in todo]
    if target in names:
        todo = todo[: names.index(target) + 1]
    driver.do([each for each in todo if each[1] != "report"])
    if todo and todo[-1][1] == "report":
        driver.write_report(pipeline)
    return [name for _, name in todo]
