"""Files on disk: whole or not at all, inside of their folder, by one writer at a time.

Everything that reads a name out of somebody's data goes through :func:`open_inside`; everything
that writes goes through :func:`new_file` or :func:`new_folder`. Stands beside ``records``, needs
nothing heavy.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import stat
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unigs.records import UnigsError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_AT_CWD = -100


class DiskFull(UnigsError):
    """No room for the next file; those written so far are kept."""


class FolderBusy(UnigsError):
    """Another process works in this folder."""


class FileRefused(UnigsError):
    """A name from data that is not a plain file of bounded size inside of its folder.

    Attributes:
        reason: the words it is counted under, without names or numbers.
        where: the name and its folder.
    """

    def __init__(self, reason: str, where: str) -> None:
        super().__init__(f"expected a plain file inside of its folder, got: {reason}, at {where}")
        self.reason = reason
        self.where = where


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temp path to write; at the end it is synced and renamed to ``path``, durably.

    The temp file lies beside its target, so that the rename is one step on one file system, and its
    name is unique, because parts of one work may write the same file at the same time.

    Raises:
        DiskFull: no room; nothing of the new file is left.
    """
    temp = _name_temp(path)
    try:
        yield temp
        sync(temp)
        os.replace(temp, path)
        sync(path.parent)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DiskFull(
            f"expected room for {path.name}, got '{error.strerror}', at {path.parent}; finished "
            "files are kept: free some space and run the same command again"
        ) from None
    finally:
        temp.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temp folder to fill; at the end it takes the place of ``path`` in one step.

    Whoever looks finds the old folder or the new one, also after a kill. Where the file system
    cannot exchange two names at once, the old folder waits as ``NAME.previous`` between two renames
    and is put back by the next call.

    Raises:
        DiskFull: no room; the old folder is as it was.
        NotADirectoryError: a file lies there.
    """
    path = path.resolve()  # what a link leads to is replaced, and the link stays
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = path.with_name(f"{path.name}.previous")
    if previous.exists() and not path.exists():
        previous.rename(path)
    temp = _name_temp(path)
    try:
        temp.mkdir()
        yield temp
        for file in [*temp.rglob("*"), temp]:
            sync(file)
        if not path.exists():
            temp.rename(path)
        elif not _exchange(temp, path):
            path.rename(previous)
            temp.rename(path)
            shutil.rmtree(previous)
        sync(path.parent)
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DiskFull(
            f"expected room for {path.name}, got '{error.strerror}', at {path.parent}"
        ) from None
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _name_temp(path: Path) -> Path:
    """A name beside ``path`` that nobody has, no longer than file systems allow (255 bytes)."""
    stem = os.fsdecode(os.fsencode(path.name)[:160])
    return path.with_name(f"{stem}.{uuid.uuid4().hex}.tmp")


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    return rename is not None and rename(_AT_CWD, names[0], _AT_CWD, names[1], _EXCHANGE) == 0


def sync(path: Path) -> None:
    """Make a file's bytes, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with new_file(path) as temp:
        temp.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all, whatever the locale; a lone surrogate, which
    UTF-8 has not, becomes its escape."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def lock_folder(folder: Path, work: str) -> Iterator[None]:
    """Be the only process of this work in a folder; the lock ends with its holder.

    Args:
        folder: made if it is not there; the lock is the hidden file ``.lock`` in it.
        work: what is done there, for the message to others.

    Raises:
        FolderBusy: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FolderBusy(
                f"expected to be alone in {folder}, got {file.read().strip() or 'another process'} "
                "there; wait for it, end it, or give another folder"
            ) from None
        file.truncate(0)
        file.write(f"{work} (process {os.getpid()} on {socket.gethostname()})")
        file.flush()
        yield


def locate_cache() -> Path:
    """Our own cache directory: ``$UNIGS_CACHE``, else ``~/.cache/unigs``."""
    return Path(os.environ.get("UNIGS_CACHE") or "~/.cache/unigs").expanduser()


# --- reading -------------------------------------------------------------------------------------


def hash_file(path: Path) -> str:
    """sha256 of a file in hex, empty if it is not there."""
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_inside(folder: Path, name: str, max_bytes: int) -> int:
    """A descriptor of a file that data, not the user, names. The caller closes it.

    Args:
        folder: what the user gave; it may itself be a link.
        name: from data: a path below ``folder`` with forward slashes.
        max_bytes: a larger file is refused before a byte is read.

    Raises:
        FileRefused: the name leaves the folder, also by a link, is none that a file system takes,
            or belongs to something else than a plain file, or to one that is too large or may not
            be read.
        FileNotFoundError: nothing of that name.
    """
    where = f"{name!r} in {folder}"
    if not isinstance(name, str) or not name or "\0" in name:
        raise FileRefused("no file name", where)
    if name.startswith("/") or ".." in name.split("/"):
        raise FileRefused("name leaves its folder", where)
    try:
        path = (folder / name).resolve()
        if not path.is_relative_to(folder.resolve()):
            raise FileRefused("link leaves its folder", where)
        # Not blocking: a FIFO would wait for its writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        missing = errno.ENOENT, os.strerror(errno.ENOENT), str(folder / name)
        raise FileNotFoundError(*missing) from None
    except UnicodeEncodeError:
        raise FileRefused("no file name", where) from None
    except (OSError, RuntimeError) as error:  # a loop of links is the second
        reason = "file may not be read" if isinstance(error, PermissionError) else "no file name"
        raise FileRefused(reason, f"{where} ({error})") from None
    kind = os.fstat(descriptor)
    if stat.S_ISREG(kind.st_mode) and kind.st_size <= max_bytes:
        return descriptor
    os.close(descriptor)
    if stat.S_ISREG(kind.st_mode):
        raise FileRefused("file too large", f"{where} ({kind.st_size} bytes of {max_bytes})")
    raise FileRefused("no plain file", where)


def read_inside(folder: Path, name: str, max_bytes: int) -> bytes:
    """The bytes of a file that data names; see :func:`open_inside`."""
    with open(open_inside(folder, name, max_bytes), "rb") as file:
        return file.read(max_bytes)
