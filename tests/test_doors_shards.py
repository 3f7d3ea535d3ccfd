"""Manifests, indexes, receipts and samples of a stranger: read, counted, or refused in words."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from shard_fixtures import DrawnSource
from test_shards import write_all

from unigs.records import Skips
from unigs.shards import (
    DamagedSample,
    ShardError,
    ShardReader,
    merge_shards,
    read_manifest,
    read_manifests,
    verify_shards,
)
from unigs.shards.files import MAX_JSON_BYTES
from unigs.shards.manifest import ROW, digest_manifest
from unigs.shards.samples import MAX_SAMPLE_BYTES, decode_sample, encode_member, encode_sample
from unigs.shards.schema import MAX_SAMPLES

FOLDER = "coco-train"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    write_all(out, [DrawnSource("coco", 8)])
    return out


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "shards")) / FOLDER


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a manifest as a stranger does who knows how digests are made."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    edit(content)
    content["digest"] = digest_manifest(content)
    path.write_text(json.dumps(content))


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    """An edit: the value at the end goes to the place before it."""

    def edit(content: Any) -> None:
        for key in path[:-2]:
            content = content[key]
        content[path[-2]] = path[-1]

    return edit


WRONG = {
    "source": [None, 7, "a/b", "..", ".hidden", "a\0b", "a\nb", "", "x" * 300, "\ud800", "a::b"],
    "split": [None, [], "../up", "/etc"],
    "licence": [None, 7, [], "\udfff"],
    "categories": [None, {}, "x", [7], [{}], [{"id": 1, "name": "a", "is_thing": None}]],
    "options": [None, [], {}, {"samples_per_shard": 0}, {"samples_per_shard": True}],
    "skipped": [None, [], {"a": -1}, {"a": 1.5}, {"a": "1"}],
    "samples": [None, -8, 8.0, "8", True, 7, 9, MAX_SAMPLES + 1, 10**18],
    "index_sha256": [None, 7, "", "0" * 63, "G" * 64, "../victim/" + "b" * 54, "A" * 64, "0" * 64],
    "shards": [None, {}, [], [7], [None], "x"],
}
WRONG_SHARD = {
    "name": [None, 7, "", ".", "..", "../a.tar", "/etc/passwd", "a/b.tar", "a\\b", "a\0", ".a"],
    "samples": [None, -4, 4.0, "4", True, 10**30],
    "bytes": [None, -512, 511, 1.5, "512", True, 1 << 60, 0, 512],
    "sha256": [None, "", "0" * 63, "z" * 64, "../" + "0" * 61, 0],
}
LIES = [(*("shards", 0, field), value) for field, row in WRONG_SHARD.items() for value in row]
LIES += [(field, value) for field, row in WRONG.items() for value in row]


@pytest.mark.parametrize("lie", LIES, ids=ascii)
def test_a_field_of_another_type_or_bound_is_refused(folder, lie):
    change(folder, put(*lie))
    with pytest.raises(ShardError, match=r"expected .*, got .* at "):
        read_manifest(folder)


def test_fields_that_lack_or_repeat_are_refused(folder):
    whole = (folder / "manifest.json").read_bytes()
    for field in WRONG:
        (folder / "manifest.json").write_bytes(whole)
        change(folder, lambda content, field=field: content.pop(field))
        with pytest.raises(ShardError, match=f"expected {field}: .* got nothing"):
            read_manifest(folder)
    for edit in (
        lambda content: content["shards"][1].update(name=content["shards"][0]["name"]),
        lambda content: content["shards"][0].update(url="elsewhere"),
        lambda content: content["categories"].append(content["categories"][0]),
    ):
        (folder / "manifest.json").write_bytes(whole)
        change(folder, edit)
        with pytest.raises(ShardError, match="expected"):
            read_manifest(folder)


def limit_memory(extra: int) -> tuple[int, int]:
    """Let this process grow by so many bytes; what to put back."""
    old = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + extra, old[1]))
    return old


@pytest.fixture
def little_memory():
    old = limit_memory(96 << 20)
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


ENDLESS = {
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "deep inside": b'{"format": 1, "categories": ' + b"[" * 500 + b"]" * 500 + b"}",
    "digits": b'{"format": ' + b"9" * 6000 + b"}",
    "not a number": b'{"format": NaN}',
    "infinite": b'{"format": 1e999}',
    "no text": b"\xff\xfe{}",
    "a list": b"[]",
    "nothing": b"",
    "zeros": bytes(1000),
    "a truth": b'{"format": true}',
}


@pytest.mark.parametrize("file", ["coco-train/manifest.json", "folders.json"])
@pytest.mark.parametrize("content", ENDLESS.values(), ids=ENDLESS)
def test_json_of_any_depth_and_length_gives_words(folder, file, content):
    (folder.parent / file).write_bytes(content)
    with pytest.raises(ShardError, match="expected"):
        read_manifests(folder.parent)


@pytest.mark.parametrize("name", ["manifest.json", "index.npy"])
def test_what_never_ends_is_refused_unread(folder, little_memory, name):
    path = folder / name
    with open(path, "r+b") as file:
        file.truncate(1 << 40)  # a sparse file: a terabyte to who reads it
    with pytest.raises(ShardError, match="file too large"):
        read_manifest(folder)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir):
        path.rmdir() if path.is_dir() else path.unlink()
        make(path)
        with pytest.raises(ShardError, match="expected"):
            read_manifest(folder)


@pytest.mark.parametrize(
    "names",
    [None, {}, [7], ["../up"], ["/etc"], [".."], ["a/b"], [".a"], [""], ["a\0"], ["a", "a"]],
    ids=ascii,
)
def test_folders_are_plain_names(folder, names):
    (folder.parent / "folders.json").write_text(json.dumps({"folders": names}))
    with pytest.raises(ShardError, match="expected folders: plain names"):
        read_manifests(folder.parent)


def test_a_shard_is_a_plain_file_of_its_folder(folder, tmp_path):
    manifest = read_manifest(folder)
    path = folder / manifest.shards[0].name
    outside = path.rename(tmp_path / "outside.tar")
    path.symlink_to(outside)
    with pytest.raises(ShardError, match="link leaves its folder"):
        ShardReader({FOLDER: manifest}).read(FOLDER, 0, 0)
    with pytest.raises(ShardError, match="link leaves its folder"):
        verify_shards(str(folder.parent))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ShardError, match="no plain file"):
        ShardReader({FOLDER: manifest}).read(FOLDER, 0, 0)
    with pytest.raises(ShardError, match="no plain file"):
        verify_shards(str(folder.parent))


# --- rows of the index ---------------------------------------------------------------------------


def rewrite_index(folder: Path, edit: Callable[[np.ndarray], Any]) -> None:
    rows = np.load(folder / "index.npy")
    edit(rows)
    np.save(folder / "index.npy", rows)
    digest = hashlib.sha256((folder / "index.npy").read_bytes()).hexdigest()
    change(folder, put("index_sha256", digest))


def give(field: str, place: int, value: int) -> Callable[[np.ndarray], None]:
    return lambda rows: rows[field].__setitem__(place, value)


@pytest.mark.parametrize(
    "edit",
    [
        give("block", 0, 1),
        give("block", 3, (1 << 32) - 1),
        give("blocks", 3, (1 << 32) - 1),
        give("blocks", 7, 1 << 20),
        give("blocks", 2, 0),
        lambda rows: rows["block"].__setitem__(slice(None), 0),
        lambda rows: rows.__setitem__(slice(None), rows[::-1].copy()),
    ],
)
def test_rows_that_lead_out_of_their_shard_are_refused(folder, edit):
    rewrite_index(folder, edit)
    with pytest.raises(ShardError, match="one behind the other"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "array",
    [np.zeros(7, ROW), np.zeros(9, ROW), np.zeros((2, 4), ROW), np.zeros(8, "V20"), np.zeros(20)],
    ids=str,
)
def test_an_index_of_another_form_is_refused(folder, array):
    np.save(folder / "index.npy", array)
    digest = hashlib.sha256((folder / "index.npy").read_bytes()).hexdigest()
    change(folder, put("index_sha256", digest))
    with pytest.raises(ShardError, match="expected"):
        read_manifest(folder)


# --- one sample ----------------------------------------------------------------------------------


def make_members(**changed: bytes) -> dict[str, bytes]:
    """The files of a good sample of 3 entities, some replaced."""
    sample = DrawnSource("coco", 3).load(2, Skips())
    span = encode_sample(sample)
    with tarfile.open(fileobj=io.BytesIO(span + bytes(1024))) as tar:
        found = {m.name.partition(".")[2]: tar.extractfile(m).read() for m in tar.getmembers()}
    return {**found, **changed}


def make_span(members: dict[str, bytes], key: str = "k") -> bytes:
    return b"".join(encode_member(f"{key}.{ext}", data) for ext, data in members.items())


def test_the_members_that_are_changed_below_are_good():
    assert len(decode_sample(make_span(make_members()), "here").entities) == 3


def edit_meta(*path: Any) -> dict[str, bytes]:
    meta = json.loads(make_members()["json"])
    put(*path)(meta)
    return make_members(json=json.dumps(meta).encode())


def make_png(pixels: np.ndarray | Image.Image, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(out, format)
    return out.getvalue()


def make_bomb(side: int = 60_000) -> bytes:
    """A PNG of few bytes and billions of pixels."""
    small = make_png(np.zeros((1, 1), np.uint8))
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return small[:12] + header + struct.pack(">I", zlib.crc32(header)) + small[33:]


FIRST = ("entities", 0)
GREY = np.zeros((16, 18), np.uint8)
BAD_META = [
    *[(*FIRST, "label", value) for value in (-1, 0, 2, 70_000, 1.0, "1", None, True, 10**400)],
    *[(*FIRST, "category", value) for value in (None, 7, [], "\ud800")],
    *[(*FIRST, "is_thing", value) for value in (1, 0.0, "yes", [])],
    *[(*FIRST, "is_crowd", value) for value in (1, None, "no")],
    *[(*FIRST, value, 1) for value in ("unknown", "__class__")],
    *[("entities", value) for value in (None, {}, "abc", [7], [[]], [None] * 70_000)],
    *[("width", value) for value in (0, -1, 17, 18.0, "18", None, 10**30)],
    *[("unlabelled", value) for value in ("nothing", None, 7, [], {})],
    *[("source", value) for value in (None, 7, "\ud800")],
]


@pytest.mark.parametrize("path", BAD_META, ids=lambda path: ascii(path)[:60])
def test_words_of_a_sample_that_lie_are_refused(path):
    with pytest.raises(DamagedSample, match="at here"):
        decode_sample(make_span(edit_meta(*path)), "at here")


BAD_MEMBERS = {
    "deep": {"json": b"[" * 100_000},
    "digits": {"json": b'{"entities": [' + b"1" * 6000 + b"]}"},
    "long": {"json": b'{"a": "' + b" " * MAX_JSON_BYTES + b'"}'},
    "bytes": {"json": b"\xff\x00\xfe"},
    "list": {"json": b"[]"},
    "bomb of labels": {"labels.png": make_bomb()},
    "large labels": {"labels.png": make_bomb(12_000)},
    "other size": {"labels.png": make_png(np.zeros((16, 17), np.uint8))},
    "label beyond": {"labels.png": make_png(GREY + 4)},
    "label 70,000 in 16 bits": {"labels.png": make_png((GREY + 0).astype(np.uint16) + 4464)},
    "colours": {"labels.png": make_png(np.zeros((16, 18, 3), np.uint8))},
    "palette": {"labels.png": make_png(Image.fromarray(GREY).convert("P"))},
    "no PNG": {"labels.png": make_png(GREY, "TIFF")},
    "empty": {"labels.png": b""},
    "other picture": {"jpg": make_png(np.zeros((16, 17, 3), np.uint8))},
    "no picture": {"jpg": b"a text, and not a short one"},
    "half a picture": {"jpg": b"\xff\xd8\xff"},
}


@pytest.mark.parametrize("changed", BAD_MEMBERS.values(), ids=BAD_MEMBERS)
def test_members_that_lie_are_the_samples_fault_and_take_no_memory(changed):
    span = make_span(make_members(**changed))
    old = limit_memory(200 << 20)
    try:
        with pytest.raises(DamagedSample, match="at here") as refused:
            decode_sample(span, "at here")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)
    assert len(str(refused.value)) < 1000


def with_header(**values: Any) -> bytes:
    """A sample whose first header says something else."""
    members = make_members()
    span = bytearray(make_span(members))
    info = tarfile.TarInfo("k.jpg")
    info.size, info.mode = len(members["jpg"]), 0o444
    for name, value in values.items():
        setattr(info, name, value)
    span[:512] = info.tobuf(tarfile.GNU_FORMAT)[-512:]
    return bytes(span)


@pytest.mark.parametrize(
    "values",
    [
        {"size": -512},
        {"size": 1 << 62},
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": "other"},
        {"type": tarfile.CHRTYPE},
        {"name": "../k.jpg"},
        {"name": "other.jpg"},
        {"name": ".jpg"},
        {"name": "k\udcff.jpg"},
    ],
    ids=str,
)
def test_headers_that_lie_are_refused_at_once(values):
    with pytest.raises(DamagedSample, match="at here"):
        decode_sample(with_header(**values), "at here")


def test_a_second_member_of_one_name_is_refused():
    span = make_span(make_members()) + encode_member("k.json", b"{}")
    with pytest.raises(DamagedSample, match="of one key"):
        decode_sample(span, "here")


def test_a_sample_of_gigabytes_is_refused_before_memory_is_taken(folder, little_memory):
    manifest = read_manifest(folder)
    blocks = MAX_SAMPLE_BYTES // 512 + 1
    rows = manifest.index.copy()
    rows["blocks"][0] = blocks
    object.__setattr__(manifest, "index", rows)
    with open(folder / manifest.shards[0].name, "r+b") as file:
        file.truncate(blocks * 512)
    with pytest.raises(DamagedSample, match="at most"):
        ShardReader({FOLDER: manifest}).read(FOLDER, 0, 0)


# --- what a merge reads --------------------------------------------------------------------------


def edit_json(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    "edit",
    [
        put("name", "../other.tar"),
        put("rows", "no base 64!"),
        put("rows", "AAAA"),
        put("samples", -1),
        put("bytes", "512"),
        put("sha256", "../" + "0" * 61),
        put("skipped", {"why": "often"}),
        lambda content: content.clear(),
    ],
)
def test_a_receipt_that_lies_is_refused(folder, edit):
    edit_json(sorted(folder.glob("receipts/*.json"))[0], edit)
    with pytest.raises(ShardError, match="expected"):
        merge_shards(str(folder.parent))


def test_a_source_of_billions_is_told_at_once(folder, little_memory):
    edit_json(folder / "source.json", put("pictures", 1 << 40))
    with pytest.raises(ShardError, match=r"got 2 \(missing: coco-train-000002.tar, \.\.\."):
        merge_shards(str(folder.parent))


@pytest.mark.parametrize("field", ["pictures", "options", "categories", "skipped_by_index"])
def test_a_source_that_lies_is_refused(folder, field):
    edit_json(folder / "source.json", put(field, "many"))
    with pytest.raises(ShardError, match=f"expected {field}"):
        merge_shards(str(folder.parent))
