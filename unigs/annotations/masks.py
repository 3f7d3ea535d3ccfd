"""COCO's ``segmentation`` values -> run-length masks, whatever their form.

In: a polygon list, uncompressed or compressed run lengths, as COCO, EntitySeg and the tools around
them write. Out: pycocotools' compressed form, which is small enough to hold a crowded picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask as coco_mask

MIN_POLYGON_NUMBERS = 6
MAX_RUN_LETTERS = 8


class RunLengths(TypedDict):
    """Runs down the columns, zeros first; ``size`` is [height, width]."""

    size: list[int]
    counts: bytes


class BadMask(Exception):
    """A mask that cannot be used; its text is the reason it is counted under."""


def mask_size(segmentation: Any) -> tuple[int, int] | None:
    """(width, height) that run lengths state; None for polygons."""
    if isinstance(segmentation, dict) and len(segmentation.get("size", ())) == 2:
        height, width = segmentation["size"]
        return int(width), int(height)
    return None


def encode_segmentation(segmentation: Any, width: int, height: int) -> RunLengths:
    """Any of COCO's forms as compressed run lengths.

    Args:
        segmentation: list of polygons, or a dict with ``size`` and ``counts`` (list, str, bytes).
        width, height: frame of polygons, pixels; run lengths must state the same.

    Raises:
        BadMask: no, broken or empty mask, or one of another size.
    """
    if not segmentation:
        raise BadMask("entity without a mask")
    try:
        if isinstance(segmentation, dict):
            runs = _encode_runs(segmentation, width, height)
        else:
            runs = _encode_polygons(segmentation, width, height)
        empty = not count_pixels(runs)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError, IndexError) as error:
        raise BadMask("entity with a broken mask") from error
    if empty:
        raise BadMask("entity with an empty mask")
    return runs


def decode_runs(runs: RunLengths) -> np.ndarray:
    """bool [H, W]."""
    return coco_mask.decode(runs).view(bool)


def count_pixels(runs: RunLengths) -> int:
    """Pixels set; the annotation's own ``area`` is its polygon's."""
    return int(coco_mask.area(runs))


def bounding_box(runs: RunLengths) -> tuple[int, int, int, int]:
    """(left, top, right, bottom), ends exclusive."""
    left, top, width, height = (int(value) for value in coco_mask.toBbox(runs))
    return left, top, left + width, top + height


def drop_thin_polygons(polygons: Any) -> list[Sequence[float]]:
    """The polygons of at least three points; pycocotools takes four numbers for a box and fails."""
    return [p for p in polygons if len(p) >= MIN_POLYGON_NUMBERS and len(p) % 2 == 0]


def _encode_polygons(polygons: Any, width: int, height: int) -> RunLengths:
    if not isinstance(polygons, list):
        raise TypeError("neither polygons nor run lengths")
    usable = drop_thin_polygons(polygons)
    if not usable:
        raise BadMask("entity with polygons of fewer than three points")
    if not np.isfinite(np.concatenate([np.asarray(p, np.float64) for p in usable])).all():
        raise ValueError("coordinates that are no numbers")
    return coco_mask.merge(coco_mask.frPyObjects(usable, height, width))


def _encode_runs(segmentation: dict[str, Any], width: int, height: int) -> RunLengths:
    if mask_size(segmentation) != (width, height):
        raise BadMask("entity with a mask of another size than its picture")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        _check_counts(np.asarray(counts, np.int64), width * height)
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    data = counts.encode() if isinstance(counts, str) else bytes(counts)
    if not data:
        raise BadMask("entity with an empty mask")
    _check_counts(read_counts(data), width * height)
    return RunLengths(size=[height, width], counts=data)


def _check_counts(counts: np.ndarray, area_px: int) -> None:
    """Runs must fill the picture: pycocotools does not look, and decodes garbage."""
    if counts.min() < 0 or counts.max() > area_px or counts.sum() != area_px:
        raise ValueError("runs that do not fill the picture")


def read_counts(data: bytes) -> np.ndarray:
    """The run lengths of COCO's compressed text, int64.

    Letters carry 5 bits each, low ones first, above a bit that says "more" and below 48; the last
    letter's top bit is the sign. From the fourth on a run is told as its difference to the run
    before the last.

    Raises:
        ValueError: letters that no encoder writes.
    """
    letters = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    last = (letters & 32) == 0
    if letters.min() < 0 or letters.max() > 63 or not last[-1]:
        raise ValueError("letters outside of the code, or a run cut short")
    ends = np.flatnonzero(last)
    starts = np.concatenate(([0], ends[:-1] + 1))
    digits = ends - starts + 1
    if digits.max() > MAX_RUN_LETTERS:
        raise ValueError("a run longer than any picture")
    place = np.arange(len(letters)) - np.repeat(starts, digits)
    counts = np.add.reduceat((letters & 31) << (5 * place), starts)
    counts -= np.where(letters[ends] & 16, 1 << (5 * digits), 0)
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    return counts
