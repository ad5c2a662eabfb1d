"""CLIP, DINOv2 and SSCD give the vectors of their own code, on random weights of the real architectures.

The weights are random because the real ones may not be here: what is tested is the reading, the preparing of images
and the network, not how good the metrics are.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import gelu, interpolate, layer_norm, linear, scaled_dot_product_attention

from mucs_ray.encoders import batches
from mucs_ray.encoders.networks import load_clip, load_dino, load_sscd, prepare_clip
from mucs_ray.errors import InputError

CPU = torch.device("cpu")
SMALL_TEXT = {"context_length": 4, "vocab_size": 8, "width": 64, "heads": 1, "layers": 1}
MEAN, STD = torch.tensor([[[0.485]], [[0.456]], [[0.406]]]), torch.tensor([[[0.229]], [[0.224]], [[0.225]]])

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")


def pictures(count: int, height: int = 32, width: int = 32, *, seed: int = 0) -> np.ndarray:
    """Return 8-bit pictures [n, h, w, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def as_images(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def standardized(images: torch.Tensor, px: int) -> torch.Tensor:
    """Return images as torchvision resizes and normalises tensors."""
    from torchvision.transforms.v2.functional import resize

    return (resize(images, [px, px], antialias=True) - MEAN) / STD


def unit(vectors: torch.Tensor) -> torch.Tensor:
    return vectors / vectors.norm(dim=1, keepdim=True)


def randomize(network: nn.Module) -> nn.Module:
    """Draw weights with which every layer matters, since an untrained network hides mistakes behind zeros and ones."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def in_one_line(error: pytest.ExceptionInfo[InputError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# --- CLIP


def clip_model(layers: int) -> nn.Module:
    """Return open_clip's CLIP with this many layers of ViT-L-14's image tower."""
    from open_clip.model import CLIP

    vision = {"image_size": 224, "layers": layers, "width": 1024, "patch_size": 14}
    torch.manual_seed(0)
    return randomize(CLIP(embed_dim=768, vision_cfg=vision, text_cfg=SMALL_TEXT))


def official_clip(model: nn.Module, pixels: np.ndarray) -> torch.Tensor:
    """Return open_clip's embeddings, with the preparation that its own table has for these weights."""
    from open_clip import get_pretrained_cfg, image_transform

    config = get_pretrained_cfg("ViT-L-14", "laion2b_s32b_b82k")
    prepare = image_transform(224, is_train=False, mean=config["mean"], std=config["std"])
    assert config["mean"] == (0.5, 0.5, 0.5) and config.get("interpolation", "bicubic") in ("", "bicubic")
    with torch.inference_mode():
        return model.encode_image(torch.stack([prepare(Image.fromarray(one)) for one in pixels]), normalize=True)


def check_clip(model: nn.Module, path: Path) -> None:
    encoder = load_clip(str(path), CPU)
    for shape in [(32, 32), (300, 260)]:
        pixels = pictures(2, *shape)
        actual, expected = encoder.embed(as_images(pixels)), official_clip(model, pixels)
        assert actual.shape == (2, 768) and actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
        assert (actual[0] - actual[1]).abs().max() > 1e-3


def test_clip_is_open_clips_with_two_of_24_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import open_clip

    config = open_clip.get_model_config("ViT-L-14")
    short = config | {"vision_cfg": config["vision_cfg"] | {"layers": 2}}
    monkeypatch.setattr(open_clip, "get_model_config", lambda name: short if name == "ViT-L-14" else None)
    model, path = clip_model(2), tmp_path / "clip.safetensors"
    save_file(model.state_dict(), path)
    try:
        check_clip(model, path)
        monkeypatch.setattr(open_clip, "get_model_config", lambda _: config)
        with pytest.raises(
            InputError, match=r"clip\.safetensors is not open_clip ViT-L-14.*resblocks\.2.* absent"
        ) as error:
            load_clip(str(path), CPU)
        in_one_line(error)
    finally:
        path.unlink()


@pytest.mark.slow
def test_clip_is_open_clips(tmp_path: Path):
    """This takes 1.2 GB on disk and 3 GB in memory."""
    model, path = clip_model(24), tmp_path / "open_clip_pytorch_model.bin"
    torch.save(model.state_dict(), path)
    try:
        check_clip(model, path)
    finally:
        path.unlink()


def test_clip_sees_the_8_bit_values_that_images_came_from():
    """Each 8-bit value survives small errors of arithmetic, and values outside [0, 1] do not wrap around."""
    values = torch.arange(20, 244) / 255
    for error in (-0.4, 0.0, 0.4):
        actual = prepare_clip((values + error / 255).repeat(1, 3, 224, 1))
        torch.testing.assert_close(actual, (2 * values - 1).repeat(1, 3, 224, 1), rtol=0, atol=1e-6)
    outside = prepare_clip(torch.tensor([-0.2, 1.2]).repeat_interleave(112).repeat(1, 3, 224, 1))
    assert outside[..., 0].eq(-1).all() and outside[..., -1].eq(1).all()


# --- DINOv2


def dino_weights() -> dict[str, torch.Tensor]:
    """Return random weights with the names and shapes of Meta's dinov2_vitb14_pretrain.pth."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int, mean: float = 0.0, std: float = 0.03) -> torch.Tensor:
        return mean + std * torch.randn(shape, generator=generator)

    weights = {
        "cls_token": normal(1, 1, 768),
        "pos_embed": normal(1, 1370, 768, std=0.5),
        "mask_token": normal(1, 768),
        "patch_embed.proj.weight": normal(768, 3, 14, 14),
        "patch_embed.proj.bias": normal(768),
        "norm.weight": normal(768, mean=1.0),
        "norm.bias": normal(768),
    }
    for number in range(12):
        block = {
            "norm1.weight": normal(768, mean=1.0),
            "norm1.bias": normal(768),
            "attn.qkv.weight": normal(2304, 768),
            "attn.qkv.bias": normal(2304),
            "attn.proj.weight": normal(768, 768),
            "attn.proj.bias": normal(768),
            "ls1.gamma": normal(768, mean=0.3),
            "norm2.weight": normal(768, mean=1.0),
            "norm2.bias": normal(768),
            "mlp.fc1.weight": normal(3072, 768),
            "mlp.fc1.bias": normal(3072),
            "mlp.fc2.weight": normal(768, 3072),
            "mlp.fc2.bias": normal(768),
            "ls2.gamma": normal(768, mean=0.3),
        }
        weights |= {f"blocks.{number}.{name}": value for name, value in block.items()}
    return weights


def reference_dino(w: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Return the class token of the paper's ViT-B/14 on 224 px; position embeddings are resampled as torch hub's."""
    patches = nn.functional.conv2d(images, w["patch_embed.proj.weight"], w["patch_embed.proj.bias"], stride=14)
    tokens = torch.cat([w["cls_token"].expand(len(images), 1, 768), patches.flatten(2).mT], dim=1)
    grid = w["pos_embed"][:, 1:].reshape(1, 37, 37, 768).permute(0, 3, 1, 2)
    grid = interpolate(grid, scale_factor=(16.1 / math.sqrt(1369), 16.1 / math.sqrt(1369)), mode="bicubic")
    assert grid.shape == (1, 768, 16, 16)
    x = tokens + torch.cat([w["pos_embed"][:, :1], grid.permute(0, 2, 3, 1).reshape(1, 256, 768)], dim=1)
    for number in range(12):
        b = {name.split(".", 2)[2]: value for name, value in w.items() if name.startswith(f"blocks.{number}.")}
        y = layer_norm(x, (768,), b["norm1.weight"], b["norm1.bias"], 1e-6)
        qkv = linear(y, b["attn.qkv.weight"], b["attn.qkv.bias"]).unflatten(2, (3, 12, 64)).permute(2, 0, 3, 1, 4)
        y = scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2)
        x = x + b["ls1.gamma"] * linear(y, b["attn.proj.weight"], b["attn.proj.bias"])
        y = layer_norm(x, (768,), b["norm2.weight"], b["norm2.bias"], 1e-6)
        y = linear(gelu(linear(y, b["mlp.fc1.weight"], b["mlp.fc1.bias"])), b["mlp.fc2.weight"], b["mlp.fc2.bias"])
        x = x + b["ls2.gamma"] * y
    return layer_norm(x, (768,), w["norm.weight"], w["norm.bias"], 1e-6)[:, 0]


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, torch.Tensor], Path]]:
    """Return weights and the path of their file, 340 MB."""
    weights, path = dino_weights(), tmp_path_factory.mktemp("dino") / "dinov2_vitb14_pretrain.pth"
    torch.save(weights, path)
    yield weights, path
    path.unlink()


def test_dino_is_torch_hubs_dinov2(dino: tuple[dict[str, torch.Tensor], Path], monkeypatch: pytest.MonkeyPatch):
    """The vectors equal those of the network written out from its definition, also in batches of 2."""
    weights, path = dino
    images = as_images(pictures(3, 300, 260))
    monkeypatch.setattr(batches, "BATCH", 2)
    encoder = load_dino(str(path), CPU)
    actual = encoder.embed(images)
    with torch.inference_mode():
        expected = unit(reference_dino(weights, standardized(images, 224)))
    assert actual.shape == (3, 768) and actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert (actual[0] - actual[1]).abs().max() > 1e-3
    assert encoder.embed(images[:0]).shape == (0, 768)


def test_timms_file_has_the_same_names_and_shapes_as_metas():
    from timm import create_model

    with torch.device("meta"):
        timms = create_model("vit_base_patch14_dinov2.lvd142m", pretrained=False).state_dict()
    metas = {name: value.shape for name, value in dino_weights().items() if name != "mask_token"}
    assert {name: value.shape for name, value in timms.items()} == metas


def test_another_dino_is_refused(tmp_path: Path):
    """The ViT-S/14 is refused, and position embeddings already resampled to 224 px."""
    small = {"cls_token": torch.zeros(1, 1, 384), "pos_embed": torch.zeros(1, 1370, 384)}
    torch.save(small, tmp_path / "small.pth")
    with pytest.raises(InputError, match=r"small\.pth is not DINOv2 ViT-B/14: cls_token is \(1, 1, 384\), ex") as error:
        load_dino(str(tmp_path / "small.pth"), CPU)
    in_one_line(error)
    save_file({"cls_token": torch.zeros(1, 1, 768), "pos_embed": torch.zeros(1, 257, 768)}, tmp_path / "a.safetensors")
    with pytest.raises(InputError, match=r"pos_embed is \(1, 257, 768\), expected \(1, 1370, 768\)"):
        load_dino(str(tmp_path / "a.safetensors"), CPU)


# --- SSCD


class Descriptor(nn.Module):
    """SSCD's network: a ResNet-50, a generalised mean (p = 3), a linear map to 512, and length 1."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import resnet50

        trunk = resnet50(weights=None)
        self.trunk = nn.Sequential(*list(trunk.children())[:-2])
        self.head = nn.Linear(2048, 512)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled = self.trunk(images).clamp(min=1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)
        return nn.functional.normalize(self.head(pooled), dim=1)


class Gives(nn.Module):
    """A network that returns this many numbers for an image."""

    def __init__(self, count: int, *, pair: bool = False) -> None:
        super().__init__()
        self.head, self.pair = nn.Linear(3, count), pair

    def forward(self, images: torch.Tensor):
        found = self.head(images.mean(dim=(2, 3)))
        return (found, found) if self.pair else found


def traced(network: nn.Module, path: Path, px: int = 320) -> Path:
    """Trace a network on an example, as SSCD's published file was made."""
    torch.jit.trace(network.eval(), torch.rand(2, 3, px, px)).save(str(path))
    return path


def test_sscd_is_the_network_in_the_file(tmp_path: Path):
    torch.manual_seed(0)
    network = Descriptor().eval()
    path = traced(network, tmp_path / "sscd_disc_mixup.torchscript.pt", px=64)
    images = as_images(pictures(2, 400, 340))
    images[1] = images[1, :, :1, :1]
    try:
        actual = load_sscd(str(path), CPU).embed(images)
    finally:
        path.unlink()
    with torch.inference_mode():
        expected = network(standardized(images, 320))
    assert actual.shape == (2, 512) and actual.dtype == torch.float32
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    assert (actual[0] - actual[1]).abs().max() > 1e-3
    torch.testing.assert_close(actual.norm(dim=1), torch.ones(2))


def test_files_that_are_not_sscd(tmp_path: Path):
    """Each of these files is refused with a reason of its own."""
    files = {
        "large.pt": r"returns \(1, 1024\) for one image, expected \(1, 512\)",
        "pair.pt": "returns tuple for one image, expected",
        "gray.pt": "or is broken",
        "weights.pt": "or is broken",
        "half.pt": "or is broken",
        "text.pt": "or is broken",
    }
    traced(Gives(1024), tmp_path / "large.pt")
    traced(Gives(512, pair=True), tmp_path / "pair.pt")
    torch.jit.script(nn.Conv2d(1, 512, 3)).save(str(tmp_path / "gray.pt"))
    torch.save({"backbone.conv1.weight": torch.zeros(64, 3, 7, 7)}, tmp_path / "weights.pt")
    whole = (tmp_path / "large.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.pt").write_text("not found")
    for name, reason in files.items():
        with pytest.raises(InputError, match=rf"{name} is not SSCD disc_mixup \(TorchScript\).*{reason}") as error:
            load_sscd(str(tmp_path / name), CPU)
        in_one_line(error)
