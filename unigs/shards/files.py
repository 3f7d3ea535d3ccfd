"""Files that appear whole or not at all; the errors of a folder of shards."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unigs.records import UnigsError


class ShardError(UnigsError):
    """A folder of shards that is missing, unfinished, damaged, or another than expected."""


class DiskFull(UnigsError):
    """No room for the next file; those written so far are kept."""


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temp path to write and sync; at the end it is renamed to ``path``, durably.

    The temp name is unique, because parts of one work may write the same file at the same time.

    Raises:
        DiskFull: no room; nothing of the new file is left.
    """
    temp = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temp
        os.replace(temp, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"expected room for {path.name}, got '{error.strerror}', at {path.parent}; finished "
            "files are kept: free some space and run the same command again"
        ) from None
    finally:
        temp.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    with new_file(path) as temp, open(temp, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object whole or not at all."""
    write_bytes(path, json.dumps(content, indent=1, ensure_ascii=False).encode() + b"\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ShardError: missing or not JSON.
    """
    try:
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ShardError(f"expected a JSON file of shards, got {error}, at {path}") from error


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ShardError: something else.
    """
    try:
        content = json.loads(data)
    except ValueError as error:
        raise ShardError(f"expected a JSON file of shards, got {error}, at {where}") from error
    if not isinstance(content, dict):
        raise ShardError(f"expected a JSON object, got {type(content).__name__}, at {where}")
    return content


def hash_file(path: Path) -> str | None:
    """sha256 of a file in hex, None if it is not there."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
