"""Is every byte still what was written? Names each shard, and sample, that is not."""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from unigs.files import hash_descriptor
from unigs.remote import is_remote
from unigs.shards.files import ShardError, tell_in_words
from unigs.shards.manifest import (
    FOLDERS_NAME,
    MANIFEST_NAME,
    Manifest,
    list_folders,
    read_manifest,
)

_PIECE_BYTES = 1 << 20


def verify_shards(out: str, workers: int | None = None) -> None:
    """Check every byte of shards against their manifests.

    Args:
        out: a folder that `unigs shards` wrote to, or one source's folder in it.
        workers: files read at a time; by default one per core.

    Raises:
        ShardError: lists every truncated, changed, missing or foreign shard.
    """
    if is_remote(out):
        raise ShardError(f"expected a local folder to verify, got {out}; readers check URLs anyway")
    damage = []
    folders = list_folders(out)
    samples = 0
    with tell_in_words("read shards", out, "nothing was changed"):
        for folder in folders:
            manifest = read_manifest(folder)
            samples += len(manifest)
            damage += find_foreign(manifest) + find_damage(manifest, workers)
    known = {Path(folder) for folder in folders}
    for path in sorted(Path(out).glob(f"*/{MANIFEST_NAME}")):
        if path.parent not in known:
            damage.append(f"{path.parent}: a folder of shards that {FOLDERS_NAME} does not name")
    if damage:
        raise ShardError(
            f"expected shards as written, got {len(damage)} damaged: " + "; ".join(damage)
        )
    print(f"{samples} samples in {len(folders)} folders are as they were written, at {out}")


def find_foreign(manifest: Manifest) -> list[str]:
    """Tars in the folder that its manifest does not name."""
    named = {shard.name for shard in manifest.shards}
    found = sorted(path.name for path in Path(manifest.folder).glob("*.tar*"))
    return [f"{name}: foreign, not in {manifest.folder}" for name in found if name not in named]


def find_damage(manifest: Manifest, workers: int | None = None) -> list[str]:
    """One line per shard that is missing or is not what was written."""
    total = sum(shard.bytes for shard in manifest.shards)
    workers = workers or len(os.sched_getaffinity(0))
    damage = []
    with (
        ThreadPoolExecutor(workers) as pool,  # reading and hashing leave the interpreter alone
        tqdm(total=total, desc=manifest.name, unit="B", unit_scale=True) as bar,
    ):
        places = range(len(manifest.shards))
        for k, found in zip(places, pool.map(lambda k: check_shard(manifest, k), places)):
            bar.update(manifest.shards[k].bytes)
            damage += found
    return damage


def check_shard(manifest: Manifest, k: int) -> list[str]:
    """What is wrong with one shard; empty if nothing is."""
    shard = manifest.shards[k]
    path = Path(manifest.folder) / shard.name
    try:
        descriptor = manifest.open(k)
    except ShardError as error:
        return [f"{path}: {error}" if os.path.lexists(path) else f"{path}: missing"]
    try:
        size = os.fstat(descriptor).st_size
        if size != shard.bytes:
            return [f"{path}: {size} bytes instead of {shard.bytes}"]
        if hash_descriptor(descriptor) == shard.sha256:
            return []
        return [f"{path}: changed {locate_damage(manifest, k, descriptor)}"]
    finally:
        os.close(descriptor)


def locate_damage(manifest: Manifest, k: int, descriptor: int) -> str:
    """Which samples of a changed shard are hit."""
    hit = []
    for member in range(manifest.shards[k].samples):
        offset, size, crc = manifest.span(k, member)
        if crc_span(descriptor, offset, size) != crc:
            hit.append(member)
    return f"in samples {hit}" if hit else "after the last sample"


def crc_span(descriptor: int, offset: int, size: int) -> int:
    """CRC-32 of a span, in bounded memory."""
    crc = 0
    for at in range(offset, offset + size, _PIECE_BYTES):
        crc = zlib.crc32(os.pread(descriptor, min(_PIECE_BYTES, offset + size - at), at), crc)
    return crc
