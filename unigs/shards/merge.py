"""Receipts -> manifest: the last step of writing shards, and the only one that sees all of them.

Out: per source folder ``index.npy`` and ``manifest.json``, and in the root ``folders.json``, which
lists the source folders so that a plain web server is enough to stream from.
"""

from __future__ import annotations

import hashlib
import io
import os
from base64 import b64decode
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from unigs import __version__
from unigs.files import write_bytes, write_json
from unigs.shards.files import ShardError, read_json
from unigs.shards.manifest import (
    FOLDERS_NAME,
    FORMAT,
    INDEX_NAME,
    MANIFEST_NAME,
    ROW,
    count_shards,
    digest_manifest,
    name_shard,
)

RECEIPTS = "receipts"
SOURCE_NAME = "source.json"


def merge_shards(out: str) -> None:
    """Write the manifests of shards that were made in parts; safe to repeat.

    Args:
        out: the folder given to all parts of `unigs shards`.

    Raises:
        ShardError: parts are missing, or a picture's key occurs twice.
    """
    folders = sorted(path.parent for path in Path(out).glob(f"*/{SOURCE_NAME}"))
    if not folders:
        raise ShardError(f"expected a folder that `unigs shards` wrote to, got {os.fspath(out)}")
    for folder in folders:
        merge_folder(folder)
    write_json(Path(out) / FOLDERS_NAME, {"folders": [folder.name for folder in folders]})


def merge_folder(folder: Path) -> None:
    """Write the index, then the manifest of one source's folder."""
    head = read_json(folder / SOURCE_NAME)
    receipts = collect_receipts(folder, head)
    rows = np.concatenate([np.frombuffer(b64decode(r["rows"]), ROW) for r in receipts])
    refuse_twins(rows["key"], receipts, folder)
    index = io.BytesIO()
    np.save(index, rows, allow_pickle=False)
    skipped = Counter(head.pop("skipped_by_index"))
    for receipt in receipts:
        skipped.update(receipt["skipped"])
    content = {
        "format": FORMAT,
        "written_by": f"unigs {__version__}",
        **head,
        "samples": len(rows),
        "skipped": dict(sorted(skipped.items())),
        "index_sha256": hashlib.sha256(index.getvalue()).hexdigest(),
        "shards": [
            {key: r[key] for key in ("name", "samples", "bytes", "sha256")} for r in receipts
        ],
    }
    write_bytes(folder / INDEX_NAME, index.getvalue())
    write_json(folder / MANIFEST_NAME, {**content, "digest": digest_manifest(content)})
    for left in [*folder.glob("*.tmp"), *folder.glob(f"{RECEIPTS}/*.tmp")]:
        left.unlink(missing_ok=True)  # of processes killed while they wrote


def collect_receipts(folder: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """The receipts of all shards in order.

    Raises:
        ShardError: some are not there yet.
    """
    shards = count_shards(head["pictures"], head["options"]["samples_per_shard"])
    names = [name_shard(folder.name, k) for k in range(shards)]
    absent = [name for name in names if not (folder / RECEIPTS / f"{name}.json").is_file()]
    absent += [name for name in names if name not in absent and not (folder / name).is_file()]
    if absent:
        raise ShardError(
            f"expected {shards} finished shards, got {shards - len(absent)} (missing: {absent[0]}"
            f"{', ...' if len(absent) > 1 else ''}), at {folder}; run the remaining parts first"
        )
    return [read_json(folder / RECEIPTS / f"{name}.json") for name in names]


def refuse_twins(keys: np.ndarray, receipts: list[dict[str, Any]], folder: Path) -> None:
    """A key that occurs twice would make two samples one for any WebDataset reader.

    Raises:
        ShardError: with the shards that hold the two.
    """
    order = np.argsort(keys, kind="stable")
    twins = np.flatnonzero(keys[order][1:] == keys[order][:-1])
    if len(twins):
        ends = np.cumsum([receipt["samples"] for receipt in receipts])
        pair = order[twins[0] : twins[0] + 2]
        names = [receipts[int(np.searchsorted(ends, i, side="right"))]["name"] for i in pair]
        raise ShardError(f"expected every key once, got one twice, in {names} at {folder}")
