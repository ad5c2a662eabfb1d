"""Pictures of the user's that the run generated itself: their exact numbers are known, and so is their noise."""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256

from mucs_ray import storage
from mucs_ray.data.decode import DecodeError, decode
from mucs_ray.data.queries import Query
from mucs_ray.store.item_names import item_file
from mucs_ray.store.run import Stage


def recognized(queries: Sequence[Query], generated: Stage) -> tuple[Query, ...]:
    """Mark the queries that are images which the run generated, and give them the idx of those, in order of idx.

    A picture is recognized by its pixels, a tensor by its file. It is then explained from the unclamped tensor with the
    same noise, and gets the answer that the run has for it.
    """
    if all(query.is_row for query in queries) or generated.state().status != "done":
        return tuple(queries)
    from mucs_ray.store.facts import GenerationFacts, read_facts  # imports torch, without which runs are looked at

    digests = {query.idx: content_digest(query) for query in queries if not query.is_row}
    manifest = generated.manifest()
    assert manifest is not None
    marked = {query.idx: query for query in queries}
    for item in read_facts(generated, GenerationFacts).items:
        file = item_file(generated, item.number)
        own = {manifest.files[file], pixel_digest(generated.url(file.removesuffix(".safetensors") + ".png"))}
        for idx, digest in digests.items():
            if digest in own:
                marked[idx] = replace(marked[idx], idx=item.idx, generated=generated.url(file))
    return tuple(sorted(marked.values(), key=lambda query: query.idx))


def content_digest(query: Query) -> str | None:
    """Return the digest of a picture's pixels, or of the file of a tensor; None if the picture cannot be read."""
    return query.digest if query.is_tensor else pixel_digest(query.source)


def pixel_digest(url: str) -> str | None:
    """Return the sha256 of the size and the pixels of a picture's file; None if there is none that can be read."""
    try:
        pixels = decode(storage.read_bytes(url), size=None)
    except (DecodeError, FileNotFoundError):
        return None
    return sha256(f"{pixels.shape}".encode() + pixels.tobytes()).hexdigest()
