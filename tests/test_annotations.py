"""Laws of the readers: what was written is what is read, in any process and any order."""

import json
import pickle
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigs.annotations import find_sources, jsonindex, read_openimages
from unigs.annotations.base import make_key, make_unique_keys
from unigs.annotations.jsonindex import iterate_elements
from unigs.images import decode_image
from unigs.records import Skips, UnigsError
from unigs.synthetic import write_datasets
from unigs.synthetic.layouts import (
    DATA_SETS,
    ENTITYSEG_FOLDERS,
    Options,
    draw_known,
    entityseg_name,
    openimages_id,
)

OPTIONS = Options(images=13, val_images=4, size_px=64, seed=3)
NAMES = ["coco-panoptic", "coco-instances", "openimages", "entityseg"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets")
    write_datasets(path, OPTIONS.images, OPTIONS.val_images, OPTIONS.size_px, OPTIONS.seed)
    return path


@pytest.fixture(scope="module")
def sources(root):
    found = find_sources(**{name: root / name for name in DATA_SETS})
    return {(source.name, source.split): source for source in found}


def known_scenes(name, split):
    """The truth by key, drawn again from the seed."""
    data_set = name.split("-")[0]
    scenes = {}
    for k in range(OPTIONS.images if split == "train" else OPTIONS.val_images):
        if data_set == "coco":
            key = f"{7 * k + (139 if split == 'train' else 500_139):012d}"
        elif data_set == "openimages":
            key = openimages_id(OPTIONS.seed, split, k)
        else:
            stem = entityseg_name(split, k)[0].rsplit(".", 1)[0]
            key = stem.replace("/", "-").replace(".", "_")
        scenes[key] = draw_known(OPTIONS, data_set, split, k)
    return scenes


def describe(labels, entities):
    """A picture's entities, whatever their order and numbers."""
    return {
        ((labels == e.label).tobytes(), e.category.lower(), e.is_thing, e.is_crowd)
        for e in entities
    }


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", NAMES)
def test_reading_gives_the_very_masks_that_were_drawn(sources, name, split):
    truth, skips = known_scenes(name, split), Skips()
    samples = list(sources[name, split].iterate(skips))
    assert skips.total == 0
    whole = name in ("coco-panoptic", "entityseg")
    expected = {
        key: [e for e in scene.entities if whole or e.is_thing] for key, scene in truth.items()
    }
    assert [s.key for s in samples] == sorted(key for key, found in expected.items() if found)
    for sample in samples:
        scene = truth[sample.key]
        assert describe(sample.labels, sample.entities) == describe(
            scene.labels, expected[sample.key]
        )
        assert [e.label for e in sample.entities] == list(range(1, len(sample.entities) + 1))
        assert len({e.annotation_id for e in sample.entities}) == len(sample.entities)
        assert sample.labels.dtype == np.uint16
        assert decode_image(sample.image).shape[:2] == sample.labels.shape
        assert sample.source == name
        assert sample.unlabelled == ("void" if name == "coco-panoptic" else "unannotated")


@pytest.mark.parametrize("name", NAMES)
def test_load_is_a_pure_function_of_its_number(sources, name):
    source = sources[name, "train"]
    len(source)
    copy = pickle.loads(pickle.dumps(source))
    forward = [source.load(i, Skips()) for i in range(len(source))]
    for i in reversed(range(len(source))):
        again = copy.load(i, Skips())
        assert (again.key, again.image, again.entities) == (
            forward[i].key,
            forward[i].image,
            forward[i].entities,
        )
        np.testing.assert_array_equal(again.labels, forward[i].labels)
    assert list(source.keys) == sorted(set(source.keys))
    assert [sample.key for sample in forward] == list(source.keys)


def test_category_tables_have_unique_ids_and_clean_names(sources):
    for source in sources.values():
        ids = [category["id"] for category in source.categories]
        assert len(ids) == len(set(ids)) > 0
        assert all(c["name"] == c["name"].strip() != "" for c in source.categories)
    table = {c["name"]: c["is_thing"] for c in sources["entityseg", "val"].categories}
    assert (table["disc"], table["sky"], table["unknown"]) == (True, False, None)


def test_the_licence_beside_the_data_wins(sources, root, tmp_path):
    assert {source.licence for source in sources.values()} == {"CC0-1.0, drawn by UniGS"}
    shutil.copytree(root / "openimages", tmp_path / "openimages")
    (tmp_path / "openimages" / "licence.txt").unlink()
    assert "CC BY 4.0" in find_sources(openimages=tmp_path / "openimages")[0].licence


@pytest.mark.parametrize("layout", ["flat", "split", "letter", "zip"])
def test_mask_layouts_are_equal(root, sources, tmp_path, layout):
    flat = root / "openimages" / "masks" / "train"
    masks = tmp_path / "masks"
    masks.mkdir()
    for path in sorted(flat.iterdir()):
        if layout == "zip":
            with zipfile.ZipFile(masks / f"train-masks-{path.name[0]}.zip", "a") as archive:
                archive.write(path, path.name)
            continue
        folder = {"flat": "", "split": "train", "letter": path.name[0].upper()}[layout]
        (masks / folder).mkdir(exist_ok=True)
        shutil.copy(path, masks / folder)
    skips = Skips()
    openimages = root / "openimages"
    read = read_openimages(
        openimages / "train-annotations-object-segmentation.csv",
        masks,
        openimages / "images" / "train",
        openimages / "class-descriptions-boxable.csv",
        skips,
    )
    for sample, expected in zip(read, sources["openimages", "train"].iterate(skips), strict=True):
        np.testing.assert_array_equal(sample.labels, expected.labels)
    assert skips.total == 0


@pytest.mark.parametrize(
    ("data_set", "gone", "message"),
    [
        ("coco", "annotations", "panoptic_<split>2017.json"),
        ("coco", "train2017", "pictures of panoptic_train2017.json"),
        ("coco", "annotations/panoptic_train2017", "52,751"),
        ("openimages", "train-annotations-object-segmentation.csv", None),
        ("openimages", "images", "pictures of train-annotations"),
        ("openimages", "masks", "masks of train-annotations"),
        ("openimages", "class-descriptions-boxable.csv", "class names"),
        ("entityseg", "annotations", "_entity_<split>.json"),
        ("entityseg", "images", "pictures of entityv2_010203_entity_train.json"),
    ],
)
def test_missing_parts_are_named(root, tmp_path, data_set, gone, message):
    shutil.copytree(root / data_set, tmp_path / data_set)
    path = tmp_path / data_set / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if message is None:  # one split less is no fault
        assert [s.split for s in find_sources(**{data_set: tmp_path / data_set})] == ["val"]
        return
    with pytest.raises(UnigsError, match=message):
        find_sources(**{data_set: tmp_path / data_set})


def test_a_root_that_is_no_folder_is_named(tmp_path):
    with pytest.raises(UnigsError, match="expected a folder"):
        find_sources(coco=tmp_path / "nowhere")


def test_low_resolution_files_are_found_when_they_are_alone(root, tmp_path):
    shutil.copytree(root / "entityseg", tmp_path / "es")
    (tmp_path / "es" / "images").rename(tmp_path / "es" / "images_lr")
    folder = tmp_path / "es" / "annotations" / "entity_segmentation"
    for split in ("train", "val"):
        name = f"entityv2_010203_entity_{split}"
        (folder / f"{name}.json").rename(folder / f"{name}_lr.json")
    skips = Skips()
    for source in find_sources(entityseg=tmp_path / "es"):
        assert len(list(source.iterate(skips))) == len(source) > 0
    assert skips.total == 0


# The JSON index -----------------------------------------------------------------------------------

scalars = st.none() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
rows = st.dictionaries(st.text(max_size=3), scalars | st.lists(scalars, max_size=3), max_size=3)


@given(
    st.lists(rows, max_size=4),
    st.lists(rows, max_size=4),
    st.dictionaries(st.text(max_size=3).map("x".__add__), scalars | rows, max_size=2),
    st.booleans(),
    st.sampled_from([None, 1]),
    st.integers(1, 50),
    st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_elements_are_those_of_the_json(
    tmp_path_factory, first, second, others, ascii, indent, chunk, bom
):
    path = tmp_path_factory.getbasetemp() / "index.json"
    tree = {"info": 12, "images": first, **others, "annotations": second, "year": 1.5}
    text = json.dumps(tree, ensure_ascii=ascii, indent=indent).encode()
    path.write_bytes(b"\xef\xbb\xbf" * bom + text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonindex, "CHUNK_BYTES", chunk)
        found = list(iterate_elements(path, ("images", "annotations")))
    data = path.read_bytes()
    assert [e.value for e in found if e.section == "images"] == tree["images"]
    assert [e.value for e in found if e.section == "annotations"] == tree["annotations"]
    for element in found:
        assert json.loads(data[element.offset : element.offset + element.length]) == element.value


def test_every_cut_of_a_json_is_an_error(tmp_path):
    path = tmp_path / "cut.json"
    text = b'{"images": [{"id": 1}, {"id": 2}], "annotations": [{"id": 77}]}'
    for cut in range(len(text)):
        path.write_bytes(text[:cut])
        with pytest.raises(UnigsError, match=r"expected .*cut\.json"):
            list(iterate_elements(path, ("images", "annotations")))


# Keys ---------------------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1, max_size=300), unique=True))
def test_keys_are_fit_for_webdataset(names):
    keys = make_unique_keys(names)
    assert len(set(keys)) == len(names)
    for key in keys:
        assert key.isascii()
        assert 0 < len(key) <= 120
        assert not set(key) & set("./\\ \n")


def test_keys_do_not_depend_on_the_order_of_files():
    names = ["a.b.jpg", "a_b.png", "c/a.jpg", "c-a.jpg", f"{'x' * 200}.jpg"]
    assert sorted(make_unique_keys(names)) == sorted(make_unique_keys(names[::-1]))
    assert make_key("000000000139.jpg") == "000000000139"
    assert make_key(f"{ENTITYSEG_FOLDERS[0]}/x.y.jpg") == "entity_01_11580-x_y"


def test_reading_annotations_needs_no_torch():
    code = "import sys, unigs.annotations, unigs.synthetic; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
