"""COCO's ``segmentation`` values -> run-length masks, whatever their form.

In: a polygon list, uncompressed or compressed run lengths, as COCO, EntitySeg and the tools around
them write. Out: pycocotools' compressed form, which is small enough to hold a crowded picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
from pycocotools import mask as coco_mask

from unigs.annotations.rows import to_size

MIN_POLYGON_NUMBERS = 6
MAX_RUN_LETTERS = 8
MAX_CODE_LETTERS = 1 << 22
"""Of compressed run lengths: two million runs; working on them takes fifty times the text."""

MAX_COORDINATE = 1e9
MAX_OUTLINE_PX = 2_000_000
"""All polygons of an entity; the rasteriser takes a hundred bytes per pixel of outline."""

UNIT_SLACK = 0.01


class RunLengths(TypedDict):
    """Runs down the columns, zeros first; ``size`` is [height, width]."""

    size: list[int]
    counts: bytes


class BadMask(Exception):
    """A mask that cannot be used; its text is the reason it is counted under."""


def mask_size(segmentation: Any) -> tuple[int, int] | None:
    """(width, height) that run lengths state; None for polygons, and for what is no size."""
    size = segmentation.get("size") if isinstance(segmentation, dict) else None
    if not isinstance(size, list) or len(size) != 2:
        return None
    height, width = to_size(size[0]), to_size(size[1])
    return (width, height) if width and height else None


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
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
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


def drop_thin_polygons(polygons: Any) -> list[Any]:
    """The polygons of at least three points; pycocotools takes four numbers for a box and fails."""
    return [p for p in polygons if len(p) >= MIN_POLYGON_NUMBERS and len(p) % 2 == 0]


def _encode_polygons(polygons: Any, width: int, height: int) -> RunLengths:
    if not isinstance(polygons, list):
        raise TypeError("neither polygons nor run lengths")
    usable = drop_thin_polygons(polygons)
    if not usable:
        raise BadMask("entity with polygons of fewer than three points")
    arrays = [np.asarray(p, np.float64) for p in usable]
    values = np.concatenate(arrays)
    least, most = _check_coordinates(values, width, height)
    if least < -min(width, height) or most > 2 * min(width, height):
        arrays = [fit_polygon(p, width, height) for p in arrays]
        usable = [p for p in arrays if len(p) >= MIN_POLYGON_NUMBERS]
    longest_px = 3 * max(width, height)  # of one edge
    if values.size // 2 * longest_px > MAX_OUTLINE_PX and _measure(arrays) > MAX_OUTLINE_PX:
        raise BadMask("entity with polygons longer than any outline")
    if not usable:
        raise BadMask("entity with an empty mask")
    return coco_mask.merge(coco_mask.frPyObjects(usable, height, width))


def _check_coordinates(values: np.ndarray, width: int, height: int) -> tuple[float, float]:
    """The least and the most of all coordinates, if they can be pixels."""
    if values.ndim != 1:
        raise ValueError("no list of coordinates")
    least, most = values.min(), values.max()
    if not (least >= -MAX_COORDINATE and most <= MAX_COORDINATE):  # NaN is neither
        raise ValueError("coordinates that are no numbers, or of no picture")
    units = least >= -UNIT_SLACK and most <= 1 + UNIT_SLACK and min(width, height) > 2
    if units and (values != np.round(values)).any():  # the first pixel whole is an entity
        raise BadMask("entity with coordinates of 0 to 1 where pixels are expected")
    return least, most


def fit_polygon(polygon: np.ndarray, width: int, height: int) -> np.ndarray:
    """A polygon that goes far beyond its picture, cut to the picture and as much around it.

    What stays near its picture is left as it is: cutting could move its border by a pixel.

    Args:
        polygon: float64 [2 * points], x and y in turn, pixels.
        width, height: of the picture, pixels.
    """
    points = polygon.reshape(-1, 2)
    size = np.asarray([width, height], np.float64)
    if ((points >= -size) & (points <= 2 * size)).all():
        return polygon
    for axis in (0, 1):
        points = _cut_side(points, axis, -size[axis], 1.0)
        points = _cut_side(points, axis, 2 * size[axis], -1.0)
    return points.ravel()


def _cut_side(points: np.ndarray, axis: int, limit: float, sign: float) -> np.ndarray:
    """Sutherland and Hodgman (1974): the part of a polygon on one side of a straight line."""
    depth = sign * (points[:, axis] - limit)
    inside = depth >= 0
    after, depth_after = np.roll(points, -1, 0), np.roll(depth, -1)
    crosses = inside != np.roll(inside, -1)
    share = np.where(crosses, depth, 0) / np.where(crosses, depth - depth_after, 1)
    cuts = points + share[:, None] * (after - points)
    cuts[:, axis] = limit
    both = np.stack([points, cuts], 1).reshape(-1, 2)
    return both[np.stack([inside, crosses], 1).ravel()]


def _measure(polygons: Sequence[np.ndarray]) -> float:
    """Pixels that a rasteriser steps through along the borders."""
    points = [polygon.reshape(-1, 2) for polygon in polygons]
    return sum(float(np.abs(p - np.roll(p, -1, 0)).max(1, initial=0).sum()) for p in points)


def _encode_runs(segmentation: dict[str, Any], width: int, height: int) -> RunLengths:
    size = mask_size(segmentation)
    if size is None:
        raise ValueError("no size")
    if size != (width, height):
        raise BadMask("entity with a mask of another size than its picture")
    counts = segmentation["counts"]
    if isinstance(counts, list):
        runs = _read_numbers(counts)
        _check_counts(runs, width * height)
        sized = {"size": [height, width], "counts": runs.tolist()}
        return coco_mask.frPyObjects(sized, height, width)
    if not isinstance(counts, str | bytes):
        raise TypeError("neither numbers nor text")
    data = counts.encode() if isinstance(counts, str) else counts
    if not data:
        raise BadMask("entity with an empty mask")
    if len(data) > MAX_CODE_LETTERS:
        raise ValueError("longer than the runs of any mask")
    _check_counts(read_counts(data), width * height)
    return RunLengths(size=[height, width], counts=data)


def _read_numbers(counts: list[Any]) -> np.ndarray:
    """Whole numbers, int64 [runs]; floats and texts are read as the numbers they are."""
    if set(map(type, counts)) == {int}:
        values = np.asarray(counts, np.int64)
    else:
        values = np.asarray(counts, np.float64)
        if not (values == np.round(values)).all():
            raise ValueError("runs of parts of pixels")
    if values.ndim != 1 or not len(values) or np.abs(values).max() > MAX_COORDINATE:
        raise ValueError("no list of runs")
    return values.astype(np.int64)


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
