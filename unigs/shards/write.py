"""Sources -> shards: deterministic, parallel, restartable (annotations -> shards).

Shard k of a source holds its samples k*n .. (k+1)*n - 1 and is a pure function of them, so any
number of processes, on any number of machines, gives the same bytes. A shard appears under its name
only when whole, synced and read back; a *receipt* beside it then says what it holds. The manifest
is made from the receipts and comes last. Killed at any moment, the same command finishes the work.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

import numpy as np
from tqdm import tqdm

from unigs.files import hash_file, new_file, write_json
from unigs.locks import lock_file, lock_folder
from unigs.records import Skips, TooManySkips, UnigsError
from unigs.shards.files import ShardError, read_json, tell_in_words
from unigs.shards.inputs import (
    HOW_TO_GO_ON,
    hash_files,
    is_unchanged,
    list_changes,
    refuse_other,
    stamp_inputs,
)
from unigs.shards.manifest import ROW, count_shards, name_folder, name_shard
from unigs.shards.merge import RECEIPTS, SOURCE_NAME, merge_shards, read_receipt
from unigs.shards.pool import get_source, heed_stop, open_pool
from unigs.shards.samples import BLOCK, MAX_SAMPLE_BYTES, encode_sample, end_archive
from unigs.shards.schema import is_name

if TYPE_CHECKING:
    from unigs.annotations.base import Source
    from unigs.annotations.find import Roots

Check = Literal["time", "hash"]
"""How a finished shard is compared with its inputs: by their sizes and times, or by content."""

Encode = Callable[[Any, range, Skips], Iterator[tuple[str, bytes]]]
"""(source, samples, tally of what is left out) -> key and tar members of each; pure, picklable."""


def encode_records(source: Source, wanted: range, skips: Skips) -> Iterator[tuple[str, bytes]]:
    """The records of a data set as they lie in shards."""
    for i in wanted:
        sample = source.load(i, skips)
        if sample is not None:
            yield sample.key, encode_sample(sample)


def write_shards(
    out: str,
    samples_per_shard: int = 1000,
    workers: int | None = None,
    part: str = "1/1",
    max_skip_fraction: float = 0.1,
    check: Check = "time",
    **roots: Unpack[Roots],
) -> None:
    """Write data sets as WebDataset shards with manifests, one folder per source and split.

    Killed or out of disk, run it again: finished shards are checked and kept, and the result is the
    same to the byte. If annotations or pictures have changed since, that is refused in words. To
    share the work, run parts 1/16 to 16/16 anywhere, then `unigs shards merge`.

    Args:
        out: folder to write to; other inputs or options need another one.
        samples_per_shard: pictures in a shard; 1000 make about 150 MB.
        workers: processes; by default one per core.
        part: which part of how many to write, for example 3/16.
        max_skip_fraction: stop if more than this share of a source's pictures is unusable.
        check: how finished shards are compared with their inputs: by sizes and times (`time`), or
            by making them again (`hash`).
        **roots: folders of data sets as distributed.

    Raises:
        UnigsError: bad input, no usable picture, another data set in the folder, too many skips, or
            a full disk.
        FolderBusy: another process writes the same part there.
    """
    from unigs.annotations import find_sources

    sources = find_sources(**roots)
    mine, of = read_part(part)
    for source in sources:
        source.require_pictures()
    with tell_in_words("write shards", out, "finished shards are kept: run the same command again"):
        for source in sources:
            places = (mine, of)
            skips = write_source(
                source, out, samples_per_shard, workers, places, max_skip_fraction, check
            )
            for line in source.tell_losses(skips):
                tqdm.write(line)
    if of == 1:
        merge_shards(out)
    else:
        print(
            f"part {part} is written, at {out}; after the last part: unigs shards merge --out {out}"
        )


def write_source(
    source: Source,
    out: str | os.PathLike[str],
    samples_per_shard: int = 1000,
    workers: int | None = None,
    part: tuple[int, int] = (1, 1),
    max_skip_fraction: float = 0.1,
    check: Check = "time",
    encode: Encode = encode_records,
    options: Mapping[str, Any] = {},
) -> Skips:
    """Write one part of one source's shards and their receipts; see :func:`write_shards`.

    Args:
        encode: what a sample is in a shard.
        options: what else the samples depend on; other options need another folder.

    Returns:
        What this part left out, by reason.
    """
    folder = prepare_folder(source, Path(out), samples_per_shard, options)
    shards = range(count_shards(len(source), samples_per_shard))
    mine = shards[part[0] - 1 :: part[1]]
    workers = min(workers or len(os.sched_getaffinity(0)), max(1, len(mine)))
    skips, missing = Skips(), 0
    total = sum(len(pick_samples(len(source), samples_per_shard, k)) for k in mine)
    bar = tqdm(total=total, desc=folder.name, unit=" pictures", smoothing=0.05)
    work = f"unigs shards --part {part[0]}/{part[1]}"
    lock = lock_folder(folder, work, f".part-{part[0]}-of-{part[1]}.lock")
    with lock, bar, open_pool(source, workers) as submit:
        how = (folder, samples_per_shard, check, encode)
        list(submit(check_foreign, [(k, *how) for k in shards if k not in mine]))
        calls = [(k, *how) for k in mine]
        for receipt in submit(write_shard, calls):
            skips.update(Skips(receipt["skipped"], receipt["examples"]))
            bar.update(receipt["pictures"])
            missing += receipt["pictures"] - receipt["samples"]
            if missing > max_skip_fraction * total:
                raise TooManySkips(
                    f"expected at most {max_skip_fraction:.0%} of {total} pictures unusable, "
                    f"got {missing} so far, in {folder.name}: {skips}"
                )
    return skips


def prepare_folder(
    source: Source, out: Path, samples_per_shard: int, options: Mapping[str, Any] = {}
) -> Path:
    """Make the source's folder and say in ``source.json`` what its shards are made of.

    Raises:
        ShardError: the folder holds shards of other inputs or options.
    """
    if samples_per_shard < 1:
        raise UnigsError(f"expected samples_per_shard of at least 1, got {samples_per_shard}")
    folder = out / (name := name_folder(source.name, source.split))
    if not (is_name(name) and is_name(source.name) and is_name(source.split)):
        raise ShardError(f"expected a source whose name a file can have, got {name!a}")
    content = {
        "source": source.name,
        "split": source.split,
        "licence": source.licence,
        "categories": list(source.categories),
        "options": {"samples_per_shard": samples_per_shard, **options},
        "pictures": len(source),
        "keys_sha256": hashlib.sha256("\n".join(source.keys).encode()).hexdigest(),
        "skipped_by_index": dict(sorted(source.skips.counts.items())),
        "inputs": hash_files(source),
    }
    (folder / RECEIPTS).mkdir(parents=True, exist_ok=True)
    path = folder / SOURCE_NAME
    with lock_file(folder / ".source.lock", "unigs shards", wait=True):
        came = read_json(path) if path.exists() else None
        if came is not None:
            refuse_mixture({"inputs": content["inputs"], **came}, content, folder)
        if came != content:
            write_json(path, content)
    return folder


def refuse_mixture(known: dict[str, Any], content: dict[str, Any], folder: Path) -> None:
    """Shards of other inputs or options may not lie in one folder with these.

    Raises:
        ShardError: names what is another, and what to do.
    """
    other = sorted(key for key in content if known.get(key) != content[key])
    if not other:
        return
    files = list_changes(dict(known["inputs"]), content["inputs"])
    changed = f" (changed: {', '.join(files)})" if files else ""
    raise ShardError(
        f"expected a folder for the same input, got another {other}{changed}, at {folder}; "
        f"{HOW_TO_GO_ON}"
    )


def write_shard(
    k: int, folder: Path, samples_per_shard: int, check: Check, encode: Encode
) -> dict[str, Any]:
    """Write shard ``k`` unless it is there, whole, and of the same inputs; return its receipt.

    Raises:
        DiskFull: with nothing lost.
        ShardError: the disk gave back other bytes than were written, or a finished shard is of
            other pictures or annotations.
        FolderBusy: another process is at this shard.
    """
    source = get_source()
    wanted = pick_samples(len(source), samples_per_shard, k)
    path = folder / name_shard(folder.name, k)
    with lock_file(folder / RECEIPTS / f"{path.name}.lock", f"a writer of {path.name}"):
        known = find_receipt(folder, path.name)
        stamp = stamp_inputs(source, wanted)  # before a byte is read: what changes later is seen
        kept = known is not None and check == "time" and is_unchanged(known.get("inputs"), stamp)
        if known and kept and hash_file(path) == known["sha256"]:
            return known
        for left in folder.glob(f"{path.name}.*.tmp"):
            left.unlink(missing_ok=True)  # of a process killed while it held the lock
        with new_file(path) as temp:
            filled = fill_shard(source, wanted, temp, encode)
            receipt = {"name": path.name, **filled, "inputs": stamp}
            if known and known["sha256"] != receipt["sha256"]:
                refuse_other(known, receipt, [source.keys[i] for i in wanted], str(folder))
            if (came := hash_file(temp)) != receipt["sha256"]:
                raise ShardError(f"expected sha256 {receipt['sha256']} back, got {came}, at {temp}")
        write_json(folder / RECEIPTS / f"{path.name}.json", receipt)
    return receipt


def check_foreign(
    k: int, folder: Path, samples_per_shard: int, check: Check, encode: Encode
) -> None:
    """Refuse to go on beside a finished shard of another part that is of other inputs.

    Raises:
        ShardError: it is.
    """
    source, name = get_source(), name_shard(folder.name, k)
    known = find_receipt(folder, name)
    if known is None:
        return
    wanted = pick_samples(len(source), samples_per_shard, k)
    stamp = stamp_inputs(source, wanted)
    if check == "time" and is_unchanged(known.get("inputs"), stamp, foreign=True):
        return
    receipt = fill_shard(source, wanted, Path(os.devnull), encode)
    if known["sha256"] != receipt["sha256"]:
        refuse_other(known, receipt, [source.keys[i] for i in wanted], str(folder))


def find_receipt(folder: Path, name: str) -> dict[str, Any] | None:
    """The receipt of a shard, or None if it is not finished, or its receipt is damaged."""
    with suppress(ShardError):
        return read_receipt(folder, name)
    return None


def fill_shard(source: Source, wanted: range, temp: Path, encode: Encode) -> dict[str, Any]:
    """Write samples to a tar, synced, and return what a receipt says of it."""
    skips, rows, digest, size = Skips(), [], hashlib.sha256(), 0
    with open(temp, "wb") as file:
        heed_stop()
        for key, span in encode(source, wanted, skips):
            heed_stop()
            if len(span) > MAX_SAMPLE_BYTES:
                skips.add(f"sample larger than {MAX_SAMPLE_BYTES >> 20} MiB", key)
                continue
            rows.append((size // BLOCK, len(span) // BLOCK, zlib.crc32(span), hash_key(key)))
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
