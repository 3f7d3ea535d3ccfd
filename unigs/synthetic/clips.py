"""Draws clips with known masks, and writes them as DAVIS 2017 lies on disk.

In: a seed, a size and a number of frames. Out: frames, one at a time. Shapes move, turn, hide one
another, enter and leave in front of still surfaces; a shape keeps its id, its coat and its depth.
The same arguments give the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from unigs.images import encode_ids, encode_image
from unigs.records import UnigsError
from unigs.seeds import derive_seed
from unigs.seeds import rng as make_rng
from unigs.synthetic.folder import LICENCE, end_drawing, is_drawn, save_bytes
from unigs.synthetic.scenes import SIZE_RANGE, Canvas, check_drawing, scene_seed
from unigs.synthetic.shapes import SHAPES
from unigs.synthetic.textures import draw_coat, smooth_noise

SPEEDS = (0.02, 0.08)  # of the shorter side a frame
MAX_TURN = 0.3  # radians a frame
FOLDERS = ("JPEGImages", "Annotations", "ImageSets")
FIRST_CLIP = 5 * 10**8
"""Of the scenes of a split; pictures are drawn from those before it."""


class Frame(NamedTuple):
    """Image uint8 [H, W, 3]; ids uint8 [H, W], 0 is background, k the k-th shape of the clip."""

    image: np.ndarray
    ids: np.ndarray


@dataclass(frozen=True, slots=True)
class ClipOptions:
    """What fixes every byte written; kept beside the data as ``synthetic.json``."""

    clips: int
    val_clips: int
    frames: int
    size_px: int
    seed: int
    max_things: int
    min_radius: float

    def __post_init__(self) -> None:
        check_drawing(self.size_px, self.max_things, 2, self.min_radius)


class Motion(NamedTuple):
    """A shape on a straight way; it is at ``(cy, cx)``, inside the picture, in frame ``at``."""

    name: str
    radius: float
    cy: float
    cx: float
    at: float
    speed: tuple[float, float]
    angle: float
    turn: float

    def pose(self, frame: int) -> tuple[str, float, float, float, float]:
        """Shape, centre (y, x), radius and angle in a frame, as ``Canvas.cut`` wants them."""
        t = frame - self.at
        y, x = self.cy + t * self.speed[0], self.cx + t * self.speed[1]
        return self.name, y, x, self.radius, self.angle + t * self.turn


def draw_clip(
    seed: int,
    size_px: int | tuple[int, int],
    frames: int,
    *,
    max_things: int = 4,
    min_radius: float = 0.08,
) -> Iterator[Frame]:
    """Draw one clip, a pure function of its arguments, one frame in memory at a time.

    Args:
        seed: see :func:`unigs.synthetic.scenes.scene_seed`.
        size_px: side, or (height, width).
        frames: 1 or more.
        max_things: 1 to so many shapes, from back to front.
        min_radius: of a shape, as a part of the shorter side; the largest has six times it.

    Yields:
        The frames in their order.

    Raises:
        UnigsError: an argument outside of its bounds.

    Examples:
        >>> [frame.ids.shape for frame in draw_clip(7, 32, 2)]
        [(32, 32), (32, 32)]
    """
    check_drawing(size_px, max_things, 2, min_radius)
    height, width = (size_px, size_px) if isinstance(size_px, int) else size_px
    rng = make_rng(seed, 0, "clip")
    canvas = Canvas(rng, height, width)
    canvas.paint_stuff(int(rng.integers(2, 5)))
    still, light = canvas.pixels, 0.88 + 0.24 * smooth_noise(rng, (height, width), 1.5)
    count = int(rng.integers(1, max_things + 1))
    motions = [draw_motion(rng, (height, width), frames, min_radius) for _ in range(count)]
    for frame in range(frames):
        canvas.pixels = still.copy()
        ids = np.zeros((height, width), np.uint8)
        for k, motion in enumerate(motions, 1):
            cut = canvas.cut(*motion.pose(frame))
            coat = draw_coat(make_rng(seed, k, "coat"), *cut.turned)  # the same in every frame
            canvas.paint(cut, motion.radius, coat)
            ids[cut.box][cut.mask] = k
        grain = make_rng(seed, frame, "grain").standard_normal((height, width, 3), np.float32)
        pixels = canvas.pixels * light[..., None] + 3 * grain
        yield Frame(np.clip(pixels, 0, 255).astype(np.uint8), ids)


def draw_motion(
    rng: np.random.Generator, size: tuple[int, int], frames: int, min_radius: float
) -> Motion:
    """One shape's way through a clip of ``frames`` pictures of ``size`` (height, width)."""
    side = min(size)
    radius = side * min_radius * SIZE_RANGE ** rng.random()
    heading, speed = rng.uniform(0, 2 * np.pi), side * rng.uniform(*SPEEDS)
    return Motion(
        name=str(rng.choice(list(SHAPES))),
        radius=radius,
        cy=rng.uniform(0, size[0]),
        cx=rng.uniform(0, size[1]),
        at=rng.uniform(0, frames - 1),
        speed=(speed * np.sin(heading), speed * np.cos(heading)),
        angle=rng.uniform(0, 2 * np.pi),
        turn=MAX_TURN * rng.uniform(-1, 1),
    )


def draw_known_clip(options: ClipOptions, split: str, index: int) -> Iterator[Frame]:
    """The frames of a written clip."""
    seed = scene_seed(split, FIRST_CLIP + index, options.seed)
    short = options.size_px * 3 // 4
    size = (short, options.size_px) if derive_seed(seed, 0, "aspect") % 2 else options.size_px
    return draw_clip(
        seed,
        size,
        options.frames,
        max_things=options.max_things,
        min_radius=options.min_radius,
    )


def name_clip(split: str, index: int) -> str:
    """The folder of a clip."""
    return f"scene-{split}-{index:06d}"


def write_clips(
    out: Path,
    clips: int = 40,
    val_clips: int = 8,
    frames: int = 12,
    size_px: int = 64,
    seed: int = 0,
    max_things: int = 4,
    min_radius: float = 0.08,
) -> None:
    """Draw clips of moving shapes with known masks in the layout of DAVIS 2017.

    A folder already drawn with the same options is left as it is. The folder itself is the root
    for `unigs shards --davis`.

    Args:
        out: folder to make ``JPEGImages``, ``Annotations`` and ``ImageSets`` in.
        clips: training clips.
        val_clips: validation clips.
        frames: pictures in a clip.
        size_px: longer side of the pictures, 32 to 1024.
        seed: another seed draws other clips.
        max_things: shapes in a clip, 1 to so many.
        min_radius: of a shape, as a part of the shorter side; the largest has six times it.

    Raises:
        UnigsError: an option outside of its bounds, a folder drawn with other options, or one that
            holds files that were not drawn.
    """
    options = ClipOptions(clips, val_clips, frames, size_px, seed, max_things, min_radius)
    if min(clips, val_clips, frames) < 1 or size_px < 32:
        raise UnigsError(
            f"expected clips, frames and a size of at least 32 px, came {options}, at {out}"
        )
    out = Path(out)
    text = json.dumps(asdict(options))
    if is_drawn(out, FOLDERS, text):
        return
    with tqdm(total=clips + val_clips, desc="drawing", unit="clip") as bar:
        for split, count in (("train", clips), ("val", val_clips)):
            for index in range(count):
                write_clip(out, name_clip(split, index), draw_known_clip(options, split, index))
                bar.update()
            lines = "".join(f"{name_clip(split, index)}\n" for index in range(count))
            save_bytes(out / "ImageSets" / "2017" / f"{split}.txt", lines.encode())
    save_bytes(out / "licence.txt", f"{LICENCE}\n".encode())
    end_drawing(out)


def write_clip(root: Path, clip: str, frames: Iterator[Frame]) -> None:
    """One clip's JPEGs and palette PNGs, numbered from 0."""
    for number, frame in enumerate(frames):
        name = f"480p/{clip}/{number:05d}"
        save_bytes(root / "JPEGImages" / f"{name}.jpg", encode_image(frame.image))
        save_bytes(root / "Annotations" / f"{name}.png", encode_ids(frame.ids))
