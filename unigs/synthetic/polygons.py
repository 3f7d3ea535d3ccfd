"""Masks as the annotation formats write them: pixel-exact polygons and run lengths.

In: bool masks [H, W]. Out: the ``segmentation`` values of COCO JSON. The polygons follow pixel
borders, so that a reader's rasteriser gives the very same mask back.
"""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask
from scipy import ndimage

Corner = tuple[int, int]


def encode_polygons(mask: np.ndarray) -> list[list[float]]:
    """One polygon [x1, y1, x2, y2, ...] per connected part; a hole hangs on its part by a slit."""
    parts, count = ndimage.label(mask)
    polygons = []
    for k in range(1, count + 1):
        first, *holes = _trace_borders(parts == k)
        corners = [*first, first[0]]
        for hole in holes:
            corners += [*hole, hole[0], first[0]]
        polygons.append([float(value) for corner in corners for value in corner])
    return polygons


def _trace_borders(mask: np.ndarray) -> list[list[Corner]]:
    """Closed loops along pixel borders, corners only, the mask on the right hand."""
    inside = np.pad(mask, 1)
    follow: dict[Corner, list[Corner]] = {}
    for dy, dx, start, end in (
        (-1, 0, (0, 0), (1, 0)),
        (0, 1, (1, 0), (1, 1)),
        (1, 0, (1, 1), (0, 1)),
        (0, -1, (0, 1), (0, 0)),
    ):
        ys, xs = np.nonzero(inside & ~np.roll(inside, (-dy, -dx), (0, 1)))
        for y, x in zip((ys - 1).tolist(), (xs - 1).tolist(), strict=True):
            follow.setdefault((x + start[0], y + start[1]), []).append((x + end[0], y + end[1]))
    loops = []
    while follow:
        at = begin = min(follow)
        loop = []
        while True:
            loop.append(at)
            ends = follow[at]
            after = ends.pop()
            if not ends:
                del follow[at]
            at = after
            if at == begin:
                break
        loops.append(_drop_straight(loop))
    return loops


def _drop_straight(loop: list[Corner]) -> list[Corner]:
    """Only the corners where the border turns."""
    before, after = [loop[-1], *loop[:-1]], [*loop[1:], loop[0]]
    return [
        at
        for a, at, b in zip(before, loop, after, strict=True)
        if (a[0] - at[0]) * (b[1] - at[1]) != (a[1] - at[1]) * (b[0] - at[0])
    ]


def encode_runs(mask: np.ndarray) -> dict[str, list[int]]:
    """COCO's uncompressed form: run lengths down the columns, zeros first."""
    flat = np.concatenate(([0], mask.ravel(order="F").astype(np.int8), [0]))
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate(([0], changes, [mask.size])))
    if mask[-1, -1]:
        counts = counts[:-1]
    return {"counts": counts.tolist(), "size": list(mask.shape)}


def encode_rle(mask: np.ndarray) -> dict[str, object]:
    """COCO's compressed form, with ``counts`` as text, as JSON holds it."""
    rle = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def bounding_box(mask: np.ndarray) -> list[int]:
    """[x, y, width, height] of the pixels set."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [int(xs[0]), int(ys[0]), int(xs[-1] - xs[0] + 1), int(ys[-1] - ys[0] + 1)]
