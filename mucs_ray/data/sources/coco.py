"""COCO-2017 with its captions: a folder of train2017/, val2017/ and annotations/captions_{train,val}2017.json (spec 2).

val2017 is the test split. Images in order of their COCO id; those the folder lacks are skipped and consume no idx.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath, PureWindowsPath

from pydantic import TypeAdapter, ValidationError

from mucs_ray import storage
from mucs_ray.data import caption_embedding
from mucs_ray.data.decode import DecodeError, decode_upright
from mucs_ray.data.sources import Listing, Reject, Task
from mucs_ray.data.sources.cutting import tasks_of
from mucs_ray.data.table import Row, Split
from mucs_ray.data.understood import Aside, Understood
from mucs_ray.errors import InputError

DEFAULT_SIZE = 64
PER_SHARD = 1024
FOLDERS: dict[Split, str] = {"train": "train2017", "test": "val2017"}
LICENCE = "COCO 2017: annotations CC BY 4.0; each image under the Flickr licence its annotation names"


@dataclass(frozen=True, slots=True)
class Image:
    """The part of an image's entry in the JSON that is used."""

    id: int
    file_name: str


@dataclass(frozen=True, slots=True)
class Annotation:
    """The part of a caption's entry that is used."""

    image_id: int
    caption: str


@dataclass(frozen=True, slots=True)
class Document:
    """The part of a captions file that is used."""

    images: list[Image]
    annotations: list[Annotation]


def plan(where: str | None, size: int | None) -> Listing:
    """List both splits from their JSON. MachineError at once if the CLIP weights are absent."""
    if where is None:
        raise InputError("coco needs --source, the folder of train2017/, val2017/ and annotations/")
    caption_embedding.find_weights()
    root, aside = storage.absolute(where), Aside()
    train, test = captioned(root, "train", aside), captioned(root, "test", aside)
    return Listing(
        name="coco",
        licence=LICENCE,
        size=size or DEFAULT_SIZE,
        condition="embedding",
        condition_dim=caption_embedding.DIM,
        tasks=tasks_of(train, test, per_shard=PER_SHARD, extra=(root, size or DEFAULT_SIZE)),
        distributed=True,
        understood=Understood(
            splits={split: f"{folder}/" for split, folder in FOLDERS.items()},
            captions="annotations/",
            passed_over=aside.reasons(),
        ),
    )


def read(task: Task) -> Iterator[Row | Reject]:
    """Decode a task's images and embed their captions."""
    first_idx, entries, (root, size) = task.payload
    conditions = caption_embedding.embed_each([captions for _, captions in entries])
    for idx, ((name, captions), condition) in enumerate(zip(entries, conditions, strict=True), start=first_idx):
        where = f"{FOLDERS[task.split]}/{name}"
        if not captions:
            yield Reject(idx=idx, where=where, reason="has no caption")
            continue
        try:
            image, turned = decode_upright(storage.read_bytes(storage.join(root, where)), size=size)
        except DecodeError as error:
            yield Reject(idx=idx, where=where, reason=str(error))
        except (FileNotFoundError, PermissionError, IsADirectoryError) as error:
            yield Reject(idx=idx, where=where, reason=error.strerror or "absent")
        else:
            yield Row(idx=idx, image=image, text=captions, condition=condition, name=where, turned=turned)


def captioned(root: str, split: Split, aside: Aside) -> list[tuple[str, tuple[str, ...]]]:
    """Return (file name, captions in order of annotation) of the existing images, by ascending id.

    `aside` counts images that are listed but not there, and files that are there but not listed.
    """
    folder = FOLDERS[split]
    url = storage.join(root, "annotations", f"captions_{folder}.json")
    document = load(url)
    existing = set(storage.names(storage.join(root, folder)))
    captions: dict[int, list[str]] = {}
    for annotation in document.annotations:
        captions.setdefault(annotation.image_id, []).append(annotation.caption)
    images = []
    for id, name in sorted({image.id: image.file_name for image in document.images}.items()):
        if name in ("", "..") or PurePosixPath(name).name != name or PureWindowsPath(name).name != name:
            raise InputError(f"{url}: image {id} has file_name {name!r}, expected a plain name inside {folder}/")
        if name in existing:
            images.append((name, tuple(captions.get(id, ()))))
        else:
            aside.add(f"images of captions_{folder}.json that are not in {folder}/", name)
    if not images:
        listed = len(document.images)
        raise InputError(f"none of the {listed} images of {url} is in {storage.join(root, folder)}; unpack them there")
    unlisted = sorted(existing - {image.file_name for image in document.images})
    aside.add(
        f"files of {folder}/ that are not in captions_{folder}.json", unlisted[0] if unlisted else "", len(unlisted)
    )
    return images


def load(url: str) -> Document:
    """Read the captions file; InputError, naming it, if it is absent or not what COCO publishes."""
    try:
        return TypeAdapter(Document).validate_json(storage.read_bytes(url))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise InputError(f"no captions file {url}; expected COCO-2017's annotations_trainval2017 there") from None
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{url} is not a COCO captions file ({f'{at}: ' if at else ''}{first['msg']})") from None
