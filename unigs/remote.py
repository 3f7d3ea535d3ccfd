"""Remote files through a bounded local folder (any fsspec URL; below ``shards``).

In: a URL, and the size and sha256 that a manifest promises. Out: the path of a local copy that has
them. Copies appear whole (temp file, rename), are fetched once per machine however many processes
ask, and the least recently used ones make room. A request that fails, stalls or is cut is repeated
with growing pauses, from where it stopped. ``pipe:`` URLs run a shell command and are refused
unless allowed.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from unigs.files import locate_cache
from unigs.records import UnigsError

log = logging.getLogger(__name__)

PART_BYTES = 8 << 20
"""Size of one ranged request; what a failure costs at most."""


class RemoteError(UnigsError):
    """A remote file that could not be had, or is not what its manifest promises."""


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
        attempts: how often a request is made before its failure counts.
        timeout_s: a connection that sends nothing for so long has failed.
        pause_s: before the second attempt; doubled before each further one.
        options: fsspec options per protocol, such as ``{"s3": {"endpoint_url": ...}}``.
        allow_pipe: let ``pipe:COMMAND`` URLs run ``COMMAND/name`` in a shell and read its output.
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
    ) -> None:
        self.folder = Path(folder or locate_cache())
        self.max_bytes = max_bytes
        self.attempts, self.timeout_s, self.pause_s = attempts, timeout_s, pause_s
        self.options = {name: dict(values) for name, values in (options or {}).items()}
        self.allow_pipe = allow_pipe

    def read(self, url: str) -> bytes:
        """A small file as it is now; never kept.

        Raises:
            RemoteError: it could not be had.
        """
        return self._repeat(url, partial(self._get, url, None, None))

    def fetch(self, url: str, sha256: str, size: int | None = None) -> Path:
        """The local copy of a file, downloaded unless it is there.

        Args:
            url: any URL that fsspec opens.
            sha256: of its content, in hex; the copy's identity.
            size: in bytes, if known; the file is then read in parts.

        Raises:
            RemoteError: it could not be had, or its content is another.
        """
        path = self.folder / f"{sha256[:20]}-{url.rsplit('/', 1)[-1]}"
        if not touch(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            with lock_file(path.with_name(f"{path.name}.lock")):
                if not touch(path):
                    self._download(url, sha256, size, path)
        return path

    def open(self, url: str, sha256: str, size: int) -> int:
        """A descriptor of the local copy, which outlives the copy's removal."""
        while True:
            try:
                return os.open(self.fetch(url, sha256, size), os.O_RDONLY)
            except FileNotFoundError:  # made room for another between the two calls
                continue

    def make_room(self, size: int) -> None:
        """Remove copies, least recently used first, until ``size`` more bytes fit."""
        copies, total = [], 0
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                stat = path.stat()
                total += stat.st_size
                if path.suffix not in (".lock", ".tmp"):
                    copies.append((stat.st_mtime_ns, stat.st_size, path))
        for _, bytes_, path in sorted(copies):
            if total + size <= self.max_bytes:
                break
            path.unlink(missing_ok=True)
            path.with_name(f"{path.name}.lock").unlink(missing_ok=True)
            total -= bytes_

    def _download(self, url: str, sha256: str, size: int | None, path: Path) -> None:
        self.make_room(size or 0)
        for left in self.folder.glob(f"{path.name}.*.tmp"):
            left.unlink(missing_ok=True)  # of a process killed while it held the lock
        temp = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        try:
            self._repeat(url, partial(self._fill, url, sha256, size, temp))
            os.replace(temp, path)
        finally:
            temp.unlink(missing_ok=True)

    def _fill(self, url: str, sha256: str, size: int | None, temp: Path) -> None:
        """Download a file part by part and check it as a whole."""
        whole = size is None or url.startswith("pipe:")
        ranges: Any = [(None, None)] if whole else split_range(size or 0)
        with open(temp, "wb") as file:
            for start, end in ranges:
                file.write(self._repeat(url, partial(self._get, url, start, end)))
        with open(temp, "rb") as file:
            came = hashlib.file_digest(file, "sha256").hexdigest()
        if came != sha256:
            raise OSError(f"expected sha256 {sha256}, got {came}")

    def _get(self, url: str, start: int | None, end: int | None) -> bytes:
        """One request, for all of a file or a range of it."""
        if url.startswith("pipe:"):
            return self._run_pipe(url)
        import fsspec

        protocol = url.split("://", 1)[0]
        options = {**default_options(protocol, self.timeout_s), **self.options.get(protocol, {})}
        filesystem, path = fsspec.core.url_to_fs(url, **options)
        data = filesystem.cat_file(path, start=start, end=end)
        if start is None or end is None:
            return data
        if len(data) > end - start:
            data = data[start:end]  # a server that knows no ranges sends all of it
        if len(data) != end - start:
            raise OSError(f"expected bytes {start} to {end}, got {len(data)}")
        return data

    def _run_pipe(self, url: str) -> bytes:
        if not self.allow_pipe:
            raise PermissionError("pipe: URLs run a shell command; allow_pipe=True permits that")
        command = url.removeprefix("pipe:")
        return subprocess.run(command, shell=True, check=True, stdout=subprocess.PIPE).stdout

    def _repeat(self, url: str, request: Callable[[], Any]) -> Any:
        """Ask again after failures that may pass."""
        for attempt in range(1, self.attempts + 1):
            try:
                return request()
            except RemoteError:
                raise
            except (FileNotFoundError, PermissionError) as error:
                raise RemoteError(f"expected a file, got {error!r}, at {url}") from error
            except Exception as error:
                if attempt == self.attempts:
                    raise RemoteError(
                        f"expected a file within {self.attempts} attempts, got {error!r}, at {url}"
                    ) from error
                log.warning("attempt %d of %d failed: %r (%s)", attempt, self.attempts, error, url)
                time.sleep(self.pause_s * 2 ** (attempt - 1))


def default_options(protocol: str, timeout_s: float) -> dict[str, Any]:
    """fsspec's own defaults wait minutes for a server that sends nothing."""
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        return {"client_kwargs": {"timeout": timeout}}
    if protocol in ("s3", "s3a"):
        limits = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
        return {"config_kwargs": {**limits, "retries": {"max_attempts": 1}}}
    return {}


def split_range(size: int) -> list[tuple[int, int]]:
    """0..size in parts of ``PART_BYTES``."""
    return [(start, min(start + PART_BYTES, size)) for start in range(0, size, PART_BYTES)]


def touch(path: Path) -> bool:
    """Mark a copy as used just now; False if there is none."""
    try:
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


@contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Hold a lock between processes and threads; it ends with its holder."""
    while True:
        with open(path, "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                if os.fstat(file.fileno()).st_ino != path.stat().st_ino:
                    continue  # removed and made anew while we waited
            except FileNotFoundError:
                continue
            yield
            return
