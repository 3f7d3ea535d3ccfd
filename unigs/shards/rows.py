"""What the JSON of one sample may say, checked field by field before it becomes a record.

In: the bytes of ``KEY.json``, and the picture's. Out: :class:`Meta`. A row that lies raises
``ValueError`` in words; ``samples`` adds the place.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple, get_args

from unigs.images import read_header
from unigs.records import Entity, Unlabelled
from unigs.shards.files import MAX_JSON_BYTES
from unigs.shards.schema import is_count, is_text, shorten

MAX_LABEL = 65_535
UNLABELLED = get_args(Unlabelled)
_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # start of frame, of any coding
_JPEG_BARE = {0x01, *range(0xD0, 0xD9)}  # markers without a length


class Meta(NamedTuple):
    """Everything of a sample but its pixels; the size in pixels."""

    width: int
    height: int
    entities: tuple[Entity, ...]
    unlabelled: Unlabelled
    source: str
    gone: tuple[Entity, ...]


def read_meta(data: bytes) -> Meta:
    """Parse and check the JSON of a sample.

    Raises:
        ValueError: not JSON, too large, or a field that is missing or wrong.
    """
    if len(data) > MAX_JSON_BYTES:
        raise ValueError(f"expected at most {MAX_JSON_BYTES} bytes of JSON, got {len(data)}")
    row = json.loads(data)
    if not isinstance(row, dict) or not isinstance(row.get("entities"), list):
        raise ValueError(f"expected an object with entities, got {shorten(row)}")
    if not (is_count(row.get("width")) and is_count(row.get("height"))):
        came = f"{shorten(row.get('width'))} x {shorten(row.get('height'))}"
        raise ValueError(f"expected width and height in pixels, got {came}")
    if row.get("unlabelled") not in UNLABELLED:
        raise ValueError(f"expected unlabelled in {UNLABELLED}, got {shorten(row['unlabelled'])}")
    if not is_text(row.get("source")):
        raise ValueError(f"expected the name of a source, got {shorten(row.get('source'))}")
    entities = read_entities(row["entities"])
    if not isinstance(row.get("gone", []), list):
        raise ValueError(f"expected a list of entities that are gone, got {shorten(row['gone'])}")
    gone = read_entities(row.get("gone", []), len(entities) + 1)
    said = row["width"], row["height"], entities, row["unlabelled"], row["source"]
    return Meta(*said, gone)


def read_entities(rows: list[Any], first: int = 1) -> tuple[Entity, ...]:
    """The entities of a sample, numbered from ``first`` in their order.

    Raises:
        ValueError: a label that is not its place, or a field that is missing, unknown or wrong.
    """
    if len(rows) > MAX_LABEL:
        raise ValueError(f"expected at most {MAX_LABEL} entities, got {len(rows)}")
    try:
        entities = tuple(Entity(**row) for row in rows)
    except TypeError as error:
        raise ValueError(f"expected the fields of an entity, got {str(error)[:200]}") from None
    for place, entity in enumerate(entities, first):
        if type(entity.label) is not int or entity.label != place:
            raise ValueError(f"expected label {place}, got {shorten(entity.label)}")
        texts = entity.category, entity.category_id, entity.annotation_id
        if not all(map(is_text, texts)):
            raise ValueError(f"expected texts of entity {place}, got {shorten(list(texts))}")
        if not isinstance(entity.is_crowd, bool) or entity.is_thing not in (None, True, False):
            raise ValueError(f"expected true or false for the flags of entity {place}")
        if isinstance(entity.is_thing, int | float) and not isinstance(entity.is_thing, bool):
            raise ValueError(f"expected true, false or null for is_thing of entity {place}")
    return entities


def peek_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture's stored pixels, in a few microseconds for JPEG and PNG.

    Raises:
        UnreadableImage: no picture.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return struct.unpack_from(">II", data, 16)
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        kind = data[at + 1]
        if kind in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        if kind == 0xFF or kind in _JPEG_BARE:  # a filling byte, a marker without content
            at += 1 if kind == 0xFF else 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    header = read_header(data)
    return header.width, header.height
