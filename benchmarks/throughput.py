"""How much of what this machine can do does scoring use?

    python benchmarks/throughput.py [--model emoji|cifar10 | --run FOLDER] [--noises N] [--items 2] [--images 64]
    python benchmarks/throughput.py --model cifar10 --set score.images_per_forward=8 --items 20 --images-total 50000
    python benchmarks/throughput.py --model cifar10 --images 1 --noises 10 --items 1 --precision fp32   # on a CPU

One process, one thread or one GPU. First the ceiling: the fastest of several matrix products, square ones and those of
the network's own layers. Then the scoring loop of a worker: units of the training set (row groups of `images` pictures,
or those of the run's data set) are read, scored, and their parts published, for at least `seconds` after a first unit
that is not counted; in fp32 and bf16 as the recipe says, and if there are `--set`, with them too.

TFLOP/s are forwards x the operations of a plain forward, as torch counts them, whatever is shared between models.
`outside`: share of the worker's time for decoding, moving and publishing; `reading`: of the Parquet file, which in a
pipeline other processes do beside it, in units of the worker's time.
"""

import argparse
import itertools
import tempfile
import time
from copy import deepcopy
from dataclasses import dataclass, replace

import torch
from models import DEVICE, Subject, add_options, add_run_option, machine, seconds, subject

from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.mucs import MUCS
from mucs_ray.config.recipe import Recipe, build, with_settings
from mucs_ray.data.table import read_unit
from mucs_ray.engine.attributors import AttributeJob
from mucs_ray.engine.scoring import score_unit
from mucs_ray.engine.unit_rows import Rows
from mucs_ray.store.run import Stage

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
GEMM_S, GEMM_TIMES = 0.2, 5


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        model = subject(options, folder, images=options.images, settings=[])
        ceilings, flop = ceiling(model.recipe, options.precision), model.flop()
        print(
            f"\n{model.recipe.name}, {model.origin}: {model.recipe.score.noises} noises x {1 + len(model.bank)} models,"
            f" {flop / 1e9:.4g} GFLOP a forward, units of {model.dataset.units('train')[0].rows} images\n"
            "precision  forwards  forwards/s  TFLOP/s  of ceiling  outside  reading  GPU GiB  settings"
        )
        for settings in [[], options.set] if options.set else [[]]:
            for precision in options.precision:
                changed = with_settings(model.recipe.to_dict(), [f"score.precision={precision}", *settings])
                tried = replace(model, recipe=build(changed)).tuned()
                pace = loop(tried, folder, options.seconds)
                rate = pace.forwards / pace.worker_s
                print(
                    f"{precision:<9} {pace.forwards:>9,} {rate:>11,.4g} {rate * flop / 1e12:>8.4g}"
                    f" {rate * flop / ceilings[precision]:>11.1%} {pace.outside_s / pace.worker_s:>8.2%}"
                    f" {pace.reading_s / pace.worker_s:>8.2%} {pace.gpu_bytes / 2**30:>8.2f}"
                    f"  {tried.how}",
                    flush=True,
                )
                if options.images_total:
                    minutes = options.images_total * model.forwards_an_image / rate / len(model.bank) / 60
                    estimate = (
                        f"{options.images_total:,} images would take {minutes:,.3g} min an item on this one worker"
                    )
                    print(f"          {estimate} (extrapolated, not measured)", flush=True)


def ceiling(recipe: Recipe, precisions: list[str]) -> dict[str, float]:
    """Return FLOP/s of the fastest matrix product in each precision, and print all."""
    config = recipe.model
    tokens, width = config.grid**2 + config.registers, config.width
    rows = [tokens * recipe.score.noises * images for images in ((1, 4) if on_gpu() else (1,))]
    inner = [(width, config.mlp_ratio * width), (config.mlp_ratio * width, width), (width, 3 * width), (width, width)]
    square = (2048, 4096, 8192) if on_gpu() else (512, 1024, 2048)
    shapes = [(size, size, size) for size in square] + [(m, *layer) for m in rows for layer in inner]
    print(f"\nmatrix products, TFLOP/s, best of {GEMM_TIMES}  {'  '.join(f'{name:>7}' for name in precisions)}")
    best = dict.fromkeys(precisions, 0.0)
    for shape in shapes:
        rates = {name: matrix_rate(*shape, DTYPES[name]) for name in precisions}
        best = {name: max(best[name], rate) for name, rate in rates.items()}
        cells = "  ".join(f"{rate / 1e12:>7.4g}" for rate in rates.values())
        print(f"{' x '.join(f'{side:,}' for side in shape):<37}{cells}", flush=True)
    return best


def matrix_rate(m: int, k: int, n: int, dtype: torch.dtype) -> float:
    """Return FLOP/s of (m x k)(k x n), the best of several runs."""
    left, right = torch.randn(m, k, device=DEVICE, dtype=dtype), torch.randn(n, k, device=DEVICE, dtype=dtype)

    def product(times: int) -> float:
        return seconds(lambda: [torch.nn.functional.linear(left, right) for _ in range(times)])

    product(1)
    times = max(1, int(GEMM_S / product(1)))
    return 2 * m * k * n * times / min(product(times) for _ in range(GEMM_TIMES))


@dataclass(slots=True, kw_only=True)
class Pace:
    """The pace of a worker over some units."""

    forwards: int = 0
    worker_s: float = 0.0
    """The seconds for everything except reading."""
    outside_s: float = 0.0
    reading_s: float = 0.0
    gpu_bytes: int = 0
    """The peak of allocated memory."""


def loop(model: Subject, folder: str, least_s: float) -> Pace:
    """Score units one after another, as a worker does."""
    units = model.dataset.units("train")
    context = MethodContext(
        settings=model.recipe,
        device=DEVICE,
        num_images=sum(unit.rows for unit in units),
        denoiser=deepcopy(model.denoiser),  # a method may compile what it is lent
    )
    method = MUCS(context)
    method.load({}, model.bank)
    job = AttributeJob(
        dataset=model.dataset,
        recipe=model.recipe,
        attributor=MUCS,
        method_stage=next(stage for stage in MUCS.card.stages if stage.hook == "score"),
        stage=Stage(run_url=folder, name="attribute/mucs/score", reads={}, inputs={}),
        generated=Stage(run_url=folder, name="generate", reads={}, inputs={}),
        features=None,
        encoder=None,
    )
    score_unit(method, job, units[0], Rows(read_unit(units[0])))  # to warm up
    if on_gpu():
        torch.cuda.reset_peak_memory_stats()
    pace = Pace()
    for unit in itertools.cycle(units):
        started = time.monotonic()
        table = read_unit(unit)
        pace.reading_s += time.monotonic() - started
        receipt = score_unit(method, job, unit, Rows(table))  # it ends with a file, so the GPU has finished
        pace.forwards += receipt.forwards
        pace.worker_s += receipt.worker_seconds
        pace.outside_s += receipt.worker_seconds_outside
        if pace.worker_s >= least_s:
            break
    pace.gpu_bytes = torch.cuda.max_memory_allocated() if on_gpu() else 0
    return pace


def on_gpu() -> bool:
    """Return True if there is a GPU."""
    return DEVICE.type == "cuda"


def parse() -> argparse.Namespace:
    """Parse the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(options)
    add_run_option(options)
    options.add_argument("--images", type=int, default=64, help="in a unit; not with --run")
    options.add_argument("--precision", nargs="+", choices=tuple(DTYPES), default=list(DTYPES))
    options.add_argument("--seconds", type=float, default=60 if on_gpu() else 20, help="of each line, at least")
    options.add_argument("--images-total", type=int, help="size of a training set, to multiply out")
    return options.parse_args()


if __name__ == "__main__":
    main()
