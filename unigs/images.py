"""Picture files: the one way in and out of pixels, for every module.

In: encoded bytes of any kind PIL reads, whatever the file is called. Out: uint8 [H, W, 3], values
0..255. The *stored* pixels count: an EXIF orientation is never applied on the way in, because
annotations are in stored pixels (COCO, Open Images); the readers settle the exceptions once, by
``strip_orientation`` or ``turn_upright``, before a picture goes into a shard.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from unigs.records import UnigsError

MAX_PIXELS = 89_478_485
"""Larger pictures are refused as decompression bombs: a quarter of a gigabyte of RGB."""

JPEG_QUALITY = 95
JPEG_FORMATS = ("JPEG", "MPO")  # a multi-picture file opens as its first JPEG
_ORIENTATION = int(ExifTags.Base.Orientation)


class UnreadableImage(UnigsError):
    """A picture that cannot be decoded.

    Args:
        reason: the words it is counted under, without names or numbers.
        detail: what the decoder said.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"expected a readable picture, came: {reason} ({detail})")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Header:
    """Stored size in pixels, EXIF orientation 1..8 (1 is upright), PIL's name of the format."""

    width: int
    height: int
    orientation: int
    format: str


@contextmanager
def open_image(data: bytes) -> Iterator[Image.Image]:
    """Open encoded bytes by content; PIL's many errors become one.

    Raises:
        UnreadableImage: empty, unknown, too large, truncated or corrupt.
    """
    if not data:
        raise UnreadableImage("picture file empty", "0 bytes")
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height}")
            yield image
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"picture larger than {MAX_PIXELS} pixels", str(error)) from error
    except UnidentifiedImageError as error:
        raise UnreadableImage("picture unreadable", "of no known format") from error
    except (OSError, SyntaxError, ValueError, TypeError, struct.error, EOFError) as error:
        if isinstance(error, UnigsError):
            raise
        raise UnreadableImage("picture unreadable", f"{type(error).__name__}: {error}") from error


def decode_picture(data: bytes, at_least_px: tuple[int, int] | None = None) -> Image.Image:
    """Decode a picture of any format and channel mode, as PIL holds it.

    Args:
        data: the encoded file.
        at_least_px: (width, height) that suffices; a JPEG is then decoded at the smallest of
            1/8, 1/4, 1/2 and full scale that is no smaller, which saves most of the time.

    Returns:
        A loaded RGB picture. Alpha is dropped, grey is repeated, 16 bits are scaled to 8.

    Raises:
        UnreadableImage: empty, unknown, too large, truncated or corrupt.
    """
    with open_image(data) as image:
        if at_least_px is not None:
            image.draft(None, at_least_px)  # type: ignore[arg-type]
        if image.mode.startswith("I"):  # 16 bit: PIL's own convert would clip to white
            grey = np.asarray(image).astype(np.uint32)
            grey8 = ((np.minimum(grey, 65_535) + 128) // 257).astype(np.uint8)
            return Image.fromarray(grey8).convert("RGB")
        image.load()  # or the pixels would go with the file
        return image if image.mode == "RGB" else image.convert("RGB")


def decode_image(data: bytes) -> np.ndarray:
    """The same as an array, uint8 [H, W, 3]."""
    return np.array(decode_picture(data))


def read_header(data: bytes) -> Header:
    """Size, orientation and format without decoding pixels.

    Raises:
        UnreadableImage: not a picture PIL opens.
    """
    with open_image(data) as image:
        return _describe(image)


def _describe(image: Image.Image) -> Header:
    orientation = image.getexif().get(_ORIENTATION, 1)
    if orientation not in range(1, 9) or image.format == "TIFF":
        orientation = 1  # PIL turns TIFFs itself on loading
    return Header(image.width, image.height, int(orientation), image.format or "")


def check_image(data: bytes) -> Header:
    """Header of a picture whose data was decoded to the end, for a JPEG at 1/8 scale.

    Raises:
        UnreadableImage: empty, unknown, too large, truncated or corrupt.
    """
    with open_image(data) as image:
        header = _describe(image)
        image.draft(None, (1, 1))  # type: ignore[arg-type]
        image.load()
        return header


def encode_image(pixels: np.ndarray, format: str = "JPEG") -> bytes:
    """Encode uint8 [H, W, 3]: ``"JPEG"`` (quality 95, full colour) or ``"PNG"`` (lossless)."""
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if format == "JPEG" else {}
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format, **options)
    return out.getvalue()


def turn_upright(data: bytes) -> bytes:
    """Turn the stored pixels as the orientation tag asks, and drop the tag (re-encodes)."""
    with open_image(data) as image:
        format = "JPEG" if image.format in JPEG_FORMATS else "PNG"
        return encode_image(np.array(ImageOps.exif_transpose(image).convert("RGB")), format)


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
