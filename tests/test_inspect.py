"""Laws of ``unigs data inspect``: what it counts is what the readers read, and sheets show it."""

import numpy as np
import pytest
from PIL import Image

from unigs.annotations import find_sources
from unigs.records import Skips, UnigsError
from unigs.synthetic import write_datasets
from unigs.synthetic.layouts import DATA_SETS
from unigs.verbs.inspect import draw_pair, inspect_data, paint_overlay, spread, tally_source


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    path = tmp_path_factory.mktemp("sets")
    write_datasets(path, 9, 3, 64)
    return path


def test_counts_are_those_of_the_readers(root):
    for source in find_sources(**{name: root / name for name in DATA_SETS}):
        samples = list(source.iterate(Skips()))
        tally, shown = tally_source(source, 2, 0)
        assert tally.pictures == len(samples)
        assert sum(tally.categories.values()) == sum(len(s.entities) for s in samples)
        assert tally.covered == [float((s.labels > 0).mean()) for s in samples]
        assert len(shown) == min(2, len(samples))


def test_skips_are_shown(root, tmp_path, capsys):
    (root / "coco" / "val2017" / "000000500139.jpg").unlink()
    inspect_data(tmp_path, coco=root / "coco", pictures=1)
    printed = capsys.readouterr().out
    assert "1 x picture file missing (e.g. " in printed
    assert "licence: CC0" in printed
    sheets = sorted(path.name for path in tmp_path.iterdir())
    assert sheets == [
        f"coco-{kind}-{split}.png"
        for kind in ("instances", "panoptic")
        for split in ("train", "val")
    ]
    assert all(Image.open(tmp_path / name).size[0] > 0 for name in sheets)


def test_overlay_tells_entities_apart_and_dims_the_rest(root):
    (source, *_) = find_sources(entityseg=root / "entityseg")
    sample = source.load(0, Skips())
    pixels = np.full((*sample.labels.shape, 3), 200, np.uint8)
    labels = sample.labels.copy()
    labels[:4] = 0
    painted = np.asarray(paint_overlay(pixels, labels, sample))
    colours = [tuple(np.median(painted[labels == entity.label], 0)) for entity in sample.entities]
    assert len(set(colours)) == len(colours)
    assert (np.median(painted[0], 0) == 80).all()
    assert draw_pair(sample).size == draw_pair(source.load(1, Skips())).size


def test_spread_is_even():
    assert spread(10, 3) == [0, 3, 6]
    assert spread(3, 10) == [0, 1, 2] == spread(3, 0)
    assert spread(0, 5) == []


def test_nothing_to_inspect_is_named(tmp_path):
    with pytest.raises(UnigsError, match="expected a data set"):
        inspect_data(tmp_path)
