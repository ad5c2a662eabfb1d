"""The names that LoRA files have for the matrices and convolutions of a network.

Files of diffusers and peft name a module as the network does. Those of kohya have an underscore for each dot, and for
SDXL they often have the names of Stability's own code, where the layers of all blocks are counted through.
"""

from collections.abc import Iterator, Sequence

KOHYA = {
    "lora_unet_": "unet.",
    "lora_te_": "text_encoder.",
    "lora_te1_": "text_encoder.",
    "lora_te2_": "text_encoder_2.",
}
"""What begins the names in a file of kohya, and the part that it means."""
PEFT = "base_model.model."
"""What begins the names in an adapter that peft saved itself, which is one of the denoising network."""
RESNET = {
    "conv1": "in_layers_2",
    "time_emb_proj": "emb_layers_1",
    "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection",
}
"""What Stability's code calls the parts of a residual block."""
TEXT = "text_model."
"""What transformers puts before the names of an encoder in some versions, and leaves out in others."""


def with_part(name: str) -> str:
    """Return the name of a tensor with the part of the pipeline before it."""
    for beginning, part in {**KOHYA, PEFT: "unet."}.items():
        if name.startswith(beginning):
            return f"{part}{name.removeprefix(beginning)}"
    return name


def names_of(module: str, layers: int) -> Iterator[str]:
    """Yield all names of a module of a network, whose blocks have so many layers if it is a UNet."""
    for name in (module, f"{TEXT}{module}", module.removeprefix(TEXT)):
        yield name
        yield underscored(name)
    if (stability := stability_name(module, layers)) is not None:
        yield stability


def stability_name(module: str, layers: int) -> str | None:
    """Return the name in Stability's code of a module in a block of a UNet, with underscores; None for others.

    Upsamplers have none here: their number depends on whether the block attends, and a file that has one is refused.
    """
    kind, *rest = module.split(".")
    match kind, rest:
        case "mid_block", [part, number, *inner]:
            return underscored("middle_block", 1 if part == "attentions" else 2 * int(number), *renamed(part, inner))
        case "down_blocks", [block, "downsamplers", _, "conv"]:
            return underscored("input_blocks", (int(block) + 1) * (layers + 1), 0, "op")
        case "down_blocks", [block, "resnets" | "attentions" as part, number, *inner]:
            at = int(block) * (layers + 1) + int(number) + 1  # 0 is the first convolution
            return underscored("input_blocks", at, int(part == "attentions"), *renamed(part, inner))
        case "up_blocks", [block, "resnets" | "attentions" as part, number, *inner]:
            at = int(block) * (layers + 1) + int(number)
            return underscored("output_blocks", at, int(part == "attentions"), *renamed(part, inner))
    return None


def renamed(part: str, inner: Sequence[str]) -> Sequence[str]:
    """Return the rest of a name, with Stability's names of the parts of a residual block."""
    return [RESNET.get(inner[0], inner[0]), *inner[1:]] if part == "resnets" and inner else inner


def underscored(*pieces: object) -> str:
    """Join the pieces of a name with underscores, which also replace its dots."""
    return "_".join(map(str, pieces)).replace(".", "_")
