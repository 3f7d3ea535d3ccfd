"""Files of answers: other tools, and our own readers, read from them what was found."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from unigs.annotations.coco import make_coco_panoptic
from unigs.annotations.masks import decode_runs, encode_segmentation
from unigs.files import DiskFull
from unigs.outputs import Found, OutFolder, encode_labels
from unigs.outputs import folder as folder_module
from unigs.outputs.coco import number_pictures
from unigs.outputs.encode import encode_ids
from unigs.outputs.overlay import draw_overlay, find_places
from unigs.records import Skips, UnigsError
from unigs.verbs.request import number_entities, read_mask, read_values

RUN = {"verb": "segment", "words": ["star"]}
INPUTS = {"picture": "abc"}
NAMES = ["cat", "", "lost", "cat", "sky"]  # the third has no pixel


def make_found(key: str, seed: int = 0, size=(37, 53), **changes) -> Found:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, size).astype(np.int32)
    labels[labels == 3] = 0
    values = {
        "key": key, "source": f"{key}.jpg", "file_name": f"{key}.png", "labels": labels,
        "scores": [0.9, 0.5, 0.1, 1, 0],
        "image": rng.integers(0, 256, (3, *size), dtype=np.uint8), "names": NAMES,
        "inputs": INPUTS, "prompt": "p", "drawn": True,
    }  # fmt: skip
    return Found(**{**values, **changes})


@pytest.fixture
def written(tmp_path) -> tuple[Path, dict[str, Found]]:
    found = {key: make_found(key, seed) for seed, key in enumerate(["b", "a", "c"])}
    found["c"] = make_found("c", labels=np.zeros((37, 53), np.int32))  # nothing found
    folder = OutFolder(tmp_path / "out", RUN, {})
    for one in found.values():
        folder.write(one)
    folder.close({})
    return tmp_path / "out", found


def read_json(path: Path):
    return json.loads(path.read_text())


def test_pycocotools_reads_every_mask_and_its_score(written):
    out, found = written
    panoptic = read_json(out / "panoptic.json")
    coco = COCO()
    coco.dataset = {**panoptic, "annotations": []}
    coco.createIndex()
    results = coco.loadRes(str(out / "results.json"))
    files = {row["id"]: row["file_name"] for row in panoptic["images"]}
    names = {row["id"]: row["name"] for row in panoptic["categories"]}
    read = []
    for row in results.loadAnns(results.getAnnIds()):
        one = found[Path(files[row["image_id"]]).stem]
        assert row["file_name"] == one.file_name
        (label,) = np.unique(one.labels[results.annToMask(row) > 0])
        np.testing.assert_array_equal(results.annToMask(row) > 0, one.labels == label)
        assert row["score"] == one.scores[label - 1]
        assert row["area"] == (one.labels == label).sum()
        assert names[row["category_id"]] == (one.names[label - 1] or "entity")
        read.append((one.key, label))
    assert read == [(key, label) for key in "ab" for label in (1, 2, 4, 5)]


def test_the_panoptic_json_agrees_with_its_pngs_as_panopticapi_asks(written):
    out, _ = written
    panoptic = read_json(out / "panoptic.json")
    categories = {row["id"]: row for row in panoptic["categories"]}
    assert all({"name", "isthing"} <= row.keys() for row in categories.values())
    images = {row["id"]: row for row in panoptic["images"]}
    assert len(images) == len(panoptic["images"]) == len(panoptic["annotations"]) == 3
    for row in panoptic["annotations"]:
        with Image.open(out / "panoptic" / row["file_name"]) as png:
            ids = np.asarray(png).astype(np.uint32) @ np.array([1, 256, 65_536], np.uint32)
        about = images[row["image_id"]]
        assert ids.shape == (about["height"], about["width"])
        areas = dict(zip(*np.unique(ids[ids > 0], return_counts=True)))
        told = {segment["id"]: segment for segment in row["segments_info"]}
        assert len(told) == len(row["segments_info"])
        assert {number: one["area"] for number, one in told.items()} == areas
        for number, one in told.items():
            assert one["category_id"] in categories
            assert one["iscrowd"] == 0
            rows, columns = np.nonzero(ids == number)
            box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
            assert one["bbox"] == box


def test_our_reader_of_coco_panoptic_reads_what_was_found(written):
    out, found = written
    source = make_coco_panoptic(out / "panoptic.json", out / "panoptic", out / "images")
    skips = Skips()
    read = {one.key: one for one in source.iterate(skips)}
    assert read.keys() == {"a", "b"}
    assert skips.counts == {"no entity left in the picture": 1}
    for key in "ab":
        one = read[key]
        again = np.zeros_like(found[key].labels)
        for entity in one.entities:
            again[one.labels == entity.label] = int(entity.annotation_id)
            name = found[key].names[int(entity.annotation_id) - 1]
            assert entity.category == (name or "entity")
        np.testing.assert_array_equal(again, found[key].labels)


def test_our_readers_of_masks_and_label_maps_read_them_back(written, capsys):
    out, found = written
    for key, one in found.items():
        again = number_entities(read_values(out / "labels" / f"{key}.png"))
        pairs = np.unique(np.stack([again, one.labels]).reshape(2, -1), axis=1)
        assert len(set(pairs[0])) == len(set(pairs[1])) == pairs.shape[1]
        for segment in read_json(out / "records" / f"{key}.json")["segments"]:
            runs = encode_segmentation(segment["segmentation"], 53, 37)
            mask = one.labels == segment["label"]
            np.testing.assert_array_equal(decode_runs(runs), mask)
            path = out / "masks" / key / f"{segment['label']:03}.png"
            np.testing.assert_array_equal(read_mask(path, mask.shape), mask)
        with Image.open(out / "images" / f"{key}.png") as picture:
            np.testing.assert_array_equal(np.asarray(picture).transpose(2, 0, 1), one.image)


@pytest.mark.parametrize(
    ("most", "mode"), [(0, "P"), (1, "P"), (255, "P"), (256, "I;16"), (65_535, "I;16")]
)
def test_a_label_png_holds_the_labels_as_numbers(tmp_path, most, mode):
    labels = np.arange(65_536).reshape(256, 256) % (most + 1)
    (tmp_path / "labels.png").write_bytes(encode_labels(labels))
    with Image.open(tmp_path / "labels.png") as picture:
        assert picture.mode == mode
        np.testing.assert_array_equal(np.asarray(picture), labels)
        if mode == "P":
            assert len(np.unique(np.asarray(picture.convert("RGB")) @ (65_536, 256, 1))) == most + 1
    with pytest.raises(UnigsError, match="65536"):
        encode_labels(np.full((1, 1), 65_536))


def test_panoptic_ids_pass_two_bytes():
    labels = np.array([[0, 1, 256, 65_536, 70_000]])
    with Image.open(io.BytesIO(encode_ids(labels))) as png:
        np.testing.assert_array_equal(np.asarray(png).astype(int) @ (1, 256, 65_536), labels)


def test_image_ids_are_the_numbers_of_coco_where_there_are_such():
    name = lambda *files: {str(k): {"file_name": file} for k, file in enumerate(files)}
    assert list(number_pictures(name("a/000000142238.jpg", "7.png")).values()) == [142_238, 7]
    for files in (("7.png", "a.png"), ("7.png", "a/07.jpg"), ("9" * 40 + ".png", "1.png")):
        assert list(number_pictures(name(*files)).values()) == [1, 2]


# --- a folder ------------------------------------------------------------------------------------


def test_a_folder_holds_one_run_and_knows_what_is_done(written):
    out, found = written
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    again = OutFolder(out, RUN, {})
    assert all(again.has(key, INPUTS) for key in found)
    assert not again.has("d", INPUTS)
    assert not again.has("a", {"picture": "changed"})
    assert again.holds("a", "a.jpg")
    assert not again.holds("d", "d.jpg")
    with pytest.raises(UnigsError, match=r"answer to a.png, got one to a.jpg, at .*a.json"):
        again.holds("a", "a.png")
    again.write(found["b"])
    again.close({})
    assert before == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UnigsError, match=r"words is \['star'\] and not \['sand'\]"):
        OutFolder(out, {**RUN, "words": ["sand"]}, {})
    (out.parent / "other").mkdir()
    (out.parent / "other" / "mine").write_text("x")
    with pytest.raises(UnigsError, match="got other files"):
        OutFolder(out.parent / "other", RUN, {})
    with pytest.raises(UnigsError, match="got a file"):
        OutFolder(out / "run.json", RUN, {})


def test_a_picture_that_is_written_again_leaves_no_older_masks(written):
    out, _ = written
    OutFolder(out, RUN, {}).write(make_found("a", labels=np.ones((37, 53), np.int32)))
    assert [path.name for path in (out / "masks" / "a").iterdir()] == ["001.png"]


@pytest.mark.parametrize("file", ["overlays", "labels", "panoptic", "images", "records"])
def test_a_picture_whose_files_are_not_all_there_is_not_done(tmp_path, monkeypatch, file):
    folder = OutFolder(tmp_path / "out", RUN, {})
    real = {name: getattr(folder_module, name) for name in ("write_bytes", "write_json")}

    def fail(name):
        def write(path, data):
            if path.parent.name == file:
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            real[name](path, data)

        return write

    for name in real:
        monkeypatch.setattr(folder_module, name, fail(name))
    with pytest.raises(UnigsError, match="No space"):
        folder.write(make_found("a"))
    assert not folder.has("a", INPUTS)
    assert issubclass(DiskFull, UnigsError)


# --- overlays ------------------------------------------------------------------------------------


def test_an_overlay_leaves_what_is_no_mask_and_tints_what_is_one():
    image = np.full((3, 60, 90), 100, np.uint8)
    labels = np.zeros((60, 90), np.int32)
    labels[10:40, 10:40], labels[10:40, 50:80] = 1, 2
    shown = np.asarray(draw_overlay(image, labels)).astype(int)
    assert shown.shape == (60, 90, 3)
    assert (shown[45:] == 100).all()
    inner = shown[12:18, 12:18].reshape(-1, 3), shown[12:18, 52:58].reshape(-1, 3)
    for pixels in inner:
        assert (pixels == pixels[0]).all()
        assert (pixels[0] != 100).any()
    assert (inner[0][0] != inner[1][0]).any()
    assert (shown[9, 10:40] == 255).all()


@pytest.mark.parametrize("scale", [1, 7, 40])
def test_a_number_stands_inside_of_its_mask(scale):
    y, x = np.mgrid[:40, :60]
    radius = np.hypot(y - 20, x - 25)
    labels = np.where(radius < 8, 2, np.where(radius < 16, 1, 0))  # a ring: its centre is not its
    labels[2:5, 50:], labels[39, 59] = 3, 4
    large = labels.repeat(scale, 0).repeat(scale, 1)
    places = find_places(large)
    assert {1, 2, 3} <= places.keys()
    for label, (column, row) in places.items():
        assert large[int(row), int(column)] == label
