"""WebDataset tars at a file, a folder or any fsspec URL: files of one key are one image with its label and captions.

    key.jpg (or another kind of image), key.txt or key.caption, key.cls, key.json
Only members with these endings are opened; all others are counted, whatever they are, and nothing is written to disk.
Captions are a line each; a .json is a record whose columns are recognised as those of a table (columns.py). A tar's
split is in its name or in that of its folder; without held-out tars a fixed tenth of all images is held out. The
condition is that which most training images have, captions before labels.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from mucs_ray.data import caption_embedding
from mucs_ray.data.decode import DecodeError, decode_upright
from mucs_ray.data.sources import Choices, Listing, Reject, Task
from mucs_ray.data.sources.columns import NONE, choose, class_name, ordered, texts
from mucs_ray.data.sources.cutting import held_out
from mucs_ray.data.sources.files import find_files
from mucs_ray.data.sources.folder import Condition, demand_weights
from mucs_ray.data.sources.metadata import decoded
from mucs_ray.data.sources.splits import named_splits, refuse_configurations
from mucs_ray.data.sources.tars import TARS, Sample, samples
from mucs_ray.data.table import Row, Split
from mucs_ray.data.understood import Aside, Understood
from mucs_ray.errors import InputError

CHOICES = ("text_column", "label_column", "keep_text", "follow_links")
DEFAULT_SIZE = 64
EMBEDDED_AT_ONCE = 64
ALL, TRAIN_ONLY, TEST_ONLY = "all", "train", "test"


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a sample's files say: the label and the captions, or why they cannot be read."""

    label: str | None = None
    captions: tuple[str, ...] = ()
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tar:
    """What one tar holds: how many samples of each part, and how many have labels and captions."""

    url: str
    name: str
    counts: Counter[str]
    """The samples with an image by ALL, TRAIN_ONLY and TEST_ONLY."""
    labelled: int
    captioned: int
    classes: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Payload:
    """A task's payload: one tar, of which all samples are read, all but a tenth, or only that tenth."""

    first_idx: int
    url: str
    name: str
    rows: str
    size: int
    condition: Condition
    classes: tuple[str, ...]
    choices: Choices


def plan(where: str | None, size: int | None, choices: Choices | None = None) -> Listing:
    """Read the headers of all tars, and their labels and captions.

    MachineError at once if captions are the condition and the CLIP weights are absent.
    """
    choices, aside, side = choices or Choices(), Aside(), size or DEFAULT_SIZE
    files = find_files(where, TARS, aside, source="webdataset", follow_links=choices.follow_links)
    refuse_configurations([name for _, name in files], where or "")
    named = named_splits([name for _, name in files], where or "")
    tars = [look(url, name, choices, aside) for url, name in files]
    train = [tar for tar in tars if named[tar.name] == "train" and tar.counts[ALL]]
    if not train:
        raise InputError(f"no training image in the tars of {where} ({aside.sentence()})")
    condition = condition_of(train)
    if choices.keep_text and condition == "embedding":
        condition = "none"
    if condition == "embedding":
        demand_weights()
    held = {split: [tar for tar in tars if named[tar.name] == split] for split in ("test", "validation")}
    test = next((of for of in held.values() if any(usable(tar, condition) for tar in of)), [])
    for tar in tars:
        if tar not in train and tar not in test:
            aside.add(
                "images of held-out tars that are not needed, or have no label or caption", tar.name, tar.counts[ALL]
            )
    classes = ordered({name for tar in (*train, *test) for name in tar.classes})
    origin = f"{train[0].name}{f' and {len(train) - 1:,} more' if len(train) > 1 else ''}"
    parts: list[tuple[Split, Sequence[Tar], str]]
    if test:
        parts = [("train", train, ALL), ("test", test, ALL)]
    else:
        parts = [("train", train, TRAIN_ONLY), ("test", train, TEST_ONLY)]
    payload = Payload(
        first_idx=0, url="", name="", rows=ALL, size=side, condition=condition, classes=classes, choices=choices
    )
    return Listing(
        name="webdataset",
        licence="as its publisher states",
        size=side,
        condition=condition,
        condition_dim={"none": 0, "label": len(classes), "embedding": caption_embedding.DIM}[condition],
        classes=classes,
        tasks=tuple(tasks_of(parts, payload)),
        distributed=True,
        understood=Understood(
            splits={"train": origin, "test": test[0].name if test else f"{origin}, a tenth of the images held out"},
            labels="files .cls, or columns of .json" if classes else "",
            captions="files .txt, or columns of .json" if any(tar.captioned for tar in train) else "",
            passed_over=aside.reasons(),
        ),
    )


def tasks_of(parts: Sequence[tuple[Split, Sequence[Tar], str]], payload: Payload) -> Iterator[Task]:
    """Yield a task for each tar of each split; idx continues from one to the next."""
    idx = 0
    for split, tars, rows in parts:
        number = 0
        for tar in tars:
            if tar.counts[rows]:
                own = replace(payload, first_idx=idx, url=tar.url, name=tar.name, rows=rows)
                yield Task(split=split, number=number, payload=own)
                idx, number = idx + tar.counts[rows], number + 1


def look(url: str, name: str, choices: Choices, aside: Aside) -> Tar:
    """Count what a tar holds; images are not read."""
    counts: Counter[str] = Counter()
    labelled, captioned, classes = 0, 0, set[str]()
    for sample in samples(url, aside, images=False):
        counts[ALL] += 1
        counts[TEST_ONLY if held_out(f"{name}:{sample.key}") else TRAIN_ONLY] += 1
        meaning = meaning_of(sample, choices)
        captioned += bool(meaning.captions)
        if meaning.label is not None:
            labelled += 1
            classes.add(meaning.label)
    return Tar(url=url, name=name, counts=counts, labelled=labelled, captioned=captioned, classes=frozenset(classes))


def meaning_of(sample: Sample, choices: Choices) -> Meaning:
    """Return the label and the captions of a sample."""
    try:
        record = json.loads(decoded(sample.files.get(".json", b"{}")))
        columns = list(record) if isinstance(record, dict) else []
        text, label = (choose(kind, columns, usual(choices, columns), sample.key) for kind in ("text", "label"))
        captions = tuple(
            line.strip()
            for ending in (".txt", ".caption")
            for line in decoded(sample.files.get(ending, b"")).splitlines()
            if line.strip() and choices.text_column is None
        )
        captions = captions or (texts(record[text]) if text else ())
        named = decoded(sample.files[".cls"]) if ".cls" in sample.files and choices.label_column is None else None
        return Meaning(class_name(named if named is not None else record[label] if label else None), captions)
    except (ValueError, TypeError, RecursionError) as error:
        return Meaning(
            problem=f"its text, label or .json cannot be read ({(str(error).splitlines() or [''])[0]})"[:120]
        )


def usual(choices: Choices, columns: Sequence[str]) -> Choices:
    """Return the choices for one record, which may lack a column that others have."""
    return Choices(
        text_column=choices.text_column if choices.text_column in (NONE, *columns) else None,
        label_column=choices.label_column if choices.label_column in (NONE, *columns) else None,
    )


def condition_of(train: Sequence[Tar]) -> Condition:
    """Choose what most training images have, captions before labels."""
    captioned, labelled = sum(tar.captioned for tar in train), sum(tar.labelled for tar in train)
    if not captioned and not labelled:
        return "none"
    return "embedding" if captioned >= labelled else "label"


def usable(tar: Tar, condition: Condition) -> int:
    """Return how many images have what the condition is made from."""
    return {"none": tar.counts[ALL], "label": tar.labelled, "embedding": tar.captioned}[condition]


def read(task: Task) -> Iterator[Row | Reject]:
    """Decode the images of one tar, with a few encoded ones in memory."""
    payload: Payload = task.payload
    pending: list[tuple[int, Sample]] = []
    idx = payload.first_idx
    for sample in samples(payload.url, Aside(), images=True):
        if payload.rows == ALL or held_out(f"{payload.name}:{sample.key}") == (payload.rows == TEST_ONLY):
            pending.append((idx, sample))
            idx += 1
        if len(pending) == EMBEDDED_AT_ONCE:
            yield from rows_of(pending, payload)
            pending = []
    yield from rows_of(pending, payload)


def rows_of(some: Sequence[tuple[int, Sample]], payload: Payload) -> Iterator[Row | Reject]:
    """Convert samples to rows, or to rejects with the reason."""
    numbers = {name: number for number, name in enumerate(payload.classes)}
    meanings = [meaning_of(sample, payload.choices) for _, sample in some]
    embedding = payload.condition == "embedding"
    conditions = caption_embedding.embed_each([meaning.captions if embedding else () for meaning in meanings])
    for (idx, sample), meaning, condition in zip(some, meanings, conditions, strict=True):
        name = f"{payload.name}:{sample.key}{sample.ending}"
        problem = meaning.problem or lacking(meaning, payload.condition)
        try:
            if problem:
                raise DecodeError(problem)
            image, turned = decode_upright(sample.image, size=payload.size)
        except DecodeError as error:
            yield Reject(idx=idx, where=name, reason=str(error))
            continue
        label = None if meaning.label is None else numbers.get(meaning.label)
        captions, embedded = meaning.captions, condition if embedding else None
        yield Row(idx=idx, image=image, label=label, text=captions, condition=embedded, name=name, turned=turned)


def lacking(meaning: Meaning, condition: Condition) -> str:
    """Return why an image has not what the condition is made from; "" if it has."""
    if condition == "embedding" and not meaning.captions:
        return "has no caption"
    return "has no label, or a hidden one (-1)" if condition == "label" and meaning.label is None else ""
