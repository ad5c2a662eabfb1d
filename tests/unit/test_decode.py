"""Foreign image files: what is taken, how it becomes pixels, and what is refused before it costs anything."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mucs_ray.data.decode import DecodeError, decode, decode_upright


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_lossless_formats_come_back_as_they_were(kind: str) -> None:
    picture = noise(7, 5)
    pixels = decode(encoded(picture, kind, lossless=True), size=None)
    assert pixels.shape == (3, 5, 7) and pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, np.asarray(picture).transpose(2, 0, 1))


@pytest.mark.parametrize(("width", "height"), [(100, 37), (37, 100), (64, 64), (333, 500), (9, 300)])
def test_the_shorter_side_is_exact_and_the_aspect_is_kept(width: int, height: int) -> None:
    _, new_height, new_width = decode(encoded(noise(width, height), "PNG"), size=16).shape
    assert min(new_height, new_width) == 16
    assert max(new_height, new_width) == int(16 * max(width, height) / min(width, height))


def test_a_flat_colour_survives_resizing() -> None:
    pixels = decode(encoded(Image.new("RGB", (50, 40), (10, 200, 30)), "PNG"), size=8)
    np.testing.assert_array_equal(pixels[:, 3, 5], [10, 200, 30])


def test_transparency_is_laid_on_white() -> None:
    clear = encoded(Image.new("RGBA", (2, 2), (255, 0, 0, 0)), "PNG")
    half = encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128)), "PNG")
    assert decode(clear, size=None).min() == 255
    np.testing.assert_allclose(decode(half, size=None), 127, atol=1)


def test_a_transparent_palette_is_laid_on_white() -> None:
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 1), 1)
    pixels = decode(encoded(picture, "PNG", transparency=0), size=None)
    np.testing.assert_array_equal(pixels[:, 0, 0], [255, 255, 255])
    np.testing.assert_array_equal(pixels[:, 1, 1], [0, 0, 255])


def test_grey_becomes_three_equal_channels() -> None:
    pixels = decode(encoded(Image.new("L", (3, 3), 77), "PNG"), size=None)
    assert pixels.shape == (3, 3, 3) and (pixels == 77).all()


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(content, size=None)[:, 0, 0], [255, 0, 0])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_an_image_is_turned_as_its_exif_says(kind: str) -> None:
    picture, tags, other = noise(6, 4), Image.Exif(), {"lossless": True} if kind == "WEBP" else {}
    plain, told = decode_upright(encoded(picture, kind, **other), size=None)
    assert not told
    tags[0x0112] = 6  # the camera was turned to the left, so that the picture must be turned to the right
    pixels, turned = decode_upright(encoded(picture, kind, exif=tags, **other), size=None)
    np.testing.assert_array_equal(pixels, np.rot90(plain, -1, axes=(1, 2)))
    assert turned


def test_damaged_exif_is_no_reason_to_refuse_an_image() -> None:
    content = encoded(noise(6, 4), "PNG", exif=b"Exif\x00\x00rubbish")
    assert decode_upright(content, size=None)[0].shape == (3, 4, 6)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_header_that_claims_too_many_pixels_is_refused_unread() -> None:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    with pytest.raises(DecodeError) as caught:
        decode(bomb, size=16)
    assert "\n" not in str(caught.value) and len(bomb) < 100


def test_a_strip_that_would_grow_beyond_the_cap_is_refused() -> None:
    with pytest.raises(DecodeError):
        decode(encoded(Image.new("L", (60_000, 1)), "PNG"), size=64)


def test_the_cap_is_on_width_times_height() -> None:
    assert decode(encoded(noise(10, 10), "PNG"), size=None, max_pixels=100).shape == (3, 10, 10)
    with pytest.raises(DecodeError):
        decode(encoded(noise(10, 11), "PNG"), size=None, max_pixels=100)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_half_a_file_is_refused(kind: str) -> None:
    content = encoded(noise(64, 64), kind)
    with pytest.raises(DecodeError):
        decode(content[: len(content) // 2], size=16)


@pytest.mark.parametrize("kind", ["ICO", "PPM"])
def test_other_formats_are_refused(kind: str) -> None:
    with pytest.raises(DecodeError, match="JPEG"):
        decode(encoded(noise(32, 32), kind), size=16)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"not an image", bytes(1000)])
def test_rubbish_is_refused_in_one_line(content: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(content, size=16)
    assert str(caught.value) and "\n" not in str(caught.value)
