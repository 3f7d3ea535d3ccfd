"""A picture with its masks laid over it: colours, outlines, and each mask's number."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from unigs.images import JPEG_QUALITY
from unigs.pictures import colour_labels

STRENGTH = 0.45
"""Share of the display colour."""

SEARCH_PX = 256
"""Longer side of the map on which the place of a number is sought."""


def draw_overlay(image: np.ndarray, labels: np.ndarray) -> Image.Image:
    """Colours in the masks, white outlines between them, and numbers where there is most room.

    Args:
        image: uint8 [3, H, W].
        labels: int [H, W]; label 0 leaves the picture as it is.

    Returns:
        RGB, of the picture's size.
    """
    short_px = min(labels.shape)
    picture = _to_picture(image)
    painted = Image.blend(picture, _to_picture(colour_labels(labels)), STRENGTH)
    picture.paste(painted, mask=Image.fromarray(labels > 0))
    picture.paste("white", mask=_draw_outlines(labels, max(1, round(short_px / 400))))
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(max(9, short_px // 30))
    for label, place in find_places(labels).items():
        pen.text(place, str(label), "white", font, "mm", stroke_width=1, stroke_fill="black")
    return picture


def encode_overlay(image: np.ndarray, labels: np.ndarray) -> bytes:
    """The same as a JPEG."""
    out = io.BytesIO()
    draw_overlay(image, labels).save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


def find_places(labels: np.ndarray) -> dict[int, tuple[float, float]]:
    """For each label the middle (x, y) of the widest part of its mask, pixels."""
    from scipy import ndimage  # late: it takes half a second

    step = max(1, -(-max(labels.shape) // SEARCH_PX))
    small = np.pad(labels[step // 2 :: step, step // 2 :: step], 1)
    places = {}
    for label, box in enumerate(ndimage.find_objects(small), 1):
        if box is not None:
            inside = np.pad(small[box] == label, 1)
            depth = ndimage.distance_transform_edt(inside)
            row, column = np.unravel_index(depth.argmax(), depth.shape)
            at = (column + box[1].start - 2, row + box[0].start - 2)
            places[label] = tuple((side + 0.5) * step for side in at)
    return places


def _draw_outlines(labels: np.ndarray, width_px: int) -> Image.Image:
    """Where a pixel differs from the one below or to the right, widened."""
    edges = np.zeros(labels.shape, bool)
    edges[:-1] |= labels[:-1] != labels[1:]
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    lines = Image.fromarray(edges.astype(np.uint8) * np.uint8(255))
    return lines if width_px == 1 else lines.filter(ImageFilter.MaxFilter(width_px // 2 * 2 + 1))


def _to_picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))
