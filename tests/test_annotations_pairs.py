"""Cityscapes and ADE20K in made-up trees of their released layout: laws, and each known trap."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unigs.annotations import find_sources
from unigs.annotations.ade20k import THING_CLASSES
from unigs.annotations.cityscapes import CATEGORIES, VOID
from unigs.images import decode_image
from unigs.records import Skips, UnigsError
from unigs.shards import read_manifests, write_shards
from unigs.verbs.inspect import inspect_data

HEIGHT, WIDTH = 12, 20
NAMES = ("wall", "building, edifice", "sky")
STUFF_CLASSES = sorted({*range(1, 151)} - {*THING_CLASSES})


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def save_picture(path: Path, rng, size=(HEIGHT, WIDTH)) -> None:
    save(path, rng.integers(0, 256, (*size, 3), dtype=np.uint8))


def draw_blocks(rng, ids, size=(HEIGHT, WIDTH)) -> np.ndarray:
    """A map of 4 x 4 blocks of ids."""
    blocks = rng.choice(ids, (size[0] // 4, size[1] // 4))
    return np.kron(blocks, np.ones((4, 4), blocks.dtype))


def place_city(root: Path, stem: str, split="train") -> tuple[Path, Path]:
    """Where a picture of Cityscapes and its map lie."""
    city = stem.partition("_")[0]
    picture = root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png"
    return picture, root / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png"


def write_cityscapes(root: Path, stems=("ulm_0_1", "aachen_0_2", "aachen_0_1")):
    """Pictures with maps of void, stuff, groups and instances; the maps by key."""
    rng = np.random.default_rng(0)
    ids = [0, 3, 7, 11, 18, 21, 24, 26, 24_000, 24_001, 26_000, 26_017, 29_000, 33_002]
    truth = {}
    for stem in stems:
        picture, place = place_city(root, stem)
        save_picture(picture, rng)
        key = f"{place.parent.name}-{stem}"
        truth[key] = draw_blocks(rng, ids).astype(np.uint16)
        save(place, truth[key])
        save(
            place.with_name(f"{stem}_gtFine_labelIds.png"), np.full((HEIGHT, WIDTH), 255, np.uint8)
        )
    return truth


def write_table(root: Path, delimiter="\t", names=NAMES) -> None:
    rows = [["Idx", "Ratio", "Train", "Val", "Name"]]
    for k in range(1, 151):
        name = names[k - 1] if k <= len(names) else f"class {k}"
        rows.append(
            [f"{k} ", "0.1", "9", "9", name.replace(", ", ", " if delimiter == "\t" else ";")]
        )
    root.mkdir(parents=True, exist_ok=True)
    ending = "txt" if delimiter == "\t" else "csv"
    text = "\n".join(delimiter.join(row) for row in rows) + "\n"
    (root / f"objectInfo150.{ending}").write_text(text)


def write_ade20k(root: Path, with_instances=True, count=3):
    """Pictures, class maps and instance maps that overlap; (classes, instances) by key."""
    rng = np.random.default_rng(1)
    write_table(root)
    truth = {}
    for k in range(count):
        key, size = f"ADE_train_{k + 1:08d}", (HEIGHT, WIDTH + 4 * k)
        classes = draw_blocks(rng, [0, *STUFF_CLASSES[:6], *THING_CLASSES[:4]], size).astype(
            np.uint8
        )
        instances = np.zeros((*size, 3), np.uint8)
        instances[..., 1] = draw_blocks(rng, [0, 0, 1, 2, 255], size)
        of = np.zeros(256, np.uint8)
        of[[1, 2, 255]] = 4, 100, 4
        instances[..., 0] = of[instances[..., 1]]
        save_picture(root / "images" / "training" / f"{key}.jpg", rng, size)
        save(root / "annotations" / "training" / f"{key}.png", classes)
        if with_instances:
            save(root / "annotations_instance" / "training" / f"{key}.png", instances)
        truth[key] = classes, instances
    return truth


def read(**roots):
    """(samples, counts) of the one split there is."""
    (source,) = find_sources(**roots)
    skips = Skips()
    return list(source.iterate(skips)), dict(skips.counts)


def describe(sample):
    """Each pixel's (class, annotation id), None where there is none."""
    tags = [None, *((e.category_id, e.annotation_id) for e in sample.entities)]
    return [[tags[k] for k in row] for row in sample.labels.tolist()]


def test_cityscapes_gives_each_pixel_what_its_id_says(tmp_path):
    truth = write_cityscapes(tmp_path)
    samples, counts = read(cityscapes=tmp_path)
    assert counts == {}
    assert [s.key for s in samples] == sorted(truth)
    for sample in samples:
        expected = [
            [(str(k // 1000 or k), str(k)) if (k // 1000 or k) in CATEGORIES else None for k in row]
            for row in truth[sample.key].tolist()
        ]
        assert describe(sample) == expected
        for entity in sample.entities:
            number = int(entity.annotation_id)
            assert entity.is_thing == (int(entity.category_id) >= 24)
            assert entity.is_crowd == (number in (24, 26))  # persongroup, cargroup
        assert sample.unlabelled == "void"
        assert sample.source == "cityscapes"
        assert decode_image(sample.image).shape[:2] == sample.labels.shape


def test_the_classes_of_cityscapes_are_those_of_the_benchmark():
    """34 label ids; void is the rest; by place they are the released train ids."""
    assert len(CATEGORIES) == 19
    assert {*CATEGORIES} | VOID == {*range(34)}
    assert not VOID & {*CATEGORIES}
    names = [category["name"] for category in CATEGORIES.values()]
    assert (names[0], names[10], names[11], names[13], names[18]) == (
        "road", "sky", "person", "car", "bicycle",
    )  # fmt: skip


@pytest.mark.parametrize("with_instances", [True, False])
def test_ade20k_gives_each_pixel_what_its_maps_say(tmp_path, with_instances):
    truth = write_ade20k(tmp_path, with_instances)
    samples, counts = read(ade20k=tmp_path)
    assert counts == {}
    assert [s.key for s in samples] == sorted(truth)
    for sample in samples:
        classes, instances = (each.tolist() for each in truth[sample.key])
        for y, row in enumerate(describe(sample)):
            for x, found in enumerate(row):
                label, (red, green, _) = classes[y][x], instances[y][x]
                stuff = (str(label), str(label)) if label else None
                if not with_instances:
                    assert found == stuff
                elif green:
                    number = THING_CLASSES[red - 1]
                    assert found == (str(number), f"{number}-{green}")
                else:
                    assert found == (None if label in THING_CLASSES else stuff)
        kinds = {e.is_thing for e in sample.entities}
        assert kinds == ({True, False} if with_instances else {None})
        assert sample.unlabelled == "void"
        assert not any(e.is_crowd for e in sample.entities)


def test_class_names_are_the_first_of_their_synonyms_in_either_form(tmp_path):
    for delimiter, folder in (("\t", "a"), (",", "b")):
        write_ade20k(tmp_path / folder)
        (tmp_path / folder / "objectInfo150.txt").unlink()
        write_table(tmp_path / folder, delimiter)
        (source,) = find_sources(ade20k=tmp_path / folder)
        assert [c["name"] for c in source.categories][:4] == ["wall", "building", "sky", "class 4"]
        assert sum(c["is_thing"] for c in source.categories) == 100


@pytest.mark.parametrize("write", [write_cityscapes, write_ade20k])
def test_load_is_a_pure_function_of_its_number(tmp_path, write):
    write(tmp_path)
    name = write.__name__.removeprefix("write_")
    (source,) = find_sources(**{name: tmp_path})
    forward = [source.load(i, Skips()) for i in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    for i in reversed(range(len(source))):
        again = copy.load(i, Skips())
        assert (again.key, again.image, again.entities) == (
            forward[i].key, forward[i].image, forward[i].entities,
        )  # fmt: skip
        np.testing.assert_array_equal(again.labels, forward[i].labels)
        assert all(path.is_file() for path in source.inputs(i))


def test_shards_and_sheets_are_made_of_them(tmp_path, capsys):
    write_cityscapes(tmp_path / "city")
    write_ade20k(tmp_path / "ade")
    roots = {"cityscapes": tmp_path / "city", "ade20k": tmp_path / "ade"}
    write_shards(out=str(tmp_path / "out"), workers=1, **roots)
    found = read_manifests(str(tmp_path / "out"))
    assert {name: len(m) for name, m in found.items()} == {
        "cityscapes-train": 3, "ade20k-panoptic-train": 3,
    }  # fmt: skip
    inspect_data(tmp_path / "sheets", **roots)
    assert "cityscapes train: 3 pictures, 3 read" in capsys.readouterr().out
    assert (tmp_path / "sheets" / "ade20k-panoptic-train.png").is_file()


# Traps --------------------------------------------------------------------------------------------


def damage_city(tmp_path, change):
    write_cityscapes(tmp_path)
    change(*place_city(tmp_path, "aachen_0_1"))
    return read(cityscapes=tmp_path)


def put(value, dtype=np.uint16, size=(HEIGHT, WIDTH)):
    """A change that fills the map with one value."""
    return lambda picture, place: save(place, np.full(size, value, dtype))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (put(3), "no entity left in the picture"),
        (put(7, size=(8, 8)), "picture and masks differ in size"),
        (put([7, 7, 7], np.uint8, (HEIGHT, WIDTH, 3)), "instance map of another form"),
        (lambda picture, place: place.write_bytes(b"none"), "instance map unreadable"),
        (lambda picture, place: place.write_bytes(b""), "instance map unreadable"),
        (lambda picture, place: picture.write_bytes(b"none"), "picture unreadable"),
    ],
)
def test_a_picture_that_cannot_be_used_is_counted(tmp_path, change, reason):
    samples, counts = damage_city(tmp_path, change)
    assert len(samples) == 2
    assert counts == {reason: 1}


def test_ids_of_no_class_are_counted_and_void(tmp_path):
    def change(picture, place):
        ids = np.full((HEIGHT, WIDTH), 7, np.uint16)
        ids[0] = 45_001
        save(place, ids)

    samples, counts = damage_city(tmp_path, change)
    assert counts == {"entity of a category not listed": 1}
    assert (samples[0].labels[0] == 0).all()
    assert (samples[0].labels[1:] == 1).all()


def test_a_map_that_is_missing_is_an_error_and_one_too_many_is_counted(tmp_path):
    write_cityscapes(tmp_path)
    picture, place = place_city(tmp_path, "aachen_0_1")
    place.rename(place.with_name("._aachen_0_1_gtFine_instanceIds.png"))  # as macOS leaves one
    (source,) = find_sources(cityscapes=tmp_path)
    with pytest.raises(UnigsError, match=r"expected 3 maps of pictures, came 2, .*aachen_0_1"):
        len(source)
    picture.unlink()
    place, _ = place_city(tmp_path, "ulm_0_1")
    place.unlink()
    samples, counts = read(cityscapes=tmp_path)
    assert len(samples) == 1
    assert counts == {"map without a picture": 1}


def test_two_cities_with_one_name_of_a_picture_keep_both(tmp_path):
    write_cityscapes(tmp_path, ("ulm_0_1",))
    for folder in ("leftImg8bit", "gtFine"):
        city = tmp_path / folder / "train" / "ulm"
        other = city.with_name("bonn")
        other.mkdir()
        for path in city.iterdir():
            (other / path.name).write_bytes(path.read_bytes())
    samples, counts = read(cityscapes=tmp_path)
    assert counts == {}
    assert len({s.key for s in samples}) == 2


def test_an_instance_map_of_another_size_or_class_is_counted(tmp_path):
    write_ade20k(tmp_path)
    folder = tmp_path / "annotations_instance" / "training"
    save(folder / "ADE_train_00000001.png", np.ones((HEIGHT, WIDTH + 4, 3), np.uint8))
    save(folder / "ADE_train_00000002.png", np.full((HEIGHT, WIDTH + 4, 3), 101, np.uint8))
    samples, counts = read(ade20k=tmp_path)
    assert counts == {
        "class map and instance map differ in size": 1,
        "entity of a category not listed": 1,
        "no entity left in the picture": 1,
    }
    assert len(samples) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the classes 1 to 150, came 0"),
        ("Idx\tName\n1\twall\n", "expected the classes 1 to 150, came 1"),
        ("Id\tName\n1\twall\n", "expected rows of Idx, Ratio, Train, Val and Name"),
        ("Idx\tName\nx\twall\n", "expected rows of Idx, Ratio, Train, Val and Name"),
        ("Idx\tName\n1\n", "expected rows of Idx, Ratio, Train, Val and Name"),
    ],
)
def test_a_class_table_of_another_form_is_refused(tmp_path, text, message):
    write_ade20k(tmp_path)
    (tmp_path / "objectInfo150.txt").write_text(text)
    (source,) = find_sources(ade20k=tmp_path)
    with pytest.raises(UnigsError, match=message):
        _ = source.categories


@pytest.mark.parametrize("name", ["cityscapes", "ade20k"])
def test_a_root_without_the_layout_is_refused(tmp_path, name):
    with pytest.raises(UnigsError, match=f"came none, in {tmp_path}"):
        find_sources(**{name: tmp_path})
    maps = {"cityscapes": "gtFine/val", "ade20k": "annotations/validation"}[name]
    (tmp_path / maps).mkdir(parents=True)
    with pytest.raises(UnigsError, match="the pictures of"):
        find_sources(**{name: tmp_path})
