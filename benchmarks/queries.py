"""What does it change to give a generated image back as an 8-bit picture?

    python benchmarks/queries.py --run FOLDER [--method mucs]

Explains each image that a finished run generated three times more: its PNG, which is recognized; its 8-bit numbers with
noise of their own, as of a picture from elsewhere; and the same with the noise of the image itself, so that only the 8
bits differ. Prints how far each agrees with the run's own answer. The answers stay in the run's folder `queries/`.
"""

import argparse
import io
import statistics
from collections.abc import Sequence
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import torch
from models import machine
from PIL import Image
from rich.console import Console
from sidebyside import overlap, rank_correlation
from torch import Tensor

from mucs_ray.data.queries import Query, query_of
from mucs_ray.models.adapters import adapter
from mucs_ray.pipeline.graph import Pipeline, reopen
from mucs_ray.results.answer import Answer
from mucs_ray.run import driver
from mucs_ray.store import checkpoint
from mucs_ray.store.items import load_item

TOP = 10


def main() -> None:
    options = parse()
    print(machine())
    run = reopen(options.run, console=Console(file=io.StringIO()))
    direct = scores(Answer(run), options.method, list(range(run.recipe.generate.items)))
    print(
        f"{direct.shape[0]} images x {direct.shape[1]} items; rank correlation and the top {TOP} of {options.method}\n"
    )
    with TemporaryDirectory() as folder:
        for name, queries in forms(run, folder).items():
            answered = replace(run, methods=(options.method,)).explaining(queries)
            driver.run([answered], "attribute")
            places = [[query.name for query in answered.queries].index(query.name) for query in queries]
            other = scores(Answer(answered), options.method, places)
            correlations, shared = rank_correlation(direct, other), overlap(direct, other, TOP)
            print(
                f"{name}: {statistics.mean(correlations):.3f} (least {min(correlations):.3f}),"
                f" {TOP * statistics.mean(shared):.1f} of {TOP} (least {TOP * min(shared):.0f})",
                flush=True,
            )


def forms(run: Pipeline, folder: str) -> dict[str, list[Query]]:
    """Return the generated images as queries, in the order of their numbers."""
    stage, codec = run.stages["generate"], adapter(run.recipe.model).codec(torch.device("cpu"))
    recognized, alone, same_noise = [], [], []
    for number in range(run.recipe.generate.items):
        png, item = stage.url(stage.part(f"item-{number:04d}", "png")), load_item(stage, number)
        pixels = torch.from_numpy(np.asarray(Image.open(png).convert("RGB")).transpose(2, 0, 1).copy())
        file = f"{folder}/{number:04d}.safetensors"  # a tensor, for a picture with these pixels is recognized
        checkpoint.save(file, {**item.condition, "image": codec.encode(pixels[None])[0]}, {"number": number})
        query = query_of(file, **condition(run, item.idx))
        recognized.append(query_of(png))
        alone.append(query)
        same_noise.append(replace(query, idx=item.idx, generated=file))
    return {"recognized": recognized, "8 bits and other noise": alone, "8 bits, same noise": same_noise}


def condition(run: Pipeline, idx: int) -> dict[str, str]:
    """Return the condition of the image that lent a generated one its own."""
    card = run.dataset.card
    if card.condition == "none" or not run.recipe.model.conditional:
        return {}
    lender = run.dataset.find({idx}, run.recipe.generate.conditions)[idx]
    return {"label": str(lender.label)} if card.condition == "label" else {"prompt": (lender.text or ("",))[0]}


def scores(answer: Answer, method: str, places: Sequence[int]) -> Tensor:
    """Return scores[images, items] of the pictures at these places."""
    return torch.from_numpy(answer.scores(method).scores[list(places)].T.copy())


def parse() -> argparse.Namespace:
    """Parse the command line."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--run", metavar="FOLDER", required=True, help="run directory of a finished attribution")
    options.add_argument("--method", default="mucs")
    return options.parse_args()


if __name__ == "__main__":
    main()
