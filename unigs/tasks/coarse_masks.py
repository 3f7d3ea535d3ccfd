"""Coarse masks: Omega of Eq. 9, by Algorithm 1.

In: masks of the drawn entities. Out: where a picture is to be filled or searched.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw


def entity_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a bool mask [H, W] in pixels, right and bottom exclusive."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(cols[0]), int(rows[0]), int(cols[-1]) + 1, int(rows[-1]) + 1


def extend_box(
    box: tuple[int, int, int, int], height: int, width: int, extension: float, rng
) -> tuple[int, int, int, int]:
    """Move each side outward by a random part, up to ``extension``, of the room beside it."""
    left, top, right, bottom = box
    room = np.array([left, top, width - right, height - bottom])
    out = np.floor(rng.random(4) * extension * room).astype(int)
    return left - out[0], top - out[1], right + out[2], bottom + out[3]


def bezier(start, control, end, at: np.ndarray) -> np.ndarray:
    """Points [len(at), 2] of the quadratic Bezier arc at parameters 0..1."""
    t = at[:, None]
    start, control, end = np.asarray(start), np.asarray(control), np.asarray(end)
    return (1 - t) ** 2 * start + 2 * t * (1 - t) * control + t**2 * end


def draw_blob(box, extended, height: int, width: int, rng) -> np.ndarray:
    """Algorithm 1: four arcs between the box's corners, bent towards the extended box's edges.

    Each arc is sampled at 18 points, each moved by up to 5 px at 512 px (in proportion elsewhere).
    """
    (x0, y0, x1, y1), (ex0, ey0, ex1, ey1) = box, extended
    mid_x, mid_y, at = (x0 + x1) / 2, (y0 + y1) / 2, np.arange(1, 19) * 0.05
    arcs = [
        bezier((x0, y0), (mid_x, ey0), (x1, y0), at),
        bezier((x1, y0), (ex1, mid_y), (x1, y1), at),
        bezier((x1, y1), (mid_x, ey1), (x0, y1), at),
        bezier((x0, y1), (ex0, mid_y), (x0, y0), at),
    ]
    jitter_px = round(5 * max(height, width) / 512)
    points = np.concatenate(arcs)
    points = points + rng.integers(-jitter_px, jitter_px + 1, points.shape)
    canvas = Image.new("1", (width, height))
    ImageDraw.Draw(canvas).polygon([tuple(p) for p in points.tolist()], fill=1)
    return np.array(canvas)


def draw_coarse_mask(
    masks: Sequence[np.ndarray], extension: float, blobs: float, rng
) -> np.ndarray:
    """The union over entities of a blob or an extended box around each.

    Args:
        masks: bool [H, W] each, none empty.
        extension: see :func:`extend_box`.
        blobs: share of blobs, 0..1.
        rng: keyed generator.

    Returns:
        bool [H, W]; True is to be filled.
    """
    height, width = masks[0].shape
    coarse = np.zeros((height, width), bool)
    for mask in masks:
        box = entity_box(mask)
        extended = extend_box(box, height, width, extension, rng)
        if rng.random() < blobs:
            coarse |= draw_blob(box, extended, height, width, rng)
        else:
            left, top, right, bottom = extended
            coarse[top:bottom, left:right] = True
    return coarse
