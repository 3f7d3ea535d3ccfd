"""Files on disk: whole or not at all, and inside of their folder.

Everything that reads a name out of somebody's data goes through :func:`open_inside`; everything
that writes goes through :func:`new_file` or :func:`new_folder`. Stands beside ``records``, needs
nothing heavy.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unigs.records import UnigsError

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LFS_POINTER = b"version https://git-lfs"
NETWORK_FILES = (".safetensors", ".bin", ".pt", ".json", ".txt", ".model", ".index")
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_AT_CWD = -100
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Not blocking: a FIFO would wait for its writer for ever.
_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_NOT_OPENED = {
    errno.ENAMETOOLONG: "no file name",
    errno.EINVAL: "no file name",
    errno.ELOOP: "no file name",
    errno.ENXIO: "no plain file",
    errno.ENODEV: "no plain file",
}


class DiskFull(UnigsError):
    """No room for the next file; those written so far are kept."""


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
    temp = _name_temp(path)
    try:
        with _tell_full(path):
            yield temp
            sync(temp)
            os.replace(temp, path)
            sync(path.parent)
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
        with _tell_full(path):
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
    finally:
        shutil.rmtree(temp, ignore_errors=True)


@contextmanager
def _tell_full(path: Path) -> Iterator[None]:
    """Turn a disk without room into words."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DiskFull(
            f"expected room for {path.name}, got '{error.strerror}', at {path.parent}; finished "
            "files are kept: free some space and run the same command again"
        ) from None


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


def locate_cache() -> Path:
    """Our own cache directory: ``$UNIGS_CACHE``, else ``~/.cache/unigs``."""
    return Path(os.environ.get("UNIGS_CACHE") or "~/.cache/unigs").expanduser()


# --- reading -------------------------------------------------------------------------------------


def is_pointer(path: Path) -> bool:
    """Whether a file is what Git LFS leaves in place of one that it has not fetched."""
    with open(path, "rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def hash_file(path: Path) -> str:
    """sha256 of a file in hex, empty if it is not there."""
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_network(folder: Path) -> str:
    """sha256 in hex over all that a network is loaded from: weights, configs, words of a folder."""
    return hash_files(folder, (path for path in folder.rglob("*") if path.suffix in NETWORK_FILES))


def hash_files(folder: Path, paths: Iterable[Path]) -> str:
    """sha256 in hex over the places below a folder and the bytes of those paths that are files."""
    paths = sorted(path for path in paths if path.is_file())
    lines = [f"{path.relative_to(folder).as_posix()} {hash_file(path)}\n" for path in paths]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def _open_direct(folder: Path, name: str) -> int | None:
    """Open part after part without following a link; None where one stands in the way.

    As safe as looking at the whole path first, and five times as fast.
    """
    *folders, last = [part for part in name.split("/") if part not in ("", ".")] or ["."]
    at = os.open(folder, _FOLDER)
    try:
        for part in folders:
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=at)
            os.close(at)
            at = inner
        return os.open(last, _READ, dir_fd=at)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return None
        raise
    finally:
        os.close(at)


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
        descriptor = _open_direct(folder, name)
        if descriptor is None:
            path = (folder / name).resolve()
            if not path.is_relative_to(folder.resolve()):
                raise FileRefused("link leaves its folder", where)
            descriptor = os.open(path, _READ)
    except (FileNotFoundError, NotADirectoryError):
        missing = errno.ENOENT, os.strerror(errno.ENOENT), str(folder / name)
        raise FileNotFoundError(*missing) from None
    except UnicodeEncodeError:
        raise FileRefused("no file name", where) from None
    except (OSError, RuntimeError) as error:  # a loop of links is the second
        reason = _NOT_OPENED.get(getattr(error, "errno", errno.ELOOP), "file may not be read")
        raise FileRefused(reason, f"{where} ({error})") from None
    kind = os.fstat(descriptor)
    if stat.S_ISREG(kind.st_mode) and kind.st_size <= max_bytes:
        return descriptor
    os.close(descriptor)
    if stat.S_ISREG(kind.st_mode):
        raise FileRefused("file too large", f"{where} ({kind.st_size} bytes of {max_bytes})")
    raise FileRefused("no plain file", where)


def read_inside(folder: Path, name: str, max_bytes: int) -> bytes:
    """The bytes of a file that data names; see :func:`open_inside`.

    Raises:
        FileRefused: also where the disk fails.
        FileNotFoundError: nothing of that name.
    """
    descriptor = open_inside(folder, name, max_bytes)
    try:
        data = os.read(descriptor, left := os.fstat(descriptor).st_size)
        while len(data) < left and (more := os.read(descriptor, left - len(data))):
            data += more
        return data
    except OSError as error:
        where = f"{name!r} in {folder} ({error})"
        raise FileRefused("file may not be read", where) from None
    finally:
        os.close(descriptor)


@contextmanager
def explain_errors(wanted: str, path: Path) -> Iterator[None]:
    """Tell what the system says of a path that the user gave in three parts.

    Args:
        wanted: what was to be done, e.g. ``"to read the rows of train"``.
        path: at what.

    Raises:
        UnigsError: in place of any ``OSError``.
    """
    try:
        yield
    except OSError as error:
        at = error.filename if isinstance(error.filename, str) else path
        raise UnigsError(f"expected {wanted}, got '{error.strerror or error}', at {at}") from error


def decode_text(data: bytes, where: str, start: int = 0) -> str:
    """Bytes of a file as text; a byte-order mark goes.

    Args:
        data: the bytes.
        where: the file, for the error.
        start: place of ``data`` in the file.

    Raises:
        UnigsError: not UTF-8; names the byte.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnigsError(
            f"expected text in UTF-8, got the byte 0x{data[error.start]:02x}, at byte "
            f"{start + error.start} of {where}; save the file again as UTF-8"
        ) from None
