"""How long does a further query take once the features of a run are there, and does that grow with the training set?

    python benchmarks/index.py [--factors 1 8 64] [--methods das mucs/linear] [--work FOLDER]

Copies the emoji `factor` times under new idx, and makes a run of the demo's weights whose features are random rows of
length 1, as many and as wide as real ones: what is in them changes no time. Then a picture is attributed inside a Ray
that is there, and measured: by the clock, in CPU seconds of all processes, and stage by stage. For a method that
unlearns another picture goes before, with which is made what is made once: the node's copy of the training set, and the
bound of the ascent.
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
from mucs_ray.engine.session import session
from mucs_ray.pipeline.graph import Pipeline, StageRef
from mucs_ray.run import driver
from mucs_ray.run.resolve import resolve
from mucs_ray.store import checkpoint
from mucs_ray.store.parts import part_bytes, unit_part

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
    """Attribute a picture, and return the seconds of each stage that was done, and of all, by clock and by CPU."""
    clock, busy = time.monotonic(), cpu_seconds()
    pipeline = Pipeline.open(
        run.recipe, run.dataset, run.run_url, console=run.console, methods=(method,), queries=find_queries([picture])
    )
    missing = driver.missing_stages([pipeline], "attribute")
    driver.run_stages([ref for ref in missing if ref.name != "report"])
    driver.write_report(pipeline)
    seconds = {ref.name.removeprefix("attribute/"): own_seconds(ref) for ref in missing}
    return seconds | {"all": time.monotonic() - clock, "CPU": cpu_seconds() - busy}


def own_seconds(ref: StageRef) -> float:
    """Return the seconds that a finished stage tells."""
    return ref.pipeline.stage(ref.name).facts()["seconds"]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of all that descend from it, whether they are over or not."""
    parents, ticks = dict[int, int](), dict[int, int]()
    for entry in Path("/proc").iterdir():
        try:
            values = (entry / "stat").read_text().rpartition(")")[2].split() if entry.name.isdigit() else []
        except OSError:
            continue
        if values:
            parents[int(entry.name)], ticks[int(entry.name)] = int(values[1]), sum(map(int, values[11:15]))
    family, size = {os.getpid()}, 0
    while size < len(family):
        size = len(family)
        family |= {child for child, parent in parents.items() if parent in family}
    return sum(ticks[each] for each in family) / os.sysconf("SC_CLK_TCK")


def opened(recipe: Recipe, dataset: Dataset, folder: Path, methods: tuple[str, ...]) -> Pipeline:
    """Open the run with the model."""
    return Pipeline.open(recipe, dataset, str(folder), console=Console(file=io.StringIO()), methods=methods)


def measure(folder: Path, emoji: Dataset, factor: int, methods: tuple[str, ...]) -> Iterator[str]:
    """Yield a line of the table for each method."""
    dataset = copied(emoji, factor, str(folder / f"data-{factor}"))
    values = with_settings({**read_recipe("emoji"), "data": dataset.url, "weights": str(WEIGHTS)}, [])
    run = opened(build(from_card(values, dataset.card)), dataset, folder / f"run-{factor}", methods)
    driver.record(run)
    driver.run_stages([StageRef(run, "pretrain")])
    first, second = (f"idx:{idx}" for idx in idx_of(dataset)[[100, 200]])
    for method in methods:
        written = with_features(run, method)
        if "attribute/mucs/null" in run.stages_of(method):
            ask(run, method, first)
        seconds = ask(run, method, second)
        stages = ", ".join(f"{name} {took:.1f}" for name, took in seconds.items() if name not in ("all", "CPU"))
        count = dataset.card.num_images("train")
        yield (
            f"| {method} | {factor} x | {count:,} | {written / 2**20:,.0f} MiB | {seconds['all']:.1f} |"
            f" {seconds['CPU']:.1f} | {stages} |"
        )


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
    print("| method | data | images | features | clock, s | CPU, s | stages, s |\n|---|---|---|---|---|---|---|")
    with session():
        for factor in arguments.factors:
            for line in measure(folder, emoji, factor, tuple(arguments.methods)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
