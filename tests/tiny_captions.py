"""A few pictures with captions beside them, prepared for the tiny pipelines, and runs of these."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console

from mucs_ray.data.prepare import prepare
from mucs_ray.data.sources import Choices
from mucs_ray.data.table import Dataset
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.run.resolve import resolve
from tiny_models import SIDE, saved

CAPTIONS = {0: "a red square", 1: "a green square", 3: "a blue square"}
"""The third image has no caption."""


def pictures(root: Path) -> Path:
    """Write four pictures of noise, wider than high, with files of captions."""
    rng = np.random.default_rng(1)
    for number in range(4):
        pixels = rng.integers(0, 256, (SIDE, SIDE + 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        if number in CAPTIONS:
            (root / f"{number}.txt").write_text(CAPTIONS[number])
    return root


def captioned(source: Path, out: Path) -> Dataset:
    """Prepare them as on a machine without the weights of CLIP."""
    return prepare("folder", where=str(source), out=str(out), size=SIDE, choices=Choices(keep_text=True))


def opened(dataset: Dataset, name: str, *settings: str) -> Pipeline:
    """Open a run of a tiny pipeline, beside the data set."""
    console = Console(file=io.StringIO())
    shared = ["generate.items=1", "generate.controls=0", "generate.conditions=train", *settings]
    recipe, data = resolve(dataset=dataset.url, recipe=None, weights=str(saved(name)), settings=shared, console=console)
    return Pipeline.open(recipe, data, str(Path(dataset.url).parent / f"run-{name}"), console=console)
