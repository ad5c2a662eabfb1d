"""LPIPS as a similarity: 1 - distance, v0.1, on images of 224 x 224 (spec 11.1).

The heads come with the lpips package; the convolutions below them are a file of torchvision's on this machine.
"""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.encoders.networks import square
from mucs_ray.encoders.weights import ALEXNET_WEIGHTS, SQUEEZENET_WEIGHTS, VGG_WEIGHTS, Weights, read_weights
from mucs_ray.spaces.pictures import Pictures, Squares

Trunk = Literal["vgg", "alex", "squeeze"]
WEIGHTS: dict[Trunk, Weights] = {"vgg": VGG_WEIGHTS, "alex": ALEXNET_WEIGHTS, "squeeze": SQUEEZENET_WEIGHTS}
LPIPS_PX = 224


def load_lpips(path: str, device: torch.device, *, trunk: Trunk) -> Callable[[Pictures, Pictures], Float[Tensor, " n"]]:
    """Return 1 - LPIPS of images in [0, 1], at least -1; InputError if the file has not the trunk's convolutions."""
    distance = load_distance(path, device, trunk=trunk)

    def prepare(images: Pictures) -> Squares:
        return (2 * square(images, LPIPS_PX) - 1).clamp(-1, 1)

    def similarity(first: Pictures, second: Pictures) -> Float[Tensor, " n"]:
        return (1 - distance(prepare(first), prepare(second)).flatten()).clamp(min=-1)

    return similarity


def load_distance(path: str, device: torch.device, *, trunk: Trunk) -> nn.Module:
    """Return the lpips package's own module, which gives distances, n 1 1 1, of images in [-1, 1] of any size."""
    import lpips

    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")  # lpips builds torchvision's networks the old way
        module = lpips.LPIPS(net=trunk, pnet_rand=True, pretrained=False, verbose=False)
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    heads = {name: shape for name, shape in shapes.items() if re.match(r"lin\d", name)}
    public_names = {name: convolution_name(name) for name in shapes if name.startswith("net.")}
    convolutions = read_weights(
        path, {public_names[name]: shapes[name] for name in public_names}, network=WEIGHTS[trunk].network
    )
    tensors = read_weights(heads_file(trunk), heads, network="LPIPS v0.1")
    tensors |= {name: convolutions[public_names[name]] for name in public_names}
    module.load_state_dict(tensors, strict=False, assign=True)  # the other tensors repeat the heads or are constants
    return module.eval().requires_grad_(False).to(device)


def convolution_name(name: str) -> str:
    """Return torchvision's name of a tensor, e.g. features.5.weight for lpips' net.slice2.5.weight."""
    return f"features.{name.split('.', 2)[2]}"


def heads_file(trunk: str) -> str:
    """Return the path of the linear heads, v0.1, in the lpips package."""
    import lpips

    return str(Path(lpips.__file__).parent / "weights" / "v0.1" / f"{trunk}.pth")
