"""Picture files: the one way in and out of pixels, for every module.

In: encoded bytes of the formats in ``FORMATS``, whatever the file is called. Out: uint8 [H, W, 3],
values 0..255. The *stored* pixels count: an EXIF orientation is never applied on the way in,
because annotations are in stored pixels (COCO, Open Images); the readers settle the exceptions
once, by ``strip_orientation`` or ``turn_upright``, before a picture goes into a shard.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from unigs.records import UnigsError

FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # JPEG opens MPO too
"""All that is opened: of the others PIL knows, some start programs (EPS runs Ghostscript)."""

MAX_PIXELS = 89_478_485
"""Larger pictures are refused as decompression bombs: a third of a gigabyte in PIL."""

MAX_DECODE_BYTES = 750_000_000
"""What decoding may take: a progressive JPEG of 75, a WebP of 47 million pixels."""

MAX_FILE_BYTES = 1 << 27
"""Readers refuse larger picture files: a sample travels in memory."""

JPEG_QUALITY = 95
JPEG_FORMATS = ("JPEG", "MPO")  # a multi-picture file opens as its first JPEG
STRIP_PIXELS = 1 << 22
_ORIENTATION = int(ExifTags.Base.Orientation)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNS_BACK = {**_TURNS, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_EXTRA_BYTES = {"WEBP": 12, "TIFF": 8}
"""Per pixel, what a decoder holds beside the picture: canvases, strips of 16 bit."""
_PLAIN_MODES = ("1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr")


class UnreadableImage(UnigsError):
    """A picture that cannot be decoded.

    Args:
        reason: the words it is counted under, without names or numbers.
        detail: what the decoder said.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"expected a readable picture, came: {reason} ({detail})")
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.detail)  # as a worker process sends it


@dataclass(frozen=True, slots=True)
class Header:
    """Stored size in pixels, EXIF orientation 1..8 (1 is upright), PIL's name of the format."""

    width: int
    height: int
    orientation: int
    format: str


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Open encoded bytes by content, as stored; PIL's many errors become one.

    Raises:
        UnreadableImage: empty, of no format in ``FORMATS``, too large, truncated or corrupt.
    """
    if not data:
        raise UnreadableImage("picture file empty", "0 bytes")
    with tell_unreadable(), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_size(image)
        yield _turn_back(image) if image.format == "TIFF" else image


@contextmanager
def tell_unreadable() -> Iterator[None]:
    """PIL's many errors become one.

    Raises:
        UnreadableImage: whatever else was raised inside, but an error in our own words.
    """
    try:
        yield
    except UnigsError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"picture larger than {MAX_PIXELS} pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("picture unreadable", "of no known format") from error
    except Exception as error:  # a decoder fails on hostile bytes in every way there is
        raise UnreadableImage("picture unreadable", f"{type(error).__name__}: {error}") from error


def _check_size(image: Image.Image) -> None:
    pixels = image.width * image.height
    size = f"{image.width}x{image.height}"
    if pixels > MAX_PIXELS:
        raise UnreadableImage(f"picture larger than {MAX_PIXELS} pixels", size)
    if pixels * _count_bytes(image) > MAX_DECODE_BYTES:
        raise UnreadableImage(
            "picture that takes too much memory to decode", f"{image.format} of {size} pixels"
        )


def _count_bytes(image: Image.Image) -> int:
    """Bytes per pixel at the peak of decoding to RGB; PIL keeps RGB in four."""
    stored = 1 if image.mode in ("1", "L", "P") else 4
    coefficients = 2 * len(image.getbands()) if image.info.get("progressive") else 0
    converted = 0 if image.mode == "RGB" else 4
    return stored + converted + coefficients + _EXTRA_BYTES.get(image.format or "", 0)


def _turn_back(image: Image.Image) -> Image.Image:
    """PIL turns a TIFF by its tag on loading: the stored pixels again, and the tag."""
    orientation = read_orientation(image)
    if orientation == 1:
        return image
    image.load()
    stored = image.transpose(_TURNS_BACK[orientation])
    stored.format = image.format
    stored.getexif()[_ORIENTATION] = orientation
    return stored


def read_orientation(image: Image.Image) -> int:
    """1..8; EXIF that cannot be read says nothing, and the pixels are whole."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        return int(orientation) if orientation in range(1, 9) else 1
    except Exception:  # PIL raises eight kinds of error on a damaged tag
        return 1


def decode_picture(data: bytes, at_least_px: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture of any format and channel mode, as PIL holds it.

    Args:
        data: the encoded file.
        at_least_px: (width, height) that suffices; a JPEG is then decoded at the smallest of
            1/8, 1/4, 1/2 and full scale that is no smaller, which saves most of the time.

    Returns:
        A loaded RGB picture. Alpha is dropped, grey is repeated, 16 bits and floats of 0..1 are
        scaled to 8 bits.

    Raises:
        UnreadableImage: empty, unknown, too large, truncated, corrupt, or of numbers without a
            known range.
    """
    with open_image(data) as image:
        if at_least_px is not None:
            image.draft(None, at_least_px)  # type: ignore[arg-type]
        image.load()  # or the pixels would go with the file
        return convert_rgb(image)


def convert_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as RGB; PIL's own convert would clip deep numbers.

    Raises:
        UnreadableImage: numbers without a known range.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        return _map_pixels(image, _scale_floats)
    if image.mode == "I" and image.format == "TIFF":
        return _map_pixels(image, _keep_integers)
    if image.mode.startswith("I"):
        return _map_pixels(image, _scale_16_bits)
    return image.convert("RGB")


def _map_pixels(image: Image.Image, map: Callable[[np.ndarray], np.ndarray]) -> Image.Image:
    """A grey picture through ``map`` to 8 bits, a strip at a time."""
    grey = np.empty((image.height, image.width), np.uint8)
    for rows in split_rows(*grey.shape):
        grey[rows] = map(np.asarray(image.crop((0, rows.start, image.width, rows.stop))))
    return Image.fromarray(grey).convert("RGB")


def split_rows(height: int, width: int) -> list[slice]:
    """Strips of at most ``STRIP_PIXELS`` pixels, or of one row, from top to bottom."""
    step = max(1, STRIP_PIXELS // max(1, width))
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def _scale_16_bits(grey: np.ndarray) -> np.ndarray:
    return ((np.clip(grey, 0, 65_535).astype(np.uint32) + 128) // 257).astype(np.uint8)


def _scale_floats(grey: np.ndarray) -> np.ndarray:
    if not ((grey >= 0) & (grey <= 1)).all():
        raise UnreadableImage("picture of floats outside of 0..1", f"{grey.min()}..{grey.max()}")
    return np.round(grey * 255).astype(np.uint8)


def _keep_integers(grey: np.ndarray) -> np.ndarray:
    if grey.min() < 0 or grey.max() > 255:
        raise UnreadableImage(
            "picture of 32-bit integers outside of 0..255", f"{grey.min()}..{grey.max()}"
        )
    return grey.astype(np.uint8)


def decode_image(data: bytes) -> np.ndarray:
    """The same as an array, uint8 [H, W, 3]."""
    picture = decode_picture(data)
    if picture.width * picture.height <= STRIP_PIXELS:
        return np.array(picture)
    pixels = np.empty((picture.height, picture.width, 3), np.uint8)
    for rows in split_rows(picture.height, picture.width):
        strip = picture.crop(
            (0, rows.start, picture.width, rows.stop)
        )  # or two copies would be there
        pixels[rows] = np.asarray(strip)
    return pixels


def count_frames(data: bytes) -> int:
    """Frames of a file, 1 of a still picture.

    Raises:
        UnreadableImage: not a picture of ``FORMATS``.
    """
    with open_image(data) as image:
        return getattr(image, "n_frames", 1)


def decode_frames(data: bytes, start: int = 0) -> Iterator[np.ndarray]:
    """Frames of an animated file from one on, uint8 [H, W, 3], one in memory at a time.

    Raises:
        UnreadableImage: as :func:`decode_picture`; the frames before have been given.
    """
    with open_image(data) as image:
        for number in range(start, getattr(image, "n_frames", 1)):
            image.seek(number)
            _check_size(image)
            image.load()
            yield np.array(convert_rgb(image))


def read_header(data: bytes) -> Header:
    """Size, orientation and format without decoding pixels.

    Raises:
        UnreadableImage: not a picture of ``FORMATS``.
    """
    with open_image(data) as image:
        return _describe(image)


def _describe(image: Image.Image) -> Header:
    return Header(image.width, image.height, read_orientation(image), image.format or "")


def check_image(data: bytes) -> Header:
    """Header of a picture whose data was decoded to the end, for a JPEG at 1/8 scale.

    Raises:
        UnreadableImage: whatever :func:`decode_picture` would refuse.
    """
    with open_image(data) as image:
        header = _describe(image)
        image.draft(None, (1, 1))  # type: ignore[arg-type]
        image.load()
        if image.mode not in _PLAIN_MODES:
            convert_rgb(image)
        return header


def encode_image(pixels: np.ndarray, format: str = "JPEG") -> bytes:
    """Encode uint8 [H, W, 3]: ``"JPEG"`` (quality 95, full colour) or ``"PNG"`` (lossless)."""
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if format == "JPEG" else {}
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def encode_ids(ids: np.ndarray) -> bytes:
    """Encode uint8 [H, W] as a palette PNG: the index is the id, colours are those of DAVIS."""
    out = io.BytesIO()
    image = Image.fromarray(ids)
    image.putpalette([_shade(k >> channel) for k in range(256) for channel in range(3)])
    image.save(out, "PNG")
    return out.getvalue()


def _shade(bits: int) -> int:
    """Bits 0, 3, 6 of a number as the highest of a byte, as PASCAL VOC spreads its colours."""
    return sum((bits >> 3 * k & 1) << 7 - k for k in range(3))


def turn_upright(data: bytes) -> bytes:
    """Turn the stored pixels as the orientation tag asks, and drop the tag (re-encodes)."""
    header, picture = read_header(data), decode_picture(data)
    if header.orientation != 1:
        picture = picture.transpose(_TURNS[header.orientation])
    return encode_image(np.array(picture), "JPEG" if header.format in JPEG_FORMATS else "PNG")


def strip_orientation(data: bytes) -> bytes:
    """The same pixels with a neutral orientation, so that no reader turns them against their masks.

    A JPEG keeps all its bytes but the tag's value; other formats that carry a tag become PNG.
    Bytes without a tag come back untouched.
    """
    header = read_header(data)
    if header.orientation == 1:
        return data
    if header.format in JPEG_FORMATS:
        patched = _patch_jpeg(data)
        if read_header(patched).orientation == 1:
            return patched
    return encode_image(decode_image(data), "PNG")


def _patch_jpeg(data: bytes) -> bytes:
    """Set the orientation to 1 in place in the EXIF and XMP segments before the scan."""
    out = bytearray(data)
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] not in (0xDA, 0xD9):
        size = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0xE1:
            body = data[at + 4 : at + 2 + size]
            out[at + 4 : at + 2 + size] = (
                _patch_exif(body) if body[:4] == b"Exif" else _patch_xmp(body)
            )
        at += 2 + size
    return bytes(out)


def _patch_xmp(body: bytes) -> bytes:
    return re.sub(rb'(tiff:Orientation(?:="|>))[2-8]', rb"\g<1>1", body)


def _patch_exif(body: bytes) -> bytes:
    """Overwrite tag 0x0112 of the first directory of a TIFF block that starts at byte 6."""
    out = bytearray(body)
    order = "<" if body[6:8] == b"II" else ">"
    if len(body) < 16:
        return body
    start = 6 + struct.unpack_from(order + "I", body, 10)[0]
    if start + 2 > len(body):
        return body
    for k in range(struct.unpack_from(order + "H", body, start)[0]):
        entry = start + 2 + 12 * k
        if (
            entry + 12 <= len(body)
            and struct.unpack_from(order + "H", body, entry)[0] == _ORIENTATION
        ):
            struct.pack_into(order + "H", out, entry + 8, 1)
    return bytes(out)
