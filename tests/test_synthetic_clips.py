"""Laws of drawn clips: known masks in the layout of DAVIS, the same bytes, shapes that move."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from unigs.annotations import find_sources, split_key
from unigs.images import decode_image
from unigs.records import Skips, UnigsError
from unigs.synthetic import draw_clip, write_clips
from unigs.synthetic.clips import ClipOptions, draw_known_clip, name_clip

OPTIONS = ClipOptions(3, 2, 5, 48, 7, 4, 0.08)
WORDS = {name: getattr(OPTIONS, name) for name in ClipOptions.__slots__}


def hash_folder(root):
    """Of every file's name and bytes."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    digest = hashlib.sha256()
    for path in paths:
        digest.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return len(paths), digest.hexdigest()


def test_the_reader_finds_the_masks_that_were_drawn(tmp_path):
    write_clips(tmp_path, **WORDS)
    sources = {source.split: source for source in find_sources(davis=tmp_path)}
    for split, count in (("train", 3), ("val", 2)):
        skips = Skips()
        samples = {split_key(s.key): s for s in sources[split].iterate(skips)}
        assert skips.total == 0
        assert len(samples) == 5 * count
        for index in range(count):
            for number, frame in enumerate(draw_known_clip(OPTIONS, split, index)):
                sample = samples[name_clip(split, index), number]
                ids = np.array([0, *(int(e.annotation_id) for e in sample.entities)])
                np.testing.assert_array_equal(ids[sample.labels], frame.ids)
                off = np.abs(decode_image(sample.image).astype(int) - frame.image)
                assert off.mean() < 8  # JPEG
    assert sources["val"].licence.startswith("CC0")


def test_the_same_options_give_the_same_bytes_and_others_are_refused(tmp_path):
    for name in ("a", "b"):
        write_clips(tmp_path / name, **WORDS)
    whole = hash_folder(tmp_path / "a")
    assert whole == hash_folder(tmp_path / "b")
    assert whole[0] == 2 * 5 * 5 + 2 + 2
    (tmp_path / "a" / "JPEGImages" / "480p" / "scene-train-000000" / "00000.jpg").unlink()
    write_clips(tmp_path / "a", **WORDS)  # left as it is
    assert hash_folder(tmp_path / "a")[0] == whole[0] - 1
    with pytest.raises(UnigsError, match="expected a folder without other scenes"):
        write_clips(tmp_path / "a", **{**WORDS, "seed": 8})
    with pytest.raises(UnigsError, match="expected clips, frames"):
        write_clips(tmp_path / "c", **{**WORDS, "frames": 0})


def test_shapes_move_enter_leave_and_hide_one_another():
    entered = left = hidden = 0
    for seed in range(12):
        frames = list(draw_clip(seed, 48, 8))
        areas = np.array([np.bincount(f.ids.ravel(), minlength=6) for f in frames])[:, 1:]
        seen = areas > 0
        entered += (~seen[0] & seen.any(0)).sum()
        left += (seen.any(0) & ~seen[-1]).sum()
        shrunk = areas < 0.7 * areas.max(0)
        hidden += (shrunk & seen & (seen.sum(1, keepdims=True) > 1)).sum()
        assert any((frame.ids != frames[0].ids).any() for frame in frames)
    assert min(entered, left, hidden) > 0


def test_what_no_shape_covers_stands_still():
    first, *others = draw_clip(3, 48, 4)
    for frame in others:
        near = np.zeros(first.ids.shape, bool)
        for ids in (first.ids, frame.ids):
            y, x = np.nonzero(ids)
            for dy in (-1, 0, 1):
                for dx in (-1, 0, 1):
                    near[np.clip(y + dy, 0, 47), np.clip(x + dx, 0, 47)] = True
        grain = np.abs(first.image.astype(int) - frame.image)[~near]
        assert 1 < grain.mean() < 6
        assert grain.max() < 40
