"""Section b: how fast are the inner loops on this GPU, and what would an item of the paper's data sets take?

    python benchmarks/gpu/throughput.py --out FOLDER [--tiny]

Networks of the packaged recipes with random weights, 100 noises, bf16. For each size: the matrix ceiling, the
micro-batch that the engine's own probe finds, scoring in four ways, the published procedure (../published.py) on the
same weights, unlearning, the features of D-TRAK and DAS, and what follows for an item: 20 items, 109 updates each.
Numbers are forwards as if nothing were shared between models; FLOP are those of a plain forward.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

from common import (
    DEVICE,
    SEED,
    TINY,
    Results,
    flop_of_a_forward,
    noise_set,
    options,
    random_bank,
    random_batch,
    random_denoiser,
    recipe_model,
    seconds,
    seconds_a_call,
    settings_of,
)

# isort: split
import published
import torch

from mucs_ray.attribution.arriving import arriving
from mucs_ray.attribution.base import MethodContext
from mucs_ray.attribution.cards.das import DASConfig
from mucs_ray.attribution.cards.dtrak import DTRAKConfig
from mucs_ray.attribution.cards.mucs import MUCSConfig
from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.das import DAS
from mucs_ray.attribution.dtrak import DTRAK
from mucs_ray.attribution.model_bank import ModelBank
from mucs_ray.attribution.tuning import tune
from mucs_ray.attribution.unlearn import EXPECTED_UPDATES, unlearn
from mucs_ray.diffusion.batch import Batch, Item
from mucs_ray.diffusion.condition import mapped, one_by_one
from mucs_ray.models.dit import DiTConfig
from mucs_ray.models.dit_edm import DiTEDM
from mucs_ray.training.config import TrainConfig
from mucs_ray.training.numerics import as_in_training
from mucs_ray.training.step import TrainState, UpdateDraws, WorkerContext, train_update


@dataclass(frozen=True, kw_only=True)
class Size:
    """A data set of the paper, and the minutes per item that the paper reports for it on an H100 (its table 6)."""

    images: int
    paper: dict[str, float]


SIZES = {
    "cifar10": Size(images=50_000, paper={"MUCS": 22.8, "D-TRAK": 57.4, "DAS": 66.7}),
    "coco": Size(images=118_287, paper={"MUCS": 56.5, "D-TRAK": 101.1, "DAS": 113.9}),
    "artbench10": Size(images=49_900, paper={"MUCS": 24.2, "D-TRAK": 36.0, "DAS": 40.8}),
}
ITEMS_OF_A_RUN = 20
MEASURED_ITEMS = 4
IDLE_CALLS = 3
PUBLISHED_IMAGES = 16
"""The number of images in a forward of the published procedure, each at all noises."""


def main() -> None:
    arguments = options(__doc__)
    torch.set_num_threads(1)
    results = Results(arguments.out, "throughput")
    budget = 0.2 if arguments.tiny else 3.0
    for name, size in {"cifar10": SIZES["cifar10"]}.items() if arguments.tiny else SIZES.items():
        model = TINY if arguments.tiny else recipe_model(name)
        measured = Measured(model, noises=4 if arguments.tiny else 100, budget=budget, tiny=arguments.tiny)
        ceiling = measured.ceiling()
        results[f"{name}, ceiling TFLOP/s"] = {shape: rate / 1e12 for shape, rate in ceiling.items()}
        results[f"{name}, GFLOP a forward"] = measured.flop / 1e9
        rates = scoring(results, name, measured, ceiling["best"], compiles=DEVICE.type == "cuda")
        speeds = other_passes(results, name, measured) if name == "cifar10" else {}
        results[f"{name}, minutes an item"] = minutes(size, measured.num_noises, rates, speeds) | {"paper": size.paper}
        del measured
        if DEVICE.type == "cuda":
            torch.cuda.empty_cache()
    results.finish()


class Measured:
    """A network of one size on the device, with F2s near it."""

    def __init__(self, model: DiTConfig, *, noises: int, budget: float, tiny: bool) -> None:
        self.model, self.num_noises, self.budget, self.tiny = model, noises, budget, tiny
        self.denoiser = random_denoiser(model)
        self.bank = random_bank(self.denoiser, 1 if tiny else MEASURED_ITEMS)
        self.noises = noise_set(model, noises)
        self.flop = flop_of_a_forward(self.denoiser, model)

    def ceiling(self) -> dict[str, float]:
        """Return FLOP/s of the fastest bf16 matrix product, and of each: a large one, and those of the network's
        layers.
        """
        rows, width = (self.model.grid**2 + self.model.registers) * self.num_noises, self.model.width
        side = 256 if self.tiny else 8192
        shapes = [(side, side, side), (rows, width, 4 * width), (rows, 4 * width, width), (rows, width, 3 * width)]
        rates = {}
        for m, k, n in shapes:
            left, right = (torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16) for shape in ((m, k), (n, k)))
            took = seconds_a_call(lambda: torch.nn.functional.linear(left, right), self.budget / 6)  # noqa: B023
            rates[f"{m} x {k} x {n}"] = 2 * m * k * n / took
        return {"best": max(rates.values()), **rates}

    def scoring_rate(self, config: ScoreConfig, *, captures: bool) -> tuple[float, float | None]:
        """Return forwards per second through the bank, and the share of time in which the GPU had no piece to work on.

        A call has four pieces, which are decoded and copied as in the engine: those after the first meanwhile.
        """
        denoiser = deepcopy(self.denoiser) if config.compile == "on" else self.denoiser  # compiling leaves a mark on it
        models = ModelBank(denoiser, self.bank, config, captures=captures)
        at_once = int(config.images_per_forward)
        stored = random_batch(self.model, 4 * at_once, torch.device("cpu"))
        pixels = stored.z.add(1).mul(127.5).byte()

        def decoded(rows: slice) -> Batch:
            condition = mapped(stored.condition, lambda tensor: tensor[rows])
            return Batch(idx=stored.idx[rows], z=pixels[rows].float() / 127.5 - 1, condition=condition)

        def work() -> torch.Tensor:
            return models.losses(arriving(len(stored), decoded, DEVICE, rows_at_once=at_once), self.noises)

        work()
        took = seconds_a_call(work, self.budget)
        return len(stored) * self.num_noises * (1 + len(self.bank)) / took, idle_between_pieces(models, work)

    def published_rate(self) -> float:
        """Return the rate of the published procedure, eager and in bf16."""
        network, images = self.denoiser.network, PUBLISHED_IMAGES
        first = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        batch = random_batch(self.model, images)

        def work() -> torch.Tensor:
            data = batch.z, batch.condition.get("condition"), self.noises.level, self.noises.unit
            return published.skews(network, first, self.bank, *data, batch=images, bf16=DEVICE.type == "cuda")

        took = seconds_a_call(work, self.budget)
        network.load_state_dict(first)
        return images * self.num_noises * (1 + len(self.bank)) / took


def idle_between_pieces(models: ModelBank, work: Callable[[], object]) -> float | None:
    """Share of some calls in which the GPU had finished a piece and had not begun the next; None without a GPU.

    `work` has the losses computed once, by these models. The copies of a piece to fixed addresses count as the piece.
    """
    if DEVICE.type != "cuda":
        return None
    marks: list[torch.cuda.Event] = []
    forwards = models._compute_or_replay

    def mark() -> None:
        marks.append(torch.cuda.Event(enable_timing=True))
        marks[-1].record()

    def marked(*arguments: Any) -> None:
        mark()
        forwards(*arguments)
        mark()

    models._compute_or_replay = marked
    torch.cuda.synchronize()
    for _ in range(IDLE_CALLS):
        work()
    torch.cuda.synchronize()
    models._compute_or_replay = forwards
    idle = sum(end.elapsed_time(start) for end, start in zip(marks[1:-1:2], marks[2::2], strict=True))
    return idle / marks[0].elapsed_time(marks[-1])


def scoring(results: Results, name: str, measured: Measured, ceiling: float, *, compiles: bool) -> dict[str, float]:
    """Measure forwards per second, way by way."""
    precision = "bf16" if DEVICE.type == "cuda" else "fp32"
    probe = ScoreConfig(noises=measured.num_noises, images_per_forward="auto", precision=precision)
    tuning = tune(measured.denoiser, random_batch(measured.model, 16), probe, share=0, captures=True)
    images = tuning.images_per_forward
    results[f"{name}, probe"] = {"images a forward": images, "forwards/s": 1 / tuning.seconds_a_forward}
    rates: dict[str, float] = {}
    ways: dict[str, Callable[[], tuple[float, float | None]]] = {
        "published": lambda: (measured.published_rate(), None),
        **{
            f"{how}{', captured' if captures else ''}": way(measured, images, precision, how, captures=captures)
            for how in (("eager", "compiled") if compiles else ("eager",))
            for captures in (False, True)
        },
    }
    for how, rate in ways.items():
        started = time.monotonic()
        try:
            rates[how], idle = rate()
        except Exception as error:  # a way that fails is told, and the others go on
            results[f"{name}, {how}"] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}
            continue
        results[f"{name}, {how}"] = {
            "forwards/s": round(rates[how], 1),
            "TFLOP/s": round(rates[how] * measured.flop / 1e12, 2),
            "of the ceiling": round(rates[how] * measured.flop / ceiling, 3),
            **({} if idle is None else {"idle between pieces": round(idle, 4)}),
            "with warming up, s": round(time.monotonic() - started, 1),
        }
    return rates


def way(
    measured: Measured, images: int, precision: Any, how: str, *, captures: bool
) -> Callable[[], tuple[float, float | None]]:
    """Return the measurement of one way to score."""
    config = ScoreConfig(
        noises=measured.num_noises,
        images_per_forward=images,
        precision=precision,
        compile="on" if how == "compiled" else "off",
    )
    return lambda: measured.scoring_rate(config, captures=captures)


def other_passes(results: Results, name: str, measured: Measured) -> dict[str, float]:
    """Measure updates of unlearning and training per second, and features per second."""
    speeds: dict[str, float] = {}
    model, batch_size = measured.model, 4 if measured.tiny else 100
    batch = random_batch(model, batch_size)
    item = Item(number=0, idx=0, z=batch.z[0], condition=one_by_one(batch.condition, len(batch.z))[0])
    count = 2 if measured.tiny else 10

    def unlearning() -> object:
        config = MUCSConfig(fixed_updates=count, batch_size=batch_size)
        return unlearn(
            measured.denoiser, item, lambda _: batch, bound=1e6, config=config, learning_rate=1e-6, seed=SEED
        )

    def training() -> None:
        for _ in range(count):
            train_update(state, draws, config, seed=SEED, worker=WorkerContext())

    for precision in ("TF32", "fp32") if DEVICE.type == "cuda" else ("fp32",):
        with as_in_training(DEVICE) if precision == "TF32" else nullcontext():
            unlearning()
            speeds[f"unlearning updates/s, {precision}"] = count / seconds(unlearning)
        torch.set_float32_matmul_precision("medium" if precision == "TF32" else "highest")
        num_noises = 2 if measured.tiny else 100
        settings = settings_of(model, dtrak=DTRAKConfig(noises=num_noises), das=DASConfig(noises=num_noises))
        for method in (DTRAK, DAS) if precision == "TF32" or measured.tiny else (DTRAK,):
            ready = method(features_context(settings, measured.denoiser))
            try:
                took = seconds_a_call(partial(ready.features, batch[:2]), measured.budget / 2)
            except Exception as error:
                results[f"{name}, features of {method.card.label}, {precision}"] = (
                    f"failed: {type(error).__name__}: {error}"
                )
                continue
            speeds[f"features of {method.card.label}/s, {precision}"] = 2 / took
            del ready
        torch.set_float32_matmul_precision("highest")
        results[f"{name}, {precision}"] = {key: round(speed, 2) for key, speed in speeds.items() if precision in key}
    batch = random_batch(model, 8 if measured.tiny else 128)
    config = TrainConfig(batch_size=len(batch), precision="bf16")
    draws = UpdateDraws(
        z=batch.z.cpu(),
        condition={**batch.to("cpu").condition, "augmented": torch.zeros(len(batch), dtype=torch.long)},
        level=batch.z.flatten(1).std(dim=1).cpu(),
        noise=batch.z.cpu(),
    )
    ways = {"any": (nullcontext(), False), "fixed": (as_in_training(DEVICE), False)}
    if DEVICE.type == "cuda":
        ways["fixed, captured"] = (as_in_training(DEVICE), True)
    for order, (how, captures) in ways.items():
        state = TrainState.fresh(random_denoiser(model).requires_grad_(True), config, captures=captures)
        with how:
            training()
            rate = round(count / seconds(training), 2)
        results[f"{name}, training updates/s of {len(batch)}, bf16, order of sums {order}"] = rate
    return speeds


def features_context(settings: Any, denoiser: DiTEDM) -> MethodContext:
    """Build the context of a gradient method."""
    return MethodContext(settings=settings, device=DEVICE, num_images=1000, denoiser=denoiser, captures=True)


def minutes(size: Size, noises: int, rates: dict[str, float], speeds: dict[str, float]) -> dict[str, float]:
    """Extrapolate the minutes per item; a run has 20 items, which share F1 and the features."""
    per_item = size.images * noises * (1 + 1 / ITEMS_OF_A_RUN)
    minutes_of = {f"MUCS scoring, {how}": per_item / rate / 60 for how, rate in rates.items()}
    for name, speed in speeds.items():
        what, precision = name.split(", ")
        if what.startswith("unlearning"):
            minutes_of[f"MUCS unlearning, {precision}"] = EXPECTED_UPDATES / speed / 60
        else:
            label = what.removeprefix("features of ").removesuffix("/s")
            minutes_of[f"{label}, {precision}"] = (size.images / ITEMS_OF_A_RUN + 1) / speed / 60
    return {name: round(value, 2) for name, value in minutes_of.items()}


if __name__ == "__main__":
    main()
