"""Uploaded files -> small pictures for the screen; what is too large is refused before it is read.

The file itself is kept as it came: answers are made of it and not of what the screen shows. No
torch, no gradio.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from unigs.images import decode_picture, read_header
from unigs.pictures import colour_labels
from unigs.records import UnigsError, show
from unigs.verbs.request import number_entities, open_file, read_values, turn_picture

MAX_BYTES = 20 << 20
"""Of one upload."""

MAX_PIXELS = 25_000_000
"""Of one upload: a phone's 12 megapixels pass, and so do a camera's 24."""

SCREEN_PX = 768
"""Longer side of what is shown and painted on; a browser's editor takes a minute for a photo."""


def check_upload(path: Path) -> tuple[int, int]:
    """Width and height of an upload as a viewer shows it, pixels.

    Raises:
        UnigsError: no picture, or one beyond ``MAX_BYTES`` or ``MAX_PIXELS``.
    """
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise UnigsError(
            f"expected a file of at most {MAX_BYTES >> 20} MB, got {size / (1 << 20):.1f}, at "
            f"{show(path.name)}"
        )
    header = read_header(path.read_bytes())
    width, height = header.width, header.height
    if width * height > MAX_PIXELS:
        raise UnigsError(
            f"expected a picture of at most {MAX_PIXELS / 1e6:g} megapixels, got {width} x "
            f"{height} px, at {show(path.name)}"
        )
    return (height, width) if header.orientation > 4 else (width, height)


def read_upload(file: str | None) -> tuple[str, bytes]:
    """Name and bytes of an upload.

    Raises:
        UnigsError: none, or one that is too large or no picture.
    """
    if file is None:
        raise UnigsError("expected a picture, got none: upload one, or take an example")
    check_upload(Path(file))
    return Path(file).name, Path(file).read_bytes()


def show_upload(path: Path) -> Image.Image:
    """An upload at the size of the screen, upright, RGB.

    Raises:
        UnigsError: see :func:`check_upload`.
    """
    check_upload(path)
    return show_picture(path)


def show_picture(path: Path) -> Image.Image:
    """A picture at the size of the screen, upright, RGB; what we drew may be larger than uploads.

    Raises:
        UnigsError: no picture.
    """
    enough = (SCREEN_PX, SCREEN_PX)
    stored, orientation = open_file(path, lambda data: decode_picture(data, enough))
    return fit_screen(Image.fromarray(turn_picture(stored, orientation)))


def show_labels(path: Path) -> Image.Image:
    """An uploaded label map in display colours, at the size of the screen, RGB.

    Raises:
        UnigsError: see :func:`check_upload`.
    """
    check_upload(path)
    colours = colour_labels(number_entities(read_values(path)))  # uint8 [3, H, W]
    return fit_screen(Image.fromarray(colours.transpose(1, 2, 0).copy()))


def fit_screen(picture: Image.Image) -> Image.Image:
    """A picture whose longer side is ``SCREEN_PX``; a small one is enlarged pixel by pixel."""
    scale = SCREEN_PX / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    how = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    return picture.resize((width, height), how)
