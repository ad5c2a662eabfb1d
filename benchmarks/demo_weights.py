"""Train the network of `make demo` on the embedded emoji, for longer than a demo may take, and write its weights.

    python benchmarks/demo_weights.py --updates 12000 --out mucs_ray/recipes/emoji.safetensors

It is the recipe `emoji` but for the number of updates, in one process. The same command goes on from the last epoch.
Its file holds the EMA weights with the lowest validation loss in bf16, and a card: recipe, updates, licence of the
images. With so many updates at a constant rate, the loss jumped in the end; the embedded file is that of update 11,200.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console

from mucs_ray.engine.ray_train import TrainJob, run_training
from mucs_ray.run.resolve import resolve
from mucs_ray.store import checkpoint
from mucs_ray.store.run import Stage
from mucs_ray.training.numerics import as_in_training
from mucs_ray.training.step import WorkerContext


def main() -> None:
    """Train, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=12_000)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", default="runs/demo-weights", help="folder of the training's state")
    options = parser.parse_args()
    recipe, dataset = resolve(dataset="emoji", recipe=None, weights=None, settings=[], console=Console())
    train = replace(recipe.train, updates=options.updates, patience=0)
    stage = Stage(
        run_url=str(Path(options.work).absolute()), name="pretrain", reads={"updates": options.updates}, inputs={}
    )
    job = TrainJob(dataset=dataset, stage=stage, model=recipe.model, train=train, seed=recipe.seed)
    started = time.monotonic()

    def post(key: str, value: object) -> None:
        if key == "validation":
            print(f"{time.monotonic() - started:6.0f} s  {value}", flush=True)

    cpu = torch.device("cpu")
    with as_in_training(cpu):
        state = run_training(job, WorkerContext(), cpu, post)
    tensors, facts = checkpoint.load(stage.url(stage.part("best", "safetensors")))
    card = {
        "model": facts["model"],
        "seed": recipe.seed,
        "recipe": recipe.name,
        "updates": state.best_step,
        "trained_on": f"{dataset.card.num_images('train')} images of {dataset.card.source}",
        "licence_of_the_images": dataset.card.licence,
    }
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    checkpoint.save_with_card(str(options.out.absolute()), half, card)
    print(f"{options.out}: {options.out.stat().st_size:,} bytes after {state.best_step} updates")


if __name__ == "__main__":
    main()
