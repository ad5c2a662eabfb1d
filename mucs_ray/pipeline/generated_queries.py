"""Pictures of the user's that the run generated itself: their exact numbers are known, and so is their noise."""

from collections.abc import Sequence
from dataclasses import replace

from mucs_ray import storage
from mucs_ray.data.decode import DecodeError, decode
from mucs_ray.data.queries import Query
from mucs_ray.store.run import read_json_or_none

TENSORS, PICTURE = ".safetensors", ".png"


def recognized(queries: Sequence[Query], run_url: str) -> tuple[Query, ...]:
    """Mark the queries whose pixels are those of an image that the run generated, and give them its idx.

    They are then explained from the unclamped tensor with the same noise, and get the answer that the run has for it.
    """
    folder = storage.join(run_url, "generate")
    manifest = read_json_or_none(storage.join(folder, "manifest.json"))
    if manifest is None or not any(is_picture(query) for query in queries):
        return tuple(queries)
    items = manifest["facts"].get("items", [])
    known: dict[bytes, tuple[int, str]] = {}
    for item, file in zip(items, sorted(name for name in manifest["files"] if name.endswith(TENSORS)), strict=False):
        pixels = pixels_of(storage.join(folder, file.removesuffix(TENSORS) + PICTURE))
        if pixels is not None:
            known[pixels] = item["idx"], storage.join(folder, file)
    marked = []
    for query in queries:
        found = known.get(pixels_of(query.source) or b"") if is_picture(query) else None
        marked.append(query if found is None else replace(query, idx=found[0], generated=found[1]))
    return tuple(sorted(marked, key=lambda query: query.idx))


def is_picture(query: Query) -> bool:
    """Return whether a query is the file of a picture."""
    return not (query.is_row or query.is_tensor)


def pixels_of(url: str) -> bytes | None:
    """Return the size and the pixels of a picture's file; None if there is none that can be read."""
    try:
        pixels = decode(storage.read_bytes(url), size=None)
    except (DecodeError, FileNotFoundError):
        return None
    return f"{pixels.shape}".encode() + pixels.tobytes()
