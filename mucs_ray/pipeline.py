"""The stages in order, as one reads the paper: pretrain, generate, unlearn, score, rank, report (spec 12).

What each stage reads is listed here once; its fingerprint, and so what a changed knob makes stale, follows from it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Any

from rich.console import Console

from mucs_ray import storage
from mucs_ray.config import Recipe, build, check_fits
from mucs_ray.data.table import Dataset
from mucs_ray.errors import InputError
from mucs_ray.store.run import Stage, State, open_run, read_json_or_none

METHOD = "mucs"
REPORT_LAYOUT = 1
"""Raise when the report changes, so that reports are made again."""
ORDER = ("pretrain", "generate", "null", "unlearn", "score", "attribute", "report")
"""Short names of the stages; the last of an attribution, which ranks, carries its name."""


def settings(recipe: Recipe, *keys: str, without: Sequence[str] = ()) -> dict[str, Any]:
    """The recipe's values under sections or dotted keys, flat, as they look in JSON."""
    flat: dict[str, Any] = {}
    for key, value in recipe.to_dict().items():
        entries = {f"{key}.{inner}": each for inner, each in value.items()} if isinstance(value, dict) else {key: value}
        flat |= {name: list(each) if isinstance(each, tuple) else each for name, each in entries.items()}
    chosen = {name: value for name, value in flat.items() if name in keys or name.split(".")[0] in keys}
    return {name: value for name, value in chosen.items() if name not in without}


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One run: a recipe, a data set and a run directory."""

    recipe: Recipe
    dataset: Dataset
    run_url: str
    console: Console
    address: str | None = None
    verbose: bool = False
    weights_digest: str | None = None
    """sha256 of the recipe's `weights`, if it has any."""

    @classmethod
    def open(cls, recipe: Recipe, dataset: Dataset, run_url: str, **how: Any) -> "Pipeline":  # noqa: ANN401
        """Check that model, data and counts fit and that the run directory can be written. InputError if not."""
        check_fits(recipe, dataset.card)
        digest = sha256(storage.read_bytes(recipe.weights)).hexdigest() if recipe.weights else None
        run_url = open_run(run_url)
        return cls(recipe=recipe, dataset=dataset, run_url=run_url, weights_digest=digest, **how)

    def describe(self) -> dict[str, Any]:
        """For recipe.json: enough to see where the run stands from any folder, without the weights' file."""
        return {**self.recipe.to_dict(), "data": self.dataset.url, "weights_sha256": self.weights_digest}

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """Every stage as it would be run now, by its short name."""
        stages: dict[str, Stage] = {}
        extra = {"data": self.dataset.card.fingerprint}

        def stage(short: str, folder: str, reads: Mapping[str, Any], *inputs: str) -> None:
            known = {name: each.fingerprint for name, each in stages.items()} | extra
            picked = {name: known[name] for name in inputs}
            stages[short] = Stage(run_url=self.run_url, name=folder, reads=reads, inputs=picked)

        recipe, attribute = self.recipe, f"attribute/{METHOD}"
        chosen = () if recipe.weights else ("train.checkpoint",)
        if recipe.weights:
            stage("pretrain", "pretrain", {"weights": self.weights_digest, **settings(recipe, "model")})
        else:
            reads = settings(recipe, "model", "train", "seed", without=("train.checkpoint",))
            stage("pretrain", "pretrain", reads, "data")
        stage("generate", "generate", settings(recipe, "generate", "seed", *chosen), "data", "pretrain")
        # the controls are generated beside the targets but nothing is made of them here
        stage(
            "targets",
            "generate",
            settings(recipe, "generate", "seed", *chosen, without=["generate.controls"]),
            "data",
            "pretrain",
        )
        extra["targets"] = stages.pop("targets").fingerprint
        null = settings(recipe, "model", "seed", "unlearn.null_loss", "unlearn.null_batches")
        stage("null", f"{attribute}/null", null, "data")
        knobs = settings(recipe, "unlearn", "train.learning_rate", "generate.items", "seed", *chosen)
        knobs = {name: value for name, value in knobs.items() if name not in null or name == "seed"}
        stage("unlearn", f"{attribute}/unlearn", knobs, "data", "pretrain", "targets", "null")
        stage("score", f"{attribute}/score", settings(recipe, "score", "seed", *chosen), "data", "pretrain", "unlearn")
        stage("attribute", attribute, settings(recipe, "rank", "seed"), "score")
        shown = {"layout": REPORT_LAYOUT, **settings(recipe, "name")}
        stage("report", "report", shown, "attribute", "generate", "unlearn")
        return stages

    def until(self, target: str) -> list[str]:
        """Short names of the stages that a target needs, in order."""
        return list(ORDER[: ORDER.index(target) + 1])

    def plan(self, target: str) -> dict[str, State]:
        """Where each needed stage stands, and why."""
        states = {short: self.stages[short].state() for short in self.until(target)}
        if target == "report" and not storage.exists(storage.join(self.run_url, "report.html")):
            states["report"] = State(status="missing", reason="no report.html")
        return states


def reopen(run_url: str, *, console: Console) -> Pipeline:
    """A run as its directory describes it. InputError if there is none."""
    run_url = storage.absolute(run_url)
    values = read_json_or_none(storage.join(run_url, "recipe.json"))
    if values is None:
        raise InputError(
            f"no run at {run_url} (expected recipe.json there); start one with: mucs-ray attribute --run URL"
        )
    digest = values.pop("weights_sha256", None)
    recipe, dataset = build(values), Dataset.open(values["data"])
    return Pipeline(recipe=recipe, dataset=dataset, run_url=run_url, console=console, weights_digest=digest)
