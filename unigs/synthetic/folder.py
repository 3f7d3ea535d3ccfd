"""A folder of drawn data: begun and ended with a marker, so that nothing else is ever replaced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from unigs.files import write_text
from unigs.records import UnigsError

MARKER, BEGUN = "synthetic.json", "synthetic.json.begun"
LICENCE = "CC0-1.0, drawn by UniGS"


def is_drawn(out: Path, folders: Sequence[str], text: str) -> bool:
    """Whether a folder was drawn, whole, with these options; if not, mark it as begun.

    Args:
        out: the folder.
        folders: what is drawn inside.
        text: the options, as the marker says them.

    Raises:
        UnigsError: it was drawn or begun with others, or holds files that were not drawn.
    """
    for marker in (out / MARKER, out / BEGUN):
        if marker.exists() and (known := marker.read_text()) != text:
            raise UnigsError(
                f"expected a folder without other scenes, came one drawn with {known}, at {out}"
            )
        if marker.exists():
            return marker.name == MARKER
    for name in folders:
        if (out / name).exists() and any((out / name).iterdir()):
            raise UnigsError(
                f"expected a folder without other files, came some that were not drawn, at "
                f"{out / name}; give another --out"
            )
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / BEGUN, text)
    return False


def end_drawing(out: Path) -> None:
    """Mark a begun folder as whole."""
    (out / BEGUN).replace(out / MARKER)


def save_bytes(path: Path, data: bytes) -> None:
    """Write a file and the folders it lies in; a data set is whole when it has its marker."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
