"""What a manifest, a list of folders, a receipt may say: checked at the door, field by field.

In: parsed JSON of a stranger. Out: nothing, or a :class:`ShardError` that names the field, what was
expected there and what came. Whoever reads on may rely on every type and every bound.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Callable, Mapping
from typing import Any

from unigs.shards.files import ShardError

MAX_SAMPLES = 1 << 25
"""Of one manifest; its index of 20 bytes a sample is held in memory."""

MAX_SHARD_BYTES = 1 << 40
ROW_BYTES = 20
BLOCK = 512
_NAME = re.compile(r"\w[\w.+=@ -]{0,199}")
_HASH = re.compile(r"[0-9a-f]{64}")

Rule = tuple[Callable[[Any], bool], str]
"""Whether a value is right, and what is expected of it in words."""


def is_count(value: Any, most: int = 1 << 53) -> bool:
    """A whole number from 0; True and 1.0 are none."""
    return type(value) is int and 0 <= value <= most


def is_text(value: Any) -> bool:
    """A string that any file takes: no lone surrogates."""
    return isinstance(value, str) and (value.isascii() or _encodes(value))


def is_name(value: Any) -> bool:
    """A plain file name: letters, digits, ``_.+=@ -``; not hidden, in no other folder.

    No colon either: fsspec takes ``::`` for a chain of URLs.
    """
    return is_text(value) and _NAME.fullmatch(value) is not None


def is_hash(value: Any) -> bool:
    """A sha256 in lower-case hex."""
    return isinstance(value, str) and _HASH.fullmatch(value) is not None


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_tally(value: Any) -> bool:
    return isinstance(value, dict) and all(is_text(k) and is_count(n) for k, n in value.items())


def _is_options(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and is_count(value.get("samples_per_shard"))
        and value["samples_per_shard"] > 0
    )


TEXT: Rule = (is_text, "a text")
NAME: Rule = (is_name, "a plain file name")
HASH: Rule = (is_hash, "a sha256 of 64 hex digits")
COUNT: Rule = (is_count, "a whole number from 0")
TALLY: Rule = (_is_tally, "counts by reason")
ROWS: Rule = (lambda value: isinstance(value, list), "a list")

HEAD: dict[str, Rule] = {
    "source": NAME,
    "split": NAME,
    "licence": TEXT,
    "categories": ROWS,
    "options": (_is_options, "samples_per_shard from 1"),
}
MANIFEST: dict[str, Rule] = {
    **HEAD,
    "samples": (lambda value: is_count(value, MAX_SAMPLES), f"0 to {MAX_SAMPLES}"),
    "skipped": TALLY,
    "index_sha256": HASH,
    "digest": HASH,
    "shards": (lambda value: isinstance(value, list) and bool(value), "a list of shards"),
}
SHARD: dict[str, Rule] = {
    "name": NAME,
    "samples": COUNT,
    "bytes": (
        lambda value: is_count(value, MAX_SHARD_BYTES) and value % BLOCK == 0,
        f"whole blocks of {BLOCK} bytes, up to {MAX_SHARD_BYTES}",
    ),
    "sha256": HASH,
}
CATEGORY: dict[str, Rule] = {
    "id": TEXT,
    "name": TEXT,
    "is_thing": (lambda value: value is None or isinstance(value, bool), "true, false or null"),
}
SOURCE: dict[str, Rule] = {**HEAD, "pictures": COUNT, "skipped_by_index": TALLY}
RECEIPT: dict[str, Rule] = {
    **SHARD,
    "pictures": COUNT,
    "skipped": TALLY,
    "examples": (
        lambda value: isinstance(value, dict) and all(map(is_text, value.values())),
        "an example by reason",
    ),
    "rows": TEXT,
}


def check_fields(row: Any, rules: Mapping[str, Rule], where: str) -> None:
    """Every field is there and right.

    Raises:
        ShardError: names the first that is not.
    """
    if not isinstance(row, dict):
        raise ShardError(f"expected an object, got {shorten(row)}, at {where}")
    for field, (is_right, expected) in rules.items():
        if field not in row or not is_right(row[field]):
            came = shorten(row[field]) if field in row else "nothing"
            raise ShardError(f"expected {field}: {expected}, got {came}, at {where}")


def check_manifest(content: dict[str, Any], where: str) -> None:
    """The content of ``manifest.json``.

    Raises:
        ShardError: a field is missing, of another type, out of bounds, or not in line with others.
    """
    check_fields(content, MANIFEST, where)
    check_categories(content["categories"], where)
    for k, shard in enumerate(content["shards"]):
        check_fields(shard, SHARD, f"shard {k} of {where}")
        if len(shard) != len(SHARD):
            raise ShardError(f"expected {', '.join(SHARD)}, got {sorted(shard)}, at {where}")
    names = {shard["name"] for shard in content["shards"]}
    if len(names) != len(content["shards"]):
        raise ShardError(f"expected every shard once, got a name twice, at {where}")
    total = sum(shard["samples"] for shard in content["shards"])
    if total != content["samples"]:
        raise ShardError(f"expected {content['samples']} samples, got {total}, at {where}")


def check_categories(rows: list[Any], where: str) -> None:
    """The category table: ids are unique, names may repeat.

    Raises:
        ShardError: it is none.
    """
    for k, row in enumerate(rows):
        check_fields(row, CATEGORY, f"category {k} of {where}")
    if len({row["id"] for row in rows}) != len(rows):
        raise ShardError(f"expected every category id once, got one twice, at {where}")


def check_folders(content: dict[str, Any], where: str) -> list[str]:
    """The names in ``folders.json``.

    Raises:
        ShardError: none, no plain names, or one occurs twice.
    """
    names = content.get("folders")
    if (
        not isinstance(names, list)
        or not names
        or not all(map(is_name, names))
        or len({*names}) != len(names)
    ):
        came = shorten(names)
        raise ShardError(f"expected folders: plain names, each once, got {came}, at {where}")
    return names


def check_receipt(content: dict[str, Any], name: str, where: str) -> None:
    """The receipt of one shard.

    Raises:
        ShardError: it is none, or that of another shard.
    """
    check_fields(content, RECEIPT, where)
    try:
        rows = len(b64decode(content["rows"], validate=True))
    except (Base64Error, ValueError) as error:
        raise ShardError(f"expected rows in base64, got {error}, at {where}") from None
    if content["name"] != name or rows != content["samples"] * ROW_BYTES:
        raise ShardError(
            f"expected {content['samples']} rows of {name}, got {rows} bytes of "
            f"{shorten(content['name'])}, at {where}"
        )


def check_source(content: dict[str, Any], where: str) -> None:
    """The content of ``source.json``.

    Raises:
        ShardError: it is none.
    """
    check_fields(content, SOURCE, where)
    check_categories(content["categories"], where)


def shorten(value: Any) -> str:
    """A stranger's value in an error: one line, not long."""
    if isinstance(value, list | dict):
        return f"{type(value).__name__} of {len(value)}"
    text = ascii(value[:60] if isinstance(value, str) else value)
    return text if len(text) <= 80 else f"{text[:80]}..."
