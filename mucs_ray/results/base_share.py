"""The base share of a finished run: numbers for programs, and sentences for the top of the report."""

import csv
import io
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from mucs_ray.evaluation.base_share import is_of_base, sentence
from mucs_ray.pipeline.graph import BASE_SHARE, Pipeline

FILE = "share.csv"
COLUMNS = ("kind", "idx", "base", "own", "share")


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """The base share of one picture."""

    idx: int
    base: float
    """The loss under the base."""
    own: float
    """The loss under the fine-tuned model."""
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseShares:
    """The base shares of the targets, in their order, and of the training images, by idx."""

    targets: list[Share]
    images: list[Share]

    @property
    def median(self) -> float:
        """The median share of the training images."""
        return median(share.share for share in self.images)


def finished(pipeline: Pipeline) -> BaseShares | None:
    """Read the base shares of a run; None if it is not a fine-tune, or they are not done."""
    stage = pipeline.stages.get(BASE_SHARE)
    if stage is None or stage.state().status != "done":
        return None
    rows: dict[str, list[Share]] = {"target": [], "image": []}
    for row in csv.DictReader(io.StringIO(stage.checked(FILE).decode())):
        numbers = {name: float(row[name]) for name in ("base", "own", "share")}
        rows[row["kind"]].append(Share(idx=int(row["idx"]), **numbers))
    return BaseShares(targets=rows["target"], images=rows["image"])


def sentences(pipeline: Pipeline) -> tuple[str, ...]:
    """Return what the base share of each target means, in words."""
    found = finished(pipeline)
    if found is None:
        return ()
    named = [query.name for query in pipeline.queries]
    names = named or [f"Generated image {number}" for number in range(len(found.targets))]
    return tuple(
        sentence(name, base=each.base, own=each.own, share=each.share, median=found.median)
        for name, each in zip(names, found.targets, strict=True)
    )


def as_json(pipeline: Pipeline) -> dict[str, Any]:
    """Return the base shares as JSON values under "base_share"; nothing if there are none."""
    found = finished(pipeline)
    if found is None:
        return {}
    targets = [{**asdict(each), "is_of_base": is_of_base(each.share, found.median)} for each in found.targets]
    images = [asdict(each) for each in found.images]
    return {"base_share": {"targets": targets, "images": images, "median_of_images": found.median}}
