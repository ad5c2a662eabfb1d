"""Pictures of the user's to explain, and what they were made from (spec/models.md 3).

A query is a picture's file, a tensor in the space of the model (.safetensors or .npy), or an image of the data set,
as idx:N. It is identified by its content: the same file gets the same answer beside any others, in any order.

Axes: c s s picture, uint8, RGB; *shape of z.
"""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from difflib import get_close_matches
from hashlib import sha256
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from mucs_ray import storage
from mucs_ray.data.decode import EXTENSIONS, DecodeError, decode
from mucs_ray.data.generation_text import generation_text
from mucs_ray.data.sources.metadata import decoded, is_metadata
from mucs_ray.data.table import Card, printable
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
    """What its metadata says of its making: seed, steps, guidance, ..."""
    embedded: Mapping[str, Any] = field(default_factory=dict)
    """What the tool that made it wrote into its file (generation_text.py)."""
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
    images: Sequence[str],
    folder: str | None = None,
    *,
    label: str | None = None,
    prompt: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> tuple[Query, ...]:
    """Return the queries that a user names, in the order of their idx.

    `images` are files, URLs or idx:N, all with the given condition; `folder` has pictures, and metadata.jsonl if
    their conditions are known; `tell` gets a line on what of it is passed over. InputError if one is absent, is of an
    unknown kind, or is named twice.
    """
    if folder is None and not images:
        raise InputError("no picture to explain is named; give --image FILE or --queries FOLDER")
    queries = [query_of(name, label=label or None, prompt=prompt or None) for name in images]
    if folder is not None:
        queries += folder_queries(folder, tell)
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
        return Query(name=name, source=name, digest=name, idx=int(number), settings=condition["settings"])
    if not name.lower().endswith((*EXTENSIONS, *TENSORS)):
        kinds = ", ".join((*EXTENSIONS, *TENSORS))
        raise InputError(f"--image {name}: expected a file that ends in {kinds}, or {ROW}N")
    source = storage.absolute(name)
    try:
        content = storage.read_bytes(source)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise InputError(f"--image {name}: there is no such file") from None
    digest, called = sha256(content).hexdigest(), printable(storage.redacted(name))
    embedded = {} if name.lower().endswith(TENSORS) else generation_text(content)
    return Query(
        name=called, source=source, digest=digest, idx=int(digest[:16], 16) >> 1, embedded=embedded, **condition
    )


def folder_queries(folder: str, tell: Callable[[str], None]) -> list[Query]:
    """Return the queries of a folder: those that its metadata.jsonl lists, or else every file of a known ending."""
    url = storage.absolute(folder)
    names = sorted(name for name in storage.names(url) if not name.startswith("."))
    if not names:
        raise InputError(f"--queries {folder}: there is no such folder, or it is empty")
    pictures = [name for name in names if name.lower().endswith((*EXTENSIONS, *TENSORS))]
    if METADATA in names:
        listed = metadata_lines(storage.join(url, METADATA))
        queries = [query_of(storage.join(folder, line.pop("file_name")), **condition_of(line)) for line in listed]
    else:
        others = [name for name in names if is_metadata(name)]
        if others:
            raise InputError(f"--queries {folder}: conditions are read from {METADATA}; found {others[0]}")
        queries = [query_of(storage.join(folder, name)) for name in pictures]
    if not 1 <= len(queries) <= MAX_QUERIES:
        raise InputError(f"--queries {folder}: expected 1 to {MAX_QUERIES:,} pictures; found {len(queries):,}")
    read = {query.source for query in queries}
    passed_over = [name for name in names if name != METADATA and storage.join(url, name) not in read]
    if passed_over:
        tell(
            f"--queries {folder}: {len(passed_over)} files or folders are passed over, e.g. {printable(passed_over[0])}"
        )
    return queries


def metadata_lines(url: str) -> list[dict[str, Any]]:
    """Return the lines of metadata.jsonl. InputError, naming the line, for what is not understood."""
    lines = []
    for number, text in enumerate(decoded(storage.read_bytes(url)).split("\n"), start=1):
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
        if len({line[key] for key in PROMPT_KEYS if line.get(key) is not None}) > 1:
            raise InputError(f"{url}, line {number}: {' and '.join(key for key in PROMPT_KEYS if key in line)} differ")
        lines.append({**line, "file_name": name})
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
        z = tensor_of(content) if query.source.lower().endswith(".safetensors") else np.load(io.BytesIO(content))
    except InputError as error:
        raise InputError(f"--image {query.name}: {error}") from None
    except Exception as error:  # both readers raise almost anything on foreign bytes
        kind = query.source.rpartition(".")[2]
        raise InputError(f"--image {query.name}: not a readable {kind} file ({error})") from None
    if z.dtype.kind != "f" or not np.isfinite(z).all():
        raise InputError(
            f"--image {query.name}: expected finite floats, z in the space of the model; found {z.dtype}"
            f"{'' if z.dtype.kind == 'f' else ' (save a picture as PNG)'}"
        )
    return z.astype(np.float32)


def tensor_of(content: bytes) -> Float32[np.ndarray, "*shape"]:
    """Return the tensor that stands for z in a .safetensors file, of any precision. InputError if there is none."""
    from safetensors.torch import load

    tensors = load(content)
    names = [name for name in TENSOR_NAMES if name in tensors] or (list(tensors) if len(tensors) == 1 else [])
    if not names:
        raise InputError(f"expected a tensor {' or '.join(TENSOR_NAMES)}; found {list(tensors)}")
    return tensors[names[0]].float().numpy()


def checked_content(query: Query) -> bytes:
    """Return the bytes of a query's file. InputError if they are not those that were named."""
    try:
        content = storage.read_bytes(query.source)
    except FileNotFoundError:
        raise InputError(f"--image {query.name}: {query.source} is not there any more") from None
    if sha256(content).hexdigest() != query.digest:
        raise InputError(f"--image {query.name}: the file was changed meanwhile; name it again")
    return content


def with_class(query: Query, card: Card, *, conditional: bool, reads_text: bool = False) -> Query:
    """Return a query whose label is the name of its class. InputError if the model has no such condition.

    A class is named by its name, in any capitals, or by its number.
    """
    if query.prompt is not None and not reads_captions(card, conditional=conditional, reads_text=reads_text):
        raise InputError(f"{query.name}: a prompt is given, but this model has no captions; leave it out")
    if query.label is None:
        return query
    if card.condition != "label" or not conditional or reads_text:
        raise InputError(f"{query.name}: a label is given, but this model has no classes; leave it out")
    number = class_number(query.label, card)
    if number is None:
        near = get_close_matches(query.label, card.classes, n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(card.classes[:20])}"
        raise InputError(f"{query.name}: there is no class {query.label!r}; {hint}")
    return replace(query, label=card.classes[number] if card.classes else str(number))


def reads_captions(card: Card, *, conditional: bool, reads_text: bool) -> bool:
    """Return whether a model has captions as conditions: embedded with the data set, or by encoders of its own."""
    return reads_text or (conditional and card.condition == "embedding")


def with_own_prompt(query: Query, card: Card, *, conditional: bool, reads_text: bool = False) -> Query:
    """Return a query whose prompt is the one in its file, if it has one, none was named, and the model has captions."""
    prompt = query.embedded.get("prompt")
    if not prompt or query.prompt is not None:
        return query
    if not reads_captions(card, conditional=conditional, reads_text=reads_text):
        return query
    return replace(query, prompt=prompt)


def prompt_line(queries: Sequence[Query]) -> str:
    """Return a line on queries whose prompts are those in their files."""
    first, others = queries[0], len(queries) - 1
    several = f" (and those of {others} more pictures)" if others else ""
    return (
        f'{first.name}{several}: no caption was named, and the prompt in its file is taken: "{first.prompt}"; name'
        f" another with --prompt, or in {METADATA}"
    )


def class_number(label: str, card: Card) -> int | None:
    """Return the number of the class with this name, in any capitals, or with this number; None if there is none."""
    if label in card.classes:
        return card.classes.index(label)
    folded = [name.casefold() for name in card.classes]
    if folded.count(label.casefold()) == 1:
        return folded.index(label.casefold())
    if label.isascii() and label.isdecimal() and int(label) < card.condition_dim:
        return int(label)
    return None


def query_folder(queries: Sequence[Query]) -> str:
    """Return the folder of these queries' attribution in the run directory: the same for the same queries."""
    reads = json.dumps([query.reads() for query in queries], sort_keys=True)
    return f"queries/{sha256(reads.encode()).hexdigest()[:12]}"


def model_url(run_url: str) -> str:
    """Return the run directory with the model, from that of an answer for queries in it."""
    return run_url.rstrip("/").rsplit("/", 2)[0]


def to_json(queries: Sequence[Query]) -> list[dict[str, Any]]:
    """Return the queries for recipe.json."""
    return [asdict(query) for query in queries]


def from_json(documents: Sequence[Mapping[str, Any]]) -> tuple[Query, ...]:
    """Return the queries of recipe.json."""
    return tuple(Query(**document) for document in documents)
