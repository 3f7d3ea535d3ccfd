"""Surfaces of the synthetic scenes: what stuff regions and things look like.

In: a generator and pixel grids. Out: float32 colours, 0..255. Patterns scale with the picture, so
that a scene of another size looks alike.
"""

from __future__ import annotations

import colorsys

import numpy as np


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], cells: float) -> np.ndarray:
    """Bilinear value noise, 0..1, with about ``cells`` cells along the longer side, [H, W]."""
    height, width = shape
    step = max(height, width) / cells
    rows, cols = int(height / step) + 2, int(width / step) + 2
    grid = rng.random((rows, cols), np.float32)
    y, x = np.arange(height, dtype=np.float32) / step, np.arange(width, dtype=np.float32) / step
    iy, ix = y.astype(np.intp), x.astype(np.intp)
    fy, fx = (y - iy)[:, None], x - ix
    across = grid[:, ix] * (1 - fx) + grid[:, ix + 1] * fx
    return across[iy] * (1 - fy) + across[iy + 1] * fy


def _sky(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 40 * (y - 0.5) + 90 * np.maximum(smooth_noise(rng, y.shape, 5) - 0.55, 0)


def _grass(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    blades = smooth_noise(rng, (y.shape[0], y.shape[1] * 3), 90)[:, ::3]
    return 60 * (blades - 0.5) + 30 * (smooth_noise(rng, y.shape, 6) - 0.5)


def _sand(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    bent = y + 0.1 * smooth_noise(rng, y.shape, 4)
    return 12 * np.sin(50 * bent) + 24 * (smooth_noise(rng, y.shape, 48) - 0.5)


def _water(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 26 * np.sin(70 * y + 9 * smooth_noise(rng, y.shape, 7)) - 20 * (y - 0.5)


def _snow(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 36 * (smooth_noise(rng, y.shape, 4) - 0.6)


def _brick(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    row = np.floor(y * 10)
    column = x * 5 + 0.5 * (row % 2)
    mortar = (y * 10 % 1 < 0.2) | (column % 1 < 0.1)
    stone = 30 * np.sin(12.9898 * row + 78.233 * np.floor(column))
    return np.where(mortar, 55, stone) + 20 * (smooth_noise(rng, y.shape, 30) - 0.5)


def _wood(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 28 * np.sin(45 * x + 14 * smooth_noise(rng, y.shape, 3) + 3 * y)


def _rock(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    return 80 * np.abs(smooth_noise(rng, y.shape, 12) - 0.5) + 40 * (
        smooth_noise(rng, y.shape, 26) - 0.7
    )


SURFACES = {
    "sky": ((110, 165, 225), _sky),
    "grass": ((85, 145, 60), _grass),
    "sand": ((205, 180, 130), _sand),
    "water": ((45, 100, 145), _water),
    "snow": ((226, 232, 240), _snow),
    "brick": ((160, 85, 65), _brick),
    "wood": ((150, 105, 65), _wood),
    "rock": ((115, 112, 110), _rock),
}
"""The stuff categories: mean colour and relief."""


def draw_surface(rng: np.random.Generator, name: str, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A stuff surface.

    Args:
        rng: jitters colour and pattern.
        name: one of ``SURFACES``.
        y, x: float32 [H, W], in units of the picture's longer side.

    Returns:
        float32 [H, W, 3], about 0..255.
    """
    colour, relief = SURFACES[name]
    tint = np.asarray(colour, np.float32) + rng.uniform(-18, 18, 3).astype(np.float32)
    return tint + relief(rng, y, x)[..., None].astype(np.float32)


def draw_coat(rng: np.random.Generator, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """A thing's surface, plain, striped, dotted or blended, whatever its category.

    Args:
        rng: chooses colours and pattern.
        u, v: float32 [h, w], the thing's own coordinates in radii.

    Returns:
        float32 [h, w, 3], lit from the upper left.
    """
    first, second = (_draw_colour(rng) for _ in range(2))
    pattern, frequency = rng.integers(5), rng.uniform(4, 8)
    if pattern == 1:
        share = (np.sin(frequency * u) > 0.3).astype(np.float32)
    elif pattern == 2:
        share = (np.sin(frequency * u) * np.sin(frequency * v) > 0.4).astype(np.float32)
    elif pattern == 3:
        share = np.clip(0.5 + 0.5 * u, 0, 1)
    else:
        share = np.zeros_like(u)
    light = 1 - 0.14 * (u + v)
    return (first + share[..., None] * (second - first)) * light[..., None]


def _draw_colour(rng: np.random.Generator) -> np.ndarray:
    h, s, v = rng.random(), rng.uniform(0.3, 1), rng.uniform(0.3, 1)
    return np.asarray(colorsys.hsv_to_rgb(h, s, v), np.float32) * 255
