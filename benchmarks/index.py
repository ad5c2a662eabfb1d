"""How long does a further query take once the features of a run are there, and does that grow with the training set?

    python benchmarks/index.py [--factors 1 8 64] [--methods das mucs/linear] [--work FOLDER]

Copies the emoji `factor` times under new idx, and makes a run of the demo's weights whose features are random rows of
length 1, as many and as wide as real ones: what is in them changes no time. Then a picture is attributed, stage by
stage in this process, with the functions that Ray's workers call and without the start of workers, which does not
depend on the data. For a method that unlearns another picture goes before, with which is made what is made once: the
node's copy of the training set, and the bound of the ascent. Seconds are those of the CPU.
"""

import argparse
import io
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from models import machine
from rich.console import Console

from mucs_ray import storage
from mucs_ray.config.recipe import Recipe, build, from_card, read_recipe, with_settings
from mucs_ray.data.queries import find_queries
from mucs_ray.data.table import Dataset, Shard, to_parquet
from mucs_ray.engine import attributors
from mucs_ray.engine.fitting import fit_item
from mucs_ray.engine.models import Arrays, to_arrays, to_tensors
from mucs_ray.engine.reading import read_rows
from mucs_ray.engine.scoring import score_unit
from mucs_ray.engine.unit_rows import Rows
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run import driver
from mucs_ray.run.resolve import resolve
from mucs_ray.run.stages import queries, rank
from mucs_ray.run.stages.attribute import attribute_job, earlier_stages, tensor_files
from mucs_ray.run.stages.files import Output
from mucs_ray.run.stages.generate import import_checked_weights
from mucs_ray.store import checkpoint
from mucs_ray.store.item_names import item_file
from mucs_ray.store.items import load_item
from mucs_ray.store.parts import part_bytes, unit_part
from mucs_ray.store.run import Stage

CPU = torch.device("cpu")
ROWS_IN_UNIT, ROWS_IN_SHARD = 256, 4096
COPY = 10_000
"""The idx of a copy of an image is larger by a multiple of this."""
WEIGHTS = Path(__file__).parents[1] / "mucs_ray/recipes/emoji.safetensors"


def copied(emoji: Dataset, factor: int, url: str) -> Dataset:
    """Write the training images `factor` times, and the test images once."""
    shards = []
    for split, times in (("train", factor), ("test", 1)):
        whole = pa.concat_tables(list(emoji.stream(split)))  # pyright: ignore[reportArgumentType] - a literal
        for number, table in enumerate(cut([shifted(whole, copy) for copy in range(times)])):
            path = f"{split}/part-{number:05d}.parquet"
            digest = storage.publish(storage.join(url, path), to_parquet(table, ROWS_IN_UNIT))
            groups = tuple(min(ROWS_IN_UNIT, len(table) - at) for at in range(0, len(table), ROWS_IN_UNIT))
            shards.append(Shard(path=path, split=split, row_groups=groups, sha256=digest))  # pyright: ignore
    storage.publish_json(storage.join(url, "card.json"), replace(emoji.card, shards=tuple(shards)).to_json())
    return Dataset.open(url)


def shifted(table: pa.Table, copy: int) -> pa.Table:
    """Return the images under the idx of a copy."""
    idx = pc.add(table["idx"], copy * COPY)  # pyright: ignore[reportAttributeAccessIssue] - made at import
    return table.set_column(table.column_names.index("idx"), table.schema.field("idx"), idx)


def cut(tables: list[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of all tables as shards."""
    whole = pa.concat_tables(tables)
    for at in range(0, len(whole), ROWS_IN_SHARD):
        yield whole.slice(at, ROWS_IN_SHARD)


def with_features(pipeline: Pipeline, method: str) -> int:
    """Fill the stages `features` and `solve` of a method, and return the bytes of the former."""
    stages, dim = pipeline.stages, pipeline.recipe.method[method].dim
    rng, written, files = np.random.default_rng(0), 0, {}
    features = stages[f"attribute/{method}/features"]
    units = pipeline.dataset.units("train")
    features.begin([unit_part(features, unit) for unit in units])
    table = rng.standard_normal((ROWS_IN_UNIT, dim), dtype=np.float32) / np.float32(dim**0.5)
    first = 0
    for unit in units:
        idx = idx_of(pipeline.dataset)[first : first + unit.rows]
        first += unit.rows
        columns = {"feature": np.roll(table, first, axis=1)[: unit.rows]}
        if method == "das":
            columns["residual"] = np.full(unit.rows, 0.1, dtype=np.float32)
        content = part_bytes(idx, columns)
        written += len(content)
        files[unit_part(features, unit)] = storage.publish(features.url(unit_part(features, unit)), content)
    nothing = ("rows", "forwards", "worker_seconds", "worker_seconds_outside", "wall_seconds", "seconds")
    features.finish(files, {**dict.fromkeys(nothing, 0), "processor": "CPU", "versions": {}})
    solve = stages[f"attribute/{method}/solve"]
    file = solve.part("prepared", "safetensors")
    solve.begin([file])
    factor = torch.eye(dim) * (first / dim) ** 0.5
    solve.finish({file: checkpoint.save(solve.url(file), {"cholesky": factor}, {})}, {"seconds": 0, "versions": {}})
    return written


def idx_of(dataset: Dataset) -> np.ndarray:
    """Return the idx of all training images in order."""
    return np.concatenate([table["idx"].to_numpy() for table in dataset.stream("train", ["idx"])])


def ask(run: Pipeline, method: str, picture: str) -> dict[str, float]:
    """Attribute a picture, and return the CPU seconds of each stage that was not done, and of all."""
    began = time.process_time()
    pipeline = Pipeline.open(
        run.recipe, run.dataset, run.run_url, console=run.console, methods=(method,), queries=find_queries([picture])
    )
    missing = [ref for ref in driver.missing_stages([pipeline], "attribute") if ref.name != "report"]
    seconds = {}
    for ref in missing:
        before = time.process_time()
        driver.finish(pipeline, pipeline.stages[ref.name], work(pipeline, ref.name), time.monotonic())
        seconds[ref.name.removeprefix("attribute/")] = time.process_time() - before
    return seconds | {"all": time.process_time() - began}


def work(pipeline: Pipeline, name: str) -> Output:
    """Do a stage in this process, with the functions that workers call."""
    if name == "generate":
        return queries.read(pipeline)
    spec, stage = pipeline.method_stages[name], pipeline.stages[name]
    if not spec.method_stage:
        return rank.rank(pipeline, spec)
    job = attribute_job(pipeline, spec)
    method = attributors.build(
        job, tensors_of(pipeline.stages["pretrain"])[0] if spec.method_stage.uses_model else None, CPU
    )
    fitted = [tensors for each in earlier_stages(pipeline, spec, "fit")[-1:] for tensors in tensors_of(each)]
    items = [tensors for each in earlier_stages(pipeline, spec, "fit_item") for tensors in tensors_of(each)]
    match spec.hook:
        case "fit":
            prepared, file = method.fit({}, attributors.stream_rows(job, CPU)), stage.part("prepared", "safetensors")
            return {file: checkpoint.save(stage.url(file), prepared, {})}, {}
        case "fit_item":
            done = fit_item(method, load_item(job.generated, 0), fitted[0], stage, lambda *_: None)
            return {item_file(stage, 0): done.sha256}, {"seconds_an_item": {0: done.seconds}}
        case _:
            method.load(to_tensors(fitted[0], CPU), [to_tensors(arrays, CPU) for arrays in items])
            units = pipeline.dataset.units("train")
            receipts = [score_unit(method, job, unit, Rows(read_rows(job.features, unit))) for unit in units]
            return {unit_part(stage, unit): one.sha256 for unit, one in zip(units, receipts, strict=True)}, {}


def tensors_of(stage: Stage) -> list[Arrays]:
    """Return the tensors of each file of a finished stage, in order."""
    files = [(file, stage.checked(file)) for file in tensor_files(stage)]
    return [to_arrays(checkpoint.parse(content, stage.url(file))[0]) for file, content in files]


def opened(recipe: Recipe, dataset: Dataset, folder: Path, methods: tuple[str, ...]) -> Pipeline:
    """Open the run with the model."""
    return Pipeline.open(recipe, dataset, str(folder), console=Console(file=io.StringIO()), methods=methods)


def measure(folder: Path, emoji: Dataset, factor: int, methods: tuple[str, ...]) -> Iterator[str]:
    """Yield a line of the table for each method."""
    dataset = copied(emoji, factor, str(folder / f"data-{factor}"))
    values = with_settings({**read_recipe("emoji"), "data": dataset.url, "weights": str(WEIGHTS)}, [])
    run = opened(build(from_card(values, dataset.card)), dataset, folder / f"run-{factor}", methods)
    driver.record(run)
    driver.finish(run, run.stages["pretrain"], import_checked_weights(run), time.monotonic())
    first, second = (f"idx:{idx}" for idx in idx_of(dataset)[[100, 200]])
    for method in methods:
        written = with_features(run, method)
        if "attribute/mucs/null" in run.stages_of(method):
            ask(run, method, first)
        seconds = ask(run, method, second)
        stages = ", ".join(f"{name} {took:.1f}" for name, took in seconds.items() if name != "all")
        count = dataset.card.num_images("train")
        yield f"| {method} | {factor} x | {count:,} | {written / 2**20:,.0f} MiB | {seconds['all']:.1f} | {stages} |"


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--factors", type=int, nargs="+", default=[1, 8, 64])
    options.add_argument("--methods", nargs="+", default=["das", "mucs/linear"])
    options.add_argument("--work", type=Path, help="an empty folder; a temporary one by default")
    arguments = options.parse_args()
    folder = (arguments.work or Path(mkdtemp())).absolute()
    os.environ["MUCS_RAY_CACHE"] = str(folder / "cache")
    _, emoji = resolve(dataset="emoji", recipe=None, weights=None, settings=[], console=Console())
    print(machine())
    print("| method | data | images | features | CPU, s | of these |\n|---|---|---|---|---|---|")
    for factor in arguments.factors:
        for line in measure(folder, emoji, factor, tuple(arguments.methods)):
            print(line, flush=True)


if __name__ == "__main__":
    main()
