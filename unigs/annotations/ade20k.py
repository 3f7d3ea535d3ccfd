"""ADE20K as the Scene Parsing challenge released it (``ADEChallengeData2016``).

In: the folder of a split's pictures, of its class maps, and, where they were unpacked beside them,
of the instance maps of the Places challenge 2017 (``annotations_instance``). Out: ``Source``. A
class map holds 0..150, 0 is "other": void. An instance map holds its own class 1..100 in red and
the instance in green, and covers what is countable.

With instance maps the source is ``ade20k-panoptic``: stuff from the class map, things from the
instance map, which lies on top where both speak; pixels of a countable class without an instance
are void. Without them it is ``ade20k-semantic``: one region a class, and nothing says which are
things. The full release (3,688 classes, ``*_seg.png``) is not read: its class names lie in a
pickle.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from unigs.annotations import base, names
from unigs.annotations.base import Category, Tag, Unusable
from unigs.annotations.pairs import (
    Pair,
    PairedMaps,
    ReadRows,
    list_ids,
    open_map,
    paint_ids,
    read_rows,
    require_maps,
)
from unigs.annotations.rows import to_category_name
from unigs.files import decode_text, explain_errors
from unigs.records import Annotated, Skips, UnigsError

LICENCE = "ADE20K terms of use: research and non-commercial; pictures of SUN and Places"
CLASSES = 150
MAX_TABLE_BYTES = 1 << 20
THING_CLASSES = (
    *(8, 9, 11, 13, 15, 16, 19, 20, 21, 23, 24, 25, 28, 31, 32, 33, 34, 36, 37, 38, 39, 40, 42),
    *(43, 44, 45, 46, 48, 50, 51, 54, 56, 57, 58, 59, 63, 65, 66, 67, 68, 70, 71, 72, 73, 74, 75),
    *(76, 77, 79, 81, 82, 83, 84, 86, 87, 88, 89, 90, 91, 93, 94, 96, 98, 99, 103, 104, 105, 108),
    *(109, 111, 112, 113, 116, 117, 119, 120, 121, 122, 124, 125, 126, 127, 128, 130, 131, 133),
    *(134, 135, 136, 137, 138, 139, 140, 143, 144, 145, 147, 148, 149, 150),
)
"""Class of the 150 by class of the instance maps, 1..100 (``categoryMapping.txt``)."""


@dataclass
class Ade20k(PairedMaps):
    """One split; label 0 is void.

    Attributes:
        table: ``objectInfo150.txt``.
        instances: the folder of instance maps, or None.
    """

    table: Path
    instances: Path | None = None

    @cached_property
    def classes(self) -> dict[int, Category]:
        return read_classes(self.table, self.instances is not None)

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(self.classes.values())

    def files(self) -> list[Path]:
        return [self.table]

    def list_pairs(self, skips: Skips) -> list[Pair]:
        stems = list_stems(self.images, ".jpg")
        for folder in [self.maps] + ([self.instances] if self.instances else []):
            require_maps(stems, list_stems(folder, ".png"), folder, skips)
        keys = base.make_unique_keys(f"{stem}.jpg" for stem in stems)
        return [
            Pair(key, f"{stem}.jpg", f"{stem}.png") for key, stem in zip(keys, stems, strict=True)
        ]

    def inputs(self, i: int) -> list[Path]:
        more = [self.instances / self.index.pairs[i].map] if self.instances else []
        return [*super().inputs(i), *more]

    def read(self, i: int, skips: Skips) -> Annotated:
        pair = self.index.pairs[i]
        where = str(self.maps / pair.map)
        data, header = self.read_picture(i)
        with ExitStack() as stack:
            png = names.read_first(self.maps, [pair.map], "class map")
            classes = stack.enter_context(open_map(png, ("L", "P"), "class map", where))
            data = base.fit_picture(data, header, classes.size, where)
            rows: ReadRows = lambda strip: read_rows(classes, strip)
            if self.instances:
                where = str(self.instances / pair.map)
                png = names.read_first(self.instances, [pair.map], "instance map")
                found = stack.enter_context(open_map(png, ("RGB",), "instance map", where))
                rows = lambda strip: join_maps(classes, found, strip)
                if found.size != classes.size:
                    raise Unusable("class map and instance map differ in size", where)
            tags = list_tags(list_ids(rows, classes.size), self.classes, skips, where)
            painted = paint_ids(rows, classes.size, tags, where)
        return base.finish_sample(pair.key, data, painted, "void", self.name)


def list_stems(folder: Path, ending: str) -> list[str]:
    """Names of a folder's files of one kind, sorted, without their ending.

    Raises:
        UnigsError: no such folder.
    """
    with explain_errors("to list files", folder):
        found = names.list_folder(folder)
    return sorted(name.removesuffix(ending) for name in found if name.endswith(ending))


def join_maps(classes: Image.Image, found: Image.Image, strip: slice) -> np.ndarray:
    """Some rows of both maps as one, int32 [h, W]: ``class + 256 instance``, 0 is void.

    A class of the instance map that is none of its 100 gives class 255.
    """
    table = np.full(256, 255, np.int32)
    table[1 : len(THING_CLASSES) + 1] = THING_CLASSES
    stuff = read_rows(classes, strip).astype(np.int32)
    stuff[np.isin(stuff, THING_CLASSES)] = 0
    rgb = read_rows(found, strip)
    return np.where(rgb[..., 1] > 0, table[rgb[..., 0]] + 256 * rgb[..., 1].astype(np.int32), stuff)


def list_tags(
    ids: list[int], classes: dict[int, Category], skips: Skips, where: str
) -> dict[int, Tag]:
    """What the ids of one joined map mean; those of no class are counted."""
    tags = {}
    for number in ids:
        instance, label = divmod(number, 256)
        if label in classes:
            name = f"{label}-{instance}" if instance else str(label)
            tags[number] = Tag(classes[label], name)
        else:
            skips.add("entity of a category not listed", f"{where}, class {label}")
    return tags


def read_classes(path: Path, has_instances: bool) -> dict[int, Category]:
    """The class table by number, whether its cells are parted by tabs or by commas.

    Args:
        path: ``objectInfo150.txt`` or ``.csv``; columns by name, the first of a class's names.
        has_instances: whether it is known which classes are things.

    Raises:
        UnigsError: no such file, without its columns, or not the classes 1..150.
    """
    names.require_file(path, "the classes of ADE20K")
    with explain_errors("to read class names", path), path.open("rb") as file:
        text = decode_text(file.read(MAX_TABLE_BYTES), str(path))
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    classes: dict[int, Category] = {}
    try:
        for row in table:
            number = int(row["Idx"])
            name = to_category_name(row["Name"].replace(";", ",").split(",")[0])
            is_thing = number in THING_CLASSES if has_instances else None
            classes[number] = Category(id=str(number), name=name, is_thing=is_thing)
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UnigsError(
            f"expected rows of Idx, Ratio, Train, Val and Name, came {error!r:.100}, in {path}"
        ) from None
    if sorted(classes) != [*range(1, CLASSES + 1)]:
        raise UnigsError(f"expected the classes 1 to {CLASSES}, came {len(classes)}, in {path}")
    return classes


def make_ade20k(
    folders: tuple[Path, Path, Path | None],
    table: Path,
    split: str = "train",
    licence: str = LICENCE,
) -> Ade20k:
    """The source of one split; ``folders`` are those of pictures, class maps, instance maps."""
    images, maps, instances = folders
    name = "ade20k-panoptic" if instances else "ade20k-semantic"
    return Ade20k(images, maps, split, name, licence, table, instances)


def read_ade20k(
    images: Path, maps: Path, table: Path, skips: Skips, instances: Path | None = None
) -> Iterator[Annotated]:
    """Pictures of one split of ADE20K in the order of their keys.

    Args:
        images: ``images/<split>``. maps: ``annotations/<split>``.
        table: ``objectInfo150.txt``.
        skips: tally of what is left out, by reason.
        instances: ``annotations_instance/<split>``; makes it panoptic.

    Raises:
        UnigsError: a folder, a file or a picture's map is missing.
    """
    return make_ade20k((images, maps, instances), table).iterate(skips)
