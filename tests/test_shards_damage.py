"""Law 4: whatever is damaged in a folder of shards is named, and never read as a short success."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from shard_fixtures import DrawnSource
from test_shards import write_all

from unigs.shards import DamagedSample, ShardError, ShardReader, read_manifest, verify_shards

FOLDER = "coco-train"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    write_all(out, [DrawnSource("coco", 8), DrawnSource("other", 8)])
    return out


@pytest.fixture
def shards(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "shards"))


def list_unreadable(folder: Path) -> set[tuple[int, int]]:
    """Samples whose reading is refused; all others are read whole."""
    manifest = read_manifest(folder)
    reader, refused = ShardReader({manifest.name: manifest}), set()
    for k, count in enumerate(manifest.sizes):
        for j in range(count):
            told = try_to_read(reader, manifest.name, k, j)
            if told:
                assert f"sample {j} of {folder}/{manifest.shards[k].name}" in told
                refused.add((k, j))
    return refused


def try_to_read(reader: ShardReader, *place) -> str:
    try:
        reader.read(*place)
    except DamagedSample as error:
        return str(error)
    return ""


def assert_verify_names(out: Path, words: str) -> None:
    with pytest.raises(ShardError, match=words):
        verify_shards(str(out))


def flip_everywhere(shards: Path, offsets) -> None:
    """One bit per offset in turn: exactly the sample around it is refused, and verify names it."""
    folder = shards / FOLDER
    manifest = read_manifest(folder)
    path = folder / manifest.shards[0].name
    whole = path.read_bytes()
    spans = [manifest.span(0, j)[:2] for j in range(manifest.sizes[0])]
    for offset in offsets:
        damaged = bytearray(whole)
        damaged[offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        hit = {(0, j) for j, (start, size) in enumerate(spans) if start <= offset < start + size}
        assert list_unreadable(folder) == hit
        expected = f"in samples \\[{min(hit)[1]}\\]" if hit else "after the last sample"
        assert_verify_names(shards, f"{path.name}: changed {expected}")


def test_a_flipped_bit_in_any_block_is_found(shards):
    size = (shards / FOLDER / f"{FOLDER}-000000.tar").stat().st_size
    flip_everywhere(shards, range(37, size, 512 * 5 + 111))


@pytest.mark.slow
def test_a_flipped_bit_in_every_region_is_found(shards):
    size = (shards / FOLDER / f"{FOLDER}-000000.tar").stat().st_size
    flip_everywhere(shards, range(0, size, 61))


def test_a_cut_at_any_block_is_found(shards):
    folder = shards / FOLDER
    manifest = read_manifest(folder)
    path = folder / manifest.shards[0].name
    whole = path.read_bytes()
    ends = [sum(manifest.span(0, j)[:2]) for j in range(manifest.sizes[0])]
    for size in [*range(0, len(whole), 1536), *ends]:
        path.write_bytes(whole[:size])
        assert list_unreadable(folder) == {(0, j) for j, end in enumerate(ends) if end > size}
        assert_verify_names(shards, f"{path.name}: {size} bytes instead of {len(whole)}")


def test_a_missing_shard_is_named(shards):
    manifest = read_manifest(shards / FOLDER)
    (shards / FOLDER / manifest.shards[1].name).unlink()
    with pytest.raises(ShardError, match=f"{FOLDER}-000001.tar"):
        ShardReader({FOLDER: manifest}).read(FOLDER, 1, 0)
    assert_verify_names(shards, f"{FOLDER}-000001.tar: missing")


def test_a_foreign_shard_is_found(shards):
    mine, other = (shards / name / f"{name}-000000.tar" for name in (FOLDER, "other-train"))
    shutil.copy(other, mine.with_name("other-train-000000.tar"))
    assert_verify_names(shards, "other-train-000000.tar: foreign")
    mine.with_name("other-train-000000.tar").unlink()
    shutil.copy(other, mine)
    assert list_unreadable(shards / FOLDER) == {(0, j) for j in range(4)}
    assert_verify_names(shards, f"{mine.name}: ")


def test_all_damage_is_told_at_once(shards):
    (shards / FOLDER / f"{FOLDER}-000000.tar").unlink()
    (shards / "other-train" / "other-train-000001.tar").write_bytes(b"")
    assert_verify_names(shards, "got 2 damaged: .*coco.*missing.*other.*0 bytes")


def test_a_folder_that_the_root_does_not_name_is_found(shards):
    shutil.copytree(shards / FOLDER, shards / "stray-train")
    assert_verify_names(shards, "stray-train: a folder of shards that folders.json does not name")


@pytest.mark.parametrize("name", ["manifest.json", "index.npy"])
def test_any_damage_of_manifest_or_index_is_refused(shards, name):
    path = shards / FOLDER / name
    whole = path.read_bytes()
    remark = whole.find(b'"written_by"')  # says who, not what: no part of the digest
    for offset in range(0, len(whole), 7):
        if 0 <= remark < offset < remark + 40:
            continue
        damaged = bytearray(whole)
        damaged[offset] ^= 2
        path.write_bytes(damaged)
        with pytest.raises(ShardError):
            read_manifest(path.parent)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError):
        read_manifest(path.parent)
    path.unlink()
    with pytest.raises(ShardError, match=name):
        read_manifest(path.parent)


def test_an_empty_folder_says_what_writes_shards(tmp_path):
    with pytest.raises(ShardError, match=r"nothing such.*unigs shards"):
        verify_shards(str(tmp_path))
