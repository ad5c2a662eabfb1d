"""Does memory stay flat as the training set grows, and where does the time of scoring go?

    python benchmarks/scaling.py [--factors 1 4 16] [--images 512] [--noises 8]

Makes a synthetic set of `images` x factor pictures for each factor, takes an untrained emoji-sized model through the
whole pipeline on a local Ray, and prints for the scoring stage: forwards, forwards/s, the share of worker time outside
the network, and the peak resident memory of the driver and of the largest scorer (sampled every 50 ms; on the CPU it
includes the object store's pages that the process maps).
"""

import argparse
import io
import os
import platform
import tempfile
import threading
import time
from pathlib import Path

from rich.console import Console
from synthetic import SHAPES, write

from mucs_ray.config.recipe import build, from_card, read_recipe, with_settings
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run import driver

UNIT = 128
"""The number of images in a row group."""


class Memory:
    """The peak resident memory of this process and of Ray's scorers, in MiB."""

    def __init__(self) -> None:
        self.driver = self.scorer = 0.0
        self.over = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while not self.over.is_set():
            self.driver = max(self.driver, resident_mib(os.getpid()))
            for entry in Path("/proc").iterdir():
                try:
                    if entry.name.isdigit() and "MapBatches(Scorer)" in (entry / "cmdline").read_text():
                        self.scorer = max(self.scorer, resident_mib(int(entry.name)))
                except OSError:
                    continue
            time.sleep(0.05)


def resident_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(folder: str, num: int, noises: int) -> str:
    """Measure and print one line of the table."""
    size, classes = SHAPES["emoji"]
    dataset = write(f"{folder}/data-{num}", num, size=size, classes=classes, unit=UNIT)
    settings = ["train.updates=1", "generate.items=2", "method.mucs.max_updates=1", f"score.noises={noises}"]
    values = with_settings({**read_recipe("emoji"), "data": dataset.url}, [*settings, "method.mucs.bound=1.0"])
    recipe = build(from_card(values, dataset.card))
    quiet = Console(file=io.StringIO())
    pipeline = Pipeline.open(recipe, dataset, f"{folder}/run-{num}", console=quiet)
    memory = Memory()
    driver.run([pipeline], "attribute")
    memory.over.set()
    facts = pipeline.stages["attribute/mucs/score"].facts()
    rate, outside = facts["forwards"] / facts["wall_seconds"], facts["worker_seconds_outside"] / facts["worker_seconds"]
    busy = facts["forwards"] / facts["worker_seconds"]
    return (
        f"{num:>8,} {facts['forwards']:>11,} {facts['wall_seconds']:>8.1f} {rate:>11,.0f} {busy:>15,.0f}"
        f" {outside:>9.2%} {memory.driver:>11,.0f} {memory.scorer:>11,.0f}"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--factors", type=int, nargs="+", default=[1, 4, 16])
    options.add_argument("--images", type=int, default=512)
    options.add_argument("--noises", type=int, default=8)
    arguments = options.parse_args()
    print(f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    print("  images    forwards   wall s  forwards/s  a busy worker's   outside  driver MiB  scorer MiB")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["MUCS_RAY_CACHE"] = f"{folder}/cache"
        for factor in arguments.factors:
            print(measure(folder, factor * arguments.images, arguments.noises), flush=True)


if __name__ == "__main__":
    main()
