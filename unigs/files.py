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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from unigs.records import UnigsError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HOST = socket.gethostname()
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

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.where)  # as a worker process sends it


# --- writing -------------------------------------------------------------------------------------


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temp path to write; at the end it is synced and renamed to ``path``, durably.

    The temp file lies beside its target, so that the rename is one step on one file system, and its
    name is unique, because parts of one work may write the same file at the same time.

    Raises:
        DiskFull: no room; nothing of the new file is left.
    """
    temp = path.with_name(f"{path.name[:160]}.{uuid.uuid4().hex}.tmp")
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
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    previous = path.with_name(f"{path.name}.previous")
    if previous.exists() and not path.exists():
        previous.rename(path)
    temp = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
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
def lock_folder(folder: Path, work: str, name: str = ".lock") -> Iterator[None]:
    """Be the only process of this work in a folder; the lock ends with its holder.

    Args:
        folder: made if it is not there.
        work: what is done there, for the message to others.
        name: of the lock, a hidden file in the folder, removed at the end.

    Raises:
        FolderBusy: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock_file(folder / name, work):
        yield


@contextmanager
def lock_file(path: Path, work: str, wait: bool = False) -> Iterator[None]:
    """Hold a lock between processes and threads; it ends with its holder, however that dies.

    Args:
        path: the file that is the lock; made if it is not there, removed at the end.
        work: what is done under it, for the message to others.
        wait: until it is free.

    Raises:
        FolderBusy: another holds it, and we do not wait.
        PermissionError: it may be neither written nor read.
    """
    descriptor = _take_lock(path, wait)
    try:
        with suppress(OSError):  # of another user, who lets us lock and not write
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{work} (process {os.getpid()} on {_HOST})".encode())
        yield
    finally:
        with suppress(OSError):
            path.unlink()  # while it is ours: who waits for it sees that and makes a new one
        os.close(descriptor)


def _take_lock(path: Path, wait: bool) -> int:
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        descriptor = _open_lock(path)
        try:
            fcntl.flock(descriptor, how)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                return descriptor
        except FileNotFoundError:
            pass  # removed by its holder while we waited: make a new one
        except BlockingIOError:
            holder = os.pread(descriptor, 400, 0).decode("utf-8", "replace").strip()
            os.close(descriptor)
            raise FolderBusy(
                f"expected to be alone in {path.parent}, got {holder or 'another process'} "
                "there; wait for it, end it, or give another folder"
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return descriptor  # a file system without locks: as good as it gets
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open_lock(path: Path) -> int:
    safe = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | safe, 0o666)
    except PermissionError as refused:
        try:
            return os.open(path, os.O_RDONLY | safe)
        except FileNotFoundError:
            raise refused from None


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


def hash_descriptor(descriptor: int) -> str:
    """sha256 of an open file in hex; its position stays."""
    digest, at = hashlib.sha256(), 0
    while chunk := os.pread(descriptor, 1 << 20, at):
        digest.update(chunk)
        at += len(chunk)
    return digest.hexdigest()


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
