"""Names in annotation files -> bytes of files, wherever people let them lie.

In: a folder that the user gave and a name out of data. Out: the bytes of a plain file inside of
that folder, or the reason under which its absence is counted. Every such name goes through here,
and through :mod:`unigs.files`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from unigs.annotations.base import Unusable
from unigs.files import FileRefused, read_inside
from unigs.images import MAX_FILE_BYTES
from unigs.records import UnigsError

HIDDEN_TWIN = "._"
"""How macOS names the file it puts beside each file of a foreign disk."""

OUTSIDE = ("name leaves its folder", "link leaves its folder")


def spell_name(name: str) -> Iterator[str]:
    """The names a file may have on disk, the likeliest first.

    As it stands; its extension in the other case; and, where it holds backslashes and no slash,
    all that as a Windows path.

    Example:
        >>> list(spell_name("a\\\\b.jpg"))
        ['a\\\\b.jpg', 'a\\\\b.JPG', 'a/b.jpg', 'a/b.JPG']
    """
    yield name
    stem, dot, extension = name.rpartition(".")
    if dot and extension.isalnum():
        yield stem + dot + (extension.upper() if extension.islower() else extension.lower())
    if "\\" in name and "/" not in name:
        yield from spell_name(name.replace("\\", "/"))


def read_first(folder: Path, names: Iterable[str], what: str) -> bytes:
    """The first of some names that is a file in ``folder``.

    Args:
        folder: what the user gave.
        names: from data, the likeliest first.
        what: e.g. ``"picture"``, for the reason it is counted under.

    Raises:
        Unusable: none is there, or it leaves the folder, is too large, no plain file, unreadable.
    """
    first = ""
    for name in names:
        first = first or str(name)
        try:
            return read_inside(folder, name, MAX_FILE_BYTES)
        except FileNotFoundError:
            continue
        except FileRefused as error:
            reason = f"{what} outside of its folder" if error.reason in OUTSIDE else None
            raise Unusable(reason or f"{what}: {error.reason}", error.where) from None
    raise Unusable(f"{what} file missing", str(folder / first))


def read_picture(folder: Path, name: str) -> bytes:
    """The bytes of a picture that an annotation file names; see :func:`read_first`."""
    return read_first(folder, spell_name(name), "picture")


def find_first(folder: Path, names: Iterable[str]) -> Path:
    """Where :func:`read_first` would read, without reading; the first name if there is no file."""
    first, *others = names
    for name in (first, *others):
        inside = not name.startswith("/") and ".." not in name.split("/") and "\0" not in name
        with suppress(OSError):  # a name that no file can have, or a folder that may not be read
            if inside and (folder / name).is_file():
                return folder / name
    return folder / first


def find_picture(folder: Path, name: str) -> Path:
    """Where :func:`read_picture` would read."""
    return find_first(folder, spell_name(name))


def list_folder(folder: Path) -> set[str]:
    """The names in a folder but those that macOS adds."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(HIDDEN_TWIN)}


def require_folder(path: Path, holds: str) -> Path:
    """``path`` if it is a folder.

    Raises:
        UnigsError: it is not.
    """
    if not path.is_dir():
        raise UnigsError(f"expected a folder with {holds}, came nothing such, at {path}")
    return path


def require_file(path: Path, holds: str) -> Path:
    """``path`` if it is a file.

    Raises:
        UnigsError: it is not.
    """
    if not path.is_file():
        raise UnigsError(f"expected a file with {holds}, came nothing such, at {path}")
    return path
