"""Pictures of the user's to explain, and what they were made from (spec/models.md 3).

A query is a picture's file, a tensor in the space of the model (.safetensors or .npy), or an image of the data set,
as idx:N. It is identified by its content: the same file gets the same answer beside any others, in any order.

Axes: c s s picture, uint8, RGB; *shape of z.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from mucs_ray import storage
from mucs_ray.data.decode import EXTENSIONS, DecodeError, decode
from mucs_ray.data.table import Card
from mucs_ray.errors import InputError

TENSORS = (".safetensors", ".npy")
TENSOR_NAMES = ("z", "latents", "image")
"""The names that are looked for in a .safetensors file; "image" is what this package writes beside its own PNG."""
ROW = "idx:"
METADATA = "metadata.jsonl"
PROMPT_KEYS = ("prompt", "text", "caption")
SETTINGS = ("negative_prompt", "seed", "guidance", "steps", "sampler", "width", "height", "resolution")
KNOWN_KEYS = frozenset(("file_name", "label", *PROMPT_KEYS, *SETTINGS))
MAX_QUERIES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One picture to explain, before it is read."""

    name: str
    """What the user calls it: a file's path, a URL, or idx:N."""
    source: str
    """The absolute URL of the file, or idx:N."""
    digest: str
    """The sha256 of the content, or idx:N."""
    idx: int
    """63 bits of the digest, or N; it names the query's noise."""
    label: str | None = None
    prompt: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """What else is known of its making: seed, steps, guidance, ..., as told."""
    generated: str = ""
    """The URL of the tensors of the same picture, if the run generated it itself."""

    @property
    def is_row(self) -> bool:
        """Whether it is an image of the data set."""
        return self.source.startswith(ROW)

    @property
    def is_tensor(self) -> bool:
        """Whether its file holds z itself."""
        return self.source.lower().endswith(TENSORS)

    def reads(self) -> dict[str, Any]:
        """Return what an attribution of it depends on."""
        own = {"generated": self.idx} if self.generated else {}
        return {"digest": self.digest, "label": self.label, "prompt": self.prompt, **own}


def find_queries(
    images: Sequence[str], folder: str | None = None, *, label: str | None = None, prompt: str | None = None
) -> tuple[Query, ...]:
    """Return the queries that a user names, in the order of their idx.

    `images` are files, URLs or idx:N, all with the given condition; `folder` has pictures, and metadata.jsonl if
    their conditions are known. InputError if one is absent, is of an unknown kind, or is named twice.
    """
    if folder is None and not images:
        raise InputError("no picture to explain is named; give --image FILE or --queries FOLDER")
    queries = [query_of(name, label=label, prompt=prompt) for name in images]
    if folder is not None:
        queries += folder_queries(folder)
    if not images and (label or prompt):
        raise InputError(f"--label and --prompt go with --image; with --queries they stand in its {METADATA}")
    known: dict[int, str] = {}
    for query in queries:
        if query.idx in known:
            raise InputError(
                f"{query.name} and {known[query.idx]} are the same picture, or have the same number; name one of them"
            )
        known[query.idx] = query.name
    return tuple(sorted(queries, key=lambda query: query.idx))


def query_of(
    name: str,
    *,
    label: str | None = None,
    prompt: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Query:
    """Return the query with this name. InputError if there is no such file, or its kind is unknown."""
    condition: dict[str, Any] = {"label": label, "prompt": prompt, "settings": dict(settings or {})}
    if name.startswith(ROW):
        number = name.removeprefix(ROW)
        if not (number.isascii() and number.isdecimal()):
            raise InputError(f"--image {name}: expected {ROW}N with the number of an image of the data set")
        if label or prompt:
            raise InputError(f"--image {name}: an image of the data set has its own condition; leave it out")
        return Query(name=name, source=name, digest=name, idx=int(number))
    if not name.lower().endswith((*EXTENSIONS, *TENSORS)):
        kinds = ", ".join((*EXTENSIONS, *TENSORS))
        raise InputError(f"--image {name}: expected a file that ends in {kinds}, or {ROW}N")
    source = storage.absolute(name)
    try:
        digest = sha256(storage.read_bytes(source)).hexdigest()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"--image {name}: there is no such file") from None
    return Query(name=name, source=source, digest=digest, idx=int(digest[:16], 16) >> 1, **condition)


def folder_queries(folder: str) -> list[Query]:
    """Return the queries of a folder: those that its metadata.jsonl lists, or else every file of a known ending."""
    url = storage.absolute(folder)
    names = sorted(name for name in storage.names(url) if not name.startswith("."))
    if METADATA in names:
        listed = metadata_lines(storage.join(url, METADATA))
        return [query_of(storage.join(folder, line.pop("file_name")), **condition_of(line)) for line in listed]
    pictures = [name for name in names if name.lower().endswith((*EXTENSIONS, *TENSORS))]
    if not pictures:
        raise InputError(f"--queries {folder}: there are no pictures; expected a folder with {METADATA} or pictures")
    return [query_of(storage.join(folder, name)) for name in pictures]


def metadata_lines(url: str) -> list[dict[str, Any]]:
    """Return the lines of metadata.jsonl. InputError, naming the line, for what is not understood."""
    lines = []
    for number, text in enumerate(storage.read_bytes(url).decode("utf-8-sig").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except ValueError as error:
            raise InputError(f"{url}, line {number}: not JSON ({error})") from None
        if not isinstance(line, dict) or not isinstance(line.get("file_name"), str):
            raise InputError(f'{url}, line {number}: expected an object with "file_name"')
        name = line["file_name"].replace("\\", "/")
        if name.startswith("/") or ".." in name.split("/") or "://" in name:
            raise InputError(f"{url}, line {number}: file_name {name!r} leaves the folder")
        unknown = sorted(line.keys() - KNOWN_KEYS)
        if unknown:
            raise InputError(f"{url}, line {number}: unknown key {unknown[0]}; known: {', '.join(sorted(KNOWN_KEYS))}")
        lines.append({**line, "file_name": name})
    if not lines or len(lines) > MAX_QUERIES:
        raise InputError(f"{url}: expected 1 to {MAX_QUERIES:,} lines; found {len(lines):,}")
    return lines


def condition_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """Split a line of metadata into the condition, and what else is known."""
    prompts = [str(line[key]) for key in PROMPT_KEYS if line.get(key) is not None]
    label = None if line.get("label") is None else str(line["label"])
    settings = {key: value for key, value in line.items() if key not in (*PROMPT_KEYS, "label", "file_name")}
    return {"label": label, "prompt": prompts[0] if prompts else None, "settings": settings}


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A query's picture as the model sees it."""

    pixels: UInt8[np.ndarray, "c s s"]
    original: tuple[int, int]
    """Width and height of the file, in pixels."""

    @property
    def was_resized(self) -> bool:
        """Whether it was brought to the size of the training images, or cropped to a square."""
        return self.original != self.pixels.shape[:0:-1]


def read_picture(query: Query, size: int) -> Picture:
    """Read a picture as training images are read: the shorter side becomes `size` px, and the middle is cropped.

    InputError if the file is not readable, or is no longer the one that was named.
    """
    from mucs_ray.data.batch import crop  # it imports torch, which a command that only names queries does not need

    content = checked_content(query)
    try:
        whole = decode(content, size=None)
        resized = whole if min(whole.shape[1:]) == size else decode(content, size=size)
    except DecodeError as error:
        raise InputError(f"--image {query.name}: {error}") from None
    return Picture(pixels=crop(resized, size), original=(whole.shape[2], whole.shape[1]))


def read_tensor(query: Query) -> Float32[np.ndarray, "*shape"]:
    """Read z from a file. InputError if it holds no such tensor, or one that is not finite."""
    content = checked_content(query)
    try:
        if query.source.lower().endswith(".npy"):
            z = np.load(io.BytesIO(content), allow_pickle=False)
        else:
            from safetensors.numpy import load

            tensors = load(content)
            names = [name for name in TENSOR_NAMES if name in tensors] or (list(tensors) if len(tensors) == 1 else [])
            if not names:
                raise InputError(
                    f"--image {query.name}: expected a tensor {' or '.join(TENSOR_NAMES)}; found {list(tensors)}"
                )
            z = tensors[names[0]]
    except InputError:
        raise
    except Exception as error:  # both readers raise almost anything on foreign bytes
        raise InputError(
            f"--image {query.name}: not a readable {query.source.rpartition('.')[2]} file ({error})"
        ) from None
    if z.dtype.kind not in "fiu" or not np.isfinite(z).all():
        raise InputError(
            f"--image {query.name}: expected finite numbers; found {z.dtype}, or values that are not finite"
        )
    return z.astype(np.float32)


def checked_content(query: Query) -> bytes:
    """Return the bytes of a query's file. InputError if they are not those that were named."""
    try:
        content = storage.read_bytes(query.source)
    except FileNotFoundError:
        raise InputError(f"--image {query.name}: {query.source} is not there any more") from None
    if sha256(content).hexdigest() != query.digest:
        raise InputError(f"--image {query.name}: the file was changed meanwhile; name it again")
    return content


def check_condition(query: Query, card: Card) -> int | None:
    """Return the number of the class that a query names, if it does. InputError if the data set has no such condition.

    A class is named by its name, in any capitals, or by its number.
    """
    if query.prompt is not None and card.condition != "embedding":
        raise InputError(f"{query.name}: a prompt is given, but this model has no captions; leave it out")
    if query.label is None:
        return None
    if card.condition != "label":
        raise InputError(f"{query.name}: a label is given, but this model has no classes; leave it out")
    if query.label in card.classes:
        return card.classes.index(query.label)
    folded = [name.casefold() for name in card.classes]
    if folded.count(query.label.casefold()) == 1:
        return folded.index(query.label.casefold())
    if query.label.isascii() and query.label.isdecimal() and int(query.label) < card.condition_dim:
        return int(query.label)
    near = get_close_matches(query.label, card.classes, n=1)
    hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(card.classes[:20])}"
    raise InputError(f"{query.name}: there is no class {query.label!r}; {hint}")


def query_folder(queries: Sequence[Query]) -> str:
    """Return the folder of these queries' attribution in the run directory: the same for the same queries."""
    reads = json.dumps([query.reads() for query in queries], sort_keys=True)
    return f"queries/{sha256(reads.encode()).hexdigest()[:12]}"


def to_json(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Return the queries for recipe.json."""
    return [{**asdict(query), "settings": dict(query.settings)} for query in queries]


def from_json(documents: Sequence[Mapping[str, Any]]) -> tuple[Query, ...]:
    """Return the queries of recipe.json."""
    return tuple(Query(**document) for document in documents)
