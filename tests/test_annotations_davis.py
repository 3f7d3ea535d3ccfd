"""DAVIS in made-up trees of its released layout: frames, clips, objects, and each known trap."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unigs.annotations import find_sources, read_davis, split_key
from unigs.records import Skips, UnigsError
from unigs.shards import ShardReader, read_manifests, write_shards

SIZE = (16, 24)


def place(root: Path, clip: str, frame: str) -> tuple[Path, Path]:
    """Where a frame and its annotation lie."""
    picture = root / "JPEGImages" / "480p" / clip / f"{frame}.jpg"
    return picture, root / "Annotations" / "480p" / clip / f"{frame}.png"


def save(path: Path, image: Image.Image) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def save_ids(path: Path, ids: np.ndarray, mode="P") -> None:
    """A palette PNG, whose colours say nothing of its indices, or a grey one."""
    image = Image.fromarray(ids.astype(np.uint8))
    if mode == "P":
        image.putpalette([value for k in range(256) for value in (255 - k, 7, k)])
    save(path, image)


def write_list(root: Path, clips, year="2017", split="train") -> None:
    path = root / "ImageSets" / year / f"{split}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(clips) + "\n")


def write_clips(root: Path, frames=4, clips=("swan", "car-shadow"), mode="P"):
    """Clips of moving objects 1 and 3, the second gone in frame 2; their ids by key."""
    truth = {}
    for clip in clips:
        for k in range(frames):
            ids = np.zeros(SIZE, np.uint8)
            ids[2:6, k : k + 5] = 1 if mode == "P" else 255
            if k != 2 and mode == "P":
                ids[8:12, 20 - k :] = 3
            picture, annotation = place(root, clip, f"{k:05d}")
            save(picture, Image.fromarray(np.full((*SIZE, 3), 10 * k, np.uint8)))
            save_ids(annotation, ids, mode)
            truth[f"{clip}-{k:05d}"] = ids
    write_list(root, clips)
    return truth


def read(root: Path):
    """(samples, counts) of the training clips."""
    (source,) = find_sources(davis=root)
    skips = Skips()
    return list(source.iterate(skips)), dict(skips.counts)


def paint(sample):
    """The annotation's ids again."""
    ids = [0, *(int(e.annotation_id) for e in sample.entities)]
    return np.asarray(ids, np.uint8)[sample.labels]


@pytest.mark.parametrize("mode", ["P", "L"])
def test_frames_keep_their_clip_their_order_and_the_ids_of_their_objects(tmp_path, mode):
    truth = write_clips(tmp_path, mode=mode)
    samples, counts = read(tmp_path)
    assert counts == {}
    assert [s.key for s in samples] == sorted(truth)
    for sample in samples:
        np.testing.assert_array_equal(paint(sample), truth[sample.key])
        assert sample.unlabelled == "background"
        assert {(e.category, e.is_thing, e.is_crowd) for e in sample.entities} == {
            ("object", True, False)
        }
    places = [split_key(s.key) for s in samples]
    assert places == [(clip, k) for clip in ("car-shadow", "swan") for k in range(4)]


def test_shards_keep_frames_as_neighbours(tmp_path):
    truth = write_clips(tmp_path / "davis")
    out, davis = str(tmp_path / "out"), tmp_path / "davis"
    write_shards(out=out, workers=1, samples_per_shard=3, davis=davis)
    manifests = read_manifests(out)
    reader, sizes = ShardReader(manifests), enumerate(manifests["davis-train"].sizes)
    places = [(shard, k) for shard, size in sizes for k in range(size)]
    samples = [reader.read("davis-train", *place) for place in places]
    assert [s.key for s in samples] == sorted(truth)
    for sample in samples:
        np.testing.assert_array_equal(paint(sample), truth[sample.key])


def test_load_is_a_pure_function_of_its_number(tmp_path):
    write_clips(tmp_path)
    (source,) = find_sources(davis=tmp_path)
    forward = [source.load(i, Skips()) for i in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    for i in reversed(range(len(source))):
        again = copy.load(i, Skips())
        assert (again.key, again.entities) == (forward[i].key, forward[i].entities)
        np.testing.assert_array_equal(again.labels, forward[i].labels)


def test_a_frame_without_an_object_is_a_sample_without_entities(tmp_path):
    write_clips(tmp_path, clips=("swan",))
    save_ids(place(tmp_path, "swan", "00001")[1], np.zeros(SIZE))
    samples, counts = read(tmp_path)
    assert counts == {}
    assert [len(s.entities) for s in samples] == [2, 0, 1, 2]


def test_255_is_void_in_a_palette_and_the_object_in_grey(tmp_path):
    for mode in ("P", "L"):
        root = tmp_path / mode
        write_clips(root, frames=1, clips=("swan",))
        ids = np.zeros(SIZE)
        ids[:3] = 255
        save_ids(place(root, "swan", "00000")[1], ids, mode)
        (sample,), counts = read(root)
        assert counts == {}
        assert [e.is_crowd for e in sample.entities] == [mode == "P"]


@pytest.mark.parametrize(
    ("year", "lines"),
    [
        ("2016", ["swan"]),
        ("480p", ["/JPEGImages/480p/swan/00000.jpg /Annotations/480p/swan/00000.png"] * 2),
    ],
)
def test_the_lists_of_2016_are_read_in_both_forms(tmp_path, year, lines):
    write_clips(tmp_path)
    (tmp_path / "ImageSets" / "2017" / "train.txt").unlink()
    write_list(tmp_path, lines, year)
    samples, _ = read(tmp_path)
    assert {split_key(s.key)[0] for s in samples} == {"swan"}


# Traps --------------------------------------------------------------------------------------------


def resize(picture, annotation):
    save(picture, Image.new("RGB", (8, 8)))
    save_ids(annotation, np.ones((8, 8)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (resize, "frame of another size than its clip's first"),
        (lambda p, a: save(p, Image.new("RGB", (8, 8))), "picture and masks differ in size"),
        (lambda p, a: p.write_bytes(b"none"), "picture unreadable"),
        (lambda p, a: a.write_bytes(b"none"), "annotation unreadable"),
        (lambda p, a: save(a, Image.new("RGB", SIZE[::-1])), "annotation of another form"),
    ],
)
def test_a_frame_that_cannot_be_used_is_counted(tmp_path, change, reason):
    write_clips(tmp_path)
    change(*place(tmp_path, "swan", "00002"))
    samples, counts = read(tmp_path)
    assert counts == {reason: 1}
    assert len(samples) == 7


def test_a_missing_annotation_is_an_error_and_a_missing_frame_is_counted(tmp_path):
    write_clips(tmp_path)
    picture, _annotation = place(tmp_path, "swan", "00002")
    picture.unlink()
    samples, counts = read(tmp_path)
    assert counts == {"map without a picture": 1, "number without a frame": 1}
    assert len(samples) == 7
    place(tmp_path, "swan", "00003")[1].unlink()
    (source,) = find_sources(davis=tmp_path)
    with pytest.raises(UnigsError, match=r"expected 3 maps of pictures, came 2, in .*swan.*00003"):
        len(source)


def test_numbers_count_and_not_the_order_of_names(tmp_path):
    write_clips(tmp_path, clips=("swan",))
    for k in range(4):
        for path in place(tmp_path, "swan", f"{k:05d}"):
            path.rename(path.with_name(f"{k + 8}{path.suffix}"))
    picture, _ = place(tmp_path, "swan", "8")
    picture.with_name("cover.jpg").write_bytes(picture.read_bytes())
    samples, counts = read(tmp_path)
    assert [split_key(s.key)[1] for s in samples] == [8, 9, 10, 11]
    assert counts == {"frame whose name is no number of its own": 1}


def test_clips_that_are_not_there_and_lists_of_none_are_refused(tmp_path):
    write_clips(tmp_path)
    write_list(tmp_path, ["swan", "goat"])
    (source,) = find_sources(davis=tmp_path)
    with pytest.raises(UnigsError, match=r"files of a clip, came nothing such, at .*goat"):
        len(source)
    for lines in ([""], [".."], ["a/../b.jpg"]):
        write_list(tmp_path, lines)
        with pytest.raises(UnigsError, match="expected names of clips"):
            find_sources(davis=tmp_path)
    with pytest.raises(UnigsError, match="came none"):
        find_sources(davis=tmp_path / "JPEGImages")
    with pytest.raises(UnigsError, match="expected a frame's key"):
        split_key("000000000139")


def test_a_clip_of_a_long_name_is_counted_and_others_are_read(tmp_path):
    long = "x" * 80
    write_clips(tmp_path, clips=("swan", long))
    samples, counts = read(tmp_path)
    assert counts == {"clip of too long a name": 4}
    assert len(samples) == 4


def test_clips_anywhere_are_read_by_their_folders(tmp_path):
    truth = write_clips(tmp_path)
    folders = [path.parent.parent for path in place(tmp_path, "swan", "00000")]
    samples = list(read_davis(*folders, ["swan"], Skips()))
    assert [s.key for s in samples] == [key for key in truth if key.startswith("swan")]
