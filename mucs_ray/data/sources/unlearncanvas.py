"""UnlearnCanvas: pictures of the same contents in many styles, STYLE/OBJECT/NUMBER.jpg; tags: style, object, number.

Beside the folders of the styles there may be descriptors.json, {style: [words that describe it, ...]}. Captions are "A
depiction of OBJECT, artistic style featuring ...", with three of the words of the style, or else with its name; they
are embedded. With --text-column none there are no captions, and the condition is the style. The photographs from which
the styles were made, Seed_Images, belong to no style and are passed over. A tenth of the contents is held out, each in
all of its styles, so that every training picture has its like in the other styles.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from mucs_ray import storage
from mucs_ray.data import caption_embedding
from mucs_ray.data.decode import EXTENSIONS, DecodeError, decode_upright
from mucs_ray.data.sources import Choices, Listing, Reject, Task
from mucs_ray.data.sources.columns import NONE, ordered, tidy
from mucs_ray.data.sources.cutting import tasks_of, with_test_split
from mucs_ray.data.sources.files import FOLLOW, leads_out, list_files, pass_over_endings
from mucs_ray.data.sources.splits import Named
from mucs_ray.data.table import Row
from mucs_ray.data.understood import Aside, Understood
from mucs_ray.diffusion.noise import generator
from mucs_ray.errors import InputError

CHOICES = ("text_column", "follow_links")
DEFAULT_SIZE = 64
DESCRIPTORS = "descriptors.json"
NOT_A_STYLE = "Seed_Images"
WORDS = 3
"""The number of a style's words in a caption."""
LAYOUT = "STYLE/OBJECT/NUMBER.jpg"
Words = Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture, by its path, with what the path says."""

    path: str
    style: str
    object: str
    number: str
    split: Named | None = "train"
    folder: str = "STYLE/"

    @property
    def content(self) -> str:
        """What is in the picture, which other styles show as well."""
        return f"{self.object}/{self.number}"


@dataclass(frozen=True, slots=True)
class Place:
    """What reading needs beside a task's pictures."""

    root: str
    size: int
    styles: tuple[str, ...]
    captioned: bool
    words: Words = field(default_factory=dict)


def plan(where: str | None, size: int | None, choices: Choices | None = None) -> Listing:
    """List the pictures. MachineError at once if they have captions and the CLIP weights are absent."""
    if where is None:
        raise InputError(f"unlearncanvas needs --source, a folder with {LAYOUT}")
    choices, root, aside = choices or Choices(), storage.absolute(where).rstrip("/"), Aside()
    if choices.text_column not in (None, NONE):
        raise InputError(f"unlearncanvas makes captions itself; --text-column can be {NONE}, for no captions")
    captioned = choices.text_column is None
    if captioned:
        caption_embedding.find_weights()
    files = list_files(root, aside, follow_links=choices.follow_links, expected=f"one with {LAYOUT}")
    pictures = list(pictures_of(root, files, aside, follow_links=choices.follow_links))
    if not pictures:
        raise InputError(f"no picture under {root} that lies at {LAYOUT} ({aside.sentence()})")
    train, test, splits = with_test_split(pictures, aside, name=lambda picture: picture.content)
    styles, side = ordered({picture.style for picture in pictures}), size or DEFAULT_SIZE
    words = read_words(root, styles) if captioned and DESCRIPTORS in files else {}
    place = Place(root, side, styles, captioned, words)
    return Listing(
        name="unlearncanvas",
        licence="UnlearnCanvas, Zhang et al. 2024; as its publisher states",
        size=side,
        condition="embedding" if captioned else "label",
        condition_dim=caption_embedding.DIM if captioned else len(styles),
        classes=styles,
        tags=("style", "object", "number"),
        tasks=tasks_of(train, test, extra=place),
        distributed=True,
        understood=Understood(
            splits=splits,
            labels="folders of styles",
            captions=(DESCRIPTORS if words else "names of styles") if captioned else "",
            passed_over=aside.reasons(),
        ),
    )


def pictures_of(root: str, files: list[str], aside: Aside, *, follow_links: bool) -> Iterator[Picture]:
    """Yield the pictures that lie where they should; `aside` counts all other files."""
    images = [file for file in files if file.lower().endswith(EXTENSIONS)]
    pass_over_endings([file for file in files if file not in {*images, DESCRIPTORS}], aside)
    for path in images:
        style, *rest = path.split("/")
        if style == NOT_A_STYLE:
            aside.add(f"photographs in {NOT_A_STYLE}", path)
        elif len(rest) != 2:
            aside.add(f"images that do not lie at {LAYOUT}", path)
        elif leads_out(root, path, follow_links=follow_links):
            raise InputError(
                f"{root}/{path} is a link that leads out of the folder; put the image itself there, {FOLLOW}"
            )
        else:
            number = rest[1].rpartition(".")[0]
            yield Picture(path, style=spoken(style), object=spoken(rest[0]), number=number)


def spoken(folder: str) -> str:
    """Return the name of a folder as captions say it."""
    return tidy(folder.replace("_", " "))


def read_words(root: str, styles: tuple[str, ...]) -> Words:
    """Return the words that describe each style. InputError if the file is not understood, or lacks a style."""
    url = f"{root}/{DESCRIPTORS}"
    try:
        document = json.loads(storage.read_bytes(url))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{url} cannot be read as JSON ({error}); expected {{style: [words, ...]}}") from None
    if not isinstance(document, dict):
        raise InputError(f"{url}: expected {{style: [words, ...]}}; found a {type(document).__name__}")
    found = {spoken(str(style)): words for style, words in document.items()}
    for style in styles:
        words = found.get(style)
        if (
            not isinstance(words, list)
            or not words
            or not all(isinstance(word, str) and word.strip() for word in words)
        ):
            told = "nothing" if words is None else repr(words)
            raise InputError(f"{url}: expected a list of words that describe {style!r}; found {told}")
    return {style: tuple(tidy(word) for word in found[style]) for style in styles}


def read(task: Task) -> Iterator[Row | Reject]:
    """Decode the pictures of one shard, and embed their captions if there are any."""
    first_idx, pictures, place = task.payload
    captions = [caption(picture, place.words) if place.captioned else () for picture in pictures]
    embedded = caption_embedding.embed_each(captions)
    numbers = {style: number for number, style in enumerate(place.styles)}
    for idx, (picture, text, condition) in enumerate(zip(pictures, captions, embedded, strict=True), start=first_idx):
        try:
            image, turned = decode_upright(storage.read_bytes(storage.join(place.root, picture.path)), size=place.size)
        except (DecodeError, OSError) as error:
            yield Reject(idx=idx, where=picture.path, reason=str(error))
            continue
        yield Row(
            idx=idx,
            image=image,
            label=numbers[picture.style],
            text=text,
            condition=condition if place.captioned else None,
            name=picture.path,
            tags={"style": picture.style, "object": picture.object, "number": picture.number},
            turned=turned,
        )


def caption(picture: Picture, words: Words) -> tuple[str, ...]:
    """Return the caption of a picture; which words of its style it has depends on its path alone."""
    known = words.get(picture.style, (picture.style,))
    drawn = generator(0, f"unlearncanvas/{picture.path}").permutation(len(known))[:WORDS]
    return (f"A depiction of {picture.object}, artistic style featuring {', '.join(known[n] for n in drawn)}",)
