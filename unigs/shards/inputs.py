"""What shards were made from, so that no folder ever mixes old inputs with new ones.

Annotation files are few: ``source.json`` holds their sha256, on whatever machine they lie, and any
other content is refused. Pictures and masks are many: each shard's receipt holds a digest of their
names and sizes and one of their times. If both are as they were, a finished shard is kept. If not,
it is made again and compared: equal bytes mean that files were only touched or copied, other bytes
mean that the data set has changed, which is refused in words. Neither hashes nor times of inputs go
into a manifest, so that its bytes depend on the samples alone.
"""

from __future__ import annotations

import hashlib
import os
import socket
from base64 import b64decode
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from unigs.annotations.base import SAMPLE_FAULTS
from unigs.files import hash_file
from unigs.records import UnigsError
from unigs.shards.files import ShardError
from unigs.shards.manifest import ROW

if TYPE_CHECKING:
    from unigs.annotations.base import Source

HOW_TO_GO_ON = "give another --out, or remove this folder to write all of it anew"


def hash_files(source: Source) -> dict[str, str]:
    """sha256 of each annotation file, by its name."""
    return {path.name: hash_file(path) for path in source.files()}


def list_changes(known: Mapping[str, str], came: Mapping[str, str]) -> list[str]:
    """Names of annotation files whose content is another, or that came or went."""
    return sorted(name for name in {*known, *came} if known.get(name) != came.get(name))


def stamp_inputs(source: Source, wanted: Iterable[int]) -> dict[str, str]:
    """Digests over the pictures and masks of some samples, without opening them.

    Returns:
        ``sizes`` over names and sizes, ``times`` over times of modification, and the ``host`` on
        which these times are comparable.
    """
    sizes, times = hashlib.sha256(), hashlib.sha256()
    for i in wanted:
        for path in _list_inputs(source, i):
            try:
                kind = os.stat(path)
                size, time_ns = kind.st_size, kind.st_mtime_ns
            except (OSError, ValueError):  # not there, or no name at all
                size = time_ns = -1
            name = path.name.encode("utf-8", "surrogatepass")
            sizes.update(b"%d %s %d\n" % (i, name, size))
            times.update(b"%d\n" % time_ns)
    return {"sizes": sizes.hexdigest(), "times": times.hexdigest(), "host": socket.gethostname()}


def _list_inputs(source: Source, i: int) -> list[Any]:
    try:
        return source.inputs(i)
    except (UnigsError, *SAMPLE_FAULTS):  # the reader will count it
        return []


def is_unchanged(known: Any, came: Mapping[str, str], foreign: bool = False) -> bool:
    """Whether a receipt's stamp says that a shard's inputs are those of today.

    Args:
        known: from the receipt; None if an older version wrote it.
        foreign: the shard is another part's, perhaps of another machine, whose copies of the data
            may have times of their own: only its sizes count then.
    """
    if not isinstance(known, dict):
        return foreign
    if foreign and known.get("host") != came["host"]:
        return known.get("sizes") == came["sizes"]
    return (known.get("sizes"), known.get("times")) == (came["sizes"], came["times"])


def refuse_other(known: Mapping[str, Any], came: Mapping[str, Any], keys: list[str], at: str):
    """Two receipts of one shard that differ in their bytes.

    Args:
        keys: of the source's samples in that shard.

    Raises:
        ShardError: names the first sample that is another.
    """
    rows = [np.frombuffer(b64decode(receipt["rows"]), ROW) for receipt in (known, came)]
    shared = min(map(len, rows))
    others = np.flatnonzero(rows[0][:shared] != rows[1][:shared])
    place = int(others[0]) if len(others) else shared
    first = f", at or after {keys[min(place, len(keys) - 1)]}" if keys else ""
    raise ShardError(
        f"expected the pictures and annotations that {known['name']} was written from, got other "
        f"ones{first}, at {at}; {HOW_TO_GO_ON}"
    )
