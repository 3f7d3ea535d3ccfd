"""Remote files through a bounded local folder (any fsspec URL; below ``shards``).

In: a URL, and the size and sha256 that a manifest promises. Out: the path of a local copy that has
them. Copies appear whole (temp file, rename), are fetched once per machine however many processes
ask, and the least recently used ones make room. A request that fails, stalls, drips or is cut is
repeated with growing pauses, from where it stopped (``download``). ``pipe:`` URLs run a shell
command and are refused unless allowed.

**A copy is hashed before its first use, once per machine, not once per process.** A copy whose hash
was right gets a time of modification that follows from the hash; whoever finds that time, and the
promised size, need not read the file again (thirty workers would read 150 MB each). Writing to a
copy, cutting it, or putting another in its place changes the time, and it is hashed again and, if
it is damaged, fetched again. What changes bytes and keeps the time, a failing disk, is found by the
checksum that every sample is read with; :meth:`Cache.renew` then hashes the copy.

The folder may belong to several users: a copy that can be read is used, even where nothing can be
written. Only files whose names the cache gave are ever removed.
"""

from __future__ import annotations

import io
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from unigs.download import (
    Limits,
    Part,
    RemoteError,
    TooSlow,
    default_options,
    receive,
    receive_pipe,
)
from unigs.files import hash_descriptor, locate_cache
from unigs.locks import lock_file

__all__ = ["Cache", "RemoteError", "is_remote", "join_url"]

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""Size of one ranged request; what a failure costs at most."""

MAX_FILE_BYTES = 64 << 20
"""Of a file of unknown size that is read and not kept."""

_HASH = re.compile(r"[0-9a-f]{64}")
_COPY = re.compile(r"[0-9a-f]{20}-")
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def is_remote(url: str) -> bool:
    """Whether a location is a URL rather than a path."""
    return "://" in url or url.startswith("pipe:")


def join_url(folder: str, name: str) -> str:
    """A name in a folder, for paths and URLs alike."""
    return f"{folder.rstrip('/')}/{name}"


class Cache:
    """A bounded folder of local copies, shared by all processes of a machine; picklable.

    Args:
        folder: where copies lie; by default ``$UNIGS_CACHE`` or ``~/.cache/unigs``.
        max_bytes: copies beyond this are removed, least recently used first. Give room for two
            windows of shards of every source.
        attempts: how often a request is made before its failure counts; half as often, rounded up,
            if it fails by being slow.
        timeout_s: a connection that sends nothing for so long has failed.
        pause_s: before the second attempt; doubled before each further one.
        options: fsspec options per protocol, such as ``{"s3": {"endpoint_url": ...}}``.
        allow_pipe: let ``pipe:COMMAND`` URLs run ``COMMAND/name`` in a shell and read its output.
        min_bytes_per_s: an answer that brings less, over ``window_s``, has failed.
        window_s: how long a rate is measured.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        max_bytes: int = 64 << 30,
        attempts: int = 6,
        timeout_s: float = 30.0,
        pause_s: float = 0.5,
        options: Mapping[str, Mapping[str, Any]] | None = None,
        allow_pipe: bool = False,
        min_bytes_per_s: int = 16 << 10,
        window_s: float = 10.0,
    ) -> None:
        self.folder = Path(folder or locate_cache())
        self.max_bytes = max_bytes
        self.attempts, self.timeout_s, self.pause_s = attempts, timeout_s, pause_s
        self.options = {name: dict(values) for name, values in (options or {}).items()}
        self.allow_pipe = allow_pipe
        self.min_bytes_per_s, self.window_s = min_bytes_per_s, window_s

    def read(self, url: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """A small file as it is now; never kept.

        Raises:
            RemoteError: it could not be had, or is longer than ``max_bytes``.
        """
        data = io.BytesIO()
        self._repeat(url, partial(self._receive_all, url, max_bytes, data))
        return data.getvalue()

    def fetch(self, url: str, sha256: str, size: int | None = None) -> Path:
        """The local copy of a file, downloaded unless it is there.

        Args:
            url: any URL that fsspec opens.
            sha256: of its content, in hex; the copy's identity.
            size: in bytes, if known; the file is then read in parts.

        Raises:
            RemoteError: it could not be had or kept, or its content is another.
        """
        os.close(self.open(url, sha256, size))
        return self.locate(url, sha256)

    def open(self, url: str, sha256: str, size: int | None = None, trust: bool = True) -> int:
        """A descriptor of the local copy, which outlives the copy's removal.

        Args:
            trust: believe the time of a copy that was hashed before; else hash it now.
        """
        path = self.locate(url, sha256)
        while (descriptor := open_copy(path, sha256, size, trust)) is None:
            self._obtain(url, sha256, size, path)
        return descriptor

    def renew(self, url: str, sha256: str, size: int) -> None:
        """Hash the local copy whatever its time says; fetch it again if it is damaged."""
        os.close(self.open(url, sha256, size, trust=False))

    def locate(self, url: str, sha256: str) -> Path:
        """Where the copy of a file lies, if there is one.

        Raises:
            RemoteError: the hash is none.
        """
        if not isinstance(sha256, str) or not _HASH.fullmatch(sha256):
            raise RemoteError(f"expected a sha256 of 64 hex digits, got {sha256!r:.80}, at {url}")
        name = re.sub(r"[^\w.+=@-]", "_", url.rsplit("/", 1)[-1], flags=re.ASCII)
        return self.folder / f"{sha256[:20]}-{name[-160:]}"

    def make_room(self, size: int) -> None:
        """Remove copies, least recently used first, until ``size`` more bytes fit."""
        copies, total = [], 0
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                kind = path.lstat()
                if not stat.S_ISREG(kind.st_mode) or not _COPY.match(path.name):
                    continue
                total += kind.st_size
                if path.suffix not in (".lock", ".tmp"):
                    copies.append((kind.st_atime_ns, kind.st_size, path))
        for _, bytes_, path in sorted(copies):
            if total + size <= self.max_bytes:
                break
            with suppress(FileNotFoundError, PermissionError):  # of another user
                path.unlink()
                total -= bytes_

    def _obtain(self, url: str, sha256: str, size: int | None, path: Path) -> None:
        """Download a copy, unless another process does or did."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _lock(path.with_name(f"{path.name}.lock")):
                # Not trusted: whoever came here has found it missing or damaged.
                descriptor = open_copy(path, sha256, size, trust=False)
                if descriptor is None:
                    if path.exists():
                        log.warning("the copy is damaged and is fetched again: %s", path)
                    self._download(url, sha256, size, path)
                else:
                    os.close(descriptor)
        except OSError as error:
            raise RemoteError(
                f"expected a folder to keep a copy of {url} in, got {error.strerror or error}, at "
                f"{error.filename or path}; set UNIGS_CACHE, or make room there"
            ) from error

    def _download(self, url: str, sha256: str, size: int | None, path: Path) -> None:
        self.make_room(size or 0)
        for left in self.folder.glob(f"{path.name}.*.tmp"):
            with suppress(FileNotFoundError, PermissionError):
                left.unlink()  # of a process killed while it held the lock
        temp = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            with open(temp, "x+b") as file:
                self._repeat(url, partial(self._fill, url, sha256, size, file))
                set_stamp(file.fileno(), sha256)
            os.replace(temp, path)
        finally:
            temp.unlink(missing_ok=True)

    def _fill(self, url: str, sha256: str, size: int | None, file: BinaryIO) -> None:
        """Download a file part by part and check it as a whole."""
        if size is None or url.startswith("pipe:"):
            most = self.max_bytes if size is None else size
            self._repeat(url, partial(self._receive_all, url, most, file))
        else:
            _empty(file)
            while file.tell() < size:
                self._repeat(url, partial(self._receive_part, url, size, file))
        file.flush()
        came = hash_descriptor(file.fileno())
        if came != sha256:
            raise OSError(f"expected sha256 {sha256}, got {came}")

    def _receive_all(self, url: str, most: int, file: BinaryIO) -> None:
        """One request for all of a file, from its start."""
        _empty(file)
        part = Part(0, None, most)
        if not url.startswith("pipe:"):
            return receive(url, part, _writer(file), self.limits, self._options(url))
        if not self.allow_pipe:
            raise PermissionError("pipe: URLs run a shell command; allow_pipe=True permits that")
        return receive_pipe(url.removeprefix("pipe:"), part, _writer(file), self.limits)

    def _receive_part(self, url: str, size: int, file: BinaryIO) -> None:
        """One request, from where the file ends to the end of that part."""
        start = file.tell()
        end = min(start - start % PART_BYTES + PART_BYTES, size)
        part = Part(start, end, size)
        receive(url, part, _writer(file), self.limits, self._options(url))
        if file.tell() < end:
            raise OSError(f"expected bytes {start} to {end}, got {file.tell() - start}")

    @property
    def limits(self) -> Limits:
        return Limits(self.timeout_s, self.min_bytes_per_s, self.window_s)

    def _options(self, url: str) -> dict[str, Any]:
        protocol = url.split("://", 1)[0]
        return {**default_options(protocol, self.timeout_s), **self.options.get(protocol, {})}

    def _repeat(self, url: str, request: Callable[[], Any]) -> Any:
        """Ask again after failures that may pass."""
        slow = 0
        for attempt in range(1, self.attempts + 1):
            try:
                return request()
            except RemoteError:
                raise
            except (FileNotFoundError, PermissionError) as error:
                raise RemoteError(f"expected a file, got {error!r}, at {url}") from error
            except Exception as error:
                slow += isinstance(error, TooSlow)
                if attempt == self.attempts or 2 * slow >= self.attempts:
                    raise RemoteError(
                        f"expected a file within {attempt} attempts, got {error!r}, at {url}"
                    ) from error
                log.warning("attempt %d of %d failed: %r (%s)", attempt, self.attempts, error, url)
                time.sleep(self.pause_s * 2 ** (attempt - 1))


# --- local copies --------------------------------------------------------------------------------

_hashed: dict[tuple[str, int, int, int], str] = {}
"""Copies that may not be stamped, because they are another user's: what they were -> sha256."""


def open_copy(path: Path, sha256: str, size: int | None, trust: bool = True) -> int | None:
    """A descriptor of a copy that is whole; None if there is none, or a damaged one.

    Raises:
        RemoteError: what lies there is no plain file, or may not be read.
    """
    try:
        descriptor = os.open(path, _OPEN)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RemoteError(
            f"expected a copy that can be read, got {error.strerror}, at {path}; remove it, or set "
            "UNIGS_CACHE to another folder"
        ) from error
    if not is_whole(descriptor, str(path), sha256, size, trust):
        os.close(descriptor)
        return None
    with suppress(OSError):  # of another user, or on a read-only disk
        os.utime(descriptor, ns=(time.time_ns(), os.fstat(descriptor).st_mtime_ns))
    return descriptor


def is_whole(descriptor: int, path: str, sha256: str, size: int | None, trust: bool) -> bool:
    """Whether a copy is what was promised, by its time if hashed before, else by its hash."""
    kind = os.fstat(descriptor)
    if not stat.S_ISREG(kind.st_mode) or (size is not None and kind.st_size != size):
        return False
    place = path, kind.st_ino, kind.st_size, kind.st_mtime_ns
    if trust and (kind.st_mtime_ns == make_stamp(sha256) or _hashed.get(place) == sha256):
        return True
    if hash_descriptor(descriptor) != sha256:
        return False
    if not set_stamp(descriptor, sha256):
        _hashed[place] = sha256
    return True


def make_stamp(sha256: str) -> int:
    """The time of modification, in ns, of a copy that was hashed: an even second before 2018."""
    return (946_684_800 + 2 * (int(sha256[:8], 16) % (1 << 28))) * 1_000_000_000


def set_stamp(descriptor: int, sha256: str) -> bool:
    """Note on a copy that its hash was right; False if it is not ours to note on."""
    try:
        os.utime(descriptor, ns=(time.time_ns(), make_stamp(sha256)))
    except OSError:
        return False
    return True


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


def _writer(file: BinaryIO) -> Callable[[bytes], None]:
    """Writes to a local file; a full disk is not the server's fault, and asking again no help."""

    def write(data: bytes) -> None:
        try:
            file.write(data)
        except OSError as error:
            raise RemoteError(
                f"expected room for a copy, got '{error.strerror}', at {file.name}; make room "
                "there, or set UNIGS_CACHE to another folder"
            ) from error

    return write


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One process at a time; where no lock can be had, downloading twice is the lesser evil."""
    try:
        lock = lock_file(path, "fetching", wait=True)
        lock.__enter__()
    except PermissionError:
        lock = None
    try:
        yield
    finally:
        if lock:
            lock.__exit__(None, None, None)
