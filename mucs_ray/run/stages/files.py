"""What all stages need of files: digests for manifests, and weights on their way to workers."""

from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from typing import Any

from ray import ObjectRef

from mucs_ray import storage
from mucs_ray.config.recipe import Recipe
from mucs_ray.engine.models import load_files
from mucs_ray.errors import InputError
from mucs_ray.store.run import Stage

Output = tuple[dict[str, str], dict[str, Any]]
"""The sha256 of each file of a finished stage by its name, and the facts for its manifest."""
Load = Callable[[Stage, Sequence[str]], list[ObjectRef]]
"""A function that puts a file of a finished stage into the object store."""


def digests(stage: Stage, names: list[str], new: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the sha256 of published parts: taken from `new` for parts published just now, computed for the others.

    InputError if a part has disappeared.
    """
    published = new or {}
    try:
        return {name: published.get(name) or sha256(storage.read_bytes(stage.url(name))).hexdigest() for name in names}
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or error} vanished while the stage ran; run the command again") from None


def load_once() -> Load:
    """Return a function that puts each file into the object store only once, for all stages that ask for it."""
    loaded: dict[str, ObjectRef] = {}

    def load(stage: Stage, files: Sequence[str]) -> list[ObjectRef]:
        new = [file for file in files if stage.url(file) not in loaded]
        loaded.update(zip(map(stage.url, new), load_files(stage, new), strict=True))
        return [loaded[stage.url(file)] for file in files]

    return load


def weights_ref(training: Stage, recipe: Recipe, *, load: Load = load_files) -> ObjectRef:
    """Put the weights of a finished training (F1, or F1' of a retraining) into the object store."""
    kind = recipe.train.checkpoint if recipe.trains else "best"
    (ref,) = load(training, [training.part(kind, "safetensors")])
    return ref
