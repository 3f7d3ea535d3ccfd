"""What a user hands in -> pixels, masks and label maps: one set of rules for files and for Python.

In: pictures as PIL holds them once they are loaded, or arrays. Out: arrays. ``verbs.request`` reads
files by these rules, and the pipeline's call what it is given. Unlike the readers of data sets,
whose masks are in stored pixels, both turn pictures upright.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import ExifTags, Image, ImageOps

from unigs.images import UnreadableImage
from unigs.records import UnigsError

MAX_ASPECT = 8
"""Attention costs the square of the longer side, so longer strips are refused."""


def check_aspect(size: Sequence[int], where: object) -> None:
    """Refuse a picture or label map that is a strip.

    Args:
        size: H, W.
        where: for the message.

    Raises:
        UnigsError: longer than ``MAX_ASPECT`` times its width, or wider.
    """
    if max(size) > MAX_ASPECT * min(size):
        raise UnigsError(
            f"expected a picture at most {MAX_ASPECT} times as long as wide, got "
            f"{size[1]} x {size[0]} px, at {where}"
        )


def turn_picture(picture: Image.Image | np.ndarray, orientation: int) -> np.ndarray:
    """The pixels [H, W] or [H, W, C], turned upright by an EXIF orientation 1..8."""
    bare = Image.fromarray(np.asarray(picture))
    bare.getexif()[ExifTags.Base.Orientation] = orientation
    return np.array(ImageOps.exif_transpose(bare))  # a copy: others may write to it


# --- label maps ----------------------------------------------------------------------------------


def keep_values(image: Image.Image) -> Image.Image:
    """A loaded label map in a mode whose numbers are its values: L, I, or RGBA of colours.

    Raises:
        UnreadableImage: numbers below 0, or that are not whole.
    """
    if image.mode == "F":
        values = np.asarray(image)
        if not (np.isfinite(values) & (values == np.rint(values))).all():
            raise UnreadableImage("label map of numbers that are not whole", "mode F")
    if image.mode in ("L", "1", "F") or image.mode.startswith("I"):
        numbers = image.convert("L" if image.mode == "1" else "I")
        if (lowest := int(np.asarray(numbers).min(initial=0))) < 0:
            raise UnreadableImage("label map of numbers below 0", f"the lowest is {lowest}")
        return numbers
    return image.convert("RGBA")


def count_colours(pixels: np.ndarray) -> np.ndarray:
    """One number per pixel, int64 [H, W]; 0 is black or fully transparent.

    A grey value [H, W] is its own number; a colour [H, W, 4] is its 24 bits.
    """
    values = pixels.astype(np.int64)
    if values.ndim == 2:
        return values
    return (values[..., :3] @ (1 << 16, 1 << 8, 1)) * (values[..., 3] > 0)


def number_entities(values: np.ndarray) -> np.ndarray:
    """Any non-negative numbers [H, W] as labels 1..N in their order, int32; 0 stays 0."""
    kinds, places = np.unique(values, return_inverse=True)
    return (places.reshape(values.shape) + (kinds[0] != 0)).astype(np.int32)


def check_entities(labels: np.ndarray, where: object) -> None:
    """Refuse a label map without an entity.

    Raises:
        UnigsError: all of it is 0.
    """
    if not labels.any():
        raise UnigsError(f"expected an entity to synthesise, got only black, 0, at {where}")


# --- masks ---------------------------------------------------------------------------------------


def check_mask(
    mask: np.ndarray, told: str, size: Sequence[int], may_fill: bool, where: object
) -> None:
    """Refuse a mask that leaves nothing to do, or nothing to keep where something must stay.

    Args:
        mask: bool [H, W].
        told: how it was understood.
        size: the picture's H, W.
        may_fill: whether all of the picture may be chosen.
        where: for the message.

    Raises:
        UnigsError: another size than the picture's, or nothing or everything chosen.
    """
    if mask.shape != tuple(size):
        raise UnigsError(
            f"expected a mask of the picture's size, {size[1]} x {size[0]} px, got "
            f"{mask.shape[1]} x {mask.shape[0]} px, at {where}"
        )
    if not mask.any():
        raise UnigsError(
            f"expected a mask with white where to work, got only black ({told}), at {where}"
        )
    if mask.all() and not may_fill:
        raise UnigsError(
            f"expected a mask with black where to keep, got only white ({told}), at {where}"
        )


def understand_mask(image: Image.Image) -> tuple[np.ndarray, str]:
    """What a loaded mask chooses, bool [H, W] as stored, and how it was understood, in words.

    Chosen is what is brighter than half: of the format's range, by a colour's luminance, so that
    JPEG's noise, video range and an almost black ground do not count. A mask of the numbers 0 and 1
    alone chooses the ones. Alpha is looked at where it varies; see :func:`choose_by_alpha`.

    Raises:
        UnreadableImage: numbers that are not finite.
    """
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
    """Numbers [H, W] above half of their range: 1 (float), 255, or 65,535.

    Raises:
        UnreadableImage: numbers that are not finite.
    """
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
