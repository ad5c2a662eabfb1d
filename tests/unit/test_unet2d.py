"""UNet2DModel against what diffusers' own answers, by itself and step by step (spec/backbones 2.3, 2.6, 3)."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from families import COSINE, UNET2D
from fixture_files import document, tensors
from mucs_ray.diffusion.generation import ddim
from mucs_ray.diffusion.vp import VP
from mucs_ray.models.ddpm import DDPM
from mucs_ray.models.unet2d import Resnet, SelfAttention, UNet2DModel
from mucs_ray.models.unet2d_config import UNet2DConfig

FORWARD = tensors("guda_u/unet2d_forward")
EPS = tensors("eps_contract/eps_contract")


@cache
def reference() -> DDPM:
    network = UNet2DModel(UNET2D)
    network.load_state_dict(tensors("guda_u/unet2d_tiny_weights", "base."))
    return DDPM(network.eval().requires_grad_(False), VP(betas=COSINE))


def test_raw_output_is_the_reference_one():
    found = reference().network(FORWARD["x"], FORWARD["t"].float())
    torch.testing.assert_close(found, FORWARD["eps"], rtol=0, atol=1e-6)


def close_by_row(found: Tensor, expected: Tensor, tolerance: float) -> None:
    """Relative to the largest value of each image."""
    error = (found - expected).flatten(2).abs().amax(2)
    assert (error <= tolerance * expected.flatten(2).abs().amax(2)).all(), error


@pytest.mark.parametrize("clip", [1.0, None])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_deterministic_generation_is_the_reference_one(spacing: str, clip: float | None):
    """Each step from the state before it; and all ten, over which the roundings of two programs in fp32 add up."""
    process = VP(betas=COSINE, spacing=spacing)  # type: ignore[arg-type]
    levels = process.sampling_levels(10)
    following = process.following(levels)
    expected = EPS[f"generate_{spacing}_{'clip' if clip else 'noclip'}"]
    start = EPS["generate_noise"]
    before = [start, *expected.unbind(1)]
    single = [
        next(ddim(process, reference(), before[step], levels=(levels[step, None], following[step, None]), clip=clip))
        for step in range(10)
    ]
    close_by_row(torch.stack(single, dim=1), expected, 1e-6)
    whole = list(ddim(process, reference(), start, levels=(levels, following), clip=clip))
    close_by_row(torch.stack(whole, dim=1), expected, 1e-5)


def test_full_size_names_and_shapes_are_the_reference_ones():
    with torch.device("meta"):
        network = UNet2DModel(UNet2DConfig())
    found = {name: list(parameter.shape) for name, parameter in network.named_parameters()}
    assert found == document("guda_u/full_size_table")
    assert len(found) == 506
    assert sum(map(math.prod, found.values())) == 49_062_787


OLD_CIFAR10 = UNet2DConfig(
    layers=2,
    attention_down=(False, True, False, False),
    attention_up=(False, True, False, False),
    head_width=None,
    norm_eps=1e-6,
    dropout=0.0,
    downsample_padding=0,
    cos_first=False,
    frequency_shift=1,
)


@pytest.mark.parametrize(
    ("config", "which", "count"),
    [
        (UNet2DConfig(), "mlp", 36_421_632),
        (UNet2DConfig(), "all", 49_062_787),
        (OLD_CIFAR10, "mlp", 26_800_000),
        (OLD_CIFAR10, "all", 35_700_000),
        (UNET2D, "all", 45_259),
    ],
)
def test_counts_of_what_is_unlearned(config: UNet2DConfig, which: str, count: int):
    with torch.device("meta"):
        model = DDPM(UNet2DModel(config), VP())
    names = model.names(which)  # type: ignore[arg-type]
    found = sum(model.network.get_parameter(name).numel() for name in names)
    assert found == (pytest.approx(count, abs=50_000) if count % 100_000 == 0 else count)
    assert len(set(names)) == len(names)


def test_attention_and_convolutions_by_name():
    model = reference()
    places = [
        "down_blocks.1.attentions.0",
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
        "mid_block.attentions.0",
    ]
    assert set(model.names("attention")) == {f"{place}.to_{one}.weight" for place in places for one in "qkv"}
    assert len(model.names("mlp")) == 2 * 8
    out = {f"{place}.to_out.0.weight" for place in places}
    assert set(model.names("blocks")) == {*model.names("mlp"), *model.names("attention"), *out}
    assert all(not name.endswith("bias") for name in model.names("weights"))
    assert len(model.blocks()) == 8 + 4
    assert all(isinstance(block, Resnet | SelfAttention) for block in model.blocks())


def test_the_time_is_told_in_waves():
    """channels 4, shift 1: frequencies 1 and 1/10000; the sine first, or the cosine."""
    config = UNet2DConfig(channels=(4,), attention_down=(False,), attention_up=(False,), groups=1, frequency_shift=1)
    embedding = UNet2DModel(config).time_embedding
    embedding.linear_1 = nn.Identity()  # type: ignore[assignment]
    embedding.linear_1.weight = torch.zeros(1)  # type: ignore[assignment]
    embedding.linear_2 = nn.Identity()  # type: ignore[assignment]
    waves = torch.tensor([math.cos(3), math.cos(3e-4), math.sin(3), math.sin(3e-4)])
    torch.testing.assert_close(embedding(torch.tensor([3.0]))[0], nn.functional.silu(waves))
    embedding.cos_first = False
    torch.testing.assert_close(embedding(torch.tensor([3.0]))[0], nn.functional.silu(waves.roll(2)))


def test_classes():
    """A row of the table is added to the embedding of the time; of no class nothing is."""
    torch.manual_seed(0)
    config = UNet2DConfig(
        image_size=8,
        channels=(8, 16),
        layers=1,
        attention_down=(False, True),
        attention_up=(False, True),
        groups=4,
        head_width=4,
        num_classes=3,
    )
    model = DDPM(UNet2DModel(config), VP()).eval()
    x, level = torch.randn(4, 3, 8, 8), torch.tensor([5.0, 5, 700, 999])
    assert model.nothing(4)["condition"].shape == (4, 3)
    torch.testing.assert_close(model(x, level, model.nothing(4)), model(x, level))
    label = torch.tensor([2, 0, 1, 1])
    found = model(x, level, {"condition": nn.functional.one_hot(label, 3).float()})
    table, time = model.network.class_embedding.weight, model.network.time_embedding
    hook = time.register_forward_hook(lambda module, given, out: out + table[label])
    torch.testing.assert_close(found, model(x, level))
    hook.remove()
    assert not torch.allclose(found, model(x, level))
    assert DDPM(UNet2DModel(UNET2D), VP()).nothing(4) == {}


def test_a_predicted_variance_is_left_out():
    class Both(nn.Module):
        def forward(self, x: Tensor, time: Tensor, condition: Tensor | None) -> Tensor:
            return torch.cat([x, 5 + x], dim=1)

    model = DDPM(Both(), VP())  # type: ignore[arg-type]
    noisy, level = torch.ones(1, 3, 2, 2), torch.tensor([500.0])
    at = model.process.at(level)
    torch.testing.assert_close(model.raw(noisy, at, {}), noisy)
    torch.testing.assert_close(model(noisy, level)[0, 0, 0, 0], ((1 - at.s) / at.alpha)[0])
