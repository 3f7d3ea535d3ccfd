"""The error of a folder of shards, and its JSON files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unigs.records import UnigsError


class ShardError(UnigsError):
    """A folder of shards that is missing, unfinished, damaged, or another than expected."""


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
