"""Sources -> shards: deterministic, parallel, restartable (annotations -> shards).

Shard k of a source holds its samples k*n .. (k+1)*n - 1 and is a pure function of them, so any
number of processes, on any number of machines, gives the same bytes. A shard appears under its name
only when whole, synced and read back; a *receipt* beside it then says what it holds. The manifest
is made from the receipts and comes last. Killed at any moment, the same command finishes the work.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import threading
import time
import zlib
from base64 import b64encode
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from unigs.files import hash_file, new_file, write_json
from unigs.records import Skips, TooManySkips, UnigsError
from unigs.shards.files import ShardError, read_json
from unigs.shards.manifest import ROW, count_shards, name_folder, name_shard
from unigs.shards.merge import RECEIPTS, SOURCE_NAME, merge_shards
from unigs.shards.samples import BLOCK, encode_sample, end_archive

if TYPE_CHECKING:
    from unigs.annotations.base import Source

_source: Source | None = None  # in a worker process: the source it writes from


def write_shards(
    out: str,
    coco: Path | None = None,
    openimages: Path | None = None,
    entityseg: Path | None = None,
    samples_per_shard: int = 1000,
    workers: int | None = None,
    part: str = "1/1",
    max_skip_fraction: float = 0.1,
) -> None:
    """Write data sets as WebDataset shards with manifests, one folder per source and split.

    Killed or out of disk, run it again: finished shards are checked and kept, and the result is the
    same to the byte. To share the work, run parts 1/16 to 16/16 anywhere, then
    `unigs shards merge`.

    Args:
        out: folder to write to; other inputs or options need another one.
        coco: folder of COCO as distributed.
        openimages: folder of Open Images as distributed.
        entityseg: folder of EntitySeg as distributed.
        samples_per_shard: pictures in a shard; 1000 make about 150 MB.
        workers: processes; by default one per core.
        part: which part of how many to write, for example 3/16.
        max_skip_fraction: stop if more than this share of a source's pictures is unusable.

    Raises:
        UnigsError: bad input, no usable picture, another data set in the folder, too many skips, or
            a full disk.
    """
    from unigs.annotations import find_sources

    sources = find_sources(coco=coco, openimages=openimages, entityseg=entityseg)
    mine, of = read_part(part)
    for source in sources:
        source.require_pictures()
        skips = write_source(source, out, samples_per_shard, workers, (mine, of), max_skip_fraction)
        for line in source.tell_losses(skips):
            tqdm.write(line)
    if of == 1:
        merge_shards(out)


def write_source(
    source: Source,
    out: str | os.PathLike[str],
    samples_per_shard: int = 1000,
    workers: int | None = None,
    part: tuple[int, int] = (1, 1),
    max_skip_fraction: float = 0.1,
) -> Skips:
    """Write one part of one source's shards and their receipts; see :func:`write_shards`.

    Returns:
        What this part left out, by reason.
    """
    folder = prepare_folder(source, Path(out), samples_per_shard)
    mine = range(part[0] - 1, count_shards(len(source), samples_per_shard), part[1])
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(mine)))
    skips, missing = Skips(), 0
    total = sum(len(pick_samples(len(source), samples_per_shard, k)) for k in mine)
    bar = tqdm(total=total, desc=folder.name, unit=" pictures", smoothing=0.05)
    with bar, open_pool(source, workers) as submit:
        for receipt in submit(mine, folder, samples_per_shard):
            skips.update(Skips(receipt["skipped"], receipt["examples"]))
            bar.update(receipt["pictures"])
            missing += receipt["pictures"] - receipt["samples"]
            if missing > max_skip_fraction * len(source):
                raise TooManySkips(
                    f"expected at most {max_skip_fraction:.0%} of {len(source)} pictures unusable, "
                    f"got {missing} so far, in {folder.name}: {skips}"
                )
    return skips


@contextmanager
def open_pool(source: Source, workers: int) -> Iterator[Any]:
    """Give a function that writes shards in processes and yields receipts as they finish."""
    if workers == 1:
        _set_source(source)
        yield lambda shards, folder, n: (write_shard(k, folder, n) for k in shards)
        return
    # Forked workers share the source's index; other platforms pickle it once per worker.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, context, _start_worker, (source, os.getpid()))
    try:
        yield lambda shards, folder, n: (
            done.result()
            for done in as_completed([pool.submit(write_shard, k, folder, n) for k in shards])
        )
    except BrokenProcessPool:
        raise UnigsError(
            "expected the writing processes to live, got one killed (out of memory?); finished "
            "shards are kept: run the same command again, perhaps with fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def prepare_folder(source: Source, out: Path, samples_per_shard: int) -> Path:
    """Make the source's folder and say in ``source.json`` what its shards are made of.

    Raises:
        ShardError: the folder holds shards of other inputs or options.
    """
    if samples_per_shard < 1:
        raise UnigsError(f"expected samples_per_shard of at least 1, got {samples_per_shard}")
    folder = out / name_folder(source.name, source.split)
    keys = hashlib.sha256("\n".join(source.keys).encode()).hexdigest()
    content = {
        "source": source.name,
        "split": source.split,
        "licence": source.licence,
        "categories": list(source.categories),
        "options": {"samples_per_shard": samples_per_shard},
        "pictures": len(source),
        "keys_sha256": keys,
        "skipped_by_index": dict(sorted(source.skips.counts.items())),
    }
    (folder / RECEIPTS).mkdir(parents=True, exist_ok=True)
    path = folder / SOURCE_NAME
    if not path.exists():
        write_json(path, content)
    elif (came := read_json(path)) != content:
        other = sorted(key for key in content if came.get(key) != content[key])
        raise ShardError(f"expected a folder for the same input, got another {other}, at {folder}")
    return folder


def write_shard(k: int, folder: Path, samples_per_shard: int) -> dict[str, Any]:
    """Write shard ``k`` unless it is there and whole, and return its receipt.

    Raises:
        DiskFull: with nothing lost.
        ShardError: the disk gave back other bytes than were written.
    """
    assert _source is not None
    path = folder / name_shard(folder.name, k)
    receipt_path = folder / RECEIPTS / f"{path.name}.json"
    if (known := read_receipt(receipt_path)) and hash_file(path) == known["sha256"]:
        return known
    for left in folder.glob(f"{path.name}.*.tmp"):
        left.unlink(missing_ok=True)  # of a process killed while it wrote this shard
    with new_file(path) as temp:
        receipt = fill_shard(_source, pick_samples(len(_source), samples_per_shard, k), temp)
        if (came := hash_file(temp)) != receipt["sha256"]:
            raise ShardError(f"expected sha256 {receipt['sha256']} back, got {came}, at {temp}")
    receipt = {"name": path.name, **receipt}
    write_json(receipt_path, receipt)
    return receipt


def fill_shard(source: Source, wanted: range, temp: Path) -> dict[str, Any]:
    """Write samples to a tar, synced, and return what a receipt says of it."""
    skips, rows, digest, size = Skips(), [], hashlib.sha256(), 0
    with open(temp, "wb") as file:
        for i in wanted:
            sample = source.load(i, skips)
            if sample is None:
                continue
            span = encode_sample(sample)
            rows.append((size // BLOCK, len(span) // BLOCK, zlib.crc32(span), hash_key(sample.key)))
            digest.update(span)
            size += file.write(span)
        end = end_archive(size)
        digest.update(end)
        size += file.write(end)
    return {
        "samples": len(rows),
        "pictures": len(wanted),
        "bytes": size,
        "sha256": digest.hexdigest(),
        "skipped": dict(sorted(skips.counts.items())),
        "examples": dict(sorted(skips.examples.items())),
        "rows": b64encode(np.array(rows, ROW).tobytes()).decode(),
    }


def read_receipt(path: Path) -> dict[str, Any] | None:
    """What a finished shard holds, or None if it is not finished."""
    return read_json(path) if path.exists() else None


def hash_key(key: str) -> int:
    """64 bits of a key, by which the manifest finds keys that occur twice."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def pick_samples(samples: int, samples_per_shard: int, k: int) -> range:
    """The source's samples in shard ``k``."""
    return range(k * samples_per_shard, min(samples, (k + 1) * samples_per_shard))


def read_part(part: str) -> tuple[int, int]:
    """(3, 16) from ``"3/16"``."""
    first, _, second = part.partition("/")
    if first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second):
        return int(first), int(second)
    raise UnigsError(f"expected a part like 3/16, with 1 <= 3 <= 16, got {part!r}")


def _set_source(source: Source) -> None:
    global _source
    _source = source


def _start_worker(source: Source, parent: int) -> None:
    """A worker ends soon after its parent, however that died."""
    _set_source(source)
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
