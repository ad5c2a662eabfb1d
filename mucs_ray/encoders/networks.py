"""Encoders of images as vectors: CLIP, DINOv2 and SSCD, from files on this machine (spec 9.3, 9.4, 11.1).

Axes: n images, d embedding.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from mucs_ray.encoders.batches import exact, in_batches
from mucs_ray.encoders.weights import CLIP_WEIGHTS, DINO_WEIGHTS, SSCD_WEIGHTS, first_line, read_weights
from mucs_ray.errors import InputError
from mucs_ray.spaces.pictures import CHANNELS, Pictures, Squares

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_ARCHITECTURE = "ViT-L-14"
CLIP_DIM = 768
CLIP_PX = 224
DINO_ARCHITECTURE = "vit_base_patch14_dinov2"
DINO_DIM = 768
DINO_PX = 224
DINO_GRID = 37
"""The number of patches along a side of the 518 px images for which DINOv2's position embeddings were made."""
SSCD_DIM = 512
SSCD_PX = 320


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoder:
    """A pretrained network that embeds images."""

    network: Callable[[Squares], Float[Tensor, "n d"]]
    prepare: Callable[[Pictures], Squares]
    """This brings images in [0, 1] to the form that the network expects."""
    dim: int
    device: torch.device

    def embed(self, images: Pictures) -> Float[Tensor, "n d"]:
        """Embed images in [0, 1] as vectors of length 1, in fp32, on the images' device.

        The inner product of two vectors is their cosine.
        """
        if not len(images):
            return torch.zeros(0, self.dim, device=images.device)
        return in_batches(lambda part: normalize(self.network(self.prepare(part)), dim=1), images, device=self.device)


def load_clip(path: str, device: torch.device) -> Encoder:
    """Load the image tower of open_clip ViT-L-14 laion2b_s32b_b82k; InputError if the file holds something else."""
    from open_clip import get_model_config
    from open_clip.transformer import VisionTransformer

    config = get_model_config(CLIP_ARCHITECTURE)
    assert config is not None and config["embed_dim"] == CLIP_DIM
    vision = config["vision_cfg"]
    heads = vision["width"] // vision.get("head_width", 64)
    with torch.device("meta"):
        network = VisionTransformer(output_dim=CLIP_DIM, heads=heads, mlp_ratio=4.0, **vision)
    shapes = {f"visual.{name}": tuple(value.shape) for name, value in network.state_dict().items()}
    tensors = read_weights(path, shapes, network=CLIP_WEIGHTS.network)
    fill(network, {name.removeprefix("visual."): value for name, value in tensors.items()}, device)
    return Encoder(network=network, prepare=prepare_clip, dim=CLIP_DIM, device=device)


def prepare_clip(images: Pictures) -> Squares:
    """Round to 8 bits, resize the shorter side to 224 by Pillow's bicubic filter, and crop the centre; mean = std =
    0.5.

    Values are rounded, not truncated: images that came from 8-bit files become these files again.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import center_crop, resize, to_pil_image

    def prepare_one(image: Tensor) -> Tensor:
        small = resize(to_pil_image(image), [CLIP_PX], InterpolationMode.BICUBIC)
        return torch.from_numpy(np.array(center_crop(small, [CLIP_PX])))

    pixels = (images * 255).round().clamp(0, 255).to(torch.uint8).cpu()
    small = torch.stack([prepare_one(image) for image in pixels]).permute(0, 3, 1, 2)
    return small.to(images.device, torch.float32) / 127.5 - 1


def load_dino(path: str, device: torch.device) -> Encoder:
    """Load DINOv2 ViT-B/14, which embeds by its class token, from Meta's or timm's file; InputError for another."""
    from timm import create_model

    with torch.device("meta"):
        network = create_model(DINO_ARCHITECTURE, pretrained=False, img_size=DINO_PX, num_classes=0)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    shapes["pos_embed"] = (1, 1 + DINO_GRID**2, DINO_DIM)
    tensors = read_weights(path, shapes, network=DINO_WEIGHTS.network)
    tensors["pos_embed"] = resample_positions(tensors["pos_embed"], DINO_PX // 14)
    fill(network, tensors, device)
    return Encoder(network=network, prepare=prepare_dino, dim=DINO_DIM, device=device)


def prepare_dino(images: Pictures) -> Squares:
    """Resize to 224 x 224 and normalise with ImageNet's mean and standard deviation."""
    return standardized(square(images, DINO_PX))


def resample_positions(positions: Float[Tensor, "1 tokens d"], side: int) -> Float[Tensor, "1 fewer d"]:
    """Resample position embeddings for side x side patches, as torch hub's dinov2_vitb14 does.

    The scale is (side + 0.1) / 37, without antialiasing; timm does both differently, so its embeddings differ.
    """
    grid = positions[:, 1:].unflatten(1, (DINO_GRID, DINO_GRID)).permute(0, 3, 1, 2)
    scale = (side + 0.1) / DINO_GRID
    grid = interpolate(grid, scale_factor=(scale, scale), mode="bicubic")
    return torch.cat([positions[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def load_sscd(path: str, device: torch.device) -> Encoder:
    """Load SSCD's ResNet-50 with 512 outputs; InputError if the file is broken or gives something else.

    A TorchScript file is code: it runs with this process's rights. Use a file from where SSCD publishes it, or one that
    you trust as you would trust a program.
    """
    try:
        with warnings.catch_warnings(), exact():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and there is no other official file
            network = torch.jit.load(path, map_location=device).eval()
            embedding = network(torch.zeros(1, CHANNELS, SSCD_PX, SSCD_PX, device=device))
    except (RuntimeError, ValueError, OSError, NotImplementedError, torch.jit.Error) as error:
        raise InputError(f"{path} is not {SSCD_WEIGHTS.network} or is broken ({first_line(error)})") from None
    shape = tuple(embedding.shape) if isinstance(embedding, Tensor) else type(embedding).__name__
    if shape != (1, SSCD_DIM):
        raise InputError(
            f"{path} is not {SSCD_WEIGHTS.network}: it returns {shape} for one image, expected (1, {SSCD_DIM})"
        )
    return Encoder(network=network, prepare=prepare_sscd, dim=SSCD_DIM, device=device)


def prepare_sscd(images: Pictures) -> Squares:
    """Resize to 320 x 320 and normalise with ImageNet's mean and standard deviation."""
    return standardized(square(images, SSCD_PX))


def square(images: Pictures, px: int) -> Squares:
    """Resize to px x px, bilinear and antialiased, as torchvision resizes tensors."""
    return interpolate(images, size=(px, px), mode="bilinear", antialias=True)


def standardized(images: Squares) -> Squares:
    """Normalise with ImageNet's mean and standard deviation."""
    mean, std = images.new_tensor(IMAGENET_MEAN), images.new_tensor(IMAGENET_STD)
    return (images - mean[:, None, None]) / std[:, None, None]


def fill(network: nn.Module, tensors: dict[str, Tensor], device: torch.device) -> None:
    """Load the weights into a network that was built without memory, freeze it, and move it to the device."""
    network.load_state_dict(tensors, assign=True)
    network.eval().requires_grad_(False).to(device)
