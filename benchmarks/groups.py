"""Does an unlearned model rank groups of training images as a retrained one does, and better than sums over images do?

    python benchmarks/groups.py planted
    python benchmarks/groups.py emoji --updates 50,100,200,400
    python benchmarks/groups.py cifar10 --data FOLDER_WITH_A_FOLDER_FOR_EACH_CLASS
    python benchmarks/groups.py growth --counts 10,30,100

The first three train a small model without each group, twice ("retrained" and another seed, for the floor of what any
method can reach), unlearn each group in every way at several numbers of updates, and sum up the scores of images by
other methods. The way to choose is chosen on the first seed and told of the second. `growth` unlearns ever more groups
of one training set and measures time and memory. Each is `mucs-ray groups` in a run directory below --run, and goes on
after an interruption; its numbers are in --run/STUDY.json, of which the page is written anew at the end of each.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from group_page import write_page
from planted import from_folder, planted
from rich.console import Console
from scaling import resident_mib

from mucs_ray.attribution.forgetting.neighbours import nearest
from mucs_ray.data.local import LocalImages
from mucs_ray.errors import MucsError
from mucs_ray.evaluation.group_agreement import agreement
from mucs_ray.evaluation.group_metrics import HEADLINE
from mucs_ray.pipeline.graph import Pipeline, reopen
from mucs_ray.pipeline.groups_stages import FORGOTTEN, RESULT, SCORED, gold_names, retrainings
from mucs_ray.planning.workload import left_to_do
from mucs_ray.store.items import load_item
from mucs_ray.store.run import State

UNLEARNERS = ("zero", "retrack", "retrack-clipped", "noise", "ascent", "retain-only")
METHODS = ("mucs", "das", "dtrak", "pixel", "random")
NEAREST = 10
"""A generated image is of the planted group that most of so many nearest training images have."""


def study(options: argparse.Namespace, dataset: str, by: str, settings: Sequence[str], methods: Sequence[str]) -> None:
    """Make the runs of each seed, and write what they showed."""
    seeds: dict[str, Any] = {}
    for seed in options.seeds:
        folder, found = f"{options.run}/{options.study}/seed-{seed}", {}
        for updates in options.updates:
            own = [*settings, f"groups.updates={updates}", f"groups.unlearners={json.dumps(unlearners(methods))}"]
            command = ["--dataset", dataset, "--recipe", "emoji", "--run", folder, "--by", by, "--seed", str(seed)]
            command += ["--items", str(options.items), "--method", ",".join(methods)]
            groups(command, [*own, "groups.golds=2", *options.set])
            found |= measured(reopened(folder), updates)
        pipeline = reopened(folder)
        seeds[str(seed)] = {"methods": found, **generating(pipeline)}
        facts = {"groups": list(pipeline.groups.names), "sizes": pipeline.groups.sizes, "items": options.items}
        facts |= {"settings": [*settings, *options.set], "updates": options.updates, "seeds": seeds}
        save(options, facts)


def reopened(folder: str) -> Pipeline:
    """Return a run as its folder describes it."""
    return reopen(folder, console=Console(file=io.StringIO()))


def unlearners(methods: Sequence[str]) -> list[str]:
    """Return the ways of unlearning; esd needs classes, which the method `condition` also compares."""
    return [*UNLEARNERS, *(("esd",) if "condition" in methods else ())]


def groups(command: Sequence[str], settings: Sequence[str]) -> dict[str, Any]:
    """Run `mucs-ray groups` in its own process, as a user would, and return its answer."""
    whole = [sys.executable, "-m", "mucs_ray.cli", "groups", "--json", *command]
    for setting in settings:
        whole += ["--set", setting]
    print(" ".join(whole[3:]), flush=True)
    return json.loads(subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=True).stdout)


def measured(pipeline: Pipeline, updates: int) -> dict[str, Any]:
    """Return, by method, its agreement with the reference query by query, its scores, and what it cost."""
    tables, found = read_scores(pipeline), {}
    gold = tables["retrained"]
    first = gold.argmax(axis=1)
    for name, scores in tables.items():
        unlearned = name in pipeline.recipe.groups.unlearners
        of_query = np.arange(len(scores))
        own, whole = scores[of_query, first], scores.sum(axis=1)
        row: dict[str, Any] = {"own": own.mean(), "others": ((whole - own) / (scores.shape[1] - 1)).mean()}
        if name != "retrained":
            values = agreement(gold, scores, seed=pipeline.recipe.seed).values
            row["values"] = {metric: values[metric].tolist() for metric in HEADLINE}
        row |= cost(pipeline, stages_of(pipeline, name))
        if unlearned:
            row["updates"] = updates
        found[f"{name}, {updates} updates" if unlearned else name] = row
    return found


def read_scores(pipeline: Pipeline) -> dict[str, np.ndarray]:
    """Return the scores [q, k] by method."""
    stage, names = pipeline.stage(RESULT), list(pipeline.groups.names)
    tables: dict[str, np.ndarray] = {}
    for row in pq.read_table(io.BytesIO(stage.checked(stage.part("scores", "parquet")))).to_pylist():
        table = tables.setdefault(row["method"], np.full((pipeline.recipe.generate.items, len(names)), np.nan))
        table[row["query"], names.index(row["group"])] = row["score"]
    return tables


def stages_of(pipeline: Pipeline, name: str) -> list[str]:
    """Return the stages that only this method's scores need."""
    if name in gold_names(pipeline.recipe):
        return [*retrainings(name, len(pipeline.groups.names)), f"{SCORED}/{name}"]
    if name in pipeline.recipe.groups.unlearners:
        return [f"{FORGOTTEN}/{name}", f"{SCORED}/{name}"]
    return pipeline.stages_of(name.split(",")[0])


def cost(pipeline: Pipeline, names: Sequence[str]) -> dict[str, float]:
    """Return the passes of single images through the network, a backward one with its forward for one, and seconds."""
    again = {name: State(status="missing") for name in names}
    passes = [work.passes for work in left_to_do(pipeline, again, processor="CPU")]
    seconds = sum(pipeline.stage(name).facts()["seconds"] for name in names)
    return {"passes": sum(each.forwards + each.backwards for each in passes), "seconds": round(seconds, 1)}


def generating(pipeline: Pipeline) -> dict[str, Any]:
    """Return how often the best group by each method is that to which the nearest training images of a query belong.

    Only where images belong to one group by what they look like, which planted ones do.
    """
    if pipeline.dataset.card.name != "planted":
        return {}
    images = LocalImages(pipeline.dataset, "train")
    idx = np.arange(len(images))
    z = images.batch(idx).z.flatten(1).numpy()
    items = [load_item(pipeline.stages["generate"], number) for number in range(pipeline.recipe.generate.items)]
    near = nearest(np.stack([item.z.flatten().numpy() for item in items]), [(idx, z)], NEAREST).idx
    group_of = dict(zip(pipeline.groups.idx.tolist(), pipeline.groups.group.tolist(), strict=True))
    votes = [Counter(group_of[image] for image in row.tolist()).most_common(1)[0] for row in near]
    right = {
        name: float(np.mean([scores[query].argmax() == group for query, (group, _) in enumerate(votes)]))
        for name, scores in read_scores(pipeline).items()
    }
    return {"generating": right, "votes": sum(count for _, count in votes) / NEAREST / len(votes)}


def growth(options: argparse.Namespace) -> None:
    """Unlearn and score ever more groups of one training set by one way, in a new run directory each."""
    data = planted(f"{options.run}/growth/data", options.images // 5, 64)
    settings = [
        'groups.unlearners=["zero"]', "groups.golds=0", "groups.updates=20", "groups.batch_size=32", "groups.levels=32",
        "train.updates=50", "generate.guidance=1", "engine.check_weights=false", *options.set,
    ]  # fmt: skip
    rows, weights = [], options.weights
    for count in options.counts:
        file = Path(f"{options.run}/growth/{count}-groups.csv")
        lines = (f"{idx},{idx % count}\n" for idx in range(options.images))
        file.write_text("idx,group\n" + "".join(lines))
        folder = f"{options.run}/growth/{count}-{time.time_ns()}"
        command = ["--dataset", data.url, "--recipe", "emoji", "--run", folder, "--by", str(file), "--method", "random"]
        command += ["--items", "8", *(["--weights", weights] if weights else [])]
        memory, started = Memory(), time.monotonic()
        groups(command, settings)
        pipeline = reopened(folder)
        if weights is None:
            stage = pipeline.stages["pretrain"]
            weights = stage.url(stage.part("last", "safetensors"))
        seconds = {part: stage_seconds(pipeline, part) for part in (f"{FORGOTTEN}/zero", f"{SCORED}/zero", RESULT)}
        rows.append({"groups": count, "wall": time.monotonic() - started, **seconds, **memory.stop()})
        save(options, {"images": options.images, "rows": rows, "settings": settings})


def stage_seconds(pipeline: Pipeline, name: str) -> float:
    """Return the wall time of a stage."""
    return pipeline.stage(name).facts()["seconds"]


class Memory:
    """The peak resident memory, in MiB, of the command and of the largest worker."""

    def __init__(self) -> None:
        self.peak, self.over = {"command MiB": 0.0, "worker MiB": 0.0}, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def watch(self) -> None:
        """Look at all processes twenty times a second."""
        while not self.over.wait(0.05):
            for entry in Path("/proc").iterdir():
                try:
                    told = (entry / "cmdline").read_text() if entry.name.isdigit() else ""
                    kind = "worker" if "run_attempt" in told else "command" if "mucs_ray.cli\0groups" in told else ""
                    if kind:
                        mib = resident_mib(int(entry.name))
                        self.peak[f"{kind} MiB"] = max(self.peak[f"{kind} MiB"], mib)
                except OSError:
                    continue

    def stop(self) -> dict[str, float]:
        """Return the peaks."""
        self.over.set()
        self.thread.join()
        return {name: round(mib) for name, mib in self.peak.items()}


def save(options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Write the numbers of a study beside those of the others, and the page of all."""
    told = {"command": " ".join(["python", "benchmarks/groups.py", *sys.argv[1:]]), "load": os.getloadavg()[0]}
    Path(f"{options.run}/{options.study}.json").write_text(json.dumps({**told, **found}, indent=1))
    write_page(options.run, options.page)
    print(f"written: {options.page}")


def main() -> None:
    options = parse()
    Path(options.run).mkdir(parents=True, exist_ok=True)
    data = f"{options.run}/{options.study}/data"
    common = ["groups.batch_size=32", f"groups.learning_rate={options.learning_rate}", "groups.levels=64"]
    match options.study:
        case "planted":
            dataset = planted(data, options.per_group, 64)
            study(options, dataset.url, "folder", ["generate.guidance=1", *common], options.method)
        case "emoji":
            study(options, "emoji", "label", common, (*options.method, "condition"))
        case "cifar10":
            if not options.data:
                raise SystemExit("cifar10 needs --data, a folder with a folder of pictures for each class")
            dataset = from_folder(data, options.data, 500, 100)
            study(options, dataset.url, "label", common, (*options.method, "condition"))
        case _:
            growth(options)


def numbers(text: str) -> list[int]:
    """Read "50,100"."""
    return [int(number) for number in text.split(",")]


def words(text: str) -> tuple[str, ...]:
    """Read "mucs,das"."""
    return tuple(text.split(","))


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=("planted", "emoji", "cifar10", "growth"))
    parser.add_argument("--run", default="runs/groups", help="run directories and numbers")
    parser.add_argument("--page", default="benchmarks/pages/groups.md")
    parser.add_argument("--data", help="cifar10: a folder with a folder of pictures for each class")
    parser.add_argument("--seeds", type=numbers, default=[101, 102], help="the first to choose on, the last to report")
    parser.add_argument("--items", type=int, default=40)
    parser.add_argument("--updates", type=numbers, default=[50, 100, 200, 400])
    parser.add_argument("--per-group", type=int, default=200, help="planted: training images of a group")
    parser.add_argument("--method", type=words, default=METHODS, help="methods that score images, e.g. mucs,das")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of unlearning; the trainings' is 4e-3")
    parser.add_argument("--counts", type=numbers, default=[10, 30, 100], help="growth: numbers of groups")
    parser.add_argument("--images", type=int, default=2000, help="growth: training images")
    parser.add_argument("--weights", help="growth: a model to unlearn from [default: a few updates of training]")
    parser.add_argument("--set", action="append", default=[], help="a recipe value, for every run")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        main()
    except MucsError as error:
        raise SystemExit(str(error)) from None
