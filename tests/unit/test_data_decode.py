"""Foreign image bytes: what is accepted, what is refused, and that nothing else than DecodeError comes out."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from mucs_ray.data.decode import FORMATS, DecodeError, decode


def encoded(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_header(width: int, height: int) -> bytes:
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", b"") + png_chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_known_formats_are_read(kind):
    image = decode(encoded(Image.new("RGB", (7, 5), (255, 0, 0)), kind), size=None)
    assert image.shape == (3, 5, 7) and image.dtype == np.uint8
    assert image[0].min() >= 250 and image[1:].max() <= 5


def test_lossless_pixels_are_unchanged_and_channels_come_first():
    picture = noise(7, 5)
    np.testing.assert_array_equal(decode(encoded(picture), size=5), np.asarray(picture).transpose(2, 0, 1))


@pytest.mark.parametrize("content", [encoded(noise(4, 4), "PPM"), b"", b"GIF89a", b"text"])
def test_other_content_is_refused(content):
    with pytest.raises(DecodeError, match=r"^(not a readable image of a known format|cannot be decoded)"):
        decode(content, size=8)


@pytest.mark.parametrize("side", [8_001, 12_000, 60_000, 2**31 - 1])
def test_a_bomb_is_refused_from_its_header(side):
    with pytest.raises(DecodeError, match="pixels"):
        decode(png_header(side, side), size=8)


def test_a_strip_that_resizing_would_blow_up_is_refused():
    with pytest.raises(DecodeError, match="would become 64000000 x 64 px"):
        decode(encoded(Image.new("L", (1_000_000, 1))), size=64)


def test_the_pixel_cap_is_exact():
    content = encoded(noise(10, 10))
    assert decode(content, size=None, max_pixels=100).shape == (3, 10, 10)
    with pytest.raises(DecodeError, match="has 10 x 10 px, more than 99 pixels"):
        decode(content, size=None, max_pixels=99)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "GIF"])
def test_a_truncated_file_is_refused(kind):
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    content = encoded(noise(64, 64), kind)
    with pytest.raises(DecodeError):
        decode(content[: len(content) // 2], size=None)


def test_alpha_is_over_white():
    red = Image.new("RGBA", (2, 1), (255, 0, 0, 0))
    red.putpixel((1, 0), (200, 0, 100, 128))
    clear, half = decode(encoded(red), size=None)[:, 0].T.astype(int)
    assert clear.tolist() == [255, 255, 255]
    # 255 + (colour - 255) * 128 / 255
    assert np.abs(half - [227.4, 127, 177.2]).max() <= 1


def test_a_transparent_palette_is_over_white():
    picture = Image.new("P", (2, 2), 0)
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putpixel((1, 1), 1)
    image = decode(encoded(picture, transparency=0), size=None)
    assert image[:, 0, 0].tolist() == [255, 255, 255] and image[:, 1, 1].tolist() == [10, 20, 30]


def test_16_bit_grey_keeps_its_high_byte():
    deep = Image.fromarray(np.array([[0, 256, 65_535]], dtype=np.uint16))
    assert decode(encoded(deep), size=None).tolist() == [[[0, 1, 255]]] * 3


def test_other_modes_become_rgb():
    assert decode(encoded(Image.new("L", (2, 2), 9)), size=None).tolist() == [[[9, 9], [9, 9]]] * 3
    assert decode(encoded(Image.new("1", (2, 2), 1)), size=None).min() == 255
    assert decode(encoded(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), size=None).min() >= 250


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    image = decode(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), size=None)
    assert image[:, 0, 0].tolist() == [255, 0, 0]


def test_resizing_is_bilinear_with_antialiasing():
    stripes = np.zeros((4, 4), dtype=np.uint8)
    stripes[:, ::2] = 200
    # 4 -> 1 px: a triangle of half-width 4 weighs the columns .625 .875 .875 .625 of 3; .625 + .875 is half of 3
    assert abs(int(decode(encoded(Image.fromarray(stripes)), size=1)[0, 0, 0]) - 100) <= 1


@given(width=st.integers(1, 90), height=st.integers(1, 90), size=st.integers(1, 70))
@settings(max_examples=60, deadline=None)
def test_the_shorter_side_becomes_size_and_the_long_side_keeps_the_shape(width, height, size):
    _, h, w = decode(encoded(Image.new("RGB", (width, height))), size=size).shape
    assert min(h, w) == size
    assert max(h, w) == size * max(width, height) // min(width, height)
    assert (h >= w) == (height >= width) or h == w


ORIGINALS = [encoded(noise(16, 16), kind) for kind in FORMATS]


@given(content=st.sampled_from(ORIGINALS), at=st.integers(0, 10_000), junk=st.binary(max_size=12))
@settings(max_examples=300, deadline=None)
def test_damaged_bytes_give_an_image_or_a_decode_error_of_one_line(content, at, junk):
    at %= len(content)
    try:
        image = decode(content[:at] + junk + content[at + len(junk) :], size=8)
    except DecodeError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert image.dtype == np.uint8 and min(image.shape[1:]) == 8
