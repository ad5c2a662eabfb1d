"""Settings of scoring that are found by trying: precision, images in one forward, whether compiled blocks are faster.

bf16 is taken only where it leaves the scores of the run's own models in their order.

How they are found once for a whole pass: `mucs_ray.engine.auto_settings`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from scipy.stats import spearmanr
from torch import Tensor

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.model_bank import ModelBank
from mucs_ray.attribution.skew import epsilon_at, normalized_skew
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.levels import kept_share
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator, normal
from mucs_ray.training.config import Precision

OPEN = ("precision", "images_per_forward", "compile")
"""Settings that may be "auto"."""
MOST_IMAGES = 64
BETTER = 1.03
"""A setting is taken only if it is this much faster: larger forwards need more memory, compiling takes time."""
TRY_S = 1.0
"""Each setting is tried for this long, or once; forwards that take longer than this are large enough."""
COMPILE_PAYS_S = 1800.0
"""Compiling takes each worker a minute or two: not tried where a worker's share of the pass is shorter than this."""
RANK_IMAGES, RANK_MODELS = 64, 2
"""Training images and unlearned models on which bf16 is compared with fp32: some thousand forwards."""
LEAST_RANK_CORRELATION = 0.99
"""Spearman's, of each model: what was seen of trained models is above .999."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """What was found."""

    precision: Precision
    images_per_forward: int
    compile: str
    seconds_a_forward: float
    """Of one image at one noise, in the worker that tried."""
    rank_correlation: float | None = None
    """Spearman's, the least of the models compared, of scores in bf16 with those in fp32; None if not compared."""


def is_open(config: ScoreConfig) -> bool:
    """True if a setting is to be found."""
    return any(getattr(config, knob) == "auto" for knob in OPEN)


def tune(
    denoiser: DiffusionModel,
    batch: Batch,
    config: ScoreConfig,
    share: int,
    *,
    bank: Sequence[Mapping[str, Tensor]] = (),
    captures: bool = False,
) -> Tuning:
    """Try settings on F1; `share`: forwards that a worker will make in the pass; `bank`: the changed tensors of F2s.

    `captures`: as the pass will have it (`ModelBank`).
    """
    keep = kept_share(denoiser.process, config.noises, keep=config.keep, lowest_sigma=config.lowest_sigma)
    stream, levels = generator(0, "tuning"), denoiser.process.scoring_levels(config.noises, keep)
    noises = NoiseSet(level=levels, unit=normal(stream, len(levels), *batch.z.shape[1:])).to(batch.z.device)
    images = 1 if config.images_per_forward == "auto" else config.images_per_forward
    precision, *others = precisions(config, batch.z.device)
    compiling = "off" if config.compile == "auto" else config.compile

    def of(images: int, precision: Precision, noises: NoiseSet = noises) -> tuple[float, bool]:
        score = replace(config, precision=precision, images_per_forward=images, compile=compiling)
        return timed(denoiser, batch[:images], noises, score, captures=captures)

    seconds, _ = of(images, precision)
    for other in others:
        few = noises[: max(1, int(TRY_S / seconds))]  # a CPU that is not made for bf16 takes several times as long
        if of(images, precision, few)[0] > BETTER * of(images, other, few)[0]:
            precision, (seconds, _) = other, of(images, other)
    correlation = None
    if config.precision == "auto" and precision == "bf16" and bank:
        correlation = rank_correlation(denoiser, bank[:RANK_MODELS], batch[:RANK_IMAGES], noises, config)
        if correlation < LEAST_RANK_CORRELATION:
            precision, (seconds, _) = "fp32", of(images, "fp32")
    most = min(MOST_IMAGES, len(batch)) if config.images_per_forward == "auto" else images
    while 2 * images <= most and seconds * images * len(levels) < TRY_S:
        larger, fits = of(2 * images, precision)
        if not fits or seconds < BETTER * larger:
            break
        images, seconds = 2 * images, larger
    if config.compile == "auto" and share * seconds > COMPILE_PAYS_S:
        settings = replace(config, precision=precision, images_per_forward=images)
        found = compiled(denoiser, batch[:images], noises, settings, captures=captures)
        if seconds > BETTER * found:
            compiling, seconds = "on", found
    return Tuning(
        precision=precision,
        images_per_forward=images,
        compile=compiling,
        seconds_a_forward=seconds,
        rank_correlation=correlation,
    )


def rank_correlation(
    denoiser: DiffusionModel, bank: Sequence[Mapping[str, Tensor]], batch: Batch, noises: NoiseSet, config: ScoreConfig
) -> float:
    """Spearman's correlation of the images' skews in bf16 with those in fp32, the least of the bank's models."""

    def skews(precision: Precision) -> list[Tensor]:
        images = 1 if config.images_per_forward == "auto" else config.images_per_forward
        score = replace(config, precision=precision, images_per_forward=images, compile="off")
        before, *after = ModelBank(denoiser, bank, score).losses(batch, noises)
        epsilon = epsilon_at(denoiser.process, noises.level, config.epsilon)
        return [normalized_skew(before, each, epsilon=epsilon).cpu() for each in after]

    pairs = zip(skews("bf16"), skews("fp32"), strict=True)
    found = [spearmanr(low.numpy(), exact.numpy()).statistic for low, exact in pairs]  # pyright: ignore[reportAttributeAccessIssue]
    return min(1.0 if math.isnan(each) else float(each) for each in found)  # nan: all of them are equal


def precisions(config: ScoreConfig, device: torch.device) -> tuple[Precision, ...]:
    """What to try: for "auto" on a GPU bf16, as in the paper (spec 7.3); on a CPU either may be faster."""
    if config.precision != "auto":
        return (config.precision,)
    return ("fp32", "bf16") if device.type == "cpu" else ("bf16",)


def compiled(
    denoiser: DiffusionModel, batch: Batch, noises: NoiseSet, config: ScoreConfig, *, captures: bool = False
) -> float:
    """Seconds a forward with compiled blocks; infinite if this machine cannot compile (it takes a C++ compiler)."""
    try:
        return timed(denoiser, batch, noises, replace(config, compile="on"), captures=captures)[0]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a compiler raises
        return math.inf


def timed(
    denoiser: DiffusionModel, batch: Batch, noises: NoiseSet, config: ScoreConfig, *, captures: bool = False
) -> tuple[float, bool]:
    """(seconds a forward of one image at one noise, whether the device's memory was large enough)."""
    models = ModelBank(denoiser, [], config, captures=captures)
    rows = models.most_rows

    def once() -> float:
        started = time.perf_counter()
        models.losses(batch, noises).cpu()
        return (time.perf_counter() - started) / (len(batch) * len(noises.level))

    first, ends = once(), time.perf_counter() + TRY_S  # the first one warms up
    if config.compile == "off" and first * rows > TRY_S:
        return first, models.most_rows == rows
    seconds = once()
    while time.perf_counter() < ends:
        seconds = min(seconds, once())
    return seconds, models.most_rows == rows
