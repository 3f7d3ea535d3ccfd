"""Receipts -> manifest: the last step of writing shards, and the only one that sees all of them.

Out: per source folder ``index.npy`` and ``manifest.json``, and in the root ``folders.json``, which
lists the source folders so that a plain web server is enough to stream from.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from base64 import b64decode
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from unigs import __version__
from unigs.files import write_bytes, write_json
from unigs.locks import FolderBusy, lock_file, lock_folder
from unigs.shards.files import MAX_JSON_BYTES, ShardError, read_json, tell_in_words
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
from unigs.shards.schema import check_manifest, check_receipt, check_source

RECEIPTS = "receipts"
SOURCE_NAME = "source.json"


def merge_shards(out: str) -> None:
    """Write the manifests of shards that were made in parts; safe to repeat.

    Args:
        out: the folder given to all parts of `unigs shards`.

    Raises:
        ShardError: parts are missing, or a picture's key occurs twice.
        FolderBusy: another process merges there.
    """
    folders = sorted(path.parent for path in Path(out).glob(f"*/{SOURCE_NAME}"))
    if not folders:
        raise ShardError(f"expected a folder that `unigs shards` wrote to, got {os.fspath(out)}")
    kept = "shards are kept: run the same command again"
    with (
        tell_in_words("merge shards", os.fspath(out), kept),
        lock_folder(Path(out), "unigs shards merge", ".merge.lock"),
    ):
        contents = [merge_folder(folder) for folder in folders]
        write_json(Path(out) / FOLDERS_NAME, {"folders": [folder.name for folder in folders]})
    for folder, content in zip(folders, contents, strict=True):
        print(describe_folder(folder.name, content))
    print(describe_all(out, contents))


def merge_folder(folder: Path) -> dict[str, Any]:
    """Write the index, then the manifest of one source's folder, and return its content."""
    head = read_json(folder / SOURCE_NAME)
    check_source(head, str(folder / SOURCE_NAME))
    receipts = collect_receipts(folder, head)
    rows = np.concatenate([np.frombuffer(b64decode(r["rows"]), ROW) for r in receipts])
    refuse_twins(rows["key"], receipts, folder)
    index = io.BytesIO()
    np.save(index, rows, allow_pickle=False)
    skipped = Counter(head.pop("skipped_by_index"))
    head.pop("inputs", None)  # where and when data lay is not what they are
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
    content["digest"] = digest_manifest(content)
    refuse_large(content, folder)
    write_bytes(folder / INDEX_NAME, index.getvalue())
    write_json(folder / MANIFEST_NAME, content)
    sweep(folder)
    return content


def refuse_large(content: dict[str, Any], folder: Path) -> None:
    """A manifest that no reader would take.

    Raises:
        ShardError: it is too large, or says what none may say.
    """
    check_manifest(content, str(folder))
    if (size := len(json.dumps(content, indent=1))) > MAX_JSON_BYTES:
        raise ShardError(
            f"expected a manifest of at most {MAX_JSON_BYTES} bytes, got {size} for "
            f"{len(content['shards'])} shards, at {folder}; write with more samples_per_shard"
        )


def sweep(folder: Path) -> None:
    """Remove what killed processes left: temp files and locks that nobody holds."""
    receipts = folder / RECEIPTS
    for left in [*folder.glob("*.tmp"), *receipts.glob("*.tmp")]:
        shard = re.match(r"(.+\.tar)(\.json)?\.[0-9a-f]{32}\.tmp", left.name)
        lock = receipts / f"{shard[1]}.lock" if shard else folder / ".source.lock"
        with suppress(FolderBusy), lock_file(lock, "sweeping"):
            left.unlink(missing_ok=True)
    for lock in [*folder.glob(".*.lock"), *receipts.glob("*.lock")]:
        with suppress(FolderBusy), lock_file(lock, "sweeping"):
            pass  # removed as it is given back


def describe_folder(name: str, content: dict[str, Any]) -> str:
    """One line on a finished folder: samples, shards, what was left out and why."""
    reasons = ", ".join(f"{n} x {why}" for why, n in content["skipped"].items()) or "nothing"
    return (
        f"{name}: {content['samples']} samples in {len(content['shards'])} shards; "
        f"left out: {reasons}"
    )


def describe_all(out: str, contents: Sequence[Mapping[str, Any]]) -> str:
    """What a whole folder of shards holds, and what to do with it."""
    samples = sum(content["samples"] for content in contents)
    shards = [shard for content in contents for shard in content["shards"]]
    size = sum(shard["bytes"] for shard in shards)
    return (
        f"wrote {samples:,} samples of {len(contents)} folders in {len(shards)} shards, "
        f"{size / 1e6:,.1f} MB; shards are whole, at {out}\n"
        f"next: unigs shards verify --out {out}, or\n"
        f"      unigs fit --config configs/joint.yaml --data.shards '[{out}]'"
    )


def collect_receipts(folder: Path, head: dict[str, Any]) -> list[dict[str, Any]]:
    """The receipts of all shards in order.

    Raises:
        ShardError: some are not there yet.
    """
    shards = count_shards(head["pictures"], head["options"]["samples_per_shard"])
    receipts = {path.name.removesuffix(".json") for path in (folder / RECEIPTS).glob("*.tar.json")}
    finished = {path.name for path in folder.glob("*.tar") if path.name in receipts}
    names = []
    for name in (name_shard(folder.name, k) for k in range(shards)):  # who lies says billions
        if name not in finished:
            raise ShardError(
                f"expected {shards} finished shards, got {len(finished)} (missing: {name}"
                f"{', ...' if shards - len(finished) > 1 else ''}), at {folder}; run the remaining "
                "parts first"
            )
        names.append(name)
    return [read_receipt(folder, name) for name in names]


def read_receipt(folder: Path, name: str) -> dict[str, Any]:
    """What a finished shard holds.

    Raises:
        ShardError: there is no receipt, or it is damaged.
    """
    path = folder / RECEIPTS / f"{name}.json"
    receipt = read_json(path)
    check_receipt(receipt, name, str(path))
    return receipt


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
