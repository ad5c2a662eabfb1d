"""The subjects of the benchmarks: a network, F1 and the F2s, and images, either random or of a finished run."""

import argparse
import io
import os
import platform
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from random_weights import filled, nudged
from rich.console import Console
from synthetic import SHAPES, write
from torch.utils.flop_counter import FlopCounterMode

from mucs_ray.attribution.loss_change import LossChange
from mucs_ray.attribution.tuning import MAX_IMAGES, has_auto, tune
from mucs_ray.config.recipe import Recipe, build, from_card, read_recipe, with_settings
from mucs_ray.data.table import Dataset, read_unit
from mucs_ray.diffusion.batch import Batch
from mucs_ray.diffusion.condition import joined
from mucs_ray.diffusion.noise import name_torch_stream
from mucs_ray.engine.auto_settings import resolve_auto
from mucs_ray.errors import InputError
from mucs_ray.models.dit import DiT
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.pipeline.graph import reopen
from mucs_ray.store import checkpoint
from mucs_ray.store.checkpoint import Tensors
from mucs_ray.store.run import Stage

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LONG_PASS = 10**12
"""The number of forwards for which compiling would pay."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that was, or might have been, trained and unlearned."""

    recipe: Recipe
    dataset: Dataset
    denoiser: DiTEDM
    """F1, frozen, in eval mode, on DEVICE."""
    bank: list[Tensors]
    """The changed tensors of each F2, on DEVICE."""
    origin: str

    @property
    def forwards_an_image(self) -> int:
        """The number of forwards per image, of F1 and every F2 on every noise."""
        return self.recipe.score.noises * (1 + len(self.bank))

    def images(self, count: int) -> Batch:
        """Return the first images of the training set, on DEVICE."""
        tables = (self.dataset.batch(read_unit(unit)) for unit in self.dataset.units("train"))
        pieces, num_read = [], 0
        while num_read < count and (piece := next(tables, None)) is not None:
            pieces.append(piece[: count - num_read])
            num_read += len(pieces[-1])
        conditions = [piece.condition for piece in pieces]
        return Batch(
            idx=torch.cat([piece.idx for piece in pieces]),
            z=torch.cat([piece.z for piece in pieces]),
            condition=joined(conditions),
        ).to(DEVICE)

    def loss_change(self) -> LossChange:
        """Build a scoring pass with its own network, which it may compile."""
        recipe, lent = self.recipe, deepcopy(self.denoiser)
        return LossChange(lent, self.bank, config=recipe.score, seed=recipe.seed)

    def tuned(self, share: int = LONG_PASS) -> "Subject":
        """Replace every "auto" by trial, as for a pass of `share` forwards per worker."""
        if not has_auto(self.recipe.score):
            return self
        tuning = tune(deepcopy(self.denoiser), self.images(MAX_IMAGES), self.recipe.score, share)
        return replace(self, recipe=resolve_auto(self.recipe, tuning))

    @property
    def how(self) -> str:
        """Describe the settings of scoring that determine its speed."""
        score = self.recipe.score
        return f"{score.precision}, {score.images_per_forward} x {score.noises} a forward, compile {score.compile}"

    def flop(self) -> int:
        """Return the floating-point operations of one plain forward of one image, as torch counts them."""
        one = self.images(1)
        with torch.no_grad():
            return counted(lambda: self.denoiser(one.z, torch.ones(1, device=DEVICE), one.condition))


def add_options(options: argparse.ArgumentParser) -> None:
    """Add the options of `subject` except --run."""
    options.add_argument("--model", choices=list(SHAPES), default="emoji", help="random weights of this recipe's shape")
    options.add_argument("--items", type=int, default=2, help="F2s")
    options.add_argument("--noises", type=int, help="the recipe's by default")
    options.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="score settings of our side")


def add_run_option(options: argparse.ArgumentParser) -> None:
    """Add --run, for benchmarks that can use trained weights."""
    help_text = "run directory of a finished attribution, instead of --model: its weights and data set"
    options.add_argument("--run", metavar="FOLDER", help=help_text)


def parser(description: str | None, *, images: int) -> argparse.ArgumentParser:
    """Return a parser for a benchmark that scores some images with random or trained weights."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(options)
    add_run_option(options)
    options.add_argument("--images", type=int, default=images)
    return options


def subject(options: argparse.Namespace, folder: str, *, images: int, settings: list[str]) -> Subject:
    """Build the subject of the options; a random one has `images` pictures of noise in one unit,
    written to the folder.
    """
    if options.noises:
        settings = [f"score.noises={options.noises}", *settings]
    if options.run:
        return trained(options.run, options.items, settings)
    size, classes = SHAPES[options.model]
    dataset = write(f"{folder}/data", images, size=size, classes=classes, unit=images)
    values = with_settings({**read_recipe(options.model), "data": dataset.url}, settings)
    recipe = build(from_card(values, dataset.card))
    name_torch_stream(recipe.seed, "benchmark")
    network = filled(DiT(recipe.model)).to(DEVICE)
    denoiser = DiTEDM(network).eval().requires_grad_(False)
    bank = [nudged(network) for _ in range(options.items)]
    return Subject(recipe=recipe, dataset=dataset, denoiser=denoiser, bank=bank, origin="random weights")


def trained(run_url: str, items: int, settings: list[str]) -> Subject:
    """Read F1, the first F2s and the data set of a run, which may be of an older version; nothing is written to it."""
    pipeline = reopen(run_url, console=Console(file=io.StringIO()))
    recipe = build(with_settings(pipeline.recipe.to_dict(), settings))
    weights = parts(pipeline.run_url, "pretrain", "best" if recipe.weights else recipe.train.checkpoint)
    bank = parts(pipeline.run_url, "attribute/mucs/unlearn", "item-")
    if len(bank) < items:
        raise InputError(f"{run_url} has {len(bank)} unlearned items, fewer than the {items} asked for")
    denoiser = DiTEDM(DiT(recipe.model))
    checkpoint.strict_load(denoiser.network, weights[0], source=run_url)
    return Subject(
        recipe=recipe,
        dataset=pipeline.dataset,
        denoiser=denoiser.to(DEVICE).eval().requires_grad_(False),
        bank=[{name: tensor.to(DEVICE) for name, tensor in tensors.items()} for tensors in bank[:items]],
        origin="trained weights",
    )


def parts(run_url: str, name: str, prefix: str) -> list[Tensors]:
    """Return the tensors of a finished stage with this prefix, in order, by its manifest alone."""
    stage = Stage(run_url=run_url, name=name, reads={}, inputs={})
    manifest = stage.manifest()
    if manifest is None:
        raise InputError(f"{name} of {run_url} is not done; give the run directory of a finished attribution")
    files = sorted(file for file in manifest.files if file.startswith(prefix) and file.endswith(".safetensors"))
    return [checkpoint.parse(stage.checked(file, manifest), stage.url(file))[0] for file in files]


def machine() -> str:
    """Describe the machine on which the numbers are measured."""
    if DEVICE.type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        cpu_info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        names = [line.split(":")[1].strip() for line in cpu_info.splitlines() if line.startswith("model name")]
        name = names[0] if names else platform.machine()
    cores, load = len(os.sched_getaffinity(0)), os.getloadavg()[0]
    return f"{name}, {cores} cores ({torch.get_num_threads()} thread used), load {load:.1f}, torch {torch.__version__}"


def counted(work: Callable[[], object]) -> int:
    """Return the floating-point operations of one call, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def seconds(work: Callable[[], object]) -> float:
    """Time one call, from an idle GPU until the GPU has finished."""
    synchronize()
    started = time.monotonic()
    work()
    synchronize()
    return time.monotonic() - started


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
