"""After retraining: generate the same items again, and compare (spec 11)."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray import ObjectRef

from mucs_ray import storage
from mucs_ray.engine import compare
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import RunFailed
from mucs_ray.evaluation.unions import unrelated_pairs
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.stages.files import Output, weights_ref
from mucs_ray.run.stages.generate import generate_items
from mucs_ray.store.items import PlannedItem

SIMILARITY = pa.schema(
    {
        "item": pa.int32(),
        "other": pa.int32(),
        "role": pa.string(),
        "metric": pa.string(),
        "similarity": pa.float32(),
    }
)
"""`other` is the item compared with: the same one regenerated, or for the reference level a different one."""


def planned_items(pipeline: Pipeline) -> list[PlannedItem]:
    """The items as they were generated."""
    return [PlannedItem(**each) for each in pipeline.stages["generate"].facts()["items"]]


def regenerated_items(pipeline: Pipeline) -> list[PlannedItem]:
    """Those that are generated again. Retraining for each item alone says nothing of the controls."""
    planned = planned_items(pipeline)
    return [each for each in planned if each.role == "target" or pipeline.recipe.remove.mode != "per-item"]


def regenerate(pipeline: Pipeline, method: str, cluster: Cluster) -> Output:
    """The same items, conditions and noise from the retrained network, or each target from its own."""
    retrained = pipeline.retrained(method)

    def grouped(todo: list[PlannedItem]) -> list[tuple[ObjectRef, list[PlannedItem]]]:
        if pipeline.recipe.remove.mode == "per-item":
            return [(weights_ref(pipeline, retrained[each.number]), [each]) for each in todo]
        return [(weights_ref(pipeline, retrained[0]), todo)]

    return generate_items(pipeline, f"regenerate/{method}", regenerated_items(pipeline), grouped, cluster), {}


def evaluate(pipeline: Pipeline, method: str, cluster: Cluster) -> Output:
    """How similar each regenerated item is to the first one."""
    planned = regenerated_items(pipeline)
    before, after = pipeline.stages["generate"], pipeline.stages[f"regenerate/{method}"]
    pairs = [((before, each.number), (after, each.number)) for each in planned]
    counts = [pipeline.stages[name].facts()["removed"] for name in pipeline.retrained(method)]
    files, facts = compared(pipeline, method, pairs, [each.role for each in planned], cluster)
    return files, {**facts, "removed": round(sum(counts) / len(counts))}


def unrelated(pipeline: Pipeline, key: str, cluster: Cluster) -> Output:
    """How similar different targets are: the level at which nothing of an image is left."""
    stage, recipe = pipeline.stages["generate"], pipeline.recipe
    numbers = unrelated_pairs(recipe.generate.items, recipe.evaluate.unrelated)
    pairs = [((stage, one), (stage, other)) for one, other in numbers]
    return compared(pipeline, key, pairs, [key] * len(pairs), cluster)


def compared(
    pipeline: Pipeline,
    key: str,
    pairs: Sequence[tuple[compare.Picture, compare.Picture]],
    roles: Sequence[str],
    cluster: Cluster,
) -> Output:
    """similarity.parquet of some pairs by all metrics. RunFailed, naming the metric, if a value is not finite."""
    stage, (metrics, _) = pipeline.stage(f"evaluate/{key}"), pipeline.similarities
    stage.begin([stage.part("similarity", "parquet")])
    with bar(pipeline.console, f"evaluate/{key}", len(metrics), "metrics", pipeline.events) as shown:
        values = compare.compare(metrics, pairs, pipeline.recipe.model, cluster=cluster, bar=shown)
    for name, each in values.items():
        if not np.isfinite(each).all():
            number = pairs[int(np.flatnonzero(~np.isfinite(each))[0])][0][1]
            raise RunFailed(f"{name} of item {number} ({stage.name}) is not finite")
    rows = [
        {"item": one, "other": other, "role": role, "metric": name, "similarity": float(value)}
        for name, each in values.items()
        for ((_, one), (_, other)), role, value in zip(pairs, roles, each, strict=True)
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=SIMILARITY), sink, compression="zstd")
    file = stage.part("similarity", "parquet")
    digest = storage.publish(stage.url(file), sink.getvalue().to_pybytes())
    return {file: digest}, {"metrics": [metric.name for metric in metrics], "pairs": len(pairs)}
