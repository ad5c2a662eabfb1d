"""A pipeline's network as a diffusion model: a UNet with cross-attention to text, on the process of its scheduler.

Axes: b batch, c h w latent.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.condition import Condition, for_each, moved
from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.diffusion.process import Coefficients, Process
from mucs_ray.diffusion.rows import per_row
from mucs_ray.models.pipelines.lora import adapter_names
from mucs_ray.models.unet_edm import UNetSelector, ending

MLP = "ff.net.0.proj.weight", "ff.net.2.weight"
ATTENTION = "to_q.weight", "to_k.weight", "to_v.weight"
BLOCKS = "BasicTransformerBlock", "ResnetBlock2D"


class TextUNet(DiffusionModel):
    """A UNet that reads "tokens" of a caption and, for SDXL, "pooled", a vector of it, and "time_ids", six sizes."""

    def __init__(
        self, network: nn.Module, process: Process, shape: tuple[int, ...], nothing: Callable[[], Condition]
    ) -> None:
        """Wrap `network`, which is not copied; `nothing` makes the null condition of one picture when it is needed."""
        super().__init__(network)
        self.process, self._shape, self._nothing = process, shape, nothing

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one latent."""
        return self._shape

    def raw(
        self,
        noisy: Float[Tensor, "b c h w"],
        at: Coefficients,
        condition: Condition,
        stem: Any = None,  # noqa: ANN401 - there is no stem
    ) -> Float[Tensor, "b c h w"]:
        """Return the network's output in the precision of `noisy`."""
        scaled = per_row(at.c_in, noisy) * noisy
        return self.network(scaled, at.time, return_dict=False, **called_with(condition))[0].to(noisy.dtype)

    def nothing(self, num: int) -> Condition:
        """Return the null condition, for each of `num` pictures."""
        return for_each(moved(self._nothing(), next(self.network.parameters()).device), num)

    def names(self, which: UNetSelector) -> list[str]:
        """Return the names of the network's parameters that a method asks for.

        What a LoRA has trained takes the place of the MLPs, and is among all larger choices.
        """
        adapted = adapter_names(self.network)
        match which:
            case "mlp":
                return adapted or ending(self.network, *MLP)
            case "attention":
                return ending(self.network, *ATTENTION)
            case "blocks":
                return adapted + ending(self.network, *MLP, *ATTENTION, "to_out.0.weight")
            case "weights":
                return adapted + ending(self.network, "weight")
            case "all":
                return [name for name, _ in self.network.named_parameters()]

    def blocks(self) -> Sequence[nn.Module]:
        """Return the blocks of attention and the residual ones."""
        return [module for module in self.network.modules() if type(module).__name__ in BLOCKS]


def called_with(condition: Condition) -> dict[str, Any]:
    """Return the network's keyword arguments for a condition."""
    arguments: dict[str, Any] = {"encoder_hidden_states": condition["tokens"]}
    if "pooled" in condition:
        added: Mapping[str, Tensor] = {"text_embeds": condition["pooled"], "time_ids": condition["time_ids"]}
        arguments["added_cond_kwargs"] = added
    return arguments
