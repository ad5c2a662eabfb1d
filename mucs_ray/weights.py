"""Weights to attribute with: files saved by the official code, or by us."""

from mucs_ray import storage
from mucs_ray.errors import InputError
from mucs_ray.models import official
from mucs_ray.models.dit import DiT
from mucs_ray.store import checkpoint
from mucs_ray.store.weights import model_config


def load_weights(path: str, *, num_heads: int | None = None) -> DiT:
    """The network in a file. InputError, in one line, if there is none, it is corrupt or of another architecture.

    `num_heads` cannot be read off official files; None = width / 64.
    """
    if not storage.exists(path):
        raise InputError(f"no weights at {path}; give a .safetensors, .ckpt or .pt file with --weights")
    if path.endswith(".safetensors"):
        tensors, facts = checkpoint.load(path)
        if "model" in facts:
            network = DiT(model_config(facts, path))
            checkpoint.strict_load(network, tensors, source=path)
            return network.eval()
    network, _ = official.load(path, num_heads=num_heads)
    return network
