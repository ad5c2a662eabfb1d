"""The adapter of a model that is trained from a base: all of the base's weights, or low-rank branches beside them.

What is stored of a model with branches are the branches; each worker reads the base itself, once.
"""

from functools import lru_cache

import torch

from mucs_ray.diffusion.model import DiffusionModel
from mucs_ray.models.adapter import Adapter, TrainSpec, Weights
from mucs_ray.models.adapters import adapter, find
from mucs_ray.models.finetuned_spec import FinetunedSpec
from mucs_ray.models.low_rank import LowRankModel, start_branches, with_branches
from mucs_ray.models.spec import ModelSpec
from mucs_ray.models.weights_file import read_state
from mucs_ray.spaces.codec import Codec


@lru_cache(maxsize=1)
def base_weights(spec: ModelSpec, path: str) -> Weights:
    """Read the weights of the base, which is a `spec`, in fp32."""
    if path.endswith(".safetensors"):
        tensors = read_state(path)
        if tensors.keys() == adapter(spec).model(torch.device("meta")).network.state_dict().keys():
            return {name: tensor.float() for name, tensor in tensors.items()}
    return find(spec.kind).load().read(path, spec.to_dict())[1]  # a file of another program


class FinetunedAdapter(Adapter):
    """The adapter of the base, with the branches that the fine-tune adds."""

    spec_class = FinetunedSpec

    def model(self, device: torch.device, weights: Weights | None = None) -> DiffusionModel:
        """Return the model with these weights, of its branches where it has some, and without any the base."""
        spec: FinetunedSpec = self.spec
        if not spec.rank and weights is not None:
            return adapter(spec.model).model(device, weights)
        base = adapter(spec.model).model(device, None if device.type == "meta" else base_weights(spec.model, spec.base))
        if not spec.rank:
            return base
        model = self.with_branches(base)
        if weights is not None:
            model.network.load_state_dict({**model.network.state_dict(), **weights})
        return model.eval().requires_grad_(False)

    def with_branches(self, model: DiffusionModel) -> LowRankModel:
        """Put branches beside the base's matrices."""
        return with_branches(model, self.spec.targets, rank=self.spec.rank, alpha=self.spec.alpha)

    def codec(self, device: torch.device) -> Codec:
        """Return the codec of the base."""
        return adapter(self.spec.model).codec(device)

    def trainer(self) -> TrainSpec | None:
        """Return how the base is trained."""
        return adapter(self.spec.model).trainer()

    def untrained(self, seed: int, device: torch.device) -> DiffusionModel:
        """Return the base, with branches that add nothing yet where the fine-tune trains these."""
        spec: FinetunedSpec = self.spec
        base = adapter(spec.model).model(device, base_weights(spec.model, spec.base))
        if not spec.rank:
            return base.requires_grad_(True)
        model = self.with_branches(base)
        start_branches(model, seed)
        return model
