"""Cityscapes, fine annotations (``leftImg8bit`` and ``gtFine`` as released).

In: the two folders of a split. Out: ``Source``. Only ``*_gtFine_instanceIds.png`` is read, 16 bits
a pixel: an id from 1000 is ``class * 1000 + instance``, a smaller one is a class. A small id of a
class that is counted is a group whose members could not be told apart (``cargroup``): a crowd.
Classes that the benchmark ignores are void. The test split has dummy annotations and is not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from unigs.annotations import base, names
from unigs.annotations.base import Category, Tag
from unigs.annotations.pairs import (
    Pair,
    PairedMaps,
    list_ids,
    list_tree,
    open_map,
    paint_ids,
    read_rows,
    require_maps,
)
from unigs.records import Annotated, Skips

LICENCE = "Cityscapes terms of use: non-commercial research, no redistribution"
PICTURE_ENDING = "_leftImg8bit.png"
MAP_ENDING = "_gtFine_instanceIds.png"
MODES = ("I;16", "I;16B", "I", "L")
FIRST_INSTANCE_ID = 1000
STUFF = {
    **{7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole"},
    **{19: "traffic light", 20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky"},
}
THINGS = {
    **{24: "person", 25: "rider", 26: "car", 27: "truck"},
    **{28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle"},
}
"""The 19 evaluated classes by label id; stuff and then things, they stand in the order of the
released train ids 0..18."""

VOID = frozenset({0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30})
"""Label ids that the benchmark ignores: borders, own car, parking, bridges, caravans ..."""

CATEGORIES = {
    **{k: Category(id=str(k), name=name, is_thing=False) for k, name in STUFF.items()},
    **{k: Category(id=str(k), name=name, is_thing=True) for k, name in THINGS.items()},
}


class Cityscapes(PairedMaps):
    """One split; label 0 is void."""

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(CATEGORIES.values())

    def list_pairs(self, skips: Skips) -> list[Pair]:
        stems = list_tree(self.images, PICTURE_ENDING)
        require_maps(stems, list_tree(self.maps, MAP_ENDING), self.maps, skips)
        keys = base.make_unique_keys(f"{stem}.png" for stem in stems)
        return [
            Pair(key, stem + PICTURE_ENDING, stem + MAP_ENDING)
            for key, stem in zip(keys, stems, strict=True)
        ]

    def read(self, i: int, skips: Skips) -> Annotated:
        pair = self.index.pairs[i]
        where = str(self.maps / pair.map)
        data, header = self.read_picture(i)
        png = names.read_first(self.maps, [pair.map], "instance map")
        with open_map(png, MODES, "instance map", where) as ids:
            data = base.fit_picture(data, header, ids.size, where)
            rows = partial(read_rows, ids)
            tags = list_tags(list_ids(rows, ids.size), skips, where)
            painted = paint_ids(rows, ids.size, tags, where)
        return base.finish_sample(pair.key, data, painted, "void", self.name)


def list_tags(ids: list[int], skips: Skips, where: str) -> dict[int, Tag]:
    """What the ids of one map mean; those of void are left out, unknown ones counted."""
    tags = {}
    for number in ids:
        is_single = number >= FIRST_INSTANCE_ID
        label = number // FIRST_INSTANCE_ID if is_single else number
        category = CATEGORIES.get(label)
        if category is not None:
            tags[number] = Tag(category, str(number), bool(category["is_thing"]) and not is_single)
        elif label not in VOID:
            skips.add("entity of a category not listed", f"{where}, id {number}")
    return tags


def make_cityscapes(
    images: Path, maps: Path, split: str = "train", licence: str = LICENCE
) -> Cityscapes:
    """The source of one split: ``leftImg8bit/<split>`` and ``gtFine/<split>``."""
    return Cityscapes(images, maps, split, "cityscapes", licence)


def read_cityscapes(images: Path, maps: Path, skips: Skips) -> Iterator[Annotated]:
    """Pictures of one split of Cityscapes in the order of their keys.

    Args:
        images: ``leftImg8bit/<split>``. maps: ``gtFine/<split>``.
        skips: tally of what is left out, by reason.

    Raises:
        UnigsError: a folder or a picture's map is missing.
    """
    return make_cityscapes(images, maps).iterate(skips)
