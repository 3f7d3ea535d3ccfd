"""The index of a COCO-style JSON: who is in it and where, without what the masks are.

In: an annotation file of COCO, EntitySeg or anyone who writes their form. Out: :class:`Index`,
pictures sorted by key, categories, and the byte spans of each picture's annotations.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unigs.annotations.base import Category, make_unique_keys
from unigs.annotations.jsonindex import Element, Spans, UnreadableValue, iterate_elements
from unigs.annotations.rows import (
    CATEGORY,
    ENTITY,
    INSTANCE,
    PANOPTIC,
    PICTURE,
    BadRow,
    read_row,
)
from unigs.records import Skips, UnigsError

SAMPLED_CROWDS = 16
"""Of how many annotations one is asked whether its entities are crowds."""


class Picture(NamedTuple):
    """A row of ``images``; the size is the file's claim, 0 where it makes none."""

    id: int | str
    file_name: str
    width: int
    height: int


@dataclass
class Index:
    """The compact contents of a COCO-style JSON, pictures sorted by key.

    ``mask_names`` are the files that panoptic annotations name, in the order of the file;
    ``crowds`` of ``entities`` are crowds, among those asked.
    """

    pictures: list[Picture]
    keys: list[str]
    categories: dict[str, Category]
    spans: Spans
    mask_names: list[str]
    skips: Skips
    crowds: int
    entities: int


@dataclass
class _Rows:
    """What is kept of each element while the file goes by."""

    path: Path
    panoptic: bool
    pictures: dict[int | str, Picture] = field(default_factory=dict)
    file_names: set[str] = field(default_factory=set)
    categories: dict[str, Category] = field(default_factory=dict)
    picture_ids: list[int | str] = field(default_factory=list)
    mask_names: list[str] = field(default_factory=list)
    offsets: array[int] = field(default_factory=lambda: array("q"))
    lengths: array[int] = field(default_factory=lambda: array("i"))
    skips: Skips = field(default_factory=Skips)
    crowds: int = 0
    entities: int = 0

    def add(self, element: Element) -> None:
        """Keep an element's ids and place.

        Raises:
            UnigsError: it lacks what every row of its kind has.
        """
        section, row, offset, length = element
        if isinstance(row, UnreadableValue):
            self.skips.add(f"row of {section} {row.reason}", f"byte {offset} of {self.path}")
            return
        try:
            if section == "annotations":
                self.add_annotation(row, offset, length)
            elif section == "categories":
                self.add_category(row, offset)
            else:
                self.add_picture(Picture(*read_row(row, PICTURE)))
        except BadRow as error:
            kind = "panoptic annotations" if section == "annotations" and self.panoptic else section
            raise UnigsError(
                f"expected a row of {kind} in COCO's form, came one with {error}, at byte "
                f"{offset} of {self.path}"
            ) from None

    def add_annotation(self, row: Any, offset: int, length: int) -> None:
        if self.panoptic:
            picture_id, mask_name, segments = read_row(row, PANOPTIC)
            self.mask_names.append(mask_name)
        else:
            (picture_id,) = read_row(row, INSTANCE)
            segments = (row,)
            if "segments_info" in row and "segmentation" not in row:
                raise BadRow("segmentation", "a mask, not a panoptic row", None)
        if len(self.offsets) % SAMPLED_CROWDS == 0:
            self.ask_crowds(segments)
        self.picture_ids.append(picture_id)
        self.offsets.append(offset)
        self.lengths.append(length)

    def ask_crowds(self, segments: Iterable[Any]) -> None:
        for segment in segments:
            try:
                self.crowds += read_row(segment, ENTITY)[1]
                self.entities += 1
            except BadRow:
                continue  # counted where it is read

    def add_category(self, row: Any, offset: int) -> None:
        category = make_category(row)
        known = self.categories.setdefault(category["id"], category)
        if known != category:
            raise UnigsError(
                f"expected one meaning of category id {category['id'][:60]}, came "
                f"{known['name'][:60]!r} and {category['name'][:60]!r}, at byte {offset} of "
                f"{self.path}"
            )

    def add_picture(self, picture: Picture) -> None:
        if picture.id in self.pictures or picture.file_name in self.file_names:
            self.skips.add("picture listed twice", f"{picture.file_name} in {self.path}")
            return
        self.pictures[picture.id] = picture
        self.file_names.add(picture.file_name)


def index_json(path: Path, panoptic: bool = False) -> Index:
    """Read a COCO-style JSON once, keeping names, ids and places (bounded memory).

    Pictures listed twice, and those without annotations, are left out and counted.

    Args:
        path: the annotation file.
        panoptic: one annotation a picture with ``segments_info``, or one an entity.

    Raises:
        UnigsError: not of COCO's form, or cut short.
    """
    rows = _Rows(path, panoptic)
    for element in iterate_elements(path, ("images", "annotations", "categories")):
        rows.add(element)
    pictures, keys = _sort_pictures(rows)
    places = {picture.id: k for k, picture in enumerate(pictures)}
    owners = np.fromiter((places.get(k, -1) for k in rows.picture_ids), np.int32)
    for k in np.flatnonzero(owners < 0):
        where = f"picture {rows.picture_ids[k]} in {path}"
        rows.skips.add("annotation of a picture not listed", where)
    spans = Spans(path, owners, rows.offsets, rows.lengths, len(pictures))
    counts = rows.crowds, rows.entities
    return Index(pictures, keys, rows.categories, spans, rows.mask_names, rows.skips, *counts)


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


def make_category(row: Any) -> Category:
    """A row of ``categories``; says thing or stuff by ``isthing`` (COCO) or ``type`` (EntitySeg).

    A table that says neither is COCO instances', which knows things only. EntitySeg's
    ``unknown`` may be either.

    Raises:
        BadRow: of another form.
    """
    category_id, name, isthing, kind = read_row(row, CATEGORY)
    is_thing: bool | None = True
    if "isthing" in row:
        is_thing = isthing
    elif "type" in row:
        is_thing = None if name == "unknown" else kind
    return Category(id=str(category_id), name=name, is_thing=is_thing)
