"""A user's own files -> ``TaskSample``: the door of ``unigs sample``.

In: paths of pictures in any format, and words. Out: one sample of one task, at the picture's own
size. What a task needs is read off its recipe, so a new row of the table needs nothing here. Unlike
the readers of data sets, whose masks are in stored pixels, this one turns pictures upright.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from unigs.images import UnreadableImage, decode_picture, open_image, read_header
from unigs.records import TASKS, TaskSample, UnigsError
from unigs.tasks import RECIPES, speak_category, write_prompt

MAX_ASPECT = 8
"""Attention costs the square of the longer side, so longer strips are refused."""


def check_request(
    task: str | None,
    given: Mapping[str, Path | None],
    names: Sequence[str] | None,
    prompt: str | None,
) -> None:
    """Refuse a request that lacks what its task needs, or holds what would be ignored.

    Args:
        task: one of ``TASKS``, or None to try all of them on a drawn scene.
        given: ``image``, ``mask`` and ``labels``, None where not given.
        names, prompt: words, None where not given.

    Raises:
        UnigsError: what was expected, what came.
    """
    if task is not None and task not in TASKS:
        raise UnigsError(f"expected a task of {', '.join(TASKS)}, got {task!r}, at --task")
    words = {"names": names, "prompt": prompt}
    asked = [name for name, value in {**given, **words}.items() if value is not None]
    if task is None:
        if asked:
            raise UnigsError(f"expected --task with --{asked[0]}, got none of {', '.join(TASKS)}")
        return
    needs, takes = list_inputs(task)
    for name in needs:
        if name not in asked:
            raise UnigsError(
                f"expected --{name} FILE for {task}, got none; leave --task out to try every task "
                "on a drawn scene"
            )
    for name in asked:
        if name not in (*needs, *takes):
            raise UnigsError(f"expected no --{name} for {task}, got {({**given, **words})[name]}")
    if "names" in takes and not any(words.values()):
        raise UnigsError(f"expected --names '[star, sand]' or --prompt for {task}, got neither")
    if all(words.values()):
        raise UnigsError("expected --names or --prompt, got both")


def list_inputs(task: str) -> tuple[list[str], list[str]]:
    """Options that a task needs and those it may have beside them, by its recipe."""
    recipe = RECIPES[task]
    needs = ["labels" if recipe.context == "colormap" else "image"]
    takes = ["prompt"]
    if recipe.draws:
        takes.append("names")
    if recipe.local:  # a hole must be given, a place to search may be
        (needs if recipe.context == "masked image" else takes).append("mask")
    return needs, takes


# --- files of a user -----------------------------------------------------------------------------


def read_request(
    task: str,
    image: Path | None,
    mask: Path | None,
    labels: Path | None,
    names: Sequence[str] | None,
    prompt: str | None,
) -> TaskSample:
    """Read a user's files as the sample of one task; see :func:`sample_pictures`."""
    pixels = None if image is None else read_pixels(image)  # uint8 [3, H, W]
    given = None if labels is None else number_entities(read_values(labels))
    known, where = (pixels, image) if given is None else (given, labels)
    assert known is not None
    size = known.shape[-2:]
    if max(size) > MAX_ASPECT * min(size):
        raise UnigsError(
            f"expected a picture at most {MAX_ASPECT} times as long as wide, got "
            f"{size[1]} x {size[0]} px, at {where}"
        )
    if given is not None and not given.any():
        raise UnigsError(f"expected an entity to synthesise, got only black, at {labels}")
    spoken = [speak_category(name.strip()) for name in names or ()]
    return TaskSample(
        key=Path(str(where)).name,
        index=0,
        task=task,
        image=np.zeros((3, *size), np.uint8) if pixels is None else pixels,
        labels=np.zeros(size, np.int32) if given is None else given,
        ignored=np.zeros(size, bool),
        coarse_mask=np.ones(size, bool) if mask is None else read_mask(mask, size),
        prompt=prompt or write_prompt(task, spoken),
        names=tuple(spoken),
    )


def read_pixels(path: Path) -> np.ndarray:
    """A picture as a viewer shows it, uint8 [3, H, W].

    Raises:
        UnigsError: no such file, or no picture.
    """
    return turn_picture(*open_file(path, decode_picture)).transpose(2, 0, 1).copy()


def read_values(path: Path) -> np.ndarray:
    """One number per pixel of a drawn map, int64 [H, W]; 0 is black or fully transparent.

    A grey value is its own number, of 8 or 16 bits; a colour is its 24 bits, the palette's too.

    Raises:
        UnigsError: no such file, or no picture.
    """

    def decode(data: bytes) -> Image.Image:
        with open_image(data) as image:
            image.load()
            if image.mode in ("L", "1") or image.mode.startswith("I"):
                return image.convert("L" if image.mode == "1" else "I")
            return image.convert("RGBA")

    values = turn_picture(*open_file(path, decode)).astype(np.int64)
    if values.ndim == 2:
        return values
    return (values[..., :3] @ (1 << 16, 1 << 8, 1)) * (values[..., 3] > 0)


def open_file(path: Path, decode: Callable[[bytes], Image.Image]) -> tuple[Image.Image, int]:
    """A picture by ``decode`` and its EXIF orientation; errors name the file."""
    try:
        data = Path(path).read_bytes()
        return decode(data), read_header(data).orientation
    except OSError as error:
        raise UnigsError(f"expected a picture file, got {error.strerror}, at {path}") from error
    except UnreadableImage as error:
        raise UnigsError(f"{error}, at {path}") from error


def turn_picture(picture: Image.Image, orientation: int) -> np.ndarray:
    """The pixels [H, W] or [H, W, C], turned upright."""
    bare = Image.fromarray(np.asarray(picture))
    bare.getexif()[ExifTags.Base.Orientation] = orientation
    return np.asarray(ImageOps.exif_transpose(bare))


def read_mask(path: Path, size: tuple[int, ...]) -> np.ndarray:
    """Where to fill or to search, bool [H, W].

    Raises:
        UnigsError: another size than the picture's, or nothing but black.
    """
    mask = read_values(path) != 0
    if mask.shape != tuple(size):
        raise UnigsError(
            f"expected a mask of the picture's size, {size[1]} x {size[0]} px, got "
            f"{mask.shape[1]} x {mask.shape[0]} px, at {path}"
        )
    if not mask.any():
        raise UnigsError(f"expected a mask with something but black, got only black, at {path}")
    return mask


def number_entities(values: np.ndarray) -> np.ndarray:
    """Any non-negative numbers [H, W] as labels 1..N in their order, int32; 0 stays 0."""
    kinds, places = np.unique(values, return_inverse=True)
    return (places.reshape(values.shape) + (kinds[0] != 0)).astype(np.int32)
