"""COCO 2017 panoptic and instances, and every data set in their two forms (EntitySeg).

In: an annotation JSON, the folder of pictures, for panoptic also the folder of id PNGs. Out:
:class:`~unigs.annotations.base.Source`. The traps: ids
repeat between pictures, RGB ids pass 8 bits, crowds, overlaps, sizes that do not agree.
"""

from __future__ import annotations

import json as json_module
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unigs import images as pictures
from unigs.annotations import base, names
from unigs.annotations.base import Category, Region, Source, Tag, Unusable
from unigs.annotations.cocoindex import Index, index_json
from unigs.annotations.masks import (
    BadMask,
    bounding_box,
    count_pixels,
    decode_runs,
    encode_segmentation,
    mask_size,
)
from unigs.annotations.pairs import number_ids
from unigs.annotations.rows import ENTITY, SEGMENT, BadRow, read_row, show_value
from unigs.files import FileRefused, explain_errors, open_inside
from unigs.records import Annotated, Skips, UnigsError, Unlabelled

LICENCE = "annotations CC BY 4.0 (COCO Consortium); each picture under its own Flickr licence"
SEGMENT_IDS = 1 << 24
UNPACKING_HINT = (
    "The panoptic archive holds zips that are unpacked a second time. If 52,751 of 118,287 came "
    "out, the unpacker counts entries in 16 bits (118,287 - 65,536): use another one"
)


@dataclass
class _CocoJson(Source):
    """What the two forms share: the JSON, its index, the pictures' folder."""

    json: Path
    images: Path
    split: str
    name: str
    licence: str
    unlabelled: Unlabelled

    @cached_property
    def index(self) -> Index:
        return self.build_index()

    def build_index(self, panoptic: bool = False) -> Index:
        """Index the JSON after a look at what must be there."""
        names.require_folder(self.images, f"the pictures of {self.name} {self.split}")
        path = names.require_file(self.json, f"{self.name} {self.split}")
        return index_json(path, panoptic)

    @property
    def keys(self) -> Sequence[str]:
        return self.index.keys

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(self.index.categories.values())

    @property
    def skips(self) -> Skips:
        return self.index.skips

    @property
    def remarks(self) -> tuple[str, ...]:
        crowds, entities = self.index.crowds, self.index.entities
        if 2 * crowds <= entities:
            return ()
        return (
            f"{self.name} {self.split}: {crowds / entities:.0%} of the entities are crowds "
            "(iscrowd 1), which are ignored in training and never drawn; some tools write 1 for "
            "every brush mask",
        )

    def files(self) -> list[Path]:
        return [self.json]

    def inputs(self, i: int) -> list[Path]:
        return [names.find_picture(self.images, self.index.pictures[i].file_name)]

    def read_annotations(self, i: int) -> list[dict[str, Any]]:
        """The annotations of picture ``i`` in the order of the file."""
        return [json_module.loads(text) for text in self.index.spans.read(i)]

    def locate(self, i: int) -> str:
        """Where picture ``i`` should lie, for counts."""
        return str(self.images / self.index.pictures[i].file_name)

    def read_picture(self, i: int) -> tuple[bytes, pictures.Header]:
        """Picture ``i`` as it lies on disk, decoded once to the end."""
        data = names.read_picture(self.images, self.index.pictures[i].file_name)
        return data, base.check_picture(data, self.locate(i))


class CocoInstances(_CocoJson):
    """One annotation per entity, as polygons or run lengths; masks may overlap."""

    def read(self, i: int, skips: Skips) -> Annotated:
        where, annotations = self.locate(i), self.read_annotations(i)
        data, header = self.read_picture(i)
        width, height = self.frame_of(i, annotations, header)
        data = base.fit_picture(data, header, (width, height), where)
        regions: list[Region] = []
        ids = base.distinguish_ids([name_annotation(row) for row in annotations])
        for annotation_id, annotation in zip(ids, annotations, strict=True):
            try:
                tag = make_tag(self.index.categories, annotation, annotation_id)
                runs = encode_segmentation(annotation.get("segmentation"), width, height)
            except BadMask as error:
                skips.add(str(error), f"{where}, annotation {annotation_id}")
                continue
            mask = partial(decode_runs, runs)
            regions.append(Region(tag, count_pixels(runs), bounding_box(runs), mask))
        painted = base.paint_regions(regions, height, width, skips, where)
        return base.finish_sample(self.keys[i], data, painted, self.unlabelled, self.name)

    def frame_of(
        self, i: int, annotations: Sequence[dict[str, Any]], header: pictures.Header
    ) -> tuple[int, int]:
        """(width, height) of the masks: run lengths know it, else the JSON's claim, else the file.

        Where run lengths differ, one that fits the file is believed. The last where the JSON
        claims none.
        """
        stored = header.width, header.height
        sizes = {size: None for row in annotations if (size := mask_size(row.get("segmentation")))}
        if sizes:
            fitting = [size for size in (stored, stored[::-1]) if size in sizes]
            return (fitting or list(sizes))[0]
        picture = self.index.pictures[i]
        return (picture.width, picture.height) if picture.width and picture.height else stored


@dataclass
class CocoPanoptic(_CocoJson):
    """One annotation per picture; every pixel's segment id is a colour of a PNG, 0 is void."""

    masks: Path

    def build_index(self, panoptic: bool = True) -> Index:
        index = super().build_index(panoptic)
        self.require_masks(index.mask_names)
        return index

    def require_masks(self, mask_names: Sequence[str]) -> None:
        """Every annotated picture has its PNG: a missing one means a broken unpacking, not a skip.

        Raises:
            UnigsError: with the count of those missing.
        """
        hint = UNPACKING_HINT if self.name == "coco-panoptic" else "Unpack the archive again"
        if not self.masks.is_dir():
            raise UnigsError(
                f"expected a folder of segment-id PNGs, came nothing such, at {self.masks}. {hint}"
            )
        with explain_errors("to list the segment-id PNGs", self.masks):
            listed = names.list_folder(self.masks)
        missing = [
            name
            for name in mask_names
            if name not in listed
            and listed.isdisjoint(spell_mask(name))
            and not any(map(self.holds, spell_mask(name)))
        ]
        if missing:
            raise UnigsError(
                f"expected {len(mask_names):,} PNGs, came {len(mask_names) - len(missing):,}, in "
                f"{self.masks} (missing e.g. {missing[0]}). {hint}"
            )

    def holds(self, name: str) -> bool:
        """Whether the folder of PNGs has a file of that name, be it unreadable."""
        try:
            os.close(open_inside(self.masks, name, pictures.MAX_FILE_BYTES))
        except FileNotFoundError:
            return False
        except FileRefused as error:
            return error.reason not in names.OUTSIDE
        return True

    def inputs(self, i: int) -> list[Path]:
        masks = [row["file_name"] for row in self.read_annotations(i)[:1]]
        found = [names.find_first(self.masks, spell_mask(name)) for name in masks]
        return [*super().inputs(i), *found]

    def read(self, i: int, skips: Skips) -> Annotated:
        where, (annotation, *others) = self.locate(i), self.read_annotations(i)
        if others:
            skips.add("second annotation of a picture", where)
        data, header = self.read_picture(i)
        mask_name = annotation["file_name"]
        png = names.read_first(self.masks, spell_mask(mask_name), "segment-id PNG")
        tags = self.list_segments(annotation["segments_info"], skips, where)
        mask_where = str(self.masks / mask_name)
        with open_ids(png, mask_where) as ids:
            data = base.fit_picture(data, header, ids.size, where)
            painted = paint_segments(ids, tags, skips, mask_where)
        return base.finish_sample(self.keys[i], data, painted, self.unlabelled, self.name)

    def list_segments(self, segments: list[Any], skips: Skips, where: str) -> dict[int, Tag]:
        """The segments of one picture by id; an id is unique in its picture only."""
        tags: dict[int, Tag] = {}
        for segment in segments:
            try:
                (segment_id,) = read_row(segment, SEGMENT)
            except BadRow:
                segment_id = None
            possible = isinstance(segment_id, int) and 0 < segment_id < SEGMENT_IDS
            if not possible or segment_id in tags:
                place = f"{where}, segment {show_value(segment_id)}"
                skips.add("segment with an impossible or repeated id", place)
                continue
            try:
                tags[segment_id] = make_tag(self.index.categories, segment, str(segment_id))
            except BadMask as error:
                skips.add(str(error), f"{where}, segment {segment_id}")
        return tags


def name_annotation(annotation: dict[str, Any]) -> str:
    """The id of an annotation as text; where it is none, empty."""
    try:
        return str(read_row(annotation, SEGMENT)[0])
    except BadRow:
        return ""


def make_tag(
    categories: dict[str, Category], annotation: dict[str, Any], annotation_id: str
) -> Tag:
    """What an annotation says of its mask.

    Raises:
        BadMask: its category is not in the table, or a field is of another form.
    """
    try:
        category_id, is_crowd = read_row(annotation, ENTITY)
    except BadRow as error:
        raise BadMask(f"entity with {error.field} of another form") from None
    category = categories.get(str(category_id))
    if category is None:
        raise BadMask("entity of a category not listed")
    return Tag(category, annotation_id, is_crowd)


def spell_mask(file_name: str) -> Iterator[str]:
    """The names that the PNG of a panoptic annotation may have, the likeliest first.

    COCO names the PNG; EntitySeg names the picture, whose name up to its first dot is the PNG's.
    """
    if "/" not in file_name:
        file_name = file_name.replace("\\", "/")
    flat = file_name.rsplit("/", 1)[-1]
    for name in (file_name, flat, f"{flat.split('.')[0]}.png", f"{flat.rsplit('.', 1)[0]}.png"):
        if name.lower().endswith(".png"):
            yield from names.spell_name(name)


@contextmanager
def open_ids(data: bytes, where: str) -> Iterator[Image.Image]:
    """An id PNG, loaded, as colours.

    Raises:
        Unusable: no PNG, or one without colours.
    """
    try:
        with pictures.open_image(data) as png:
            if png.mode not in ("RGB", "RGBA", "P"):
                raise Unusable("segment-id PNG without colours", f"{where} (mode {png.mode})")
            png.load()
            yield png
    except pictures.UnreadableImage as error:
        raise Unusable("segment-id PNG unreadable", f"{where} ({error.detail})") from error


def read_ids(png: Image.Image, rows: slice) -> np.ndarray:
    """R + 256 G + 65536 B of some rows, uint32 [h, W]; widened first, 8 bits would wrap."""
    strip = png if rows == slice(0, png.height) else png.crop((0, rows.start, png.width, rows.stop))
    rgb = np.asarray(strip.convert("RGB")).astype(np.uint32)
    return rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16


def paint_segments(
    png: Image.Image, tags: dict[int, Tag], skips: Skips, where: str
) -> tuple[np.ndarray, tuple[base.Entity, ...]]:
    """An id PNG -> labels and entities; ids nobody lists become void and are counted."""
    if len(tags) > base.MAX_ENTITIES:
        raise Unusable("more entities than 16 bits can number", where)
    painted = np.empty((png.height, png.width), np.uint16)
    listed, strangers = np.asarray([0, *tags], np.uint32), None
    for rows in pictures.split_rows(png.height, png.width):
        painted[rows], unknown = number_ids(read_ids(png, rows), listed)
        if len(unknown):  # few have them, and the table takes as long as the rest
            strangers = np.zeros(SEGMENT_IDS, bool) if strangers is None else strangers
            strangers[unknown] = True
    if strangers is not None:
        place = f"{where}, id {strangers.argmax()}"
        count = int(np.count_nonzero(strangers))
        skips.add("segment in the PNG that the JSON does not list", place, count)
    return base.number_entities(
        painted, list(tags.values()), skips, "segment without a pixel", where
    )


def read_coco_panoptic(json: Path, masks: Path, images: Path, skips: Skips) -> Iterator[Annotated]:
    """Pictures of COCO panoptic (``panoptic_val2017.json``) in the order of their keys.

    Args:
        json: the annotation file. masks: the folder of its PNGs. images: the folder of pictures.
        skips: tally of what is left out, by reason.

    Raises:
        UnigsError: a file or folder is missing, or the PNGs are incomplete.
    """
    return make_coco_panoptic(json, masks, images).iterate(skips)


def read_coco_instances(json: Path, images: Path, skips: Skips) -> Iterator[Annotated]:
    """Pictures of COCO instances (``instances_val2017.json``) in the order of their keys.

    Args:
        json: the annotation file. images: the folder of pictures.
        skips: tally of what is left out, by reason.

    Raises:
        UnigsError: a file or folder is missing.
    """
    return make_coco_instances(json, images).iterate(skips)


def make_coco_panoptic(
    json: Path, masks: Path, images: Path, split: str = "train", licence: str = LICENCE
) -> Source:
    """The panoptic source; its label 0 is void."""
    return CocoPanoptic(json, images, split, "coco-panoptic", licence, "void", masks)


def make_coco_instances(
    json: Path, images: Path, split: str = "train", licence: str = LICENCE
) -> Source:
    """The instances source; its label 0 was never annotated."""
    return CocoInstances(json, images, split, "coco-instances", licence, "unannotated")
