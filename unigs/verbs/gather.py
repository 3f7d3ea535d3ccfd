"""Files, folders and globs that a user names -> the pictures of a run, each with a name of its own.

No torch: a name that leads nowhere is told at once.
"""

from __future__ import annotations

import glob
import os
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from unigs.annotations.base import make_unique_keys
from unigs.files import explain_errors
from unigs.outputs.folder import holds_run
from unigs.records import UnigsError, show

SUFFIXES = frozenset(
    f".{name}"
    for name in ("jpg", "jpeg", "jpe", "mpo", "png", "webp", "tif", "tiff", "bmp", "gif", "ppm",
                 "pgm", "pbm", "pnm")
)  # fmt: skip
"""Of the files that a folder is searched for; a file that is named may have any."""


OTHER = "files are no pictures"
APART = "files or folders hold answers or masks"
AGAIN = "linked folders are searched already"
NOWHERE = "names lead to no file"
"""What is said of what is left out."""


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


def gather_pictures(
    given: Sequence[str],
    out: Path,
    option: str,
    mask: Path | None = None,
    merge_links: bool = True,
) -> tuple[Path, list[Picture]]:
    """All pictures that are named, and the folder that holds them all, their root.

    Names are those of the paths as typed: what a link leads to names nothing.

    Args:
        given: files, folders (searched to their depths) and globs.
        out: where the run writes; what lies there is no input.
        option: for messages.
        mask: of the run, a file or a folder; no input either, unless it is named.
        merge_links: whether a link to a picture that is there already is left out.

    Raises:
        UnigsError: nothing is named, a name leads nowhere, or a folder or glob holds no picture.
    """
    if not given:
        raise UnigsError(f"expected files, folders or globs, got none, at {option}")
    apart = {find_real(path) for path in (out, mask) if path is not None}
    paths: dict[Path, Path] = {}  # as typed, so that each counts once
    roots = []
    for name in given:
        found, root = _expand(name, apart, option)
        roots.append(stand_path(root))
        for path in found:
            paths.setdefault(stand_path(path), path)
    root = Path(os.path.commonpath(roots))
    if merge_links:
        _drop_links(paths, root)
    names = [path.relative_to(root).as_posix() for path in paths]
    keys = make_unique_keys(names)
    pictures = [Picture(path, *rest) for path, *rest in zip(paths.values(), keys, names)]
    return root, sorted(pictures, key=lambda picture: picture.key)


def stand_path(path: Path) -> Path:
    """An absolute path; links stay, but for those that a later ``..`` climbs from."""
    parts = (Path.cwd() / path).parts
    start = max((k + 1 for k, part in enumerate(parts) if part == ".."), default=0)
    return find_real(Path(*parts[:start])).joinpath(*parts[start:]) if start else Path(*parts)


def find_real(path: Path) -> Path:
    """What a path leads to, even if nothing is there or links run in a circle."""
    return Path(os.path.realpath(path))


def _drop_links(paths: dict[Path, Path], root: Path) -> None:
    """Leave out what leads to a picture that is there already; says how many."""
    first: dict[Path, Path] = {}
    again = [path for path in paths if first.setdefault(find_real(path), path) != path]
    for path in again:
        del paths[path]
    if again:
        print(
            f"{root}: {len(again)} links lead to pictures of this run, e.g. {show(again[0].name)}"
        )


def _expand(name: str, apart: Collection[Path], option: str) -> tuple[list[Path], Path]:
    """The pictures behind one word, and the folder they lie under."""
    path = Path(name)
    with explain_errors("a picture, a folder or a glob", path):
        if path.is_dir():
            paths = list_pictures(path, apart)
            if not paths:
                kinds = ", ".join(sorted(SUFFIXES))
                raise UnigsError(f"expected pictures ({kinds}), found none in {path}, at {option}")
            return paths, path
        if path.exists():
            return [path], path.parent
        pattern = path.expanduser()
        found = [Path(one) for one in sorted(glob.glob(os.fspath(pattern), recursive=True))]
        if not found:
            kind = "of this form" if glob.has_magic(name) else "of this name"
            raise UnigsError(f"expected a picture, found nothing {kind}: {name}, at {option}")
        paths = _sift(found, pattern, apart)
    if not paths:
        raise UnigsError(f"expected pictures, found none in {name}, at {option}")
    return paths, Path(os.path.commonpath([stand_path(one.parent) for one in paths]))


def _sift(found: Sequence[Path], pattern: Path, apart: Collection[Path]) -> list[Path]:
    """The pictures that a glob found; folders among them are searched."""
    base = Path(*takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    paths: list[Path] = []
    left: dict[str, list[Path]] = defaultdict(list)
    seen: set[Path] = set()
    for path in found:
        if _lies_apart(path, base, apart):
            left[APART].append(path)
        elif path.is_dir():
            paths += [] if find_real(path) in seen else list_pictures(path, apart, seen)
        else:
            (paths if path.is_file() else left[NOWHERE]).append(path)
    _tell_left(pattern, left)
    return paths


def _lies_apart(path: Path, base: Path, apart: Collection[Path]) -> bool:
    """Whether a path below a base, or a folder between them, holds answers or masks."""
    for place in (path, *path.parents):
        if holds_run(place) or (place != base and find_real(place) in apart):
            return True
        if place == base:
            break
    return False


def list_pictures(
    folder: Path, apart: Collection[Path], seen: set[Path] | None = None
) -> list[Path]:
    """The pictures of a folder, to its depths; what else lies there is counted aloud.

    Args:
        folder: to search; links to folders are followed.
        apart: files and folders below it that are no input, by what they lead to.
        seen: folders that were searched before; those of this one are added.
    """
    mine: list[Path] = []
    left: dict[str, list[Path]] = defaultdict(list)
    for path in _walk(folder, apart, set() if seen is None else seen, left):
        (mine if path.suffix.lower() in SUFFIXES else left[OTHER]).append(path)
    _tell_left(folder, left)
    return mine


def _tell_left(place: Path, left: dict[str, list[Path]]) -> None:
    for why, paths in left.items():
        print(f"{place}: {len(paths)} {why}, e.g. {show(paths[0].name)}")


def _walk(
    top: Path, apart: Collection[Path], seen: set[Path], left: dict[str, list[Path]]
) -> Iterator[Path]:
    """Plain files below a folder in a fixed order, without hidden ones; each folder once.

    Links are followed last, so that a picture is named by the folder it lies in.
    """
    folders, links = [top], list[Path]()
    while folders or links:
        folder = folders.pop(0) if folders else links.pop(0)
        real = find_real(folder)
        above = find_real(folder.parent).parents if folder.is_symlink() and folder != top else ()
        if real in seen or real in above:
            left[AGAIN].append(folder)
            continue
        seen.add(real)
        if holds_run(folder) or (real in apart and folder != top):
            left[APART].append(folder)
            continue
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                continue
            if path.is_dir():
                (links if path.is_symlink() else folders).append(path)
            elif not path.is_file():
                left[NOWHERE].append(path)
            elif find_real(path) in apart:
                left[APART].append(path)
            else:
                yield path
