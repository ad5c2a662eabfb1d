"""What the sections of run.sh share: options, the device, clocks, models of the paper's sizes, and a result file.

torch, NumPy and SciPy are all that a section needs beside the project: no Ray, no pydantic, no lpips.
"""

import argparse
import json
import os
import platform
import sys
import time
import tomllib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

HERE = Path(__file__).parent
sys.path += [str(HERE.parent), str(HERE / "stand_ins")]  # last, so that what is installed goes first

import torch  # noqa: E402
from random_weights import filled, nudged  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from mucs_ray.attribution.config import RankConfig, ScoreConfig  # noqa: E402
from mucs_ray.diffusion.batch import Batch  # noqa: E402
from mucs_ray.diffusion.noise import NoiseSet, generator, name_torch_stream, normal  # noqa: E402
from mucs_ray.diffusion.schedule import scoring_sigmas  # noqa: E402
from mucs_ray.models.dit import DiT, DiTConfig  # noqa: E402
from mucs_ray.models.dit_edm import DiTEDM  # noqa: E402
from mucs_ray.training.config import TrainConfig  # noqa: E402

torch.backends.cudnn.allow_tf32 = False  # as in the engine's workers
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RECIPES = HERE.parents[1] / "mucs_ray" / "recipes"
SEED = 1
Tensors = dict[str, torch.Tensor]


def options(description: str | None, *more: tuple[str, type]) -> argparse.Namespace:
    """Parse the command line of a section; `more` gives names and types of further options."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the result files")
    parser.add_argument("--data", type=Path, help="folder with cifar10/data_batch_1.webp and others")
    parser.add_argument("--tiny", action="store_true", help="in miniature, for a machine without a GPU")
    for name, kind in more:
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


class Results:
    """A section's numbers in OUT/NAME.json, which is rewritten with each number so that they survive a cut."""

    def __init__(self, out: Path, name: str) -> None:
        """Write to OUT/NAME.part.json until `finish`."""
        self.whole, self.part = out / f"{name}.json", out / f"{name}.part.json"
        self.values: dict[str, Any] = {"machine": machine(), "started": time.strftime("%Y-%m-%d %H:%M:%S")}
        self.started = time.monotonic()

    def __setitem__(self, key: str, value: Any) -> None:
        self.values[key] = value
        self.values["seconds"] = round(time.monotonic() - self.started, 1)
        self.part.write_text(json.dumps(self.values, indent=1))
        print(f"{self.values['seconds']:>6} s  {key}: {json.dumps(value)}", flush=True)

    def finish(self) -> None:
        """Mark the section as complete."""
        self.part.rename(self.whole)


def machine() -> dict[str, Any]:
    """Return card, driver and versions."""
    facts = {"python": platform.python_version(), "torch": torch.__version__, "cpus": len(os.sched_getaffinity(0))}
    if DEVICE.type != "cuda":
        return {"card": "none", **facts}
    card = torch.cuda.get_device_properties(0)
    driver = Path("/proc/driver/nvidia/version")
    words = driver.read_text().split("\n")[0].split() if driver.exists() else []
    version = next((word for word in words if word[:1].isdigit() and "." in word), "unknown")
    return {"card": card.name, "memory_gib": round(card.total_memory / 2**30, 1), "driver": version, **facts}


def synchronize() -> None:
    """Wait for the GPU, if there is one."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object]) -> float:
    """Time one call, from an idle GPU until the GPU has finished."""
    synchronize()
    started = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - started


def seconds_a_call(work: Callable[[], object], budget_s: float) -> float:
    """Return the mean time of as many calls as fill the budget, at least one, after one that warms up."""
    work()
    first = seconds(work)
    calls = max(1, int(budget_s / max(first, 1e-6)))

    def all_calls() -> None:
        for _ in range(calls):
            work()

    return seconds(all_calls) / calls


def recipe_model(name: str) -> DiTConfig:
    """Return the network of a packaged recipe."""
    values = tomllib.loads((RECIPES / f"{name}.toml").read_text())["model"]
    assert values.keys() <= {field.name for field in fields(DiTConfig)}
    return DiTConfig(**{key: tuple(value) if isinstance(value, list) else value for key, value in values.items()})


TINY = DiTConfig(
    image_size=16, patch_size=4, width=32, depth=2, num_heads=2, registers=1, condition_channels=32, condition_dim=10,
    kernel_size=3, dropout=0.0, condition_drop=0.0,
)  # fmt: skip


def random_denoiser(model: DiTConfig, device: torch.device = DEVICE) -> DiTEDM:
    """Build F1 with random weights, drawn on the CPU so that every device has the same."""
    name_torch_stream(SEED, "benchmark")
    return DiTEDM(filled(DiT(model))).eval().requires_grad_(False).to(device)


def random_bank(denoiser: DiTEDM, items: int) -> list[Tensors]:
    """Make F2s near F1."""
    name_torch_stream(SEED, "bank")
    return [nudged(denoiser.network) for _ in range(items)]


def random_batch(model: DiTConfig, count: int, device: torch.device = DEVICE, name: str = "images") -> Batch:
    """Make pictures of noise, with random conditions."""
    stream, size = generator(SEED, name), model.image_size
    condition = {"condition": normal(stream, count, model.condition_dim).to(device)} if model.condition_dim else {}
    image = normal(stream, count, 3, size, size).mul(0.5).clamp(-1, 1).to(device)
    return Batch(idx=torch.arange(count), z=image, condition=condition)


def noise_set(model: DiTConfig, count: int, device: torch.device = DEVICE) -> NoiseSet:
    """Draw the scoring noises of a run."""
    shape = (3, model.image_size, model.image_size)
    return NoiseSet.draw(SEED, "score/noise", scoring_sigmas(count, 0.7), shape).to(device)


def settings_of(model: DiTConfig, *, train: TrainConfig | None = None, **method: object) -> Any:
    """Return the settings that methods read, as defaults except those given; `method` is keyed by
    the card's section.
    """
    return SimpleNamespace(
        seed=SEED, model=model, train=train or TrainConfig(), score=ScoreConfig(), rank=RankConfig(), method=method
    )


def as_bytes(pictures: torch.Tensor) -> Any:
    """Convert to 8-bit pixels."""
    return (((pictures.clamp(-1, 1) + 1) / 2) * 255).round().to(torch.uint8).numpy()


def flop_of_a_forward(denoiser: DiTEDM, model: DiTConfig) -> int:
    """Return the floating-point operations of one plain forward of one image, as torch counts them."""
    one = random_batch(model, 1)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        denoiser(one.z, torch.ones(1, device=DEVICE), one.condition)
    return counter.get_total_flops()
