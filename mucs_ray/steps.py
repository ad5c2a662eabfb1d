"""What each stage of the pipeline does: from the earlier stages' files to its own files and facts.

Every function takes the pipeline and the cluster and returns ({file name: sha256}, facts) for the stage's manifest.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray import ObjectRef

from mucs_ray import storage, summary
from mucs_ray.attribution.ranking import Ranking, top_k
from mucs_ray.config import Recipe
from mucs_ray.data.table import open_parquet
from mucs_ray.engine import generation, scoring, training, unlearning
from mucs_ray.engine.board import results
from mucs_ray.engine.models import load_arrays
from mucs_ray.engine.progress import bar
from mucs_ray.engine.session import Cluster
from mucs_ray.errors import InputError
from mucs_ray.pipeline import Pipeline
from mucs_ray.store import checkpoint
from mucs_ray.store.items import item_file
from mucs_ray.store.run import Stage
from mucs_ray.store.weights import model_facts

Output = tuple[dict[str, str], dict[str, Any]]
HISTOGRAM_BINS = 60


def pretrain(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Train F1 from scratch, or take it from the recipe's `weights`."""
    recipe, stage = pipeline.recipe, pipeline.stages["pretrain"]
    if recipe.weights:
        return import_weights(recipe, stage)
    names = [stage.part(kind, "safetensors") for kind in ("best", "last")]
    stage.begin(names)
    job = training.TrainJob(
        dataset=pipeline.dataset, stage=stage, model=recipe.model, train=recipe.train, seed=recipe.seed
    )
    workers = training.workers_for(recipe.train, recipe.engine.train_workers, cluster)
    with bar(pipeline.console, "pretrain", recipe.train.updates, "updates") as shown:
        facts = training.train(job, cluster, num_workers=workers, max_failures=recipe.engine.max_failures, bar=shown)
        facts["images_per_second"] = round(shown.rate * recipe.train.batch_size, 1)
    return digests(stage, names), {**facts, "workers": workers, **model_facts(recipe.model)}


def import_weights(recipe: Recipe, stage: Stage) -> Output:
    """Copy weights that were trained elsewhere into the run, as safetensors with a card."""
    from mucs_ray.weights import load_weights

    assert recipe.weights is not None
    network = load_weights(recipe.weights, num_heads=recipe.model.num_heads)
    name = stage.part("best", "safetensors")
    stage.begin([name])
    facts = {**model_facts(network.config), "imported": True}
    return {name: checkpoint.save_with_card(stage.url(name), network.state_dict(), facts)}, facts


def weights_ref(pipeline: Pipeline) -> ObjectRef:
    """F1 in the object store."""
    recipe, stage = pipeline.recipe, pipeline.stages["pretrain"]
    kind = "best" if recipe.weights else recipe.train.checkpoint
    return load_arrays.remote(stage, stage.part(kind, "safetensors"))


def generate(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Generate targets and controls; what an earlier call has generated is kept."""
    recipe, stage = pipeline.recipe, pipeline.stages["generate"]
    planned = generation.plan_items(pipeline.dataset, recipe.generate, recipe.seed)
    names = [item_file(stage, each.number) for each in planned]
    todo = set(stage.begin(names))
    with bar(pipeline.console, "generate", len(planned), "items") as shown:
        shown.start_at(len(names) - len(todo))
        made = generation.generate(
            recipe.model,
            weights_ref(pipeline),
            [each for each in planned if item_file(stage, each.number) in todo],
            dataset=pipeline.dataset,
            config=recipe.generate,
            seed=recipe.seed,
            stage=stage,
            cluster=cluster,
            bar=shown,
        )
    return digests(stage, names, made), {"items": [asdict(each) for each in planned]}


def null(pipeline: Pipeline, cluster: Cluster) -> Output:
    """The loss of an untrained network."""
    config = pipeline.recipe.unlearn
    if isinstance(config.null_loss, float):
        return {}, {"null_loss": config.null_loss}
    task = unlearning.null_loss_task.options(**cluster.worker_options)
    arguments = (pipeline.dataset, pipeline.recipe.model, config, pipeline.recipe.seed)
    (value,) = results([task.remote(*arguments)])
    return {}, {"null_loss": value}


def unlearn(pipeline: Pipeline, cluster: Cluster) -> Output:
    """F2 of every target: one task an item, those that are there are kept."""
    recipe, stages = pipeline.recipe, pipeline.stages
    stage = stages["unlearn"]
    numbers = range(recipe.generate.items)
    names = {item_file(stage, number): number for number in numbers}
    todo = [names[name] for name in stage.begin(list(names))]
    job = unlearning.UnlearnJob(
        dataset=pipeline.dataset,
        model=recipe.model,
        config=recipe.unlearn,
        learning_rate=recipe.train.learning_rate / recipe.unlearn.learning_rate_divisor,
        seed=recipe.seed,
        bound=stages["null"].facts()["null_loss"],
        generated=stages["generate"],
        stage=stage,
    )
    with bar(pipeline.console, "unlearn", len(names), "items") as shown:
        shown.start_at(len(names) - len(todo))
        ended = unlearning.unlearn_all(weights_ref(pipeline), todo, job, cluster=cluster, bar=shown)
    seconds = {facts["number"]: round(facts["seconds"], 2) for _, facts in ended}
    made = {item_file(stage, facts["number"]): digest for digest, facts in ended}
    return digests(stage, list(names), made), {"seconds_an_item": seconds}


def score(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Stream the training set once; a part a unit."""
    recipe, stages = pipeline.recipe, pipeline.stages
    stage, unlearned = stages["score"], stages["unlearn"]
    units = pipeline.dataset.units("train")
    names = {scoring.part_of(stage, unit): unit for unit in units}
    todo = [names[name] for name in stage.begin(list(names))]
    job = scoring.ScoreJob(
        dataset=pipeline.dataset, model=recipe.model, config=recipe.score, seed=recipe.seed, stage=stage
    )
    files = [item_file(unlearned, number) for number in range(recipe.generate.items)]
    bank = [load_arrays.remote(unlearned, file) for file in files]
    with bar(pipeline.console, "score", sum(unit.rows for unit in units), "images") as shown:
        shown.start_at(sum(unit.rows for unit in units) - sum(unit.rows for unit in todo))
        weights, pool = weights_ref(pipeline), recipe.engine.actors
        totals, made = scoring.score(job, weights, bank, todo, pool=pool, cluster=cluster, bar=shown)
        totals["wall_seconds"] = shown.elapsed
    return digests(stage, list(names), made), totals


def attribute(pipeline: Pipeline, cluster: Cluster) -> Output:
    """Rank: scores.parquet (idx, score[items]) and topk.csv, streaming the parts."""
    recipe, stage = pipeline.recipe, pipeline.stages["attribute"]
    num_items, num_images = recipe.generate.items, pipeline.dataset.card.num_images("train")
    k = top_k(num_images, recipe.rank.top_percent)
    rankings = [Ranking.empty(k, seed=recipe.seed, name=f"rank/item={number}") for number in range(num_items)]
    stage.begin(["scores.parquet", "topk.csv"])
    stage.retract()
    low, high = np.full(num_items, np.inf), np.full(num_items, -np.inf)
    with TemporaryDirectory() as folder:
        whole = Path(folder) / "scores.parquet"
        with pq.ParquetWriter(whole, scoring.score_schema(num_items), compression="zstd") as writer:
            for table in score_parts(pipeline):
                writer.write_table(table)
                idx, scores = table["idx"].to_numpy(), score_matrix(table)
                low, high = np.minimum(low, scores.min(axis=0)), np.maximum(high, scores.max(axis=0))
                rankings = [ranking.add(idx, scores[:, number]) for number, ranking in enumerate(rankings)]
        scores_digest = storage.publish_file(stage.url("scores.parquet"), whole)
    edges = [np.linspace(a, b, HISTOGRAM_BINS + 1) for a, b in zip(low, high, strict=True)]
    counts = np.zeros((num_items, HISTOGRAM_BINS), dtype=np.int64)
    for table in score_parts(pipeline):
        scores = score_matrix(table)
        counts += np.stack([np.histogram(scores[:, n], edges[n])[0] for n in range(num_items)])
    files = {
        "scores.parquet": scores_digest,
        "topk.csv": storage.publish(stage.url("topk.csv"), topk_csv(pipeline, rankings)),
    }
    histograms = [{"edges": e.tolist(), "counts": c.tolist()} for e, c in zip(edges, counts, strict=True)]
    return files, {"k": k, "num_images": num_images, "histograms": histograms}


def score_parts(pipeline: Pipeline) -> Iterator[pa.Table]:
    """idx and score of every unit, in order of idx; each part checked against the manifest."""
    stage = pipeline.stages["score"]
    for unit in pipeline.dataset.units("train"):
        content = stage.checked(scoring.part_of(stage, unit))
        table = open_parquet(io.BytesIO(content)).read(columns=["idx", "score"])
        yield table.cast(scoring.score_schema(pipeline.recipe.generate.items))


def score_matrix(table: pa.Table) -> np.ndarray:
    """[rows, items]."""
    return np.stack(table["score"].to_numpy())


def topk_csv(pipeline: Pipeline, rankings: list[Ranking]) -> bytes:
    """item, item_idx, rank (1 = most influential), idx, score, label, text."""
    wanted = {int(idx) for ranking in rankings for idx in ranking.idx}
    described = describe(pipeline, wanted)
    items = pipeline.stages["generate"].facts()["items"]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(["item", "item_idx", "rank", "idx", "score", "label", "text"])
    for number, ranking in enumerate(rankings):
        for rank, (idx, score) in enumerate(zip(ranking.idx.tolist(), ranking.score.tolist(), strict=True), start=1):
            out.writerow([number, items[number]["idx"], rank, idx, f"{score:.6f}", *described[idx]])
    return text.getvalue().encode()


def describe(pipeline: Pipeline, wanted: set[int]) -> dict[int, tuple[str, str]]:
    """(label, first text) of training images."""
    classes = pipeline.dataset.card.classes
    found = {}
    for table in pipeline.dataset.stream("train", ["idx", "label", "text"]):
        for row in table.to_pylist():
            if row["idx"] in wanted:
                label = classes[row["label"]] if classes and row["label"] is not None else ""
                found[row["idx"]] = (label, (row["text"] or [""])[0])
    return found


def report(pipeline: Pipeline, cluster: Cluster | None) -> Output:
    """One self-contained HTML file, in the run directory itself."""
    html = summary.html(pipeline).encode()
    storage.publish(storage.join(pipeline.run_url, "report.html"), html)
    return {}, {"sha256": sha256(html).hexdigest()}


def digests(stage: Stage, names: list[str], made: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of published parts: as told for those made just now, else read. InputError if one has gone."""
    known = made or {}
    try:
        return {name: known.get(name) or sha256(storage.read_bytes(stage.url(name))).hexdigest() for name in names}
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or error} vanished while the stage ran; run the command again") from None
