"""A list of pictures, each with its own mask and words: what ``unigs inpaint --manifest`` reads.

In: CSV with the columns ``picture``, ``mask`` and ``words``, or JSON lines with these keys. Paths
are taken from the list's own folder; several words of a CSV stand apart by semicolons.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unigs.files import explain_errors
from unigs.records import UnigsError, show

FIELDS = ("picture", "mask", "words")
MAX_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class Row:
    """What is asked of one picture: its file, a mask where the task has one, and words."""

    picture: Path
    mask: Path | None
    words: tuple[str, ...]


def read_manifest(path: Path) -> list[Row]:
    """The rows of a list, in its order.

    Raises:
        UnigsError: no such file, one that is empty or no list, or a line that lacks something,
            names no picture, or one again; says the line.
    """
    with explain_errors("a list of pictures", path):
        if path.stat().st_size > MAX_BYTES:
            raise UnigsError(f"expected a list of at most {MAX_BYTES} bytes, got more, at {path}")
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise UnigsError(f"expected a list in UTF-8, got {error.reason}, at {path}") from error
    read = _read_csv if path.suffix.lower() == ".csv" else _read_lines
    rows: dict[Path, Row] = {}
    for number, content in read(text, path):
        row = _make_row(content, path.parent, f"{path}, line {number}")
        if not row.picture.is_file():
            raise UnigsError(
                f"expected a picture, found none at {show(row.picture)}, at {path}, line {number}"
            )
        if row.picture.resolve() in rows:
            raise UnigsError(
                f"expected each picture once, got {show(row.picture)} again, at {path}, line "
                f"{number}"
            )
        rows[row.picture.resolve()] = row
    if not rows:
        raise UnigsError(f"expected rows of {', '.join(FIELDS)}, got none, at {path}")
    return list(rows.values())


def _read_csv(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        names = reader.fieldnames or ()
        if len({*names}) < len(names):
            came = ", ".join(names)
            raise UnigsError(f"expected each column once, got {came}, at {path}, line 1")
        missing = set(FIELDS) - {*names}
        if missing:
            raise UnigsError(
                f"expected the columns {', '.join(FIELDS)}, got none called "
                f"{', '.join(sorted(missing))}, at {path}, line 1"
            )
        for content in reader:
            if None in content:  # what csv calls the cells beyond the last column
                raise UnigsError(
                    f"expected {len(names)} cells, got {content[None]} beyond them, at {path}, "
                    f"line {reader.line_num}; words are parted by ;"
                )
            yield reader.line_num, {**content, "words": content["words"] or ""}
    except csv.Error as error:
        raise UnigsError(
            f"expected CSV, got: {error}, at {path}, line {reader.line_num}"
        ) from error


def _read_lines(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UnigsError(
                f"expected an object of JSON on each line, got {show(line, 60)}, at {path}, line "
                f"{number}"
            ) from error


def _can_be_written(text: str) -> bool:
    try:
        return bool(os.fsencode(text))
    except UnicodeEncodeError:  # a lone surrogate
        return False


def _make_row(content: Any, folder: Path, where: str) -> Row:
    found = content if isinstance(content, dict) else {}
    for name in ("picture", "mask"):
        if not isinstance(found.get(name), str) or not found[name].strip():
            raise UnigsError(f"expected a file as {name}, got {show(found.get(name))}, at {where}")
        if "\0" in found[name] or not _can_be_written(found[name]):
            raise UnigsError(f"expected a name of a file, got {show(found[name])}, at {where}")
    words = found.get("words")
    if isinstance(words, str):
        words = [word for word in words.split(";") if word.strip()]
    if not isinstance(words, list) or not words or not all(isinstance(w, str) for w in words):
        raise UnigsError(f"expected words to draw, got {show(words)}, at {where}")
    return Row(folder / found["picture"], folder / found["mask"], tuple(words))
