"""Weights saved by the official MUCS code, read for this package's networks (names and shapes: spec 3.3)."""

import torch

from mucs_ray.errors import InputError
from mucs_ray.models.dit import DiT, DiTConfig
from mucs_ray.models.official_sizes import SIZES, dit_config_of
from mucs_ray.models.state_dict import check
from mucs_ray.models.weights_file import State, read_state
from mucs_ray.storage import exists, join

FOLDER_FILES = ("model_index.json", "config.json")
"""What a folder that diffusers saved has at its top."""
UNETS = ("unet-edm", "unet-vp")
RESAMPLE_FILTER = "resample_filter"
"""The ending of constants that files of UNets contain and that nothing reads."""
UNET_NAMES = ("enc.", "dec.", "map_label.", "map_augment.", "map_layer")


def load(path: str, *, num_heads: int | None = None) -> tuple[DiT, DiTConfig]:
    """Load a DiT-EDM in eval mode, fp32, on the CPU; from a training checkpoint, load its EMA weights.

    Every size is read off the tensors, except the number of heads: `num_heads`, else width / 64. `path` may be any
    fsspec URL. A file that is absent, corrupt, unsafe or of another network raises InputError.
    """
    state = read(path, kind="dit-edm")
    config = dit_config_of(state, path, num_heads=num_heads)
    with torch.device("meta"):
        network = DiT(config)
    expected = network.state_dict()
    guessed = any(name in expected and name not in state for name, _ in SIZES.values())
    check(state, expected, "a DiT-EDM", path, shapes_too=not guessed)
    network.load_state_dict(state, assign=True)
    return network.eval(), config


def read(path: str, *, kind: str) -> State:
    """Read the weights in a file, the EMA weights of a training checkpoint, in fp32; constants are left out.

    InputError if the file is absent, corrupt or unsafe, or of another kind of network than `kind`.
    """
    if any(exists(join(path, name)) for name in FOLDER_FILES):
        raise InputError(f"{path} is a folder of diffusers; read it with --recipe ddpm, or --set model.kind=unet2d")
    state = read_state(path)
    _refuse_other_kinds(state, kind, path)
    return {name: tensor.detach().float() for name, tensor in state.items() if not name.endswith(RESAMPLE_FILTER)}


def _refuse_other_kinds(state: State, kind: str, path: str) -> None:
    """Raise InputError, which says what to set, if the names are those of another network."""
    is_unet = any(name.startswith(UNET_NAMES) for name in state)
    if is_unet and kind not in UNETS:
        raise InputError(
            f"{path}: weights of a UNet, which do not say if it is a UNet-EDM or a UNet-VP; name what it was trained"
            " as: --set model.kind=unet-edm or --set model.kind=unet-vp"
        )
    other = "dit-vp" if "y_embedder.emb.weight" in state else "dit-edm" if "pos_enc.extra" in state else None
    if not is_unet and other not in (None, kind):
        raise InputError(f"{path}: weights of another backbone than {kind}; read them with --set model.kind={other}")
