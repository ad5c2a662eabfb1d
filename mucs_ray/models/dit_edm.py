"""DiT-EDM in pixels as a diffusion model: the first, and the one that can be trained.

Axes: b batch, t tokens, w width, *shape of an image.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from mucs_ray.diffusion.edm import EDM
from mucs_ray.diffusion.model import Selector
from mucs_ray.diffusion.process import Process
from mucs_ray.diffusion.rows import per_row
from mucs_ray.models import official
from mucs_ray.models.adapter import Weights
from mucs_ray.models.dit import STEM, DiT, attention_names, repeated_modules, unlearned_names
from mucs_ray.models.dit_config import DiTConfig
from mucs_ray.models.pixel_adapter import PixelAdapter
from mucs_ray.models.pixel_model import PixelModel


class DiTEDM(PixelModel):
    """An EDM denoiser around a DiT, of which an unknown condition is replaced by a learned one."""

    process: Process = EDM()
    stem_parameters: ClassVar[tuple[str, ...]] = STEM

    def names(self, which: Selector) -> list[str]:
        """Return the names of the network's parameters that a method asks for."""
        match which:
            case "mlp":
                return unlearned_names(self.network)
            case "attention":
                return attention_names(self.network, "qkv")
            case "blocks":
                return unlearned_names(self.network) + attention_names(self.network, "qkv", "proj")
            case "all":
                return [name for name, _ in self.network.named_parameters()]

    def blocks(self) -> Sequence[nn.Module]:
        """Return the transformer's blocks and the convolutional ones."""
        return repeated_modules(self.network)

    def stem(self, noisy: Float[Tensor, "b *shape"], level: Float[Tensor, " b"]) -> Float[Tensor, "b t w"]:
        """Return the tokens."""
        stem: Callable[[Tensor], Tensor] = self.network.stem  # pyright: ignore[reportAssignmentType] - nn.Module's
        return stem(per_row(self.process.at(level).c_in, noisy) * noisy)


class DiTAdapter(PixelAdapter):
    """The adapter of a DiT-EDM, which builds it from a recipe or from a file of the authors' code."""

    spec_class = DiTConfig

    def build(self) -> DiTEDM:
        """Build the model; its output is zero at first."""
        return DiTEDM(DiT(self.spec), EDM(self.spec.sigma_data))

    @classmethod
    def read(cls, path: str, values: Mapping[str, Any]) -> tuple[DiTConfig, Weights]:
        """Read the EMA weights in a checkpoint of the authors' code.

        The number of heads, which cannot be read off such a file, is `num_heads` of the values, else width / 64.
        """
        network, config = official.load(path, num_heads=values.get("num_heads"))
        return config, network.state_dict()
