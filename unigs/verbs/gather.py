"""Files, folders and globs that a user names -> the pictures of a run, each with a name of its own.

No torch: a name that leads nowhere is told at once.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unigs.annotations.base import make_unique_keys
from unigs.files import explain_errors
from unigs.records import UnigsError, show

SUFFIXES = frozenset(
    f".{name}"
    for name in ("jpg", "jpeg", "jpe", "mpo", "png", "webp", "tif", "tiff", "bmp", "gif", "ppm",
                 "pgm", "pbm", "pnm")
)  # fmt: skip
"""Of the files that a folder is searched for; a file that is named may have any."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One file of a run.

    Attributes:
        path: as the user named it.
        key: of its outputs; no other picture of the run has it.
        file_name: below the run's root, with forward slashes.
    """

    path: Path
    key: str
    file_name: str


def gather_pictures(given: Sequence[str], out: Path, option: str) -> tuple[Path, list[Picture]]:
    """All pictures that are named, and the folder that holds them all, their root.

    Args:
        given: files, folders (searched to their depths) and globs.
        out: where the run writes; what lies there is no input.
        option: for messages.

    Raises:
        UnigsError: nothing is named, a name leads nowhere, or a folder or glob holds no picture.
    """
    if not given:
        raise UnigsError(f"expected files, folders or globs, got none, at {option}")
    paths: dict[Path, Path] = {}  # by what they lead to, so that each counts once
    roots = []
    for name in given:
        found, root = _expand(name, out, option)
        roots.append(root.resolve())
        for path in found:
            paths.setdefault(path.resolve(), path)
    root = Path(os.path.commonpath(roots))
    names = [Path(os.path.relpath(path, root)).as_posix() for path in paths]
    keys = make_unique_keys(names)
    pictures = [Picture(path, *rest) for path, *rest in zip(paths.values(), keys, names)]
    return root, sorted(pictures, key=lambda picture: picture.key)


def _expand(name: str, out: Path, option: str) -> tuple[list[Path], Path]:
    """The pictures behind one word, and the folder they lie under."""
    path = Path(name)
    with explain_errors("a picture, a folder or a glob", path):
        if path.is_dir():
            return _search(path, out, option), path
        if path.exists():
            return [path], path.parent
        found = sorted(glob.glob(os.fspath(path.expanduser()), recursive=True))
    if not found:
        kind = "of this form" if glob.has_magic(name) else "of this name"
        raise UnigsError(f"expected a picture, found nothing {kind}: {name}, at {option}")
    files = [Path(one) for one in found if Path(one).is_file()]
    inside = [
        one for folder in found if Path(folder).is_dir() for one in list_pictures(folder, out)
    ]
    paths = [*files, *inside]
    if not paths:
        raise UnigsError(f"expected pictures, found none in {name}, at {option}")
    return paths, Path(os.path.commonpath([one.parent.resolve() for one in paths]))


def _search(folder: Path, out: Path, option: str) -> list[Path]:
    """The pictures of a folder, of which there must be one."""
    paths = list_pictures(folder, out)
    if not paths:
        raise UnigsError(
            f"expected pictures ({', '.join(sorted(SUFFIXES))}), found none in {folder}, at "
            f"{option}"
        )
    return paths


def list_pictures(folder: Path | str, out: Path) -> list[Path]:
    """The pictures of a folder, to its depths; what else lies there is counted aloud."""
    mine: list[Path] = []
    others: list[Path] = []
    for path in _walk(Path(folder), out.resolve()):
        (mine if path.suffix.lower() in SUFFIXES else others).append(path)
    if others:
        print(f"{folder}: {len(others)} files are no pictures, e.g. {show(others[0].name)}")
    return mine


def _walk(folder: Path, out: Path) -> Iterable[Path]:
    """Plain files below a folder in a fixed order, without hidden ones and what the run wrote."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.resolve() == out:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path, out)
        elif path.is_file():
            yield path
