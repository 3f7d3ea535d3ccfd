"""One worker at a time: locks between processes and threads that end with their holder."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from unigs.records import UnigsError

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HOST = socket.gethostname()
_held: set[int] = set()  # descriptors of the locks that this process holds


class FolderBusy(UnigsError):
    """Another process works in this folder."""


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

    Forked children, which may outlive a killed holder by seconds, do not share it.

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
        _held.discard(descriptor)
        os.close(descriptor)


def _leave_locks() -> None:
    """In a forked child: the locks are its parent's."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_locks)


def _take_lock(path: Path, wait: bool) -> int:
    how = fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB
    while True:
        descriptor = _open_lock(path)
        try:
            fcntl.flock(descriptor, how)
            if os.fstat(descriptor).st_ino == path.stat().st_ino:
                _held.add(descriptor)
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
