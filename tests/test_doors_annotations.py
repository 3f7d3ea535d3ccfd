"""The doors of the readers: any row, number or name is read, counted or refused in words."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from fuzz import HOSTILE, run_bounded
from PIL import Image
from pycocotools import mask as coco_mask

from unigs.annotations import (
    find_sources,
    jsonindex,
    read_coco_instances,
    read_coco_panoptic,
    read_openimages,
)
from unigs.annotations.base import make_unique_keys
from unigs.annotations.masks import BadMask, encode_segmentation, fit_polygon
from unigs.cli import main
from unigs.records import Skips, UnigsError
from unigs.shards.samples import check_key, encode_sample

WIDTH, HEIGHT = 30, 20
SQUARE = [[2.0, 2.0, 9.0, 2.0, 9.0, 9.0, 2.0, 9.0]]
LARGE = 15_000


def save_png(path: Path, colour=(5, 0, 0)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), colour).save(path, "PNG")


def save_bomb(path: Path, mode: str = "RGB") -> None:
    """A small PNG that claims to be large."""
    save_png(path)
    Image.new(mode, (WIDTH, HEIGHT), 1).save(path, "PNG")
    data = bytearray(path.read_bytes())
    struct.pack_into(">II", data, 16, LARGE, LARGE)
    struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))
    path.write_bytes(data)


def entity(**fields):
    row = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": SQUARE}
    return {**row, **fields}


def picture(**fields):
    return {"id": 1, "file_name": "1.jpg", **fields}


def tree(annotations, images=None, categories=None):
    return {
        "images": images or [picture()],
        "annotations": annotations,
        "categories": categories or [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }


def read(tmp_path, content, text=None):
    """(samples, counts) of a COCO instances file; its pictures are 1.jpg and 2.jpg."""
    for k in (1, 2):
        save_png(tmp_path / "pictures" / f"{k}.jpg")
    path = tmp_path / "a.json"
    path.write_text(text or json.dumps(content), encoding="utf-8")
    skips = Skips()
    return list(read_coco_instances(path, tmp_path / "pictures", skips)), dict(skips.counts)


# Numbers ------------------------------------------------------------------------------------------


def read_far(polygon) -> int:
    mask = encode_segmentation([polygon], WIDTH, HEIGHT)
    return int(np.frombuffer(mask["counts"], np.uint8).size)


@pytest.mark.parametrize("far", [1e5, 3e7, 5e8])
@pytest.mark.parametrize("sign", [1, -1])
def test_far_coordinates_take_no_memory(far, sign):
    assert run_bounded(read_far, [2, 2, far * sign, 5, 2, 9], memory=300 << 20) > 0


def test_a_cut_polygon_covers_what_the_whole_one_covers():
    whole = np.asarray([-50.0, -40.0, 95, 10, 80, 70, -45, 55])
    near = encode_segmentation([whole.tolist()], 100, 100)
    cut = fit_polygon(whole, 30, 30)
    assert cut.min() >= -30
    assert cut.max() <= 60
    inside = coco_mask.decode(near)[:30, :30]
    np.testing.assert_array_equal(
        coco_mask.decode(encode_segmentation([whole.tolist()], 30, 30)), inside
    )


BAD = {
    "entity with a broken mask": [
        [[float("nan")] * 6],
        [[1e12, 1, 2, 2, 3, 3]],
        {"size": [HEIGHT, WIDTH], "counts": 10**11},
        {"size": None, "counts": [1]},
        {"size": [10**9, 10**9, 1], "counts": [1]},
        {"size": [HEIGHT, WIDTH], "counts": [599.5, 0.5]},
        {"size": [HEIGHT, WIDTH], "counts": ["x" * 9, 600]},
        {"size": [HEIGHT, WIDTH], "counts": [[600]]},
        {"size": [HEIGHT, WIDTH], "counts": [-(2**63), 600]},
    ],
    "entity with coordinates of 0 to 1 where pixels are expected": [
        [[0.1, 0.2, 0.9, 0.2, 0.9, 1.0]],
    ],
    "entity with polygons longer than any outline": [[[0, 0, 29, 19] * 50_000]],
}


@pytest.mark.parametrize(("reason", "mask"), [(why, m) for why, all in BAD.items() for m in all])
def test_masks_that_lie_are_counted_and_the_rest_is_kept(tmp_path, reason, mask):
    (sample,), counts = read(tmp_path, tree([entity(segmentation=mask), entity(id=2)]))
    assert [e.annotation_id for e in sample.entities] == ["2"]
    assert counts == {reason: 1}


def test_one_lying_size_does_not_cost_the_picture(tmp_path):
    lie = {"size": [10**6, 10**6], "counts": [10**12]}
    fair = {"size": [float(HEIGHT), str(WIDTH)], "counts": [0.0, "600"]}
    rows = [entity(segmentation=lie), entity(id=2, segmentation=fair)]
    (sample,), counts = read(tmp_path, tree(rows))
    assert (sample.labels == 1).all()
    assert counts == {"entity with a mask of another size than its picture": 1}


@pytest.mark.parametrize("one", [1, 1.0, "1", " 1 ", "1.0", "01"])
def test_equal_numbers_are_one_id(tmp_path, one):
    (sample,), counts = read(tmp_path, tree([entity(image_id=one, category_id=one, id=one)]))
    assert (sample.entities[0].category, sample.entities[0].annotation_id) == ("cat", "1")
    assert counts == {}


FLAGS = {True: [1, 1.0, "1", "true", True, " Yes"], False: [0, 0.0, "0", "False", "", None, False]}


@pytest.mark.parametrize(("meant", "flag"), [(m, f) for m, all in FLAGS.items() for f in all])
def test_flags_are_read_in_every_spelling(tmp_path, meant, flag):
    table = [{"id": 1, "name": "cat", "isthing": 0 if flag is None else flag}]
    (sample,), _ = read(tmp_path, tree([entity(iscrowd=flag)], categories=table))
    assert sample.entities[0].is_crowd == meant == sample.entities[0].is_thing


@pytest.mark.parametrize("flag", [2, -1, "maybe", [], {}, 0.5])
def test_other_flags_are_not_guessed(tmp_path, flag):
    (sample,), counts = read(tmp_path, tree([entity(iscrowd=flag), entity(id=2)]))
    assert len(sample.entities) == 1
    assert counts == {"entity with iscrowd of another form": 1}
    with pytest.raises(UnigsError, match="isthing: expected 0 or 1"):
        read(tmp_path, tree([entity()], categories=[{"id": 1, "name": "cat", "isthing": flag}]))


def test_an_id_of_two_names_is_refused(tmp_path):
    table = [{"id": 1, "name": "cat"}, {"id": "1", "name": "dog"}]
    with pytest.raises(UnigsError, match=r"one meaning of category id 1.*'cat' and 'dog'"):
        read(tmp_path, tree([entity()], categories=table))
    table[1]["name"] = " cat"
    assert len(read(tmp_path, tree([entity()], categories=table))[0]) == 1


# Rows ---------------------------------------------------------------------------------------------


def replacements(row):
    return [(field, value) for field in row for value in HOSTILE]


@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_whatever_stands_in_a_field_there_are_words_or_counts(tmp_path, section):
    whole = tree(
        [entity(), entity(id=2, image_id=2)], [picture(), picture(id=2, file_name="2.jpg")]
    )
    came = 0
    for field, value in replacements(whole[section][0]):
        content = json.loads(json.dumps(whole))
        content[section][0][field] = value
        try:
            samples, counts = read(tmp_path, content)
        except UnigsError as error:
            said = str(error)
            assert f"expected a row of {section}" in said or "one meaning" in said
            continue
        came += len(samples)
        assert all(encode_sample(sample) for sample in samples)
        entities = sum(len(sample.entities) for sample in samples)
        assert entities == 2 or counts, (field, value)
    assert came


@pytest.mark.parametrize("row", [None, 7, "x", [], [1, 2], True])
@pytest.mark.parametrize("section", ["images", "annotations", "categories"])
def test_rows_that_are_no_objects_are_named(tmp_path, section, row):
    content = tree([entity()])
    content[section].append(row)
    with pytest.raises(UnigsError, match=rf"a row of {section} .*row: expected an object, got"):
        read(tmp_path, content)


@pytest.mark.parametrize("field", ["file_name", "segments_info", "image_id"])
@pytest.mark.parametrize("value", [None, 7.5, {}])
def test_panoptic_rows_of_another_form_are_named(tmp_path, field, value):
    save_png(tmp_path / "pictures" / "1.jpg")
    save_png(tmp_path / "masks" / "1.png")
    row = {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 5, "category_id": 1}]}
    (tmp_path / "a.json").write_text(json.dumps(tree([{**row, field: value}])))
    with pytest.raises(UnigsError, match=rf"a row of panoptic annotations .* {field}: expected"):
        list(
            read_coco_panoptic(
                tmp_path / "a.json", tmp_path / "masks", tmp_path / "pictures", Skips()
            )
        )


def test_segments_of_another_form_and_huge_pngs_are_counted(tmp_path):
    rows = []
    for k in (1, 2):
        save_png(tmp_path / "pictures" / f"{k}.jpg")
        save_png(tmp_path / "masks" / f"{k}.png")
        segments = [{"id": "5.0", "category_id": "1"}, *HOSTILE[:8], {"id": 10**30}]
        rows.append({"image_id": k, "file_name": f"{k}.png", "segments_info": segments})
    save_bomb(tmp_path / "masks" / "2.png")
    content = tree(rows, [picture(), picture(id=2, file_name="2.jpg")])
    (tmp_path / "a.json").write_text(json.dumps(content))
    skips = Skips()
    folders = tmp_path / "masks", tmp_path / "pictures"
    (sample,) = read_coco_panoptic(tmp_path / "a.json", *folders, skips)
    assert [e.annotation_id for e in sample.entities] == ["5"]
    assert skips.counts == {
        "segment with an impossible or repeated id": 18,
        "segment-id PNG unreadable": 1,
    }


@pytest.mark.parametrize("value", ["[" * 100_000 + "]" * 100_000, "9" * 6000])
def test_deep_lists_and_long_numbers_are_passed_over_and_counted(tmp_path, value):
    text = json.dumps(tree([entity(), entity(id=2, segmentation="HERE")]))
    (sample,), counts = read(tmp_path, None, text.replace('"HERE"', value))
    assert len(sample.entities) == 1
    assert sum(counts.values()) == 1
    assert "row of annotations" in next(iter(counts))
    (_,), counts = read(tmp_path, None, f'{{"info": {value}, {json.dumps(tree([entity()]))[1:]}')
    assert counts == {}


@pytest.mark.parametrize("value", ["x" * 50_000, [[]] * 5_000, {"x": "x" * 50_000}])
@pytest.mark.parametrize("place", ["info", "row"])
def test_values_without_end_are_refused(tmp_path, monkeypatch, value, place):
    monkeypatch.setattr(jsonindex, "CHUNK_BYTES", 1 << 10)
    monkeypatch.setattr(jsonindex, "MAX_ELEMENT_BYTES", 1 << 14)
    monkeypatch.setattr(jsonindex, "MAX_BRACKETS", 1 << 10)
    content = tree([entity(more=value)])
    if place == "info":
        content = {"info": {"more": value}, **tree([entity()])}
    with pytest.raises(UnigsError, match=r"expected (JSON values of at most|a JSON value)"):
        read(tmp_path, content)


# Names --------------------------------------------------------------------------------------------


def test_long_names_become_keys_that_fit(tmp_path):
    names = ["a" * n + end for n in (72, 84, 85, 86, 127, 250) for end in (".jpg", ".png")]
    names += ["f" * 50 + "/" + "g" * 50 + ".jpg", "ü" * 120 + ".jpg", "\ud800.jpg", "7.jpg"]
    keys = make_unique_keys(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        check_key(key)
    assert keys[names.index("a" * 85 + ".jpg")] == "a" * 85
    assert keys[-1] == "7"


def test_a_key_that_is_anothers_digest_is_told_apart():
    first = make_unique_keys(["a.b.jpg", "a_b.png"])
    keys = make_unique_keys(["a.b.jpg", "a_b.png", f"{first[1]}.jpg"])
    assert len(set(keys)) == 3


@pytest.mark.parametrize("name", ["1.JPG", "sub\\1.jpg", "sub/1.JPG"])
def test_names_are_found_as_windows_writes_them(tmp_path, name):
    save_png(tmp_path / "pictures" / "sub" / "1.jpg")
    assert len(read(tmp_path, tree([entity()], [picture(file_name=name)]))[0]) == 1


@pytest.mark.parametrize("name", ["..\\secret.jpg", "../secret.jpg", "/etc/x.jpg", "link.jpg"])
def test_names_that_leave_the_folder_are_counted(tmp_path, name):
    save_png(tmp_path / "secret.jpg")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    samples, counts = read(tmp_path, tree([entity()], [picture(file_name=name)]))
    assert (samples, counts) == ([], {"picture outside of its folder": 1})


@pytest.mark.parametrize("name", ["{names}", "a\x1b[2J\nb", "\ud800x", "%s {0}", "<b>"])
def test_hostile_category_names_are_written_as_text(tmp_path, name):
    (sample,), _ = read(tmp_path, tree([entity()], categories=[{"id": 1, "name": name}]))
    written = sample.entities[0].category
    assert written.encode().decode().isprintable()
    assert b"\x1b" not in encode_sample(sample)
    assert written == name or not name.isprintable()


@pytest.mark.parametrize("encoding", ["gbk", "latin-1", "utf-16"])
def test_other_encodings_are_named_with_the_byte(tmp_path, encoding):
    text = "é" if encoding == "latin-1" else "猫科动物"
    content = json.dumps(tree([entity()], categories=[{"id": 1, "name": text}]), ensure_ascii=False)
    read(tmp_path, tree([entity()]))
    (tmp_path / "a.json").write_bytes(content.encode(encoding))
    with pytest.raises(UnigsError, match=r"UTF-8, got the byte 0x.* at byte \d+ of .*a\.json"):
        list(read_coco_instances(tmp_path / "a.json", tmp_path / "pictures", Skips()))


# Open Images --------------------------------------------------------------------------------------

MID = "/m/01"


def make_openimages(root: Path, rows, images="images/train", header="", classes=f"{MID},Dog\n"):
    save_png(root / images / "0a.jpg")
    (root / "masks").mkdir(exist_ok=True)
    Image.new("1", (WIDTH, HEIGHT), 1).save(root / "masks" / "0a_m.png")
    head = "MaskPath,ImageID,LabelName,BoxID" + header
    text = "\n".join([head, *rows, ""])
    (root / "train-annotations-object-segmentation.csv").write_text(text, encoding="utf-8")
    (root / "class-descriptions-boxable.csv").write_bytes(classes.encode("latin-1"))
    return root


def load_openimages(root: Path):
    skips = Skips()
    (source,) = find_sources(openimages=root)
    return list(source.iterate(skips)), dict(skips.counts)


GOOD = f"0a_m.png,0a,{MID},b"


def test_nothing_of_a_row_leads_out_of_the_folders(tmp_path):
    save_png(tmp_path / "secret.jpg")
    save_png(tmp_path / "secret.png")
    names = ["../../secret.png", str(tmp_path / "secret.png"), "/dev/zero", "fifo.png", "big.png"]
    rows = [GOOD, f"0a_m.png,../../../secret,{MID},b", *(f"{n},0a,{MID},c" for n in names)]
    root = make_openimages(tmp_path / "oi", rows)
    os.mkfifo(root / "masks" / "fifo.png")
    save_bomb(root / "masks" / "big.png", "1")
    (sample,), counts = load_openimages(root)
    assert (sample.key, len(sample.entities)) == ("0a", 1)
    assert counts == {
        "picture outside of its folder": 1,
        "mask outside of its folder": 3,
        "mask: no plain file": 1,
        "mask larger than 89478485 pixels": 1,
    }


@pytest.mark.parametrize(
    "images", ["train", "train_0", "images/train_0", "images/train/train_0", "data"]
)
def test_pictures_lie_where_the_tars_put_them(tmp_path, images):
    root = make_openimages(tmp_path, [GOOD], images)
    assert len(load_openimages(root)[0]) == 1
    (root / images / "0a.jpg").rename(root / images / "0a.JPG")
    assert len(load_openimages(root)[0]) == 1


@pytest.mark.parametrize("folder", ["train-masks", "train-masks-0", "masks/train-masks-0"])
def test_masks_lie_where_the_zips_put_them(tmp_path, folder):
    root = make_openimages(tmp_path, [GOOD])
    (root / folder).mkdir(parents=True)
    (root / "masks" / "0a_m.png").rename(root / folder / "0a_m.png")
    if not folder.startswith("masks"):
        (root / "masks").rmdir()
    assert len(load_openimages(root)[0]) == 1


def test_files_of_macos_are_passed_over(tmp_path):
    root = make_openimages(tmp_path, [GOOD])
    (root / "._class-descriptions-boxable.csv").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X\xb0\xff")
    assert len(load_openimages(root)[0]) == 1


def test_class_names_in_latin_1_are_named_and_licences_are_quoted(tmp_path):
    root = make_openimages(tmp_path, [GOOD], classes=f"{MID},Café\n")
    with pytest.raises(UnigsError, match=r"0xe9, at byte 9 of .*class-desc"):
        load_openimages(root)
    make_openimages(root, [GOOD])
    (root / "licence.txt").write_bytes("© Café\n".encode("latin-1"))
    assert find_sources(openimages=root)[0].licence == "© Café"


def test_a_class_of_two_names_is_refused(tmp_path):
    root = make_openimages(tmp_path, [GOOD], classes=f"{MID},Dog\n{MID},Cat\n")
    with pytest.raises(UnigsError, match="expected one name of /m/01"):
        load_openimages(root)


@pytest.mark.parametrize(
    ("cell", "crowd"), [("1", True), ("true", True), ("0", False), ("-1", False), ("", False)]
)
def test_groups_are_crowds(tmp_path, cell, crowd):
    (sample,), counts = load_openimages(
        make_openimages(tmp_path, [f"{GOOD},{cell}"], header=",IsGroupOf")
    )
    assert (sample.entities[0].is_crowd, counts) == (crowd, {})


@pytest.mark.parametrize("row", ['"', 'a"b', "\x1b,\0", "x" * 90_000, '"0a_m.png,0a'])
def test_damaged_rows_do_not_touch_their_neighbours(tmp_path, row):
    (sample,), _ = load_openimages(make_openimages(tmp_path, [f"{row},0a,{MID},x", GOOD]))
    assert len(sample.entities) == 1
    with pytest.raises(UnigsError, match="expected rows of less than"):
        load_openimages(make_openimages(tmp_path, ["x" * 200_000, GOOD]))


def test_many_large_masks_are_not_kept_at_once(tmp_path, monkeypatch):
    from unigs.annotations import openimages

    rows = [GOOD, *(f"0{k}_m.png,0a,{MID},{k}" for k in range(5))]
    root = make_openimages(tmp_path, rows)
    for k in range(5):
        mask = np.zeros((HEIGHT, WIDTH), bool)
        mask[: k + 2, 3 * k :] = True
        Image.fromarray(mask).save(root / "masks" / f"0{k}_m.png")
    (whole,), _ = load_openimages(root)
    monkeypatch.setattr(openimages, "MASKS_BYTES", 0)
    (reread,), _ = load_openimages(root)
    np.testing.assert_array_equal(whole.labels, reread.labels)


# What the verbs say -------------------------------------------------------------------------------


def write_coco(root: Path, content) -> Path:
    for k in (1, 2):
        save_png(root / "train2017" / f"{k}.jpg")
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


VERBS = (["shards", "--workers", "1"], ["data", "inspect"])


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_tells_what_the_index_lost_and_that_all_are_crowds(tmp_path, capsys, verb):
    images = [picture(), picture(id=2, file_name="2\x1b[2J\ud800.jpg")]
    root = write_coco(tmp_path / "coco", tree([entity(iscrowd="1")], images))
    assert main([*verb, "--coco", str(root), "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    assert r"1 x picture without annotations (e.g. 2\x1b[2J\ud800.jpg" in printed
    assert "100% of the entities are crowds" in printed
    assert "\x1b[2J" not in printed


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_a_source_of_nothing_is_an_error(tmp_path, capsys, verb):
    root = write_coco(tmp_path / "coco", tree([]))
    assert main([*verb, "--coco", str(root), "--out", str(tmp_path / "out")]) == 1
    assert "expected pictures with annotations, got none" in capsys.readouterr().err


def test_any_locale_reads_and_writes_utf8(tmp_path):
    content = tree([entity()], categories=[{"id": 1, "name": "Straße"}])
    root = write_coco(tmp_path / "coco", content)
    (root / "licence.txt").write_bytes("© Straße".encode())
    c = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    for verb in VERBS:
        out = str(tmp_path / verb[0])
        words = [sys.executable, "-m", "unigs", *verb, "--coco", str(root), "--out", out]
        done = subprocess.run(words, env=c, capture_output=True)
        assert done.returncode == 0, done.stderr.decode("latin-1")
    (manifest,) = (tmp_path / "shards").glob("*/manifest.json")
    assert json.loads(manifest.read_bytes().decode())["licence"] == "© Straße"


def test_broken_masks_raise_one_kind_of_error():
    for value in HOSTILE:
        if value == [[1e8, 1, 5, 5e8, 2, 2]]:
            continue  # is cut to its picture
        with pytest.raises(BadMask):
            encode_segmentation(value, WIDTH, HEIGHT)


def test_openimages_by_argument_reads_the_same(tmp_path):
    root = make_openimages(tmp_path, [GOOD.replace("0a,", '"0a",')])
    files = [root / "train-annotations-object-segmentation.csv", root / "masks"]
    files += [root / "images" / "train", root / "class-descriptions-boxable.csv"]
    assert [sample.key for sample in read_openimages(*files, Skips())] == ["0a"]
