"""Mutants of shards: any bytes give a record, a word or a count, in bounded memory and time.

Slow: ``UNIGS_FUZZ_S`` says for how many seconds (60), ``UNIGS_FUZZ_SEED`` where chance begins.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import resource
import shutil
import signal
import tarfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shard_fixtures import DrawnSource
from test_shards import write_all

from unigs.records import UnigsError
from unigs.remote import Cache
from unigs.shards import DamagedSample, ShardReader, merge_shards, read_manifests, verify_shards
from unigs.shards.manifest import digest_manifest
from unigs.shards.samples import decode_sample, encode_member

FOLDER = "coco-train"
MUTANT_S = 10
MUTANT_BYTES = 1 << 30
VALUES: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**400, 0.5, 1e308, float("nan")),
    *("", "a", "..", "../x", "/etc/passwd", "a\0b", "a\nb", "\ud800", "x" * 5000, "{names}"),
    *("0" * 64, [], {}, [[]], {"": {}}, [None] * 1000, [[[[[[]]]]]]),
]
BYTES = [
    *(b"", b"\0", b"\xff" * 9, b"[" * 50_000, b"9" * 6000, b"NaN", b"1e999", b"\\ud800"),
    *(b"{}", b"[]", b"null", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xc0", bytes(512), b"../../x"),
]


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """Flip, cut, repeat, insert, swap."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(out) + 1)
        to = min(len(out), at + chance.choice((1, 4, 64, 512, 5000)))
        kind = chance.randrange(6)
        if kind == 0 and at < len(out):
            out[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[at:to]
        elif kind == 2:
            out[at:at] = out[at:to]
        elif kind == 3:
            out[at:at] = chance.choice(BYTES)
        elif kind == 4:
            out[at:to] = chance.randbytes(to - at)
        else:
            del out[at:]
    return bytes(out)


def mutate_tree(content: Any, chance: random.Random) -> Any:
    """Replace, remove, repeat or rename something somewhere in a JSON value."""
    if not content or not isinstance(content, dict | list) or chance.random() < 0.15:
        return chance.choice(VALUES)
    if isinstance(content, list):
        place = chance.randrange(len(content))
        kind = chance.random()
        if kind < 0.15:
            return content[:place] + content[place + 1 :]
        if kind < 0.3:
            return content + [content[place]] * chance.choice((1, 3, 1000))
        return [*content[:place], mutate_tree(content[place], chance), *content[place + 1 :]]
    key = chance.choice(list(content))
    kind = chance.random()
    if kind < 0.15:
        return {k: v for k, v in content.items() if k != key}
    if kind < 0.25:
        return {**content, chance.choice(("x", "", "\ud800", key + "s")): content[key]}
    return {**content, key: mutate_tree(content[key], chance)}


def rewrite_json(path: Path, chance: random.Random) -> None:
    """A change of structure, with a digest that says that all is well."""
    content = mutate_tree(json.loads(path.read_text()), chance)
    if path.name == "manifest.json" and isinstance(content, dict) and chance.random() < 0.9:
        content.setdefault("digest", digest_manifest(content))
        content["digest"] = digest_manifest(content)
    path.write_text(json.dumps(content))


def rewrite_index(folder: Path, chance: random.Random) -> None:
    """Other rows, with a checksum that is right."""
    rows = np.load(folder / "index.npy")
    for _ in range(chance.choice((1, 3))):
        field = chance.choice(rows.dtype.names)
        rows[field][chance.randrange(len(rows))] = chance.choice((0, 1, 7, 2**16, 2**32 - 1))
    out = io.BytesIO()
    np.save(out, chance.choice((rows, rows, rows[:-1], rows["crc"], rows[None])))
    data = out.getvalue() if chance.random() < 0.7 else mutate_bytes(out.getvalue(), chance)
    (folder / "index.npy").write_bytes(data)
    sign_index(folder, data)


def sign_index(folder: Path, data: bytes) -> None:
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["index_sha256"] = hashlib.sha256(data).hexdigest()
    content["digest"] = digest_manifest(content)
    path.write_text(json.dumps(content))


def mutate_members(span: bytes, chance: random.Random) -> bytes:
    """One sample with other members, or the same ones damaged inside of valid headers."""
    with tarfile.open(fileobj=io.BytesIO(span + bytes(1024))) as tar:
        members = [(m.name, tar.extractfile(m).read()) for m in tar.getmembers()]
    place = chance.randrange(len(members))
    name, data = members[place]
    kind = chance.random()
    if name.endswith(".json") and kind < 0.8:
        data = json.dumps(mutate_tree(json.loads(data), chance)).encode()
    elif kind < 0.8:
        data = mutate_bytes(data, chance)
    elif kind < 0.9:
        data = chance.choice([payload for _, payload in members])
    else:
        name = chance.choice(("k.json", "a.b.c", ".json", "x/y.jpg", name.upper()))
    members[place] = name, data
    if chance.random() < 0.1:
        members.append(chance.choice(members))
    return b"".join(encode_member(name, data) for name, data in members)


def read_all(root: str, cache: Cache | None = None) -> Counter[str]:
    """What a run would do with the shards: outcomes by name."""
    manifests = read_manifests(root, cache=cache)
    reader, outcomes = ShardReader(manifests), Counter[str]()
    for name, manifest in manifests.items():
        for k, count in enumerate(manifest.sizes):
            for j in range(min(count, 20)):
                try:
                    record = reader.read(name, k, j)
                    assert int(record.labels.max(initial=0)) <= len(record.entities)
                    outcomes["read"] += 1
                except DamagedSample:
                    outcomes["counted"] += 1
    reader.close()
    return outcomes


def mutate_folder(out: Path, chance: random.Random) -> None:
    """One to three changes anywhere in a folder of shards."""
    for _ in range(chance.choice((1, 1, 2, 3))):
        files = [path for path in out.rglob("*") if path.is_file()]
        path = chance.choice(files)
        kind = chance.random()
        try:
            if path.suffix == ".json" and kind < 0.7:
                rewrite_json(path, chance)
            elif path.name == "index.npy" and kind < 0.8:
                rewrite_index(path.parent, chance)
            else:
                path.write_bytes(mutate_bytes(path.read_bytes(), chance))
        except Exception:
            continue  # a mutant of a mutant, of a form that cannot be mutated further


def judge(work: Callable[[], Any]) -> str:
    """The outcome of one mutant within its time; anything but words fails the test."""
    started = time.monotonic()
    outcome, words = "read", ""
    signal.signal(signal.SIGALRM, end_mutant)
    signal.alarm(MUTANT_S * 3)
    try:
        work()
    except UnigsError as error:
        outcome, words = type(error).__name__, str(error)
    finally:
        signal.alarm(0)
    assert len(words) < 20_000
    assert time.monotonic() - started < MUTANT_S
    return outcome


def end_mutant(*_: Any) -> None:
    """A mutant that hangs shows where."""
    raise AssertionError(f"expected an end within {3 * MUTANT_S} s")


@pytest.fixture
def bounded():
    """Memory of this process may grow by ``MUTANT_BYTES``, and by no more."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MUTANT_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


@pytest.mark.slow
def test_mutants_of_shards_give_words_and_counts(tmp_path, bounded):
    write_all(tmp_path / "whole", [DrawnSource("coco", 8)])
    manifest = read_manifests(tmp_path / "whole")[FOLDER]
    reader = ShardReader({FOLDER: manifest})
    spans = [reader.read_span(FOLDER, k, j) for k in (0, 1) for j in range(4)]
    seed = int(os.environ.get("UNIGS_FUZZ_SEED", "0"))
    ends = time.monotonic() + float(os.environ.get("UNIGS_FUZZ_S", "60"))
    outcomes: Counter[str] = Counter()
    while time.monotonic() < ends:
        chance = random.Random(seed)
        try:
            outcomes[mutate_once(tmp_path, spans, chance)] += 1
        except BaseException:
            print(f"mutant {seed} failed")
            raise
        seed += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"\n{outcomes.total()} mutants: {dict(outcomes)}; peak {peak} MiB")
    assert outcomes.total() > 10
    assert peak < 1024


def mutate_once(work: Path, spans: list[bytes], chance: random.Random) -> str:
    """Make one mutant and look at it."""
    if chance.random() < 0.6:
        span = chance.choice(spans)
        few = chance.random() < 0.3
        span = mutate_bytes(span, chance) if few else mutate_members(span, chance)
        return judge(lambda: decode_sample(span, "here"))
    out = work / "mutant"
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(work / "whole", out)
    mutate_folder(out, chance)
    kind = chance.random()
    if kind < 0.5:
        return judge(lambda: read_all(str(out)))
    if kind < 0.65:
        return judge(lambda: verify_shards(str(out)))
    if kind < 0.8:
        return judge(lambda: merge_shards(str(out)))
    shutil.rmtree(work / "cache", ignore_errors=True)
    before = {path for path in work.iterdir()}
    cache = Cache(work / "cache", attempts=1, timeout_s=2, window_s=1)
    outcome = judge(lambda: read_all(f"file://{out}", cache))
    assert {path for path in work.iterdir()} <= before | {work / "cache"}
    return outcome


def test_mutants_are_mutants():
    """The mutators change what they are given, and the same chance gives the same mutant."""
    data = base64.b64encode(bytes(range(256)))
    changed = [mutate_bytes(data, random.Random(seed)) for seed in range(50)]
    assert len(set(changed)) > 40
    assert changed[7] == mutate_bytes(data, random.Random(7))
    trees = [repr(mutate_tree({"a": [1, {"b": 2}]}, random.Random(seed))) for seed in range(50)]
    assert len(set(trees)) > 25
