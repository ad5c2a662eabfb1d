"""Tuning tries settings of scoring: precision, images in one forward, and whether compiled blocks are faster.

bf16 is taken only where it leaves the scores of the run's own models in their order. mucs_ray.engine.auto_settings
tunes once for a whole pass.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.model_bank import ModelBank
from mucs_ray.attribution.skew import epsilon_at, normalized_skew
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.levels import kept_share
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.noise import NoiseSet, generator, normal
from mucs_ray.training.config import Precision

AUTO_SETTINGS = ("precision", "images_per_forward", "compile")
"""The settings that may be "auto"."""
MAX_IMAGES = 64
MIN_SPEEDUP = 1.03
"""A setting is taken only if it is this much faster: larger forwards need more memory, and compiling takes time."""
TRY_S = 1.0
"""Each setting is tried for this many seconds, or once; forwards that take longer than this are large enough."""
COMPILE_PAYS_S = 1800.0
"""Compiling takes each worker a minute or two, so it is not tried where a worker's share of the pass is shorter than
this.
"""
RANK_IMAGES, RANK_MODELS = 64, 2
"""The training images and unlearned models on which bf16 is compared with fp32; that takes some thousand forwards."""
MIN_RANK_CORRELATION = 0.99
"""The least Spearman correlation of any model; trained models were seen to have more than .999."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """These settings were found by trying."""

    precision: Precision
    images_per_forward: int
    compile: str
    seconds_a_forward: float
    """The seconds of one image at one noise, in the worker that tried."""
    rank_correlation: float | None = None
    """Spearman's correlation of scores in bf16 with those in fp32, the least of the models; None if they were not
    compared.
    """


def has_auto(config: ScoreConfig) -> bool:
    """Return True if a setting has to be found."""
    return any(getattr(config, knob) == "auto" for knob in AUTO_SETTINGS)


def tune(
    denoiser: DiffusionModel,
    batch: Batch,
    config: ScoreConfig,
    share: int,
    *,
    bank: Sequence[Mapping[str, Tensor]] = (),
    captures: bool = False,
) -> Tuning:
    """Try settings on F1, and return the fastest.

    `share` is the number of forwards that a worker will make in the pass; `bank` holds the changed tensors of F2s;
    `captures` is as the pass will have it (`ModelBank`).
    """
    keep = kept_share(denoiser.process, config.noises, keep=config.keep, lowest_sigma=config.lowest_sigma)
    stream, levels = generator(0, "tuning"), denoiser.process.scoring_levels(config.noises, keep)
    noises = NoiseSet(level=levels, unit=normal(stream, len(levels), *batch.z.shape[1:])).to(batch.z.device)
    images = 1 if config.images_per_forward == "auto" else config.images_per_forward
    precision, *alternatives = precisions(config, batch.z.device)
    compile_setting = "off" if config.compile == "auto" else config.compile

    def time_settings(images: int, precision: Precision, noises: NoiseSet = noises) -> tuple[float, bool]:
        score = replace(config, precision=precision, images_per_forward=images, compile=compile_setting)
        return time_forward(denoiser, batch[:images], noises, score, captures=captures)

    seconds, _ = time_settings(images, precision)
    for alternative in alternatives:
        # on fewer noises, because a CPU that is not made for bf16 takes several times as long
        sample = noises[: max(1, int(TRY_S / seconds))]
        if time_settings(images, precision, sample)[0] > MIN_SPEEDUP * time_settings(images, alternative, sample)[0]:
            precision, (seconds, _) = alternative, time_settings(images, alternative)
    correlation = None
    if config.precision == "auto" and precision == "bf16" and bank:
        correlation = rank_correlation(denoiser, bank[:RANK_MODELS], batch[:RANK_IMAGES], noises, config)
        if correlation < MIN_RANK_CORRELATION:
            precision, (seconds, _) = "fp32", time_settings(images, "fp32")
    max_images = min(MAX_IMAGES, len(batch)) if config.images_per_forward == "auto" else images
    while 2 * images <= max_images and seconds * images * len(levels) < TRY_S:
        larger, fits = time_settings(2 * images, precision)
        if not fits or seconds < MIN_SPEEDUP * larger:
            break
        images, seconds = 2 * images, larger
    if config.compile == "auto" and share * seconds > COMPILE_PAYS_S:
        settings = replace(config, precision=precision, images_per_forward=images)
        compiled_seconds = time_compiled(denoiser, batch[:images], noises, settings, captures=captures)
        if seconds > MIN_SPEEDUP * compiled_seconds:
            compile_setting, seconds = "on", compiled_seconds
    return Tuning(
        precision=precision,
        images_per_forward=images,
        compile=compile_setting,
        seconds_a_forward=seconds,
        rank_correlation=correlation,
    )


def rank_correlation(
    denoiser: DiffusionModel, bank: Sequence[Mapping[str, Tensor]], batch: Batch, noises: NoiseSet, config: ScoreConfig
) -> float:
    """Return Spearman's correlation of the images' skews in bf16 with those in fp32, the least of the bank's models."""
    from scipy.stats import spearmanr  # half a second of imports, which workers that do not tune are spared

    def skews(precision: Precision) -> list[Tensor]:
        images = 1 if config.images_per_forward == "auto" else config.images_per_forward
        score = replace(config, precision=precision, images_per_forward=images, compile="off")
        before, *after = ModelBank(denoiser, bank, score).losses(batch, noises)
        epsilon = epsilon_at(denoiser.process, noises.level, config.epsilon)
        return [normalized_skew(before, losses, epsilon=epsilon).cpu() for losses in after]

    pairs = zip(skews("bf16"), skews("fp32"), strict=True)
    correlations = [spearmanr(low.numpy(), exact.numpy()).statistic for low, exact in pairs]  # pyright: ignore[reportAttributeAccessIssue]
    # nan means that all scores are equal
    return min(1.0 if math.isnan(correlation) else float(correlation) for correlation in correlations)


def precisions(config: ScoreConfig, device: torch.device) -> tuple[Precision, ...]:
    """Return the precisions to try.

    For "auto" that is bf16 on a GPU, as in the paper (spec 7.3); on a CPU either may be faster.
    """
    if config.precision != "auto":
        return (config.precision,)
    return ("fp32", "bf16") if device.type == "cpu" else ("bf16",)


def time_compiled(
    denoiser: DiffusionModel, batch: Batch, noises: NoiseSet, config: ScoreConfig, *, captures: bool = False
) -> float:
    """Return seconds a forward with compiled blocks, or infinity if this machine cannot compile (it takes a C++
    compiler).
    """
    try:
        return time_forward(denoiser, batch, noises, replace(config, compile="on"), captures=captures)[0]
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a compiler may raise anything
        return math.inf


def time_forward(
    denoiser: DiffusionModel, batch: Batch, noises: NoiseSet, config: ScoreConfig, *, captures: bool = False
) -> tuple[float, bool]:
    """Return (seconds a forward of one image at one noise, whether the device's memory was large enough)."""
    models = ModelBank(denoiser, [], config, captures=captures)
    rows = models.max_pairs

    def seconds_once() -> float:
        started = time.perf_counter()
        models.losses(batch, noises).cpu()
        return (time.perf_counter() - started) / (len(batch) * len(noises.level))

    first, end = seconds_once(), time.perf_counter() + TRY_S  # the first one warms up
    if config.compile == "off" and first * rows > TRY_S:
        return first, models.max_pairs == rows
    seconds = seconds_once()
    while time.perf_counter() < end:
        seconds = min(seconds, seconds_once())
    return seconds, models.max_pairs == rows
