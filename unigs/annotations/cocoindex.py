"""The index of a COCO-style JSON: who is in it and where, without what the masks are.

In: an annotation file of COCO, EntitySeg or anyone who writes their form. Out: :class:`Index`,
pictures sorted by key, categories, and the byte spans of each picture's annotations.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unigs.annotations.base import Category, make_unique_keys
from unigs.annotations.jsonindex import Element, Spans, iterate_elements
from unigs.records import Skips, UnigsError


class Picture(NamedTuple):
    """A row of ``images``; the size is the file's claim, 0 where it makes none."""

    id: int | str
    file_name: str
    width: int
    height: int


@dataclass
class Index:
    """The compact contents of a COCO-style JSON, pictures sorted by key.

    ``mask_names`` are the files that panoptic annotations name, in the order of the file.
    """

    pictures: list[Picture]
    keys: list[str]
    categories: dict[str, Category]
    spans: Spans
    mask_names: list[str]
    skips: Skips


@dataclass
class _Rows:
    """What is kept of each element while the file goes by."""

    path: Path
    pictures: dict[int | str, Picture] = field(default_factory=dict)
    file_names: set[str] = field(default_factory=set)
    categories: dict[str, Category] = field(default_factory=dict)
    picture_ids: list[int | str] = field(default_factory=list)
    mask_names: list[str] = field(default_factory=list)
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("i"))
    skips: Skips = field(default_factory=Skips)

    def add(self, element: Element) -> None:
        """Keep an element's ids and place.

        Raises:
            UnigsError: it lacks what every row of its kind has.
        """
        section, row, offset, length = element
        try:
            if section == "annotations":
                self.add_annotation(row, offset, length)
            elif section == "categories":
                self.categories[str(row["id"])] = make_category(row)
            else:
                self.add_picture(make_picture(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UnigsError(
                f"expected a row of {section} in COCO's form, came {str(row)[:80]!r} "
                f"({type(error).__name__}: {error}), at byte {offset} of {self.path}"
            ) from error

    def add_annotation(self, row: dict[str, Any], offset: int, length: int) -> None:
        self.picture_ids.append(row["image_id"])
        self.offsets.append(offset)
        self.lengths.append(length)
        if "segments_info" in row:
            self.mask_names.append(row["file_name"])

    def add_picture(self, picture: Picture) -> None:
        if picture.id in self.pictures or picture.file_name in self.file_names:
            self.skips.add("picture listed twice", f"{picture.file_name} in {self.path}")
            return
        self.pictures[picture.id] = picture
        self.file_names.add(picture.file_name)


def index_json(path: Path) -> Index:
    """Read a COCO-style JSON once, keeping names, ids and places (bounded memory).

    Pictures listed twice, and those without annotations, are left out and counted.

    Raises:
        UnigsError: not of COCO's form, or cut short.
    """
    rows = _Rows(path)
    for element in iterate_elements(path, ("images", "annotations", "categories")):
        rows.add(element)
    pictures, keys = _sort_pictures(rows)
    places = {picture.id: k for k, picture in enumerate(pictures)}
    owners = np.fromiter((places.get(k, -1) for k in rows.picture_ids), np.int32)
    for k in np.flatnonzero(owners < 0):
        where = f"picture {rows.picture_ids[k]} in {path}"
        rows.skips.add("annotation of a picture not listed", where)
    spans = Spans(path, owners, rows.offsets, rows.lengths, len(pictures))
    return Index(pictures, keys, rows.categories, spans, rows.mask_names, rows.skips)


def _sort_pictures(rows: _Rows) -> tuple[list[Picture], list[str]]:
    """The pictures that have annotations, sorted by key, and their keys."""
    annotated = set(rows.picture_ids)
    listed = []
    for picture in rows.pictures.values():
        if picture.id in annotated:
            listed.append(picture)
        else:
            where = f"{picture.file_name} in {rows.path}"
            rows.skips.add("picture without annotations", where)
    keys = make_unique_keys(picture.file_name for picture in listed)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return [listed[k] for k in order], [keys[k] for k in order]


def make_picture(row: dict[str, Any]) -> Picture:
    """A row of ``images``."""
    width, height = int(row.get("width") or 0), int(row.get("height") or 0)
    return Picture(row["id"], row["file_name"], width, height)


def make_category(row: dict[str, Any]) -> Category:
    """A row of ``categories``; says thing or stuff by ``isthing`` (COCO) or ``type`` (EntitySeg).

    A table that says neither is COCO instances', which knows things only. EntitySeg's
    ``unknown`` may be either.
    """
    name = str(row["name"]).strip()
    is_thing: bool | None = True
    if "isthing" in row:
        is_thing = bool(row["isthing"])
    elif "type" in row:
        is_thing = None if name == "unknown" else row["type"] == "thing"
    return Category(id=str(row["id"]), name=name, is_thing=is_thing)
