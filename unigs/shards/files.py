"""The error of a folder of shards, and its JSON files: bounded, and read as data of a stranger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unigs.files import FileRefused, read_inside
from unigs.records import UnigsError

MAX_JSON_BYTES = 16 << 20
"""A larger manifest, receipt or sample is refused unread: parsed, JSON takes up to 25 times its
bytes. 16 MiB name 80,000 shards."""


class ShardError(UnigsError):
    """A folder of shards that is missing, unfinished, damaged, or another than expected."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ShardError: missing, no plain file, too large, or not JSON.
    """
    try:
        return parse_json(read_inside(path.parent, path.name, MAX_JSON_BYTES), str(path))
    except (OSError, FileRefused) as error:
        raise ShardError(f"expected a JSON file of shards, got {error}, at {path}") from error


def parse_json(data: bytes, where: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ShardError: something else, however deep or long.
    """
    try:
        content = json.loads(data)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ShardError(
            f"expected a JSON file of shards, got {type(error).__name__}: {error}, at {where}"
        ) from error
    if not isinstance(content, dict):
        raise ShardError(f"expected a JSON object, got {type(content).__name__}, at {where}")
    return content


@contextmanager
def tell_in_words(work: str, where: str, kept: str = "") -> Iterator[None]:
    """Turn what a disk or a user does to a verb into words.

    Args:
        work: what is done, after "expected to".
        where: the folder, for errors that name no file.
        kept: what an interrupt leaves behind.

    Raises:
        ShardError: instead of an OSError.
        KeyboardInterrupt: with words.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted, at {where}{kept and '; '}{kept}") from None
    except OSError as error:
        raise ShardError(
            f"expected to {work}, got '{error.strerror or error}', at {error.filename or where}"
        ) from error
