"""Foreign image files as arrays, within bounds: known formats, a pixel cap read from the header, no truncated files.

Axes: c h w image, uint8, RGB.
"""

import io
import warnings

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, features

AVIF = features.check("avif")
"""Whether this Pillow reads AVIF, as official wheels do from 11.3 on."""
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", *(["AVIF"] if AVIF else []))
EXTENSIONS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", *([".avif"] if AVIF else []),
)  # fmt: skip
MAX_PIXELS = 64_000_000


class DecodeError(Exception):
    """The refusal of an image; the message is a short reason without the file's name."""


def decode(content: bytes, *, size: int | None, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "3 h w"]:
    """Decode an encoded image and bring its shorter side to `size` px (None = unchanged). DecodeError if it is refused.

    The first frame of an animation is used, transparency becomes white, and the image is turned upright as its EXIF
    orientation says.
    """
    return decode_upright(content, size=size, max_pixels=max_pixels)[0]


def decode_upright(
    content: bytes, *, size: int | None, max_pixels: int = MAX_PIXELS
) -> tuple[UInt8[np.ndarray, "3 h w"], bool]:
    """Decode as `decode` does, and tell whether the image had to be turned or mirrored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the cap below is stricter
            warnings.filterwarnings("ignore", module="PIL")  # of damaged tags, which do not matter here
            with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
                check_pixels(picture.size, max_pixels, "has")
                turned = is_turned(picture)
                upright = ImageOps.exif_transpose(picture) if turned else picture
                return to_array(flatten(upright), size, max_pixels), turned
    except DecodeError:
        raise
    except Image.UnidentifiedImageError:
        raise DecodeError(f"not a readable image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's plugins raise almost any exception on foreign bytes
        reason = (str(error).splitlines() or [""])[0][:120]
        raise DecodeError(f"cannot be decoded: {reason or type(error).__name__}") from None


def is_turned(picture: Image.Image) -> bool:
    """Return True if the EXIF orientation says that the image must be turned or mirrored; EXIF may be damaged."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    except Exception:  # its parser raises almost any exception on foreign bytes
        return False


def check_pixels(size: tuple[int, int], max_pixels: int, verb: str) -> None:
    """Raise DecodeError if width x height is over the cap."""
    width, height = size
    if width * height > max_pixels:
        raise DecodeError(f"{verb} {width} x {height} px, more than {max_pixels} pixels")


def flatten(picture: Image.Image) -> Image.Image:
    """Convert to RGB, with transparency over white."""
    if picture.mode.startswith("I;16"):
        high = np.asarray(picture) >> 8  # convert() would clip 16-bit grey to white
        return Image.fromarray(high.astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        colours = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(white, colours).convert("RGB")
    return picture.convert("RGB")


def to_array(picture: Image.Image, size: int | None, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "3 h w"]:
    """Bring an RGB picture's shorter side to `size` px by PIL's bilinear filter; the long side is
    not cropped (spec 2).
    """
    if size is not None and min(picture.size) != size:
        shorter = min(picture.size)
        width, height = (size * side // shorter for side in picture.size)
        # A strip of 1 x 60,000,000 px passes the first cap and would grow beyond any memory here.
        check_pixels((width, height), max_pixels, "would become")
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))
