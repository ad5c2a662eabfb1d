"""The last stage of group attribution: scores of all groups, agreement with the trainings, shares.

Axes: r noise sets, q queries (generated images), k groups, n levels.
"""

import io
import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from jaxtyping import Float
from torch import Tensor

from mucs_ray import __version__, storage
from mucs_ray.attribution.forgetting.score import group_score, score_grid
from mucs_ray.data.group_manifests import QueryManifest
from mucs_ray.evaluation.group_agreement import Agreement, agreement, differences
from mucs_ray.evaluation.group_metrics import HEADLINE, METRICS
from mucs_ray.evaluation.shares import AuditRecord, QueryShares, floor_of, repetitions, shares_csv, shares_of
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.pipeline.groups_stages import FULL, RESULT, SCORED, gold_names
from mucs_ray.results.group_image_scores import image_scores
from mucs_ray.run.stages.files import Output
from mucs_ray.run.stages.groups import errors_file
from mucs_ray.store import checkpoint
from mucs_ray.store.facts import GenerationFacts, read_facts
from mucs_ray.store.item_names import item_name

Scores = dict[str, Float[np.ndarray, "r q k"]]


def write(pipeline: Pipeline) -> Output:
    """Write scores.parquet, agreement.json and, where there is an interval, shares.csv with its record."""
    stage, recipe = pipeline.stage(RESULT), pipeline.recipe
    names = pipeline.groups.names
    scores = model_scores(pipeline)
    means = {name: table.mean(axis=0) for name, table in scores.items()} | image_scores(pipeline)
    golds = gold_names(recipe)
    files = {stage.part("scores", "parquet"): scores_table(scores, means, names)}
    facts: dict[str, Any] = {"groups": list(names), "sizes": pipeline.groups.sizes}
    if golds:
        compared = {name: agreement(means[golds[0]], table, seed=recipe.seed) for name, table in means.items()}
        del compared[golds[0]]
        files[stage.part("agreement", "json")] = json_bytes(agreement_document(compared, golds, recipe.seed))
        facts["agreement"] = {name: headline(found) for name, found in compared.items()}
        chance = {metric.name: metric.chance for metric in METRICS}
        facts["chance"] = {name: told(len(names)) if (told := chance[name]) else None for name in HEADLINE}
    shared = shares(pipeline, scores)
    if shared is not None:
        method, images = shared
        audit = audit_record(pipeline, method)
        files[stage.part("shares", "csv")] = shares_csv(images, audit)
        files[stage.part("audit", "json")] = json_bytes(audit.to_json())
        facts["shares"] = {"method": method, "nobody": sum(image.nobody for image in images), "images": len(images)}
    stage.begin(list(files))
    return {name: storage.publish(stage.url(name), content) for name, content in files.items()}, facts


def model_scores(pipeline: Pipeline) -> Scores:
    """Return the scores by models without each group, by the name of what made these."""
    recipe = pipeline.recipe
    model = adapter(recipe.model).model(torch.device("meta"))
    grid = score_grid(model.process, recipe.groups, recipe.score)
    num_elements = int(np.prod(model.shape))
    (full,) = errors(pipeline, FULL, 1)
    num_queries, num_sets, _ = full.shape

    def score(without: Tensor) -> np.ndarray:
        of = (recipe.groups, recipe.score, model.process, grid)
        return np.array(
            [
                [group_score(*of, full[q, r], without[q, r], num_elements) for q in range(num_queries)]
                for r in range(num_sets)
            ]
        )

    num_groups = len(pipeline.groups.names)
    return {
        name: np.stack([score(without) for without in errors(pipeline, name, num_groups)], axis=2)
        for name in (*gold_names(recipe), *recipe.groups.unlearners)
    }


def errors(pipeline: Pipeline, name: str, num: int) -> list[Float[Tensor, "q r n"]]:
    """Return the errors that a stage has measured, of one model after the other."""
    stage = pipeline.stage(f"{SCORED}/{name}")
    manifest, found = stage.manifest(), []
    for number in range(num):
        file = errors_file(stage, number)
        tensors, _ = checkpoint.parse(stage.checked(file, manifest), stage.url(file))
        found.append(tensors["errors"])
    return found


def shares(pipeline: Pipeline, scores: Scores) -> tuple[str, list[QueryShares]] | None:
    """Return the shares by the trainings, or else by the first unlearner; None if there would be no intervals."""
    recipe, golds = pipeline.recipe, gold_names(pipeline.recipe)
    method = (*golds, *recipe.groups.unlearners)[0]
    tables = np.stack([scores[name] for name in golds] or [scores[method]])
    if len(tables) == 1 and tables.shape[1] == 1:
        return None
    floor = floor_of(*tables.mean(axis=1)) if len(tables) == 2 else 0.0
    queries = range(recipe.generate.items)
    return method, shares_of(repetitions(tables), pipeline.groups.names, queries=queries, seed=recipe.seed, floor=floor)


def audit_record(pipeline: Pipeline, method: str) -> AuditRecord:
    """Return what the shares were computed from."""
    pretrained, generated = pipeline.stages["pretrain"].manifest(), pipeline.stages["generate"]
    items = read_facts(generated, GenerationFacts).targets
    queries = QueryManifest(
        query_ids=tuple(item.idx for item in items),
        image_paths=tuple(generated.part(item_name(item.number), "png") for item in items),
        seeds=tuple(pipeline.recipe.seed for _ in items),
        prompts=tuple("" for _ in items),
    )
    weights = [
        digest for file, digest in sorted((pretrained.files if pretrained else {}).items()) if "safetensors" in file
    ]
    return AuditRecord(
        model=", ".join(weights),
        data=pipeline.dataset.card.fingerprint,
        groups=pipeline.groups_manifest.digest,
        queries=queries.digest,
        method=method,
        recipe=pipeline.recipe.to_dict(),
        versions={"mucs-ray": __version__, **{name: version(name) for name in ("ray", "torch", "numpy")}},
        date=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def scores_table(scores: Scores, means: Mapping[str, np.ndarray], names: tuple[str, ...]) -> bytes:
    """Return a table with a row for each method, image and group: the score, and its least and largest over noises."""
    rows = [
        {
            "method": method,
            "query": query,
            "group": name,
            "score": float(means[method][query, number]),
            "least": float(scores[method][:, query, number].min()) if method in scores else None,
            "largest": float(scores[method][:, query, number].max()) if method in scores else None,
        }
        for method in means
        for query in range(len(means[method]))
        for number, name in enumerate(names)
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, compression="zstd")
    return buffer.getvalue()


def agreement_document(compared: Mapping[str, Agreement], golds: list[str], seed: int) -> dict[str, Any]:
    """Return all metrics of all methods, and the differences of each from the first."""
    first = next(iter(compared.values()), None)
    return {
        "reference": golds[0],
        "floor": golds[1] if len(golds) > 1 else None,
        "methods": {
            name: {
                "groups": found.num_groups,
                "absent": list(found.absent),
                "metrics": [asdict(summary) for summary in found.summaries],
                "minus the first": [asdict(difference) for difference in differences(found, first, seed=seed)]
                if first is not None and found.absent == first.absent
                else [],
            }
            for name, found in compared.items()
        },
    }


def headline(found: Agreement) -> dict[str, float | None]:
    """Return the metrics that are printed first."""
    means = {summary.metric: summary.mean for summary in found.summaries}
    return {name: means[name] for name in HEADLINE}


def json_bytes(document: Any) -> bytes:  # noqa: ANN401 - any JSON value
    """Return a JSON file's content."""
    return json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode()
