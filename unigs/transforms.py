"""Geometry, applied once to a picture and its labels together.

In: the encoded picture and its labels at their own size. Out: a square of ``size`` pixels of both.
Masks never touch an interpolating filter; colours are painted later, from the labels this gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from PIL import Image

from unigs.images import decode_picture
from unigs.records import Annotated


@dataclass(frozen=True, slots=True)
class Crop:
    """A square window of a picture.

    Attributes:
        left_px, top_px, side_px: the window in source pixels.
        flip: mirror it left to right.
    """

    left_px: int
    top_px: int
    side_px: int
    flip: bool = False


def center_crop(height: int, width: int) -> Crop:
    """The largest centred square of a picture of ``height`` x ``width`` pixels."""
    side = min(height, width)
    return Crop((width - side) // 2, (height - side) // 2, side)


def random_crop(height: int, width: int, rng: np.random.Generator) -> Crop:
    """A largest square at a random place, mirrored in half of the cases."""
    side = min(height, width)
    left = int(rng.integers(0, width - side + 1))
    top = int(rng.integers(0, height - side + 1))
    return Crop(left, top, side, flip=bool(rng.random() < 0.5))


def crop_labels(labels: np.ndarray, crop: Crop, size: int) -> np.ndarray:
    """Cut ``crop`` out of labels [H, W] and resize it, nearest, to [size, size]."""
    steps = (np.arange(size) + 0.5) * crop.side_px / size  # centres of the target pixels
    rows = crop.top_px + steps.astype(np.int64)
    cols = crop.left_px + steps.astype(np.int64)
    return labels.take(rows, 0).take(cols[::-1] if crop.flip else cols, 1)  # faster than np.ix_


def crop_image(annotated: Annotated, crop: Crop, size: int) -> np.ndarray:
    """Decode a picture, cut ``crop`` out and resize it.

    Args:
        annotated: the picture; a JPEG is decoded at the least fraction that suffices.
        crop: in pixels of the full picture.
        size: side of the result in pixels.

    Returns:
        uint8 [3, size, size].
    """
    height, width = annotated.labels.shape
    shrink = size / crop.side_px
    whole = decode_picture(annotated.image, (ceil(width * shrink), ceil(height * shrink)))
    k = whole.width / width
    left, top, side = crop.left_px * k, crop.top_px * k, crop.side_px * k
    box = (left, top, min(left + side, whole.width), min(top + side, whole.height))
    square = whole.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0)
    array = np.asarray(square)
    array = array[:, ::-1] if crop.flip else array
    return np.ascontiguousarray(array.transpose(2, 0, 1))  # [3, size, size]


def apply_crop(annotated: Annotated, crop: Crop, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Picture and labels of one window: uint8 [3, size, size] and uint16 [size, size]."""
    labels = crop_labels(annotated.labels, crop, size)
    return crop_image(annotated, crop, size), labels
