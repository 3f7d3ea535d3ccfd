"""Draws scenes with known masks: textured stuff behind shapes that hide one another.

In: a seed and a size. Out: :class:`Scene`, image and exact labels. Stands beside ``annotations``
at the head of the chain; the benchmark draws its pictures here, and ``layouts`` writes them as
COCO, Open Images and EntitySeg do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unigs.records import Entity, UnigsError
from unigs.seeds import rng as make_rng
from unigs.synthetic.shapes import SHAPES
from unigs.synthetic.textures import SURFACES, draw_coat, draw_surface, smooth_noise

SPLITS = ("train", "val", "test")
SEEDS_PER_SPLIT = 10**9
THING_IDS = {name: k for k, name in enumerate(SHAPES, start=1)}
STUFF_IDS = {name: k for k, name in enumerate(SURFACES, start=101)}

SIZE_RANGE = 6  # the largest shape's radius over the smallest's
MIN_VISIBLE = 0.5  # of an entity's own area, whatever is drawn over it
MIN_STUFF = 0.06  # of the picture
MIN_SIZE_PX, MAX_SIZE_PX = 16, 1024
MAX_THINGS = 254
MIN_RADIUS = 0.001  # of the shorter side
TRIES = 6
INSET = 0.6  # a shape's centre lies so many radii inside of the frame
MAX_RADIUS = 0.138  # as ``min_radius``: there the largest shape has just that room


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A drawn picture: image uint8 [H, W, 3], labels uint16 [H, W] with every pixel 1..N."""

    image: np.ndarray
    labels: np.ndarray
    entities: tuple[Entity, ...]


def scene_seed(split: str, index: int, seed: int = 0) -> int:
    """The seed of one scene; splits and runs never share one.

    Args:
        split: one of ``SPLITS``.
        index: 0..10**9 - 1.
        seed: the run's seed, 0 or more.
    """
    if split not in SPLITS or not 0 <= index < SEEDS_PER_SPLIT or seed < 0:
        raise UnigsError(
            f"expected a split of {SPLITS} and an index, came {split!r}, {index}, {seed}"
        )
    return (seed * len(SPLITS) + SPLITS.index(split)) * SEEDS_PER_SPLIT + index


def check_drawing(
    size_px: int | tuple[int, int], max_things: int, max_stuff: int, min_radius: float
) -> None:
    """Refuse what :func:`draw_scene` cannot draw.

    Raises:
        UnigsError: names the argument.
    """
    smallest = size_px if isinstance(size_px, int) else min(size_px)
    for name, value, least, most in (
        ("a size, pixels,", smallest, MIN_SIZE_PX, MAX_SIZE_PX),
        ("max_things", max_things, 1, MAX_THINGS),
        ("max_stuff", max_stuff, 2, len(SURFACES)),
        ("min_radius", min_radius, MIN_RADIUS, MAX_RADIUS),
    ):
        if not least <= value <= most:
            raise UnigsError(f"expected {name} of {least} to {most}, came {value}, in a drawing")


def draw_scene(
    seed: int,
    size_px: int | tuple[int, int],
    *,
    max_things: int = 8,
    max_stuff: int = 4,
    min_radius: float = 0.055,
    crowd_share: float = 0.0,
) -> Scene:
    """Draw one scene, a pure function of its arguments.

    Args:
        seed: see :func:`scene_seed`.
        size_px: side, or (height, width), 16 to 1024.
        max_things: 1 to so many shapes, fewer where there is no room; at most 254.
        max_stuff: 2 to so many surfaces, at most 8.
        min_radius: of a shape, as a part of the shorter side, 0.001 to 0.138; the largest has six
            times it.
        crowd_share: chance of a flock of small shapes, annotated as one crowd.

    Returns:
        The scene. Entities are the surfaces, then the flock, then the things from back to front;
        each keeps at least half of its area visible.

    Raises:
        UnigsError: an argument outside of its bounds.

    Example:
        >>> draw_scene(7, 64).image.shape
        (64, 64, 3)
    """
    check_drawing(size_px, max_things, max_stuff, min_radius)
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    rng = make_rng(seed, 0, "scene")
    canvas = Canvas(rng, height, width)
    canvas.paint_stuff(int(rng.integers(2, max_stuff + 1)))
    if rng.random() < crowd_share:
        canvas.paint_crowd()
    canvas.paint_things(int(rng.integers(1, max_things + 1)), min_radius)
    return Scene(canvas.expose(), canvas.labels, tuple(canvas.entities))


def shift_hue(image: np.ndarray, degrees: float) -> np.ndarray:
    """Turn all colours around the grey axis; greys stay, and what leaves the cube is cut.

    Args:
        image: uint8 [H, W, 3].
        degrees: 120 makes red green, green blue, and blue red.

    Returns:
        uint8 [H, W, 3].
    """
    angle = np.deg2rad(degrees)
    even, odd = (1 - np.cos(angle)) / 3, np.sin(angle) / np.sqrt(3)
    turn = np.cos(angle) * np.eye(3) + even + odd * np.array([[0, -1, 1], [1, 0, -1], [-1, 1, 0]])
    return np.clip(np.rint(image @ turn.T), 0, 255).astype(np.uint8)


class Cut(NamedTuple):
    """A shape's place in a picture.

    Attributes:
        box: the pixels around it.
        away: (dx, dy) from its centre in radii, along the picture's axes.
        turned: the same along the shape's own axes.
        distance_px: to its outline, negative inside. All float [h, w].
    """

    box: tuple[slice, slice]
    away: tuple[np.ndarray, np.ndarray]
    turned: tuple[np.ndarray, np.ndarray]
    distance_px: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """bool [h, w]."""
        return self.distance_px < 0


class Canvas:
    """A picture being painted: colours, labels, and the area each label had when painted."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self.rng = rng
        self.height, self.width = height, width
        self.pixels = np.zeros((height, width, 3), np.float32)
        self.labels = np.zeros((height, width), np.uint16)
        self.entities: list[Entity] = []
        self.painted_px = [0]
        rows, columns = np.arange(height, dtype=np.float32), np.arange(width, dtype=np.float32)
        self.y, self.x = np.meshgrid(rows, columns, indexing="ij")

    def add_entity(self, name: str, area_px: int, is_crowd: bool = False) -> int:
        """Register the next entity and give its label."""
        is_thing = name in THING_IDS
        label = len(self.entities) + 1
        category_id = str(THING_IDS[name] if is_thing else STUFF_IDS[name])
        self.entities.append(Entity(label, name, category_id, str(label), is_thing, is_crowd))
        self.painted_px.append(area_px)
        return label

    def paint_stuff(self, count: int) -> None:
        """Cover the picture with ``count`` surfaces."""
        regions = draw_layout(self.rng, self.y, self.x, count)
        names = self.rng.permutation(list(SURFACES))[:count].tolist()
        side = max(self.height, self.width)
        for k, name in enumerate(names):
            mask = regions == k
            label = self.add_entity(name, int(mask.sum()))
            surface = draw_surface(self.rng, name, self.y / side, self.x / side)
            self.pixels[mask], self.labels[mask] = surface[mask], label

    def paint_crowd(self) -> None:
        """Scatter a flock of one category; overlapping members are one entity all the same."""
        name = str(self.rng.choice(list(SHAPES)))
        side = min(self.height, self.width)
        cy, cx = self.rng.uniform(0.25, 0.75, 2) * (self.height, self.width)
        label = self.add_entity(name, 0, is_crowd=True)
        for _ in range(int(self.rng.integers(7, 15))):
            dy, dx = self.rng.normal(0, 0.11 * side, 2)
            radius = self.rng.uniform(0.05, 0.065) * side
            self.stamp(name, cy + dy, cx + dx, radius, label)
        self.painted_px[label] = int((self.labels == label).sum())
        if not self.painted_px[label]:  # the flock lies outside of the frame
            self.entities.pop()
            self.painted_px.pop()

    def paint_things(self, count: int, min_radius: float) -> None:
        """Stamp up to ``count`` shapes, mostly from large to small, often repeating a category."""
        least = min(self.height, self.width) * min_radius
        radii = np.exp(self.rng.uniform(np.log(least), np.log(SIZE_RANGE * least), count))
        radii = radii[np.argsort(-radii * self.rng.uniform(0.6, 1.6, count))]
        used: list[str] = []
        for radius in radii.tolist():
            again = bool(used) and self.rng.random() < 0.4
            name = str(self.rng.choice(used if again else list(SHAPES)))
            for _ in range(TRIES):
                cy = self.rng.uniform(INSET * radius, self.height - INSET * radius)
                cx = self.rng.uniform(INSET * radius, self.width - INSET * radius)
                if self.stamp(name, cy, cx, radius, None):
                    used.append(name)
                    break

    def stamp(self, name: str, cy: float, cx: float, radius: float, label: int | None) -> bool:
        """Paint one shape, turned at random; refused if it would hide an entity too far.

        Args:
            label: the flock it belongs to, or None for an entity of its own.
        """
        cut = self.cut(name, cy, cx, radius, self.rng.uniform(0, 2 * np.pi))
        area_px = int(np.count_nonzero(cut.mask))
        if not area_px or not self._leaves_visible(cut.box, cut.mask):
            return False
        self.paint(cut, radius, draw_coat(self.rng, *cut.away))
        self.labels[cut.box][cut.mask] = label or self.add_entity(name, area_px)
        return True

    def cut(self, name: str, cy: float, cx: float, radius: float, angle: float) -> Cut:
        """Where a shape lies that is turned by ``angle``; its box is empty outside of the frame."""
        box = self._box(cy, cx, 1.25 * radius + 1)
        dy, dx = (self.y[box] - cy) / radius, (self.x[box] - cx) / radius
        cos, sin = float(np.cos(angle)), float(np.sin(angle))
        u, v = cos * dx + sin * dy, cos * dy - sin * dx
        return Cut(box, (dx, dy), (u, v), SHAPES[name](u, v) * radius)

    def paint(self, cut: Cut, radius: float, coat: np.ndarray) -> None:
        """Lay a surface, float32 [h, w, 3], over the pixels of a shape, darker at its rim."""
        cover = np.clip(0.5 - cut.distance_px, 0, 1)[..., None]
        rim = 0.72 + 0.28 * np.clip(-cut.distance_px / max(1.0, 0.1 * radius), 0, 1)
        self.pixels[cut.box] += cover * (coat * rim[..., None] - self.pixels[cut.box])

    def _box(self, cy: float, cx: float, reach: float) -> tuple[slice, slice]:
        """The pixels within ``reach`` of a place."""
        return (
            slice(max(0, int(cy - reach)), max(0, int(cy + reach) + 2)),
            slice(max(0, int(cx - reach)), max(0, int(cx + reach) + 2)),
        )

    def _leaves_visible(self, box: tuple[slice, slice], mask: np.ndarray) -> bool:
        """Would every entity keep its share of visible pixels under this mask?"""
        count = len(self.entities) + 1
        hidden = np.bincount(self.labels[box][mask], minlength=count)
        touched = np.flatnonzero(hidden)
        visible = np.bincount(self.labels.ravel(), minlength=count)[touched] - hidden[touched]
        return bool((visible >= MIN_VISIBLE * np.asarray(self.painted_px)[touched]).all())

    def expose(self) -> np.ndarray:
        """The picture as a camera gives it: uneven light and grain, uint8 [H, W, 3]."""
        light = 0.88 + 0.24 * smooth_noise(self.rng, self.labels.shape, 1.5)
        grain = self.rng.standard_normal((self.height, self.width, 3), np.float32)
        return np.clip(self.pixels * light[..., None] + 3 * grain, 0, 255).astype(np.uint8)


def draw_layout(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
    """Divide the picture into ``count`` regions of at least 6 %, as wavy bands or as cells.

    Returns:
        int [H, W], 0..count - 1.
    """
    height, width = y.shape
    for _ in range(TRIES):
        regions = (
            _draw_bands(rng, y, x, count) if rng.random() < 0.6 else _draw_cells(rng, y, x, count)
        )
        if np.bincount(regions.ravel(), minlength=count).min() >= MIN_STUFF * height * width:
            return regions
    return (y * count / height).astype(np.intp)


def _draw_bands(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
    height, width = y.shape
    tilt = rng.uniform(-0.5, 0.5) + (np.pi / 2) * (rng.random() < 0.25)
    across = (y / height - 0.5) * np.cos(tilt) + (x / width - 0.5) * np.sin(tilt)
    along = (x / width) * np.cos(tilt) - (y / height) * np.sin(tilt)
    wave = rng.uniform(0.01, 0.05) * np.sin(rng.uniform(3, 12) * along + rng.uniform(0, 6))
    cuts = (np.arange(1, count) + rng.uniform(-0.3, 0.3, count - 1)) / count - 0.5
    return np.searchsorted(cuts, across + wave)


def _draw_cells(rng: np.random.Generator, y: np.ndarray, x: np.ndarray, count: int) -> np.ndarray:
    height, width = y.shape
    warp = 0.25 * smooth_noise(rng, y.shape, 4)
    centres = rng.uniform(0.1, 0.9, (count, 2))
    away = [np.hypot(y / height + warp - cy, x / width - warp - cx) for cy, cx in centres]
    return np.argmin(away, axis=0)
