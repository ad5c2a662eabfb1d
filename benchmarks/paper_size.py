"""The paper's CIFAR-10 model at full size (DiT-B, 100 M parameters) on real CIFAR-10: does each step run, and how fast.

    python benchmarks/paper_size.py --cifar10 FOLDER [--batch 8] [--noises 10] [--images 2]

FOLDER holds CIFAR-10 in its official binary or pickled layout. One process, one thread (on a GPU: that). Runs two
training updates, one unlearning update of a training image, and a scoring block of `images` x `noises` x 2 models, in
fp32 and in bf16 autocast, and prints seconds a forward and the rate in GFLOP/s (operations counted by torch).
"""

import argparse
import os
import platform
import tempfile
from dataclasses import replace

import numpy as np
import torch
from models import DEVICE, seconds
from torch.utils.flop_counter import FlopCounterMode

from mucs_ray.attribution.base import Item
from mucs_ray.attribution.config import ScoreConfig
from mucs_ray.attribution.loss_change import LossChange
from mucs_ray.attribution.unlearn import unlearn
from mucs_ray.config import build, read_recipe
from mucs_ray.data.local import LocalImages
from mucs_ray.data.prepare import prepare
from mucs_ray.diffusion.denoiser import EDMDenoiser
from mucs_ray.models.dit import DiT
from mucs_ray.training.step import Group, TrainState, name_torch_stream, train_update


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--cifar10", required=True)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--noises", type=int, default=10)
    options.add_argument("--images", type=int, default=2)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    recipe = build(read_recipe("cifar10"))
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")

    with tempfile.TemporaryDirectory() as folder:
        os.environ["MUCS_RAY_CACHE"] = f"{folder}/cache"
        dataset = prepare("cifar10", where=chosen.cifar10, out=f"{folder}/data", size=None)
        images = LocalImages(dataset, "train")
        print(f"{len(images):,} training images")

        name_torch_stream(recipe.seed, "train/init")
        state = TrainState.fresh(EDMDenoiser(DiT(recipe.model)).to(DEVICE), recipe.train)
        config = replace(recipe.train, batch_size=chosen.batch, warmup_epochs=0)
        for step in (1, 2):
            losses: list[float] = []
            took = seconds(lambda: losses.append(train_update(state, images, config, seed=1, group=Group()).item()))  # noqa: B023
            print(f"training update {step} of {chosen.batch} images: {took:.1f} s, loss {losses[0]:.4f}")

        first = images.batch(np.asarray([0]))
        item = Item(number=0, idx=0, condition=None, image=first.image[0])

        def batches(step: int):  # noqa: ANN202
            rows = np.arange(step * chosen.batch, (step + 1) * chosen.batch)
            return images.batch(rows).to(DEVICE)

        denoiser = state.live.eval().requires_grad_(False)
        result = []
        took = seconds(
            lambda: result.append(
                unlearn(
                    denoiser,
                    item,
                    batches,
                    bound=10.0,
                    config=replace(recipe.unlearn, max_updates=1),
                    learning_rate=1e-5,
                    seed=1,
                )
            )
        )
        changed = result[0].tensors
        told = " -> ".join(f"{loss:.4f}" for loss in result[0].item_loss)
        print(f"unlearning, 1 update, 2 x {chosen.batch} draws before and after: {took:.1f} s, item loss {told}")

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            denoiser(first.image.to(DEVICE), torch.ones(1, device=DEVICE))
        flop = counter.get_total_flops()
        block = images.batch(np.arange(chosen.images)).to(DEVICE)
        scores = {}
        for precision in ("fp32", "bf16"):
            score = ScoreConfig(noises=chosen.noises, precision=precision)
            method = LossChange(denoiser, [changed], config=score, image_size=32, seed=1)
            method.losses(block[:1])
            took = seconds(lambda: scores.update({precision: method.skew(method.losses(block))}))  # noqa: B023
            forwards = chosen.images * chosen.noises * 2
            rate = flop * forwards / took / 1e9
            print(f"scoring {precision}: {forwards} forwards, {took / forwards:.3f} s a forward, {rate:,.0f} GFLOP/s")
        print(f"{flop / 1e9:.1f} GFLOP a forward; largest score difference {max_difference(scores):.1e}")


def max_difference(scores: dict[str, torch.Tensor]) -> float:
    """Between the two precisions."""
    return (scores["fp32"] - scores["bf16"]).abs().max().item()


if __name__ == "__main__":
    main()
