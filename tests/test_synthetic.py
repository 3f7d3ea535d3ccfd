"""Laws of the synthetic scenes: exact masks, pure functions of a seed, genuine encodings."""

import json
from collections import Counter
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco_mask

from unigs.records import UnigsError
from unigs.synthetic import draw_clip, draw_scene, scene_seed, write_clips, write_datasets
from unigs.synthetic.polygons import bounding_box, encode_polygons, encode_rle, encode_runs
from unigs.synthetic.scenes import MIN_VISIBLE, THING_IDS, Canvas, shift_hue
from unigs.synthetic.shapes import SHAPES

masks = hnp.arrays(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))).filter(np.any)


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(scene_seed("val", k), 64) for k in range(120)]


@pytest.mark.parametrize("size", [32, 64, (48, 64), (200, 130)])
def test_labels_cover_the_picture_without_gaps(size):
    for k in range(10):
        scene = draw_scene(scene_seed("train", k), size, crowd_share=0.5)
        height, width = (size, size) if isinstance(size, int) else size
        assert scene.image.shape == (height, width, 3)
        assert scene.image.dtype == np.uint8
        assert scene.labels.dtype == np.uint16
        assert [entity.label for entity in scene.entities] == np.unique(scene.labels).tolist()
        assert len({entity.annotation_id for entity in scene.entities}) == len(scene.entities)


def test_same_seed_same_scene_other_seed_other_scene(scenes):
    again = draw_scene(scene_seed("val", 3), 64)
    assert again.image.tobytes() == scenes[3].image.tobytes()
    assert again.labels.tobytes() == scenes[3].labels.tobytes()
    assert again.entities == scenes[3].entities
    assert len({scene.image.tobytes() for scene in scenes}) == len(scenes)


@given(
    st.lists(
        st.tuples(st.sampled_from(["train", "val", "test"]), st.integers(0, 10**9 - 1)), unique=True
    )
)
def test_splits_never_share_a_seed(places):
    assert len({scene_seed(*place, seed) for place in places for seed in (0, 1, 2)}) == 3 * len(
        places
    )


@pytest.mark.parametrize("place", [("dev", 0), ("train", -1), ("train", 10**9)])
def test_bad_places_are_refused(place):
    with pytest.raises(UnigsError, match="expected a split"):
        scene_seed(*place)


def test_too_small_a_scene_is_refused():
    with pytest.raises(UnigsError, match="of 16 to 1024, came 8"):
        draw_scene(0, 8)


def test_every_entity_stays_half_visible(monkeypatch):
    painted = []
    expose = Canvas.expose
    monkeypatch.setattr(Canvas, "expose", lambda self: (painted.append(self), expose(self))[1])
    for k in range(40):
        draw_scene(scene_seed("test", k), 64)
    for canvas in painted:
        visible = np.bincount(canvas.labels.ravel())
        assert (visible[1:] >= MIN_VISIBLE * np.asarray(canvas.painted_px[1:])).all()


def test_scenes_hold_what_the_benchmark_needs(scenes):
    """Repeated categories, holes, occlusion, stuff of 2 to 4 kinds, sizes a factor 6 apart."""
    things = [[e for e in scene.entities if e.is_thing] for scene in scenes]
    stuff = [len(scene.entities) - len(t) for scene, t in zip(scenes, things, strict=True)]
    assert set(stuff) == {2, 3, 4}
    assert max(map(len, things)) == 8
    repeated = sum(max(Counter(e.category for e in t).values(), default=0) > 1 for t in things)
    assert repeated > len(scenes) / 3
    assert {e.category for t in things for e in t} == set(THING_IDS)
    areas = [
        int((scene.labels == e.label).sum())
        for scene, t in zip(scenes, things, strict=True)
        for e in t
        if e.category == "square"
    ]
    assert max(areas) > 20 * min(areas)  # 6 squared, less what is hidden or cut


def test_categories_are_not_told_by_colour(scenes):
    """Mean colours of two categories differ far less than colours within one."""
    colours = {name: [] for name in ("disc", "star", "cross")}
    for scene in scenes:
        for entity in scene.entities:
            if entity.category in colours:
                colours[entity.category].append(scene.image[scene.labels == entity.label].mean(0))
    means = [np.mean(values, 0) for values in colours.values()]
    spread = np.mean([np.std(values, 0).mean() for values in colours.values()])
    assert max(np.abs(a - b).mean() for a in means for b in means) < spread


@pytest.mark.parametrize("name", SHAPES)
def test_distances_are_distances(name):
    """No faster than the way between two points, negative somewhere inside, positive far away."""
    y, x = np.mgrid[-1.5:1.5:61j, -1.5:1.5:61j]
    distance = SHAPES[name](x, y)
    step = 3 / 60
    for axis in (0, 1):
        assert np.abs(np.diff(distance, axis=axis)).max() <= step * 1.0001
    assert distance.min() < -0.15
    assert (distance[np.hypot(x, y) > 1.25] > 0).all()


@given(masks)
@settings(max_examples=60, deadline=None)
def test_polygons_and_runs_are_exact(mask):
    height, width = mask.shape
    polygons = coco_mask.merge(coco_mask.frPyObjects(encode_polygons(mask), height, width))
    runs = coco_mask.frPyObjects(encode_runs(mask), height, width)
    for rle in (polygons, runs, encode_rle(mask)):
        np.testing.assert_array_equal(coco_mask.decode(rle), mask)
    assert coco_mask.toBbox(runs).tolist() == bounding_box(mask)


def read_tree(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_writing_is_deterministic_and_reused(tmp_path):
    for name in ("a", "b"):
        write_datasets(tmp_path / name, images=4, val_images=2, size_px=48, seed=5)
    first = read_tree(tmp_path / "a")
    assert first == read_tree(tmp_path / "b")
    times = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    write_datasets(tmp_path / "a", images=4, val_images=2, size_px=48, seed=5)
    assert times == {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*")}
    with pytest.raises(UnigsError, match="came one drawn with"):
        write_datasets(tmp_path / "a", images=4, val_images=2, size_px=48, seed=6)


def test_held_out_test_scenes_are_others_and_limits_are_kept(tmp_path):
    small = {"images": 1, "val_images": 6, "size_px": 48, "max_things": 2, "max_stuff": 2}
    for held_out in ("val", "test"):
        write_datasets(tmp_path / held_out, held_out=held_out, **small)
    trees = [read_tree(tmp_path / name) for name in ("val", "test")]
    pictures = [{v for k, v in tree.items() if k.endswith(".jpg")} for tree in trees]
    assert len(pictures[0] & pictures[1]) == 3  # each set's one training picture
    panoptic = tmp_path / "test" / "coco" / "annotations" / "panoptic_val2017.json"
    for row in json.loads(panoptic.read_text())["annotations"]:
        kinds = [s["category_id"] >= 101 for s in row["segments_info"] if not s["iscrowd"]]
        assert kinds.count(True) == 2
        assert 1 <= kinds.count(False) <= 2


def test_a_shifted_copy_has_the_same_masks_in_other_colours(tmp_path):
    small = {"images": 1, "val_images": 3, "size_px": 48}
    write_datasets(tmp_path / "plain", **small)
    write_datasets(tmp_path / "shifted", colour_shift=90.0, **small)
    plain, shifted = (read_tree(tmp_path / name) for name in ("plain", "shifted"))
    assert plain.keys() == shifted.keys()
    assert "colour_shift" not in json.loads(plain["synthetic.json"])
    differ = {name for name in plain if plain[name] != shifted[name]}
    assert {name.rpartition(".")[2] for name in differ} == {"jpg", "png", "json"}
    assert {name for name in differ if name.endswith("json")} == {"synthetic.json"}
    assert not [name for name in differ if "mask" in name or "panoptic" in name]
    with pytest.raises(UnigsError, match="came one drawn with"):
        write_datasets(tmp_path / "plain", colour_shift=90.0, **small)


def test_a_shift_of_hues_is_a_turn_around_grey():
    image = np.random.default_rng(0).integers(64, 192, (5, 5, 3)).astype(np.uint8)
    turned = shift_hue(image, 120)
    np.testing.assert_array_equal(turned, image[..., [2, 0, 1]])
    once = shift_hue(image, 40).astype(int)
    assert np.abs(once.sum(2) - image.sum(2)).max() <= 2  # as bright
    back = shift_hue(once.astype(np.uint8), -40).astype(int)
    assert np.median(np.abs(back - image)) <= 1
    grey = np.full((2, 2, 3), 77, np.uint8)
    np.testing.assert_array_equal(shift_hue(grey, 73), grey)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_things", 0), ("max_stuff", 1), ("max_stuff", 30), ("min_radius", 0.0),
        ("min_radius", -1.0), ("min_radius", 40.0), ("min_radius", float("nan")),
        ("size_px", 15), ("size_px", 5000),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(tmp_path, name, value):
    with pytest.raises(UnigsError, match="in a drawing"):
        draw_scene(1, **{"size_px": 48, name: value})
    with pytest.raises(UnigsError, match="in a drawing"):
        write_datasets(tmp_path / "a", images=1, val_images=1, **{"size_px": 48, name: value})
    if name != "max_stuff":
        with pytest.raises(UnigsError, match="in a drawing"):
            next(draw_clip(1, **{"size_px": 48, "frames": 2, name: value}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", range(40))
def test_the_bounds_can_be_drawn(seed):
    scene = draw_scene(seed, (40, 70), max_things=3, max_stuff=8, min_radius=0.138)
    assert scene.labels.min() == 1


SMALL = {"images": 1, "val_images": 1, "size_px": 32}


@pytest.mark.parametrize("write", [partial(write_datasets, **SMALL), partial(write_clips, clips=1)])
def test_files_that_were_not_drawn_are_never_replaced(tmp_path, write):
    clips = write.func is write_clips
    mine = tmp_path / ("ImageSets/2017/train.txt" if clips else "openimages/real.csv")
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UnigsError, match="some that were not drawn"):
        write(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [mine]


def test_a_stopped_drawing_goes_on_with_its_own_options_alone(tmp_path, monkeypatch):
    write_datasets(tmp_path / "whole", **SMALL)
    with monkeypatch.context() as patch:
        patch.setattr("unigs.synthetic.layouts.write_openimages", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_datasets(tmp_path / "cut", **SMALL)
    with pytest.raises(UnigsError, match="came one drawn with"):
        write_datasets(tmp_path / "cut", **{**SMALL, "size_px": 48})
    write_datasets(tmp_path / "cut", **SMALL)
    assert read_tree(tmp_path / "cut") == read_tree(tmp_path / "whole")


def test_nonsense_options_are_refused(tmp_path):
    with pytest.raises(UnigsError, match="expected pictures"):
        write_datasets(tmp_path, images=0)
