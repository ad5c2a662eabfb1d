"""What do bf16 and fp8 do to the ranks?

    python benchmarks/precision.py --run FOLDER [--images 600] [--items 5] [--noises 20]

Scores the same images with the same models in fp32, in bf16 autocast, and with the inputs and weights of all linear
layers rounded to fp8 (e4m3, a scale a tensor, or a scale a row), products and sums in fp32: what a GPU's fp8 matrix
product would do, at a CPU's speed. Prints how far skews and lists agree with fp32.
"""

import tempfile
from copy import deepcopy

import torch
from models import Subject, machine, parser, subject
from sidebyside import agreement
from torch import Tensor, nn

from mucs_ray.attribution.loss_change import LossChange
from mucs_ray.config.recipe import with_values
from mucs_ray.diffusion.batch import Batch

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def main() -> None:
    options = parser(__doc__, images=600)
    arguments = options.parse_args()
    torch.set_num_threads(1)
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        model = subject(arguments, folder, images=arguments.images, settings=arguments.set).tuned()
        batch = model.images(arguments.images)
        exact = scores(model, batch, "fp32")
        print(f"{model.recipe.name}, {model.origin}: {len(batch)} images, {model.recipe.score.noises} noises")
        print("bf16:", agreement(scores(model, batch, "bf16"), exact), flush=True)
        for name, rows in (("fp8, a scale a tensor:", False), ("fp8, a scale a row:", True)):
            print(name, agreement(scores(in_fp8(model, rows=rows), batch, "fp32"), exact), flush=True)


def scores(model: Subject, batch: Batch, precision: str) -> Tensor:
    """Return skews[images, items]."""
    recipe = with_values(model.recipe, {"score.precision": precision})
    change = LossChange(deepcopy(model.denoiser), model.bank, config=recipe.score, seed=recipe.seed)
    return change.skew(change.losses(batch))


def in_fp8(model: Subject, *, rows: bool) -> Subject:
    """Round the linear layers of the same models: weights once, inputs at every forward."""
    denoiser = deepcopy(model.denoiser)
    names = set()
    for name, module in denoiser.network.named_modules():
        if isinstance(module, nn.Linear):
            names.add(f"{name}.weight")
            module.weight.data = rounded(module.weight.data, rows=rows)
            module.register_forward_pre_hook(lambda _, inputs: (rounded(inputs[0], rows=rows),))
    bank = [{n: rounded(t, rows=rows) if n in names else t for n, t in tensors.items()} for tensors in model.bank]
    recipe, dataset, origin = model.recipe, model.dataset, model.origin
    return Subject(recipe=recipe, dataset=dataset, denoiser=denoiser, bank=bank, origin=origin)


def rounded(tensor: Tensor, *, rows: bool) -> Tensor:
    """Round to e4m3, scaled so that the largest value of the tensor, or of each row, is the largest that e4m3 has."""
    largest = tensor.abs().amax(dim=-1, keepdim=True) if rows else tensor.abs().amax()
    scale = (largest / LARGEST).clamp(min=1e-12)
    return (tensor / scale).to(torch.float8_e4m3fn).to(tensor.dtype) * scale


if __name__ == "__main__":
    main()
