"""Signed distances of the shapes that tell the synthetic categories apart.

In: coordinates in units of the shape's radius, x to the right, y down. Out: float distances in the
same units, negative inside, exact at the border, which is all that masks and antialiasing need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]


def disc(
    x: np.ndarray, y: np.ndarray, cx: float = 0.0, cy: float = 0.0, r: float = 1.0
) -> np.ndarray:
    return np.hypot(x - cx, y - cy) - r


def ring(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(x, y) - 0.72) - 0.28


def moon(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.maximum(disc(x, y), -disc(x, y, 0.5, 0.0, 0.8))


def heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    lobes = np.minimum(disc(x, y, -0.46, -0.32, 0.5), disc(x, y, 0.46, -0.32, 0.5))
    return np.minimum(
        lobes, polygon(x, y, ((-0.86, -0.02), (0.0, -0.36), (0.86, -0.02), (0, 0.95)))
    )


def drop(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.minimum(
        disc(x, y, 0, 0.35, 0.6), polygon(x, y, ((-0.55, 0.1), (0, -1.0), (0.55, 0.1)))
    )


def polygon(x: np.ndarray, y: np.ndarray, corners: Sequence[tuple[float, float]]) -> np.ndarray:
    """Distance to a closed polygon by its even-odd rule."""
    nearest = np.full(x.shape, np.inf, x.dtype)
    inside = np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, (*corners[1:], corners[0]), strict=True):
        ex, ey, wx, wy = bx - ax, by - ay, x - ax, y - ay
        t = np.clip((wx * ex + wy * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, (wx - ex * t) ** 2 + (wy - ey * t) ** 2)
        if ey:
            inside ^= ((ay > y) != (by > y)) & (wx < ex * wy / ey)
    return np.where(inside, -1, 1) * np.sqrt(nearest)


def _turned(radii: Sequence[float], start: float = 0.0) -> tuple[tuple[float, float], ...]:
    """Corners at even angles around the centre, the first one up."""
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii) + start
    return tuple(
        (float(r * np.sin(a)), float(-r * np.cos(a))) for r, a in zip(radii, angles, strict=True)
    )


def _polygon(corners: Sequence[tuple[float, float]]) -> Distance:
    return lambda x, y: polygon(x, y, corners)


_ARM = 0.32
_CROSS = (
    *((-_ARM, -1.0), (_ARM, -1.0), (_ARM, -_ARM), (1.0, -_ARM), (1.0, _ARM), (_ARM, _ARM)),
    *((_ARM, 1.0), (-_ARM, 1.0), (-_ARM, _ARM), (-1.0, _ARM), (-1.0, -_ARM), (-_ARM, -_ARM)),
)
_ARROW = (
    *((0.0, -1.0), (0.75, -0.1), (0.28, -0.1), (0.28, 1.0)),
    *((-0.28, 1.0), (-0.28, -0.1), (-0.75, -0.1)),
)

SHAPES: dict[str, Distance] = {
    "disc": disc,
    "square": _polygon(_turned([1.1] * 4, np.pi / 4)),
    "triangle": _polygon(_turned([1.15] * 3)),
    "star": _polygon(_turned([1.15, 0.48] * 5)),
    "ring": ring,
    "cross": _polygon(_CROSS),
    "heart": heart,
    "moon": moon,
    "arrow": _polygon(_ARROW),
    "drop": drop,
}
"""The thing categories. The ring has a hole, moon and star are not convex."""
