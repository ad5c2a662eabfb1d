"""The config.json of a UNet2DModel, read into its shape and written from it."""

from collections.abc import Mapping
from typing import Any

from mucs_ray.errors import InputError
from mucs_ray.models.unet2d_config import UNet2DConfig

ONLY: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DModel",),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1, 0),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "attn_norm_num_groups": (None,),
    "resnet_time_scale_shift": ("default",),
    "class_embed_type": (None,),
}
"""What can be read of a key that changes the network; the first is what an absent key stands for."""

NUMBERS: dict[str, tuple[str, Any]] = {
    "in_channels": ("in_channels", 3),
    "out_channels": ("out_channels", 3),
    "layers_per_block": ("layers", 2),
    "add_attention": ("attention_mid", True),
    "attention_head_dim": ("head_width", 8),
    "norm_num_groups": ("groups", 32),
    "norm_eps": ("norm_eps", 1e-5),
    "dropout": ("dropout", 0.0),
    "downsample_padding": ("downsample_padding", 1),
    "flip_sin_to_cos": ("cos_first", True),
    "freq_shift": ("frequency_shift", 0),
    "num_class_embeds": ("num_classes", None),
}
"""Our word for a key, and what an absent key stands for."""


def config_of(document: Mapping[str, Any], path: str) -> UNet2DConfig:
    """Read the shape from a config.json."""
    for key, values in ONLY.items():
        if document.get(key, values[0]) not in values:
            expected = " or ".join(map(repr, values))
            raise InputError(f"{path}: {key}: expected {expected}; found {document[key]!r}, which is not read here")
    size = document.get("sample_size")
    side = size[0] if isinstance(size, list) and size == size[:1] * 2 else size
    channels = document.get("block_out_channels", [224, 448, 672, 896])
    if not isinstance(side, int):
        raise InputError(f"{path}: sample_size: expected the side of a square image; found {size!r}")
    whole = isinstance(channels, list) and channels and all(isinstance(width, int) for width in channels)
    _expect(whole, path, "block_out_channels", "whole numbers", channels)
    numbers = {ours: _number(document, key, usual, path) for key, (ours, usual) in NUMBERS.items()}
    numbers["num_classes"] = numbers["num_classes"] or 0
    config = UNet2DConfig(
        image_size=side,
        channels=tuple(channels),
        attention_down=_attention(document, "Down", len(channels), path),
        attention_up=_attention(document, "Up", len(channels), path)[::-1],
        **numbers,
    )
    for width in channels:
        fits = width % 2 == 0 and width % config.groups == 0 and width % (config.head_width or width) == 0
        _expect(fits, path, "block_out_channels", "even multiples of norm_num_groups and attention_head_dim", width)
    return config


def document_of(config: UNet2DConfig) -> dict[str, Any]:
    """Return the config.json of a shape."""
    numbers = {key: getattr(config, ours) for key, (ours, _) in NUMBERS.items()}
    return numbers | {
        "_class_name": "UNet2DModel",
        "sample_size": config.image_size,
        "block_out_channels": list(config.channels),
        "down_block_types": [_type("Down", attends) for attends in config.attention_down],
        "up_block_types": [_type("Up", attends) for attends in reversed(config.attention_up)],
        "num_class_embeds": config.num_classes or None,
    }


def _number(document: Mapping[str, Any], key: str, usual: Any, path: str) -> Any:  # noqa: ANN401 - of a JSON document
    value = document.get(key, usual)
    may_be_absent = key in ("attention_head_dim", "num_class_embeds")
    positive = key not in ("dropout", "downsample_padding", "freq_shift", "add_attention", "flip_sin_to_cos")
    is_number = isinstance(value, int | float) and (value > 0 or not positive)
    _expect(is_number or (value is None and may_be_absent), path, key, "a number", value)
    return value


def _attention(document: Mapping[str, Any], way: str, levels: int, path: str) -> tuple[bool, ...]:
    """Tell which levels attend, in the order of the list."""
    plain, attends = _type(way, False), _type(way, True)
    usual = [plain] + [attends] * (levels - 1)
    key = f"{way.lower()}_block_types"
    types = document.get(key, usual if way == "Down" else usual[::-1])
    known = (
        isinstance(types, list) and len(types) == levels and all(block_type in (plain, attends) for block_type in types)
    )
    _expect(known, path, key, f"{plain} or {attends} for each of {levels} levels", types)
    return tuple(block_type == attends for block_type in types)


def _type(way: str, attends: bool) -> str:
    return f"{'Attn' * attends}{way}Block2D"


def _expect(holds: object, path: str, key: str, expected: str, value: object) -> None:
    if not holds:
        raise InputError(f"{path}: {key}: expected {expected}; found {value!r}")
