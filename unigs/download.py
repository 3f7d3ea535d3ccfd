"""One request for bytes behind a URL, bounded in bytes and in time (any fsspec URL; below remote).

In: a URL, the bytes that are wanted, limits. Out: the bytes, handed to ``write`` as they come, so
that what came before a failure is kept. Servers are strangers: an answer is cut where enough came,
and one that drips has failed like one that is silent. A server that knows no ranges sends all of a
file for any part of it; then all of it is kept, and asked for once.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from unigs.records import UnigsError

HTTP = ("http", "https")
REFUSED = (401, 403, 410)
"""HTTP statuses that another attempt does not change; 404 beside them."""

Write = Callable[[bytes], Any]


class RemoteError(UnigsError):
    """A remote file that could not be had, or is not what its manifest promises."""


class TooSlow(OSError):
    """An answer below the least rate."""


class Limits(NamedTuple):
    """How long an answer may take.

    Attributes:
        timeout_s: nothing came for so long, or no answer began.
        min_bytes_per_s: the least mean rate of an answer over any ``window_s``; a request for n
            bytes thus ends within ``timeout_s + window_s + n / min_bytes_per_s``.
        window_s: how long a rate is measured.
    """

    timeout_s: float = 30.0
    min_bytes_per_s: int = 16 << 10
    window_s: float = 10.0

    def total_s(self, size: int) -> float:
        """The most that a request for ``size`` bytes may take."""
        return self.timeout_s + self.window_s + size / self.min_bytes_per_s


class Part(NamedTuple):
    """Which bytes are wanted.

    Attributes:
        start, end: of the part, end exclusive; ``end`` is None for all of a file of unknown size.
        most: bytes in the whole file, or the most that is taken of it where ``end`` is None.
    """

    start: int
    end: int | None
    most: int


class Meter:
    """Measures an answer against its least rate, window by window."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.bytes, self.since = limits, 0, time.monotonic()

    def add(self, count: int) -> None:
        """Count bytes that came.

        Raises:
            TooSlow: too few in the window that ends now.
        """
        self.bytes += count
        passed_s = time.monotonic() - self.since
        if passed_s < self.limits.window_s:
            return
        if self.bytes < self.limits.min_bytes_per_s * passed_s:
            raise TooSlow(
                f"expected at least {self.limits.min_bytes_per_s} bytes a second, got {self.bytes} "
                f"in {passed_s:.1f} s"
            )
        self.bytes, self.since = 0, time.monotonic()


def receive(url: str, part: Part, write: Write, limits: Limits, options: Mapping[str, Any]) -> None:
    """Ask once, and write what comes, from ``part.start`` on and never beyond ``part.most``.

    More than the part is written where the server sends more; less where it ends early.

    Args:
        options: of fsspec, for the URL's protocol.

    Raises:
        FileNotFoundError: nothing there.
        RemoteError: a file of unknown size is longer than ``part.most``, or ``write`` raised it.
        Exception: whatever the protocol's client raises; another attempt may help.
    """
    import fsspec

    if part.end is not None and part.start >= part.end:
        return
    filesystem, path = fsspec.core.url_to_fs(url, **options)
    if url.split("://", 1)[0] in HTTP:
        ask = (filesystem, path, part, write, limits)
        fsspec.asyn.sync(filesystem.loop, _stream_http, *ask)
        return
    data = _run_bounded(
        lambda: _read_file(filesystem, path, part),
        limits.total_s((part.end or part.most) - part.start),
    )
    if part.end is not None and len(data) > part.end - part.start:
        data = data[part.start :]  # a client that knows no ranges gives all of it
    _write_bounded(data, part, write)


async def _stream_http(filesystem: Any, url: str, part: Part, write: Write, limits: Limits) -> None:
    """Read an answer as it comes; ``filesystem`` is fsspec's, with the user's options."""
    options = dict(filesystem.kwargs)
    headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
    whole = part.end is None or (part.start, part.end) == (0, part.most)
    if not whole:
        headers["Range"] = f"bytes={part.start}-{(part.end or 0) - 1}"
    session = await filesystem.set_session()
    async with asyncio.timeout(limits.timeout_s):
        response = await session.get(filesystem.encode_url(url), headers=headers, **options)
    async with response:
        skip = check_answer(response.status, response.headers, url, part)
        response.raise_for_status()
        at, meter = part.start - skip, Meter(limits)
        while True:
            async with asyncio.timeout(limits.timeout_s):
                chunk = await response.content.readany()
            if not chunk:
                return
            meter.add(len(chunk))
            kept = chunk[max(0, part.start - at) :]
            room = max(0, part.most - max(at, part.start))
            at += len(chunk)
            write(kept[:room])
            if len(kept) > room or (part.end is not None and at >= part.most):
                response.close()
                if part.end is None:
                    raise RemoteError(f"expected at most {part.most} bytes, got more, at {url}")
                return


def check_answer(status: int, headers: Mapping[str, str], url: str, part: Part) -> int:
    """How many bytes of an answer come before ``part.start``, by its first lines.

    Raises:
        FileNotFoundError, PermissionError: the server has no such file, or does not give it.
        RemoteError: a file of unknown size that is too large.
        OSError: encoded, from another place, or of another size than promised.
    """
    if status == 404:
        raise FileNotFoundError(url)
    if status in REFUSED:
        raise PermissionError(f"HTTP status {status}")
    if status not in (200, 206):
        return 0
    if (encoding := headers.get("Content-Encoding", "identity")) != "identity":
        raise OSError(f"expected bytes as they are, got them encoded ({encoding!r:.40})")
    if status == 206:
        came = headers.get("Content-Range", "")
        total = came.rpartition("/")[2]
        if not came.startswith(f"bytes {part.start}-") or total not in (str(part.most), "*"):
            raise OSError(f"expected bytes from {part.start} of {part.most}, got {came!r:.80}")
        return 0
    length = headers.get("Content-Length", "")
    if length.isdecimal() and len(length) < 20:
        if part.end is not None and int(length) != part.most:
            raise OSError(f"expected {part.most} bytes, got {length}")
        if part.end is None and int(length) > part.most:
            raise RemoteError(f"expected at most {part.most} bytes, got {length}, at {url}")
    return part.start


def _read_file(filesystem: Any, path: str, part: Part) -> bytes:
    """Bytes of any fsspec file system."""
    if part.end is not None:
        return filesystem.cat_file(path, start=part.start, end=part.end)
    with filesystem.open(path, "rb") as file:
        return file.read(part.most + 1)


def _run_bounded(work: Callable[[], bytes], seconds: float) -> bytes:
    """The result of ``work``, which is left behind if it takes longer."""
    came: list[Any] = []

    def run() -> None:
        try:
            came.append(work())
        except BaseException as error:
            came.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not came:
        raise TooSlow(f"expected an answer within {seconds:.0f} s, got none")
    if isinstance(came[0], BaseException):
        raise came[0]
    return came[0]


def receive_pipe(command: str, part: Part, write: Write, limits: Limits) -> None:
    """Run a shell command and write its output, under the same limits; all of it, from 0.

    Raises:
        RemoteError: output of unknown size is longer than ``part.most``.
        OSError: the command failed, or was silent or slow.
    """
    quiet = {"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with subprocess.Popen(command, shell=True, start_new_session=True, **quiet) as process:  # type: ignore[call-overload]
        try:
            _drain(process.stdout.fileno(), part, write, limits)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
        if code := process.wait(limits.timeout_s):
            raise OSError(f"expected a command that succeeds, got exit code {code}")


def _drain(descriptor: int, part: Part, write: Write, limits: Limits) -> None:
    at, meter = 0, None
    while select.select([descriptor], [], [], limits.timeout_s)[0]:
        chunk = os.read(descriptor, 1 << 20)
        if not chunk:
            return
        meter = meter or Meter(limits)  # starting a command takes its time
        meter.add(len(chunk))
        if at + len(chunk) > part.most:
            raise RemoteError(f"expected at most {part.most} bytes, got more, from a pipe")
        write(chunk)
        at += len(chunk)
    raise TooSlow(f"expected output within {limits.timeout_s:.0f} s, got none")


def _write_bounded(data: bytes, part: Part, write: Write) -> None:
    room = part.most - part.start
    if len(data) > room and part.end is None:
        raise RemoteError(f"expected at most {part.most} bytes, got more")
    write(data[:room])


def default_options(protocol: str, timeout_s: float) -> dict[str, Any]:
    """fsspec's own defaults wait minutes for a server that sends nothing."""
    if protocol in HTTP:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        return {"client_kwargs": {"timeout": timeout}}
    if protocol in ("s3", "s3a"):
        limits = {"connect_timeout": timeout_s, "read_timeout": timeout_s}
        return {"config_kwargs": {**limits, "retries": {"max_attempts": 1}}}
    return {}
