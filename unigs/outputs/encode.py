"""Pixels, label maps and masks as the bytes of picture files."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from unigs.images import encode_image
from unigs.pictures import colour_labels
from unigs.records import UnigsError

MOST_PALETTE, MOST_GREY = 255, 65_535


def encode_pixels(pixels: np.ndarray) -> bytes:
    """uint8 [3, H, W] as a PNG."""
    return encode_image(np.ascontiguousarray(pixels.transpose(1, 2, 0)), "PNG")


def encode_labels(labels: np.ndarray) -> bytes:
    """int [H, W], 0 = background, as a PNG whose numbers are the labels.

    Up to ``MOST_PALETTE`` labels it is of 8 bits with a palette of display colours, else of 16.

    Raises:
        UnigsError: a label beyond 16 bits.
    """
    most = int(labels.max(initial=0))
    if most > MOST_PALETTE:
        return encode_grey16(labels)
    picture = Image.fromarray(labels.astype(np.uint8)).convert("P")
    colours = colour_labels(np.arange(MOST_PALETTE + 1)[None])  # uint8 [3, 1, 256]
    picture.putpalette(colours[:, 0].T.tobytes())
    return _encode(picture)


def encode_grey16(labels: np.ndarray) -> bytes:
    """int [H, W], 0..65535, as a 16-bit grey PNG.

    Raises:
        UnigsError: a label beyond 16 bits.
    """
    most = int(labels.max(initial=0))
    if most > MOST_GREY:
        raise UnigsError(f"expected at most {MOST_GREY} entities, got {most}, in a label map")
    return _encode(Image.fromarray(labels.astype(np.uint16)))


def encode_mask(mask: np.ndarray) -> bytes:
    """bool [H, W] as a grey PNG, white where True."""
    return _encode(Image.fromarray(mask.astype(np.uint8) * np.uint8(255)))


def encode_ids(labels: np.ndarray) -> bytes:
    """int [H, W] as COCO's panoptic PNG: id = R + 256 G + 65536 B, 0 is void."""
    ids = labels.astype(np.uint32)
    channels = [(ids >> shift & 255).astype(np.uint8) for shift in (0, 8, 16)]
    return _encode(Image.fromarray(np.stack(channels, -1)))


def _encode(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()
