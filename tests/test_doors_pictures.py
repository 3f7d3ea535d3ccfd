"""The doors of pictures: stored pixels in every format, no other formats, bounded memory."""

from __future__ import annotations

import io
import random
import struct
import zlib

import numpy as np
import pytest
from fuzz import mutate_bytes
from PIL import ExifTags, Image

from unigs import images
from unigs.images import UnreadableImage, check_image, decode_image, read_header, strip_orientation


def draw(height=20, width=30):
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 8, y * 12, x + y], -1).astype(np.uint8)


def save(array, format, orientation=None, **options):
    if orientation:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        options["exif"] = exif
    out = io.BytesIO()
    Image.fromarray(array).save(out, format, **options)
    return out.getvalue()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_keeps_its_stored_pixels(orientation, compression):
    data = save(draw(), "TIFF", orientation, compression=compression)
    np.testing.assert_array_equal(decode_image(data), draw())
    header = check_image(data)
    assert (header.width, header.height, header.orientation) == (30, 20, orientation)
    bare = strip_orientation(data)
    assert read_header(bare).orientation == 1
    np.testing.assert_array_equal(decode_image(bare), draw())


def test_floats_of_0_to_1_are_scaled_and_others_refused():
    ramp = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    pixels = decode_image(save(ramp, "TIFF"))
    np.testing.assert_array_equal(pixels[..., 1].ravel(), np.arange(256))
    for other in (ramp * 255, ramp - 1, np.where(ramp > 0.5, np.nan, ramp).astype(np.float32)):
        with pytest.raises(UnreadableImage, match="floats outside of"):
            check_image(save(other, "TIFF"))


def test_32_bit_integers_of_0_to_255_are_kept_and_others_refused():
    ramp = np.arange(256, dtype=np.int32).reshape(16, 16)
    np.testing.assert_array_equal(decode_image(save(ramp, "TIFF"))[..., 2], ramp)
    for other in (ramp * 257, ramp - 1):
        with pytest.raises(UnreadableImage, match="32-bit integers outside of"):
            check_image(save(other, "TIFF"))


def test_16_bits_are_scaled_strip_by_strip(monkeypatch):
    deep = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    for strip in (16, 50, 1 << 22):
        monkeypatch.setattr(images, "STRIP_PIXELS", strip)
        for format in ("PNG", "TIFF"):
            np.testing.assert_array_equal(decode_image(save(deep, format))[..., 0], deep // 257)


@pytest.mark.parametrize("format", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0 no tiff", b"b'Exif\\x00'", b"Exif\0\0II*\0\xff\xff\xff\xff"]
)
def test_broken_exif_says_nothing_and_the_pixels_are_whole(format, exif):
    data = save(draw(), format, exif=exif)
    assert check_image(data).orientation == 1
    assert decode_image(data).shape == (20, 30, 3)
    assert strip_orientation(data) == data


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
ICNS = b"icns" + struct.pack(">I", 16) + bytes(8)


@pytest.mark.parametrize("data", [EPS + bytes(300), ICNS, b"%PDF-1.4\n", b"<svg/>"])
def test_other_formats_are_not_opened(data, tmp_path, monkeypatch):
    started = tmp_path / "started"
    script = tmp_path / "gs"
    script.write_text(f"#!/bin/sh\ntouch {started}\nexit 1\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with pytest.raises(UnreadableImage, match="of no known format"):
        decode_image(data)
    assert not started.exists()


def claim(data: bytes, width: int, height: int) -> bytes:
    """A PNG with another size in its header."""
    out = bytearray(data)
    struct.pack_into(">II", out, 16, width, height)
    struct.pack_into(">I", out, 29, zlib.crc32(out[12:29]))
    return bytes(out)


@pytest.mark.parametrize("size", [(15_000, 15_000), (1, 2**31 - 1), (2**31 - 1, 2**31 - 1)])
def test_gigantic_claims_are_refused_before_memory_is_taken(size):
    with pytest.raises(UnreadableImage):
        check_image(claim(save(draw(), "PNG"), *size))


@pytest.mark.parametrize("options", [{"format": "WEBP"}, {"format": "JPEG", "progressive": True}])
def test_what_takes_more_to_decode_is_refused_earlier(monkeypatch, options):
    plain, costly = save(draw(), "PNG"), save(draw(), **options)
    monkeypatch.setattr(images, "MAX_DECODE_BYTES", 20 * 30 * 9)
    check_image(plain)
    with pytest.raises(UnreadableImage, match="too much memory"):
        check_image(costly)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM"])
def test_damaged_bytes_are_a_picture_or_one_error(format):
    data, dice = save(draw(), format), random.Random(7)
    for _ in range(150):
        try:
            assert decode_image(mutate_bytes(data, dice)).ndim == 3
        except UnreadableImage as error:
            reason = error.reason
            assert "picture" in reason
