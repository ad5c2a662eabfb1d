"""What all steps need of files: digests for manifests, and weights on their way to workers."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from typing import Any

from ray import ObjectRef

from mucs_ray import storage
from mucs_ray.engine.models import load_arrays
from mucs_ray.errors import InputError
from mucs_ray.pipeline.graph import Pipeline
from mucs_ray.store.run import Stage

Output = tuple[dict[str, str], dict[str, Any]]
Load = Callable[[Stage, str], ObjectRef]
"""Puts a file of a finished stage into the object store."""


def digests(stage: Stage, names: list[str], made: Mapping[str, str] | None = None) -> dict[str, str]:
    """sha256 of published parts: as told for those made just now, else read. InputError if one has gone."""
    known = made or {}
    try:
        return {name: known.get(name) or sha256(storage.read_bytes(stage.url(name))).hexdigest() for name in names}
    except FileNotFoundError as error:
        raise InputError(f"{error.filename or error} vanished while the stage ran; run the command again") from None


def load_once() -> Load:
    """A loader that puts each file into the object store once, for all stages that ask for it."""
    known: dict[str, ObjectRef] = {}

    def load(stage: Stage, file: str) -> ObjectRef:
        url = stage.url(file)
        if url not in known:
            known[url] = load_arrays.remote(stage, file)
        return known[url]

    return load


def weights_ref(pipeline: Pipeline, trained: str = "pretrain", *, load: Load = load_arrays.remote) -> ObjectRef:
    """The weights of a training (F1, or F1' of a retraining) in the object store."""
    recipe, stage = pipeline.recipe, pipeline.stages[trained]
    kind = recipe.train.checkpoint if recipe.trains else "best"
    return load(stage, stage.part(kind, "safetensors"))
