"""A user's own files -> ``TaskSample``: the door of the verbs that run a model.

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
from unigs.records import TASKS, TaskSample, UnigsError, show
from unigs.tasks import RECIPES, speak_category, write_prompt

MAX_ASPECT = 8
"""Attention costs the square of the longer side, so longer strips are refused."""


def check_request(
    task: str | None,
    given: Mapping[str, Path | None],
    words: Sequence[str] | None,
    prompt: str | None,
) -> None:
    """Refuse a request that lacks what its task needs, or holds what would be ignored.

    Args:
        task: one of ``TASKS``, or None to try all of them on a drawn scene.
        given: ``image``, ``mask`` and ``labels``, None where not given.
        words, prompt: None where not given.

    Raises:
        UnigsError: what was expected, what came.
    """
    if task is not None and task not in TASKS:
        raise UnigsError(f"expected a task of {', '.join(TASKS)}, got {task!r}, at --task")
    texts = {"words": words, "prompt": prompt}
    asked = [name for name, value in {**given, **texts}.items() if value is not None]
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
            raise UnigsError(f"expected no --{name} for {task}, got {({**given, **texts})[name]}")
    if "words" in takes and not any(texts.values()):
        raise UnigsError(f"expected --words star sand or --prompt for {task}, got neither")
    if all(texts.values()):
        raise UnigsError("expected --words or --prompt, got both")
    if prompt is not None:
        check_text(prompt, "--prompt")
        if "prompt" in takes and not prompt.strip():
            raise UnigsError(f"expected a prompt with a word in it, got {prompt!r}, at --prompt")


def list_inputs(task: str) -> tuple[list[str], list[str]]:
    """Options that a task needs and those it may have beside them, by its recipe."""
    recipe = RECIPES[task]
    needs = ["labels" if recipe.context == "colormap" else "image"]
    takes = ["prompt"]
    if recipe.draws:
        takes.append("words")
    if recipe.local:  # a hole must be given, a place to search may be
        (needs if recipe.context == "masked image" else takes).append("mask")
    return needs, takes


# --- files of a user -----------------------------------------------------------------------------


def read_request(
    task: str,
    image: Path | None,
    mask: Path | None,
    labels: Path | None,
    words: Sequence[str] | None,
    prompt: str | None,
    pixels: np.ndarray | None = None,
) -> TaskSample:
    """Read a user's files as the sample of one task; see :func:`sample_pictures`.

    ``pixels``, uint8 [3, H, W], are those of the image, where they are known already.
    """
    if image is not None and pixels is None:
        pixels = read_pixels(image)
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
    searches = RECIPES[task].context != "masked image"
    spoken = speak_words(words or ())
    return TaskSample(
        key=Path(str(where)).name,
        index=0,
        seed=0,
        task=task,
        image=np.zeros((3, *size), np.uint8) if pixels is None else pixels,
        labels=np.zeros(size, np.int32) if given is None else given,
        ignored=np.zeros(size, bool),
        coarse_mask=np.ones(size, bool) if mask is None else read_mask(mask, size, searches),
        prompt=prompt or write_prompt(task, spoken),
        asked=tuple(spoken),
        names=tuple(spoken),
    )


def speak_words(given: Sequence[str]) -> list[str]:
    """Names of things as prompts say them.

    Raises:
        UnigsError: one without a word, or that is no text.
    """
    spoken = [speak_category(name.strip()) for name in given]
    for name, words in zip(given, spoken):
        check_text(name, "--words")
        if not words.strip():
            raise UnigsError(f"expected a name with a word in it, got {name!r}, at --words")
    return spoken


def check_text(text: str, where: str) -> None:
    """Refuse bytes that are no text in this locale, which arrive as lone surrogates.

    Raises:
        UnigsError: names the option.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UnigsError(f"expected UTF-8, got {text!r}, at {where}")


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


# --- masks of a user -----------------------------------------------------------------------------


def read_mask(path: Path, size: tuple[int, ...], may_fill: bool = True) -> np.ndarray:
    """Where to fill or to search, bool [H, W]; prints how the file was understood.

    Args:
        path: a picture; see :func:`understand_mask`.
        size: the picture's H, W.
        may_fill: whether all of the picture may be chosen.

    Raises:
        UnigsError: another size than the picture's, or nothing or everything chosen.
    """
    told: list[str] = []

    def decode(data: bytes) -> Image.Image:
        mask, words = understand_mask(data)
        told.append(words)
        return Image.fromarray(mask.astype(np.uint8))

    mask = turn_picture(*open_file(path, decode)) > 0
    if mask.shape != tuple(size):
        raise UnigsError(
            f"expected a mask of the picture's size, {size[1]} x {size[0]} px, got "
            f"{mask.shape[1]} x {mask.shape[0]} px, at {path}"
        )
    if not mask.any():
        raise UnigsError(
            f"expected a mask with white where to work, got only black ({told[0]}), at {path}"
        )
    if mask.all() and not may_fill:
        raise UnigsError(
            f"expected a mask with black where to keep, got only white ({told[0]}), at {path}"
        )
    print(f"mask {show(path.name)}: {mask.mean():.1%} of the picture is chosen, by {told[0]}")
    return mask


def understand_mask(data: bytes) -> tuple[np.ndarray, str]:
    """What a drawn mask chooses, bool [H, W], and how it was understood, in words.

    Chosen is what is brighter than half: of the format's range, by a colour's luminance, so that
    JPEG's noise, video range and an almost black ground do not count. A mask of the numbers 0 and 1
    alone chooses the ones. Alpha is looked at where it varies; see :func:`choose_by_alpha`.

    Raises:
        UnreadableImage: no picture, or numbers that are not finite.
    """
    with open_image(data) as image:
        image.load()
        grey = image.mode in ("1", "L") and "transparency" not in image.info
        if grey or image.mode == "F" or image.mode.startswith("I"):
            return choose_bright(np.asarray(image.convert("L") if grey else image))
        layers = np.asarray(image.convert("RGBA"))
    colour, alpha = layers[..., :3], layers[..., 3]
    alpha = alpha * np.uint8(255) if alpha.max(initial=0) == 1 else alpha  # 1 was meant as opaque
    bright = np.asarray(Image.fromarray(np.ascontiguousarray(colour)).convert("L"))
    if alpha.min(initial=255) > 127:
        return bright > 127, "colours brighter than half"
    return choose_by_alpha(colour, bright, alpha)


def choose_bright(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Numbers [H, W] above half of their range: 1 (float), 255, or 65,535."""
    if not np.isfinite(values).all():
        raise UnreadableImage("mask not finite", "NaN or infinity")
    kinds = np.unique(values)[:3].tolist()
    if len(kinds) == 2 and kinds[0] == 0 and kinds[1] in (1, 255):
        return values > 0, f"the value {kinds[1]:g} beside 0"
    highest = float(values.max(initial=0))
    if values.dtype == np.uint8:
        top = 255
    elif np.issubdtype(values.dtype, np.floating):
        top = 1 if highest <= 1 else 255 if highest <= 255 else 65_535
    else:
        top = 65_535
    return values > top / 2, f"values above {top / 2:g}; the highest is {highest:g}"


def choose_by_alpha(
    colour: np.ndarray, bright: np.ndarray, alpha: np.ndarray
) -> tuple[np.ndarray, str]:
    """A mask with transparent parts: a drawing on nothing, or a picture with a hole.

    A drawing in white, with or without black, chooses what is white and opaque. A photo, or one
    flat colour, with fully transparent pixels chooses these, as OpenAI's image edits do; so does
    one all in black.

    Args:
        colour: uint8 [H, W, 3]. bright: its luminance, uint8 [H, W]. alpha: uint8 [H, W].

    Returns:
        bool [H, W], and how it was understood.
    """
    opaque = alpha > 127
    flat = bool((colour == colour[:1, :1]).all())
    seen = bright[opaque]
    drawn = bool(((seen < 32) | (seen > 223)).mean() > 0.9) if seen.size else False
    has_hole = not alpha.all()
    if has_hole and (flat or not drawn or bool((seen < 128).all())):
        return ~opaque, "its transparent part"
    return opaque & (bright > 127), "its opaque part, where it is brighter than half"


# --- label maps of a user ------------------------------------------------------------------------


def number_entities(values: np.ndarray) -> np.ndarray:
    """Any non-negative numbers [H, W] as labels 1..N in their order, int32; 0 stays 0."""
    kinds, places = np.unique(values, return_inverse=True)
    return (places.reshape(values.shape) + (kinds[0] != 0)).astype(np.int32)
