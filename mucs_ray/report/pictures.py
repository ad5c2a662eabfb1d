"""The pictures of a page. Each different picture is in the file once, however often it is shown."""

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mucs_ray.report.document import Picture

PIXELATED_BELOW = 128
MAX_THUMBNAIL = 128


@dataclass(frozen=True, slots=True)
class Gallery:
    """The pictures that a page shows, each under its name, for the sheet at the end of the page that defines them."""

    _names: dict[tuple[tuple[int, ...], bytes], str] = field(default_factory=dict)

    def name(self, image: Picture) -> str:
        """Return the id under which the sheet defines this picture; equal pictures have one id."""
        return self._names.setdefault((image.shape, image.tobytes()), f"picture-{len(self._names) + 1}")

    def sheet(self) -> Iterator[tuple[str, int, int, str]]:
        """Yield (id, width, height, data URI) of each picture that was named so far."""
        for (shape, pixels), name in self._names.items():
            image = np.frombuffer(pixels, dtype=np.uint8).reshape(shape)
            yield name, shape[2], shape[1], png_data_uri(image)


def png_data_uri(image: Picture) -> str:
    """Return the picture at its own size as a lossless PNG data URI."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1))).save(buffer, format="png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def thumbnail(image: Picture) -> Picture:
    """Return the picture itself or, for a large picture, a copy small enough to be in the page as well."""
    if max(image.shape[1:]) <= MAX_THUMBNAIL:
        return image
    small = Image.fromarray(np.ascontiguousarray(np.moveaxis(image, 0, -1)))
    small.thumbnail((MAX_THUMBNAIL, MAX_THUMBNAIL))
    return np.moveaxis(np.asarray(small), -1, 0)


def sharpness(image: Picture) -> str:
    """Return "sharp" for a small picture, which keeps its pixels when it is enlarged, and else "smooth"."""
    return "sharp" if max(image.shape[1:]) < PIXELATED_BELOW else "smooth"
