"""How much faster is our scoring pass than the plain published procedure, and does it find the same?

    python benchmarks/sidebyside.py [--model emoji|cifar10] [--images 64] [--noises N] [--items 2] [--rounds 3]
    python benchmarks/sidebyside.py --run FOLDER --images 1000 --items 20 --set score.images_per_forward=8

Both sides (the other is published.py) take turns in one process with the same weights, noise set, images and
precision, on one thread or one GPU, after a warm-up. Both use this project's network, whose patch convolutions are
faster than torch's own: what is compared is the procedure. Forwards are counted as if nothing were shared between
models, with the operations of the plain forward. `--set` changes our side alone.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import torch
from models import DEVICE, Subject, machine, parser, seconds, subject
from published import skews
from scipy.stats import spearmanr
from torch import Tensor

from mucs_ray.attribution.ranking import top_k
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.noise import NoiseSet
from mucs_ray.diffusion.schedule import scoring_sigmas
from mucs_ray.engine.host import keep_freed_memory
from mucs_ray.evaluation.statistics import between_overlap

PUBLISHED_BATCH = 16
"""The number of images in a micro-batch."""
TOP_PERCENT = 2.0

Side = Callable[[Batch], Tensor]
"""A function from images to skews[images, items], on the CPU."""


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    if options.keep_memory:
        keep_freed_memory()
    print(machine())
    settings = [f"score.precision={options.precision}", *options.set]
    with tempfile.TemporaryDirectory() as folder:
        model = subject(options, folder, images=options.images, settings=settings).tuned()
        compare(model, model.images(options.images), options)


def compare(model: Subject, batch: Batch, options: argparse.Namespace) -> None:
    """Run the rounds and print their results."""
    score, flop, count = model.recipe.score, model.flop(), len(batch) * model.forwards_an_image
    at_once = largest_that_fits(model, options.published_batch)
    print(
        f"{model.recipe.name}, {model.origin}: {len(batch)} images x {score.noises} noises x {1 + len(model.bank)}"
        f" models = {count:,} forwards of {flop / 1e9:.4g} GFLOP\n"
        f"ours: {model.how}\npublished: {options.precision}, {at_once} x {score.noises} a forward (in the paper"
        f" {PUBLISHED_BATCH} x 100)"
    )
    sides = {"ours": ours(model), "published": published(model, batch=at_once, bf16=options.precision == "bf16")}
    first = batch[: max(at_once, int(score.images_per_forward))]
    skews_of = {name: side(first) for name, side in sides.items()}  # to warm up
    times: dict[str, list[float]] = {name: [] for name in sides}
    print("round  side        seconds  s a forward  forwards/s   GFLOP/s")
    for number in range(1, options.rounds + 1):
        for name, side in sides.items():
            took = seconds(lambda: skews_of.update({name: side(batch)}))  # noqa: B023
            times[name].append(took)
            speed = f"{took / count:>12.3g} {count / took:>11,.4g} {flop * count / took / 1e9:>9,.4g}"
            print(f"{number:>5}  {name:<9} {took:>9.2f} {speed}", flush=True)
    ratios = [theirs / our for our, theirs in zip(times["ours"], times["published"], strict=True)]
    spread = f"{min(ratios):.3f} .. {max(ratios):.3f} over {len(ratios)} rounds"
    print(f"published / ours: {statistics.median(ratios):.3f} ({spread})")
    print(agreement(skews_of["ours"], skews_of["published"]))


def ours(model: Subject) -> Side:
    """Return the engine's scoring pass, of which only constructor, `losses` and `skew` are used."""
    change = model.loss_change()
    return lambda batch: change.skew(change.losses(batch))


def published(model: Subject, *, batch: int, bf16: bool) -> Side:
    """Return the published procedure with our noise set, which is drawn again by its name."""
    score, size = model.recipe.score, model.recipe.model.image_size
    sigmas = scoring_sigmas(score.noises, score.keep)
    noises = NoiseSet.draw(model.recipe.seed, "score/noise", sigmas, (3, size, size)).to(DEVICE)
    network, first = deepcopy(model.denoiser.network), model.denoiser.network.state_dict()

    def side(images: Batch) -> Tensor:
        data = images.z, images.condition.get("condition"), noises.level, noises.unit
        return skews(network, first, model.bank, *data, batch=batch, bf16=bf16).cpu()

    return side


def largest_that_fits(model: Subject, images: int) -> int:
    """Return the number of images in a micro-batch: the requested one, or half of it as often as needed.

    Its activations must fit into three quarters of the free memory. The largest are the MLP's, before and after its
    activation, beside about five of the block's width. A line says when the number is smaller than requested.
    """
    config, noises = model.recipe.model, model.recipe.score.noises
    in_blocks = (config.grid**2 + config.registers) * config.width * (2 * config.mlp_ratio + 5)
    in_convolutions = config.image_size**2 * 4 * 2 * max(12, *config.channels)
    need = 4 * noises * max(in_blocks, in_convolutions)
    free, fits = free_bytes(), images
    while fits > 1 and fits * need > 0.75 * free:
        fits //= 2
    if fits < images:
        memory = f"about {images * need / 2**30:.1f} GiB of {free / 2**30:.1f} GiB that are free"
        print(f"a micro-batch of {images} images x {noises} noises would take {memory}: {fits} instead")
    return fits


def free_bytes() -> int:
    """Return the free bytes of the GPU, or else of this machine's memory."""
    if DEVICE.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def agreement(one: Tensor, other: Tensor) -> str:
    """Describe the agreement of two sides' skews[images, items], and of the order of images, item by item."""
    k = top_k(len(one), TOP_PERCENT)
    correlations, overlaps = rank_correlation(one, other), overlap(one, other, k)
    return (
        f"skews: largest difference {(one - other).abs().max():.2g} (largest skew {other.abs().max():.2g});"
        f" rank correlation {statistics.mean(correlations):.6f} (least {min(correlations):.6f});"
        f" top {TOP_PERCENT:g} % ({k} images) in common {statistics.mean(overlaps):.1%} (least {min(overlaps):.1%})"
    )


def rank_correlation(one: Tensor, other: Tensor) -> list[float]:
    """Return the rank correlation of scores[images, items], item by item."""
    pairs = zip(one.T, other.T, strict=True)
    return [spearmanr(a.numpy(), b.numpy()).statistic for a, b in pairs]  # pyright: ignore[reportAttributeAccessIssue]


def overlap(one: Tensor, other: Tensor, k: int) -> list[float]:
    """Return the share of the k highest of scores[images, items] that both have, item by item."""
    tops = [scores.topk(k, dim=0).indices.T.numpy() for scores in (one, other)]
    return [between_overlap(a[None], b[None]) / 100 for a, b in zip(*tops, strict=True)]


def parse() -> argparse.Namespace:
    """Parse the command line."""
    options = parser(__doc__, images=64)
    options.add_argument("--rounds", type=int, default=3)
    precision = "bf16" if DEVICE.type == "cuda" else "fp32"
    options.add_argument("--precision", choices=("fp32", "bf16"), default=precision, help="of both sides")
    help_text = "both sides keep freed memory, as our workers do; without, both run under the allocator's own defaults"
    options.add_argument("--keep-memory", action="store_true", help=help_text)
    options.add_argument("--published-batch", type=int, default=PUBLISHED_BATCH, help="images in its micro-batch")
    return options.parse_args()


if __name__ == "__main__":
    main()
