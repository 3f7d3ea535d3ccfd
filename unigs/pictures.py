"""Pictures for people: label maps in colour, and sheets of labelled tiles.

In: uint8 pictures [3, H, W] and int labels [H, W]. Out: one uint8 sheet [3, H', W'].
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from unigs.records import UnigsError, show

SHEET_TITLES = ("condition", "image", "colormap", "decoded masks", "ground truth")
"""The columns of every sheet of samples."""

_GAP_PX, _TITLE_PX, _CAPTION_PX, _LETTER_PX = 4, 16, 14, 3


def colour_labels(labels: np.ndarray) -> np.ndarray:
    """A display colour per label, black for 0: int [H, W] -> uint8 [3, H, W]."""
    count = int(labels.max(initial=0)) + 1
    hues = [(k * 0.6180339887) % 1 for k in range(count)]  # golden ratio: neighbours far apart
    table = [colorsys.hsv_to_rgb(h, 0.65 + 0.35 * (k % 2), 0.95) for k, h in enumerate(hues)]
    table[0] = (0.0, 0.0, 0.0)
    return (np.array(table) * 255).round().astype(np.uint8)[labels].transpose(2, 0, 1)


def blend_labels(image: np.ndarray, labels: np.ndarray, strength: float = 0.6) -> np.ndarray:
    """Labels laid over a picture, uint8 [3, H, W]; label 0 leaves the picture as it is."""
    mixed = (1 - strength) * image + strength * colour_labels(labels)
    return np.where(labels[None] > 0, mixed, image).round().astype(np.uint8)


def draw_sheet(
    titles: Sequence[str], rows: Sequence[tuple[str, Sequence[np.ndarray]]], tile_px: int = 128
) -> np.ndarray:
    """Tiles in rows under column titles, a caption above each row.

    Args:
        titles: one per column.
        rows: caption (any text; shown on one line, cut at the edge) and one uint8 [3, H, W]
            picture per column.
        tile_px: longer side of a tile; pictures are scaled to it, nearest.

    Returns:
        uint8 [3, H', W'].

    Raises:
        UnigsError: a row has more or fewer pictures than there are titles.
    """
    step_x, step_y = tile_px + _GAP_PX, tile_px + _GAP_PX + _CAPTION_PX
    canvas = Image.new(
        "RGB", (len(titles) * step_x + _GAP_PX, len(rows) * step_y + _TITLE_PX + _GAP_PX), "white"
    )
    pen = ImageDraw.Draw(canvas)
    for column, title in enumerate(titles):
        pen.text((_GAP_PX + column * step_x, 2), title, fill="black")
    room = len(titles) * step_x // _LETTER_PX
    for row, (caption, pictures) in enumerate(rows):
        if len(pictures) != len(titles):
            raise UnigsError(f"expected {len(titles)} pictures in row {row}, got {len(pictures)}")
        top = _TITLE_PX + row * step_y
        pen.text((_GAP_PX, top), show(caption)[:room], fill=(90, 90, 90))
        for column, picture in enumerate(pictures):
            tile = Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))
            scale = tile_px / max(tile.size)
            tile = tile.resize(
                (round(tile.width * scale), round(tile.height * scale)), Image.Resampling.NEAREST
            )
            canvas.paste(tile, (_GAP_PX + column * step_x, top + _CAPTION_PX))
    return np.asarray(canvas).transpose(2, 0, 1)
