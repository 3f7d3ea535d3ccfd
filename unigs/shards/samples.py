"""One ``Annotated`` record as adjacent members of a tar, and back.

A sample is ``KEY.jpg`` (or png, webp, ...: the original bytes, named by what they are),
``KEY.json`` (entities and what the labels mean) and ``KEY.labels.png`` (the label map, grey, 8 bit
if that holds the labels, else 16 bit). A frame of a clip brings the label maps of the frames before
it as ``KEY.past1.png`` (the nearest), ``KEY.past2.png``, and in its JSON the entities that are
``gone``, so that it is a sample of its own in any order. The same record gives the same bytes: no
times, no owners. Label maps are written without PNG row filters: they have long runs, so they stay
as small and are read several times faster, which counts once per training sample.
"""

from __future__ import annotations

import io
import json
import struct
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from unigs.images import MAX_PIXELS, read_header
from unigs.records import Annotated, Entity, Past, UnigsError
from unigs.shards.rows import Meta, peek_size, read_meta
from unigs.shards.schema import BLOCK

MAX_SAMPLE_BYTES = 256 << 20
"""Of all members of one sample; a longer one is neither written nor read."""

LABELS_SUFFIX = "labels.png"
META_SUFFIX = "json"
PAST_SUFFIXES = ("past1.png", "past2.png")
_EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "TIFF": "tif"}
_EFFORT = 3
"""zlib's; on COCO's maps 2 KB larger than the usual 6, and read and written in 0.4 of the time."""

_SAMPLE_ERRORS = (
    *(ValueError, KeyError, TypeError, OSError, SyntaxError, EOFError, struct.error, UnigsError),
    *(RecursionError, MemoryError, Image.DecompressionBombError, zlib.error),
)
"""What hostile members of one sample may raise: the fault of that sample, not of the run."""

_END = bytes(2 * BLOCK)
_RECORD = 20 * BLOCK


class DamagedSample(UnigsError):
    """A sample whose bytes in the shard are not those that were written.

    Args:
        detail: what was expected, what came, and where.
    """

    reason = "sample damaged in its shard"


def encode_sample(sample: Annotated) -> bytes:
    """The tar members of one sample: headers, data and padding, a multiple of 512 bytes.

    Raises:
        UnigsError: the key is none for a WebDataset.
    """
    check_key(sample.key)
    members = {
        _EXTENSIONS.get(kind := read_header(sample.image).format, kind.lower()): sample.image,
        META_SUFFIX: encode_meta(sample),
        LABELS_SUFFIX: encode_labels(sample.labels),
    }
    if sample.past is not None:
        maps = zip(PAST_SUFFIXES, sample.past.labels, strict=True)
        members |= {suffix: encode_labels(labels) for suffix, labels in maps}
    return b"".join(encode_member(f"{sample.key}.{ext}", members[ext]) for ext in sorted(members))


def decode_sample(span: bytes, where: str) -> Annotated:
    """The inverse of :func:`encode_sample`.

    Args:
        span: the members' bytes, checked by the caller against their checksum.
        where: the shard and place, for errors.

    Raises:
        DamagedSample: the members are not those of one sample.
    """
    members = split_members(span, where)
    keys = {name.partition(".")[0] for name, _ in members}
    data = {name.partition(".")[2]: payload for name, payload in members}
    images = [ext for ext in data if ext not in (META_SUFFIX, LABELS_SUFFIX, *PAST_SUFFIXES)]
    whole = 3 + len(PAST_SUFFIXES) * (PAST_SUFFIXES[0] in data)
    if len(keys) != 1 or len(images) != 1 or not len(data) == len(members) == whole:
        names = [name for name, _ in members[:8]]
        raise DamagedSample(f"expected picture, json and labels of one key, got {names!a} {where}")
    key, image = keys.pop(), data[images[0]]
    try:
        check_key(key)
        meta = read_meta(data[META_SUFFIX])
        size = meta.width, meta.height
        if (came := peek_size(image)) != size:
            raise ValueError(f"expected a picture of {size[0]}x{size[1]}, got {came[0]}x{came[1]}")
        labels = decode_labels(data[LABELS_SUFFIX], size)
        if (most := int(labels.max(initial=0))) > len(meta.entities):
            raise ValueError(f"expected labels to {len(meta.entities)}, got {most}")
        past = decode_past(data, meta) if whole > 3 else None
    except _SAMPLE_ERRORS as error:
        raise DamagedSample(f"expected a sample's members, got {error!r:.300} {where}") from error
    return Annotated(key, image, labels, meta.entities, meta.unlabelled, meta.source, past)


def decode_past(data: Mapping[str, bytes], meta: Meta) -> Past:
    """The label maps of the frames before, of the frame's size.

    Raises:
        ValueError: a label of no entity, or maps of another form.
    """
    maps = [decode_labels(data[name], (meta.width, meta.height)) for name in PAST_SUFFIXES]
    labels, known = np.stack(maps), len(meta.entities) + len(meta.gone)
    if (most := int(labels.max(initial=0))) > known:
        raise ValueError(f"expected past labels to {known}, got {most}")
    return Past(labels, meta.gone)


def check_key(key: str) -> None:
    """A WebDataset key ends at the first dot and may not name a folder."""
    if not key or set(key) & set("./\\\0") or len(key.encode()) > 85:
        raise UnigsError(f"expected a key of at most 85 bytes, no dots or slashes, got {key!r}")


def encode_member(name: str, data: bytes) -> bytes:
    """One file of a tar: header, data, padding."""
    header = tarfile.TarInfo(name)
    header.size, header.mode = len(data), 0o444
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % BLOCK)


def split_members(span: bytes, where: str) -> list[tuple[str, bytes]]:
    """(name, data) of each file in whole tar members.

    Raises:
        DamagedSample: a header is none, or the data are cut.
    """
    members: list[tuple[str, bytes]] = []
    at = 0
    while at < len(span):
        try:
            header = tarfile.TarInfo.frombuf(span[at : at + BLOCK], "utf-8", "strict")
        except (tarfile.HeaderError, ValueError) as error:
            raise DamagedSample(f"expected a tar header, got {error} {where}") from error
        if header.type != tarfile.REGTYPE:
            raise DamagedSample(f"expected a plain file in the tar, got {header.name!a} {where}")
        data = span[at + BLOCK : at + BLOCK + header.size]
        if len(data) != header.size:
            raise DamagedSample(f"expected {header.size} bytes, got {len(data)} {where}")
        members.append((header.name, data))
        at += BLOCK + header.size + -header.size % BLOCK
    return members


def end_archive(size: int) -> bytes:
    """What closes a tar of ``size`` bytes: two empty blocks, filled up to a record as tar does."""
    return _END + bytes(-(size + len(_END)) % _RECORD)


def encode_meta(sample: Annotated) -> bytes:
    """Everything of a sample but its pixels."""
    meta = {
        "source": sample.source,
        "width": sample.width,
        "height": sample.height,
        "unlabelled": sample.unlabelled,
        "entities": list_entities(sample.entities),
    }
    if sample.past is not None:
        meta["gone"] = list_entities(sample.past.gone)
    return json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode()


def list_entities(entities: Sequence[Entity]) -> list[dict[str, Any]]:
    """Entities as rows of JSON."""
    return [
        {
            "label": entity.label,
            "category": entity.category,
            "category_id": entity.category_id,
            "annotation_id": entity.annotation_id,
            "is_thing": entity.is_thing,
            "is_crowd": entity.is_crowd,
        }
        for entity in entities
    ]


def encode_labels(labels: np.ndarray) -> bytes:
    """uint16 [H, W] as a grey PNG: 8 bit if no label is over 255, else 16 bit."""
    height, width = labels.shape
    bits = 8 if int(labels.max(initial=0)) < 256 else 16
    rows = np.zeros((height, 1 + width * bits // 8), np.uint8)  # each begins with filter 0, "none"
    rows[:, 1:] = labels.astype(">u2" if bits == 16 else np.uint8, order="C").view(np.uint8)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            _encode_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)),
            _encode_chunk(b"IDAT", zlib.compress(rows.tobytes(), _EFFORT)),
            _encode_chunk(b"IEND", b""),
        )
    )


def decode_labels(data: bytes, size_px: tuple[int, int] | None = None) -> np.ndarray:
    """uint16 [H, W] from a grey PNG.

    Args:
        data: the encoded file.
        size_px: (width, height) that it must have; looked at before a pixel is decoded.

    Raises:
        ValueError: not grey of 8 or 16 bits, larger than any picture, or of another size.
        OSError: no PNG, or damaged.
    """
    if data[12:16] == b"IHDR" and len(data) >= 24:
        check_label_size(struct.unpack_from(">II", data, 16), size_px)
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        check_label_size(image.size, size_px)  # a header may come twice, or late
        if image.mode != "L" and not image.mode.startswith("I"):
            raise ValueError(f"expected grey labels of 8 or 16 bits, got mode {image.mode}")
        return np.asarray(image).astype(np.uint16)


def check_label_size(came: tuple[int, int], size_px: tuple[int, int] | None) -> None:
    """(width, height) of a label map, before memory is taken for it.

    Raises:
        ValueError: larger than any picture, or another than ``size_px``.
    """
    if came[0] * came[1] > MAX_PIXELS:
        raise ValueError(f"expected labels of at most {MAX_PIXELS} pixels, got {came}")
    if size_px is not None and came != size_px:
        raise ValueError(f"expected labels of size {size_px}, got {came}")


def _encode_chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
