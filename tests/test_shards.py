"""Laws of shards: what goes in comes out, the same bytes from any process count, kill or part."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import webdataset
from shard_fixtures import DrawnSource

from unigs.records import Annotated, Skips, TooManySkips, UnigsError
from unigs.shards import (
    DiskFull,
    ShardError,
    ShardReader,
    merge_shards,
    read_manifest,
    read_manifests,
    verify_shards,
)
from unigs.shards.samples import (
    decode_labels,
    decode_sample,
    encode_labels,
    encode_member,
    encode_sample,
)
from unigs.shards.write import read_part, write_source


def write_all(out: Path, sources, samples_per_shard=4, parts=1, workers=1) -> None:
    for part in range(1, parts + 1):
        for source in sources:
            write_source(source, out, samples_per_shard, workers, (part, parts), 1.0)
    merge_shards(str(out))


def read_tree(out: Path) -> dict[str, bytes]:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    return {str(path.relative_to(out)): path.read_bytes() for path in files}


def load_all(source: DrawnSource) -> list[Annotated]:
    loaded = (source.load(i, Skips()) for i in range(len(source)))
    return [sample for sample in loaded if sample is not None]


def assert_same(a: Annotated, b: Annotated) -> None:
    fields = ("key", "image", "entities", "unlabelled", "source")
    assert [getattr(a, field) for field in fields] == [getattr(b, field) for field in fields]
    assert a.labels.dtype == b.labels.dtype
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.fixture
def drawn() -> list[DrawnSource]:
    return [DrawnSource("coco", 11, skip_every=4), DrawnSource("openimages", 3)]


def test_what_was_written_is_read(tmp_path, drawn):
    write_all(tmp_path, drawn)
    manifests = read_manifests(tmp_path)
    reader = ShardReader(manifests, open_files=1)
    assert sorted(manifests) == ["coco-train", "openimages-train"]
    for source in drawn:
        manifest = manifests[f"{source.name}-train"]
        places = [(k, j) for k, count in enumerate(manifest.sizes) for j in range(count)]
        expected = load_all(source)
        assert len(manifest) == len(places) == len(expected)
        for sample, place in zip(expected, places, strict=True):
            assert_same(sample, reader.read(manifest.name, *place))
        assert manifest.licence == source.licence
        assert manifest.categories == tuple(source.categories)
    assert manifests["coco-train"].skipped == {"drawn to be skipped": 3}


def test_stock_webdataset_reads_the_shards(tmp_path, drawn):
    write_all(tmp_path, drawn)
    for source in drawn:
        tars = sorted(map(str, tmp_path.glob(f"{source.name}-train/*.tar")))
        stock = webdataset.WebDataset(tars, shardshuffle=False, empty_check=False)
        for sample, found in zip(load_all(source), stock, strict=True):
            image = {field for field in found if field in ("jpg", "png")}
            assert found["__key__"] == sample.key
            assert found[image.pop()] == sample.image
            assert not image
            np.testing.assert_array_equal(decode_labels(found["labels.png"]), sample.labels)
            assert len(json.loads(found["json"])["entities"]) == len(sample.entities)


@pytest.mark.parametrize("top", [0, 255, 256, 65535])
def test_label_maps_of_any_depth_survive(top):
    labels = np.random.default_rng(0).integers(0, top + 1, (13, 7)).astype(np.uint16)
    labels[3, 4] = top
    for order in "CF":
        np.testing.assert_array_equal(
            decode_labels(encode_labels(np.array(labels, order=order))), labels
        )


def test_bytes_depend_neither_on_processes_nor_on_parts(tmp_path, drawn):
    write_all(tmp_path / "one", drawn)
    write_all(tmp_path / "two", drawn, workers=2)
    write_all(tmp_path / "parts", drawn, parts=3)
    write_all(tmp_path / "one", drawn)  # again over itself
    expected = read_tree(tmp_path / "one")
    assert read_tree(tmp_path / "two") == expected
    assert read_tree(tmp_path / "parts") == expected
    other = [DrawnSource("coco", 11, size_px=17, skip_every=4), drawn[1]]
    write_all(tmp_path / "other", other)
    assert read_tree(tmp_path / "other") != expected


def test_parts_must_be_complete_before_they_merge(tmp_path, drawn):
    write_source(drawn[0], tmp_path, 2, 1, (1, 2), 1.0)
    with pytest.raises(ShardError, match="run the remaining parts"):
        merge_shards(str(tmp_path))
    with pytest.raises(ShardError, match="an unfinished one"):
        read_manifests(tmp_path)
    write_source(drawn[0], tmp_path, 2, 1, (2, 2), 1.0)
    merge_shards(str(tmp_path))
    verify_shards(str(tmp_path))


def test_other_input_is_not_mixed_into_a_folder(tmp_path, drawn):
    write_all(tmp_path, drawn)
    with pytest.raises(ShardError, match=r"\['options'\]"):
        write_all(tmp_path, drawn, samples_per_shard=5)
    with pytest.raises(ShardError, match=r"\['keys_sha256', 'pictures'\]"):
        write_all(tmp_path, [DrawnSource("coco", 12, skip_every=4)])


def test_a_shard_changed_after_its_receipt_is_written_again(tmp_path, drawn):
    write_all(tmp_path, drawn)
    expected = read_tree(tmp_path)
    shards = sorted(tmp_path.glob("coco-train/*.tar"))
    shards[0].write_bytes(shards[0].read_bytes()[:-700])
    shards[1].unlink()
    write_all(tmp_path, drawn)
    assert read_tree(tmp_path) == expected


@pytest.mark.parametrize("count", [0, 2])
def test_sources_that_give_nothing_make_empty_shards(tmp_path, count):
    source = DrawnSource("coco", count)
    source.load = lambda i, skips: skips.add("nothing here", str(i))  # type: ignore[method-assign]
    write_all(tmp_path, [source])
    manifest = read_manifests(tmp_path)["coco-train"]
    assert manifest.sizes == [0]
    verify_shards(str(tmp_path))


def test_too_many_skips_stop_the_writing_and_are_told(tmp_path):
    with pytest.raises(TooManySkips, match="3 x drawn to be skipped"):
        write_source(DrawnSource("coco", 11, skip_every=4), tmp_path, 11, 1)


def try_to_write(out: Path, sources) -> str:
    try:
        write_all(out, sources)
    except DiskFull as error:
        return str(error)
    return "done"


def test_a_full_disk_is_told_and_loses_nothing(tmp_path, drawn, monkeypatch):
    room = [3]

    def fill_up(descriptor: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill_up)
    told = []
    while "done" not in told:
        told.append(try_to_write(tmp_path / "full", drawn))
        room[0] = 2 + len(told)  # room for a little more
        assert not list(tmp_path.rglob("*.tmp"))
    assert len(told) > 3
    assert all("run the same command again" in words for words in told[:-1])
    monkeypatch.undo()
    write_all(tmp_path / "roomy", drawn)
    assert read_tree(tmp_path / "full") == read_tree(tmp_path / "roomy")


WRITER = textwrap.dedent("""
    import sys, time
    from pathlib import Path
    sys.path.insert(0, sys.argv[2])
    from shard_fixtures import DrawnSource
    from unigs.shards import merge_shards
    from unigs.shards.write import write_source

    class Slow(DrawnSource):
        def load(self, i, skips):
            time.sleep(0.002)
            return super().load(i, skips)

    print("ready", flush=True)
    write_source(Slow("coco", 120, skip_every=7), sys.argv[1], 10, 2, (1, 1), 1.0)
    merge_shards(sys.argv[1])
    print("done", flush=True)
""")


def start_writer(out: Path, **options) -> subprocess.Popen:
    script = [sys.executable, "-c", WRITER, str(out), str(Path(__file__).parent)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    writer = subprocess.Popen(script, start_new_session=True, **pipes, **options)
    assert writer.stdout.readline() == b"ready\n"
    return writer


def kill_until_done(out: Path, kills: int, seed: int) -> None:
    """Kill the writer and its workers at random moments, then let it end."""
    chance = random.Random(seed)
    for _ in range(kills):
        writer = start_writer(out)
        time.sleep(chance.uniform(0.0, 0.3))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(writer.pid, signal.SIGKILL)
        writer.communicate()
    writer = start_writer(out)
    assert writer.communicate()[0].endswith(b"done\n")


def check_kills(tmp_path: Path, rounds: int) -> None:
    writer = start_writer(tmp_path / "whole")
    assert writer.communicate()[0].endswith(b"done\n")
    expected = read_tree(tmp_path / "whole")
    for seed in range(rounds):
        kill_until_done(tmp_path / str(seed), kills=2, seed=seed)
        assert read_tree(tmp_path / str(seed)) == expected
        verify_shards(str(tmp_path / str(seed)))


def test_killed_writers_leave_the_same_bytes_in_the_end(tmp_path):
    check_kills(tmp_path, rounds=1)


@pytest.mark.slow
def test_many_killed_writers_leave_the_same_bytes_in_the_end(tmp_path):
    check_kills(tmp_path, rounds=15)


def test_workers_end_with_a_killed_parent(tmp_path):
    writer = start_writer(tmp_path)
    group = lambda: subprocess.run(
        ["ps", "-o", "pid=", "-g", str(writer.pid)], capture_output=True, text=True
    ).stdout.split()
    deadline = time.monotonic() + 10
    while len(group()) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    writer.kill()
    writer.communicate()
    while group() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not group()


@pytest.mark.parametrize("key", ["a.b", "a/b", "", "k" * 90])
def test_keys_that_webdataset_would_cut_are_refused(key):
    sample = DrawnSource("coco", 1).load(0, Skips())
    with pytest.raises(UnigsError, match="expected a key"):
        encode_sample(Annotated(key, sample.image, sample.labels, (), "void", "coco"))


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    source = DrawnSource("coco", 9)
    source.keys[7] = source.keys[1]
    with pytest.raises(
        ShardError, match=r"twice, in \['coco-train-000000.tar', 'coco-train-000001"
    ):
        write_all(tmp_path, [source])


@pytest.mark.parametrize("part", ["0/3", "4/3", "1", "a/b", "1/0"])
def test_parts_are_checked(part):
    with pytest.raises(UnigsError, match="expected a part"):
        read_part(part)


@pytest.mark.parametrize("name", ["k.json", "other.txt", "k.jpeg"])
def test_members_that_are_no_sample_are_named(name):
    span = encode_sample(DrawnSource("coco", 1).load(0, Skips())) + encode_member(name, b"{}")
    with pytest.raises(UnigsError, match="of one key"):
        decode_sample(span, "in a test")


def test_manifest_of_another_format_is_refused(tmp_path, drawn):
    write_all(tmp_path, drawn)
    path = tmp_path / "coco-train" / "manifest.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 9'))
    with pytest.raises(ShardError, match="format 1, got 9"):
        read_manifest(path.parent)
