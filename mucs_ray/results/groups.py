"""What a finished group attribution says: the report's section, and the numbers for the terminal and other programs."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from mucs_ray.evaluation.group_agreement import Summary
from mucs_ray.evaluation.shares import QueryShares, read_shares
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.groups_stages import RESULT, gold_names
from mucs_ray.report.document import GroupPictures, GroupSection, Picture, ScoreMatrix, SharedImage
from mucs_ray.report.group_tables import (
    Compared,
    agreement_table,
    bars_of,
    headline,
    label_of,
    remarks,
)
from mucs_ray.store.items import load_item, shown
from mucs_ray.store.run import Stage
from mucs_ray.store.typed import typed

PICTURES, MOST_OF_A_GROUP = 240, 8
"""The number of pictures of all groups together, of which each has at least one, and of one group."""
FACTS = ("groups", "sizes", "agreement", "chance", "shares")


def as_json(pipeline: Pipeline) -> dict[str, Any]:
    """Return the groups, the agreement of each method, the shares in short, and the URLs of the files."""
    return facts_and_files(pipeline.stage(RESULT))


def facts_and_files(stage: Stage) -> dict[str, Any]:
    """Return what the manifest of the result says, and the URLs of the files."""
    facts, manifest = stage.facts(), stage.manifest()
    known = {key: facts[key] for key in FACTS if key in facts}
    return {**known, "files": [stage.url(file) for file in sorted(manifest.files if manifest else ())]}


def report_json(pipeline: Pipeline) -> dict[str, Any]:
    """Return the same with the shares of each image, as JSON values under "group_attribution"; nothing if not done."""
    stage = pipeline.groups_result()
    if stage is None:
        return {}
    images = [asdict(image) for image in shares_in(stage)]
    return {"group_attribution": {**facts_and_files(stage), "images": images}}


def section(pipeline: Pipeline, labels: Mapping[str, str], conditions: Sequence[str]) -> GroupSection | None:
    """Lay out the report's section; None if groups are not done.

    `labels` are the names of methods in tables, and `conditions` what each image was generated from.
    """
    stage = pipeline.groups_result()
    if stage is None:
        return None
    groups, compared, images = pipeline.groups, comparison(pipeline, stage), shares_in(stage)
    shares_by = stage.facts().get("shares", {}).get("method", "")
    return GroupSection(
        headline=headline(compared, images, labels),
        by=groups.by.rpartition("/")[2],
        remarks=remarks(
            compared,
            overlapping=groups.overlapping,
            ungrouped=groups.num_images - groups.num_grouped,
            misplaced=pipeline.recipe.groups.misplaced,
            shares_by=shares_by,
        ),
        groups=tuple(group_pictures(pipeline)),
        shares_by=label_of(shares_by, compared, labels) if shares_by else "",
        images=tuple(shared_images(pipeline, images, conditions)),
        matrices=tuple(matrices(pipeline, stage, compared, labels)),
        table=agreement_table(compared, labels) if compared and compared.methods else None,
    )


def comparison(pipeline: Pipeline, stage: Stage) -> Compared | None:
    """Read the agreement with the trainings; None if nothing was trained without a group."""
    golds = gold_names(pipeline.recipe)
    if not golds:
        return None
    file = stage.part("agreement", "json")
    document = json.loads(stage.checked(file))
    methods = {
        name: {each["metric"]: typed(each, Summary, stage.url(file)) for each in found["metrics"]}
        for name, found in document["methods"].items()
    }
    return Compared(
        reference=golds[0],
        repeated=golds[1] if len(golds) > 1 else None,
        unlearners=pipeline.recipe.groups.unlearners,
        methods=methods,
        num_images=pipeline.recipe.generate.items,
    )


def shares_in(stage: Stage) -> list[QueryShares]:
    """Read the shares; none if they were not computed."""
    return read_shares(stage.checked(stage.part("shares", "csv"))) if "shares" in stage.facts() else []


def group_pictures(pipeline: Pipeline) -> list[GroupPictures]:
    """Return each group with its first pictures."""
    groups = pipeline.groups
    most = max(1, min(MOST_OF_A_GROUP, PICTURES // len(groups.names)))
    first = {number: groups.idx[groups.group == number][:most].tolist() for number in range(len(groups.names))}
    rows = pipeline.dataset.find({idx for some in first.values() for idx in some}, "train")
    return [
        GroupPictures(name=name, size=size, images=tuple(rows[idx].image for idx in first[number]))
        for number, (name, size) in enumerate(zip(groups.names, groups.sizes, strict=True))
    ]


def shared_images(pipeline: Pipeline, images: Sequence[QueryShares], conditions: Sequence[str]) -> list[SharedImage]:
    """Return the generated images with the bars of their shares."""
    return [
        SharedImage(
            number=image.query,
            label=conditions[image.query] if pipeline.recipe.model.conditional else "",
            image=generated_picture(pipeline, image.query),
            bars=bars,
            rest=rest,
        )
        for image in images
        for bars, rest in [bars_of(image)]
    ]


def generated_picture(pipeline: Pipeline, number: int) -> Picture:
    """Return a generated image as it is shown."""
    codec = adapter(pipeline.recipe.model).codec(torch.device("cpu"))
    return shown(load_item(pipeline.stages["generate"], number), codec)


def matrices(
    pipeline: Pipeline, stage: Stage, compared: Compared | None, labels: Mapping[str, str]
) -> list[ScoreMatrix]:
    """Return the scores by models without each group: of the trainings first, then of each unlearner."""
    names, num_images = pipeline.groups.names, pipeline.recipe.generate.items
    table = pq.read_table(io.BytesIO(stage.checked(stage.part("scores", "parquet"))))
    found = []
    for method in (*gold_names(pipeline.recipe), *pipeline.recipe.groups.unlearners):
        of_method = table.filter(pc.equal(table["method"], method))  # pyright: ignore[reportAttributeAccessIssue]
        scores = of_method["score"].to_numpy().reshape(num_images, len(names))
        rows = tuple(tuple(None if np.isnan(score) else float(score) for score in row) for row in scores)
        found.append(ScoreMatrix(title=label_of(method, compared, labels), groups=names, scores=rows))
    return found
