"""COCO 2017 panoptic and instances, and every data set in their two forms (EntitySeg).

In: an annotation JSON, the folder of pictures, for panoptic also the folder of id PNGs. Out:
:class:`~unigs.annotations.base.Source`. The traps: ids
repeat between pictures, RGB ids pass 8 bits, crowds, overlaps, sizes that do not agree.
"""

from __future__ import annotations

import io
import json as json_module
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unigs.annotations import base
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

    def build_index(self) -> Index:
        """Index the JSON after a look at what must be there."""
        base.require_folder(self.images, f"the pictures of {self.name} {self.split}")
        return index_json(base.require_file(self.json, f"{self.name} {self.split}"))

    @property
    def keys(self) -> Sequence[str]:
        return self.index.keys

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(self.index.categories.values())

    @property
    def skips(self) -> Skips:
        return self.index.skips

    def files(self) -> list[Path]:
        return [self.json]

    def inputs(self, i: int) -> list[Path]:
        return [self.locate(i)]

    def read_annotations(self, i: int) -> list[dict[str, Any]]:
        """The annotations of picture ``i`` in the order of the file."""
        return [json_module.loads(text) for text in self.index.spans.read(i)]

    def locate(self, i: int) -> Path:
        """Where picture ``i`` lies."""
        name = Path(self.index.pictures[i].file_name)
        if name.is_absolute() or ".." in name.parts:
            raise Unusable("picture outside of its folder", f"{name} in {self.json}")
        return self.images / name


class CocoInstances(_CocoJson):
    """One annotation per entity, as polygons or run lengths; masks may overlap."""

    def read(self, i: int, skips: Skips) -> Annotated:
        path, annotations = self.locate(i), self.read_annotations(i)
        data = base.read_picture(path)
        width, height = self.frame_of(i, annotations, data, str(path))
        data = base.fit_picture(data, width, height, str(path))
        regions: list[Region] = []
        ids = base.distinguish_ids([str(row.get("id", "")) for row in annotations])
        for annotation_id, annotation in zip(ids, annotations, strict=True):
            try:
                tag = make_tag(self.index.categories, annotation, annotation_id)
                runs = encode_segmentation(annotation.get("segmentation"), width, height)
            except BadMask as error:
                skips.add(str(error), f"{path}, annotation {annotation_id}")
                continue
            mask = partial(decode_runs, runs)
            regions.append(Region(tag, count_pixels(runs), bounding_box(runs), mask))
        painted = base.paint_regions(regions, height, width, skips, str(path))
        return base.finish_sample(self.keys[i], data, painted, self.unlabelled, self.name)

    def frame_of(
        self, i: int, annotations: Sequence[dict[str, Any]], data: bytes, where: str
    ) -> tuple[int, int]:
        """(width, height) of the masks: run lengths know it, else the JSON's claim, else the file.

        The last where the JSON claims none.
        """
        for annotation in annotations:
            size = mask_size(annotation.get("segmentation"))
            if size is not None:
                return size
        picture = self.index.pictures[i]
        if picture.width and picture.height:
            return picture.width, picture.height
        header = base.check_picture(data, where)
        return header.width, header.height


@dataclass
class CocoPanoptic(_CocoJson):
    """One annotation per picture; every pixel's segment id is a colour of a PNG, 0 is void."""

    masks: Path

    def build_index(self) -> Index:
        index = super().build_index()
        self.require_masks(index.mask_names)
        return index

    def require_masks(self, names: Sequence[str]) -> None:
        """Every annotated picture has its PNG: a missing one means a broken unpacking, not a skip.

        Raises:
            UnigsError: with the count of those missing.
        """
        hint = UNPACKING_HINT if self.name == "coco-panoptic" else "Unpack the archive again"
        if not self.masks.is_dir():
            raise UnigsError(
                f"expected a folder of segment-id PNGs, came nothing such, at {self.masks}. {hint}"
            )
        listed = {path.name for path in self.masks.iterdir()}
        missing = [n for n in names if n not in listed and find_mask(self.masks, n) is None]
        if missing:
            raise UnigsError(
                f"expected {len(names):,} PNGs, came {len(names) - len(missing):,}, in "
                f"{self.masks} (missing e.g. {missing[0]}). {hint}"
            )

    def inputs(self, i: int) -> list[Path]:
        names = [row["file_name"] for row in self.read_annotations(i)[:1]]
        return [*super().inputs(i), *(find_mask(self.masks, n) or self.masks / n for n in names)]

    def read(self, i: int, skips: Skips) -> Annotated:
        path, (annotation, *others) = self.locate(i), self.read_annotations(i)
        if others:
            skips.add("second annotation of a picture", str(path))
        mask_path = find_mask(self.masks, annotation["file_name"])
        if mask_path is None:
            raise UnigsError(
                f"expected {annotation['file_name']}, came no such file, in {self.masks}"
            )
        ids = read_segment_ids(mask_path)
        height, width = ids.shape
        data = base.fit_picture(base.read_picture(path), width, height, str(path))
        tags = self.list_segments(annotation, skips, str(path))
        painted = paint_segments(ids, tags, skips, str(mask_path))
        return base.finish_sample(self.keys[i], data, painted, self.unlabelled, self.name)

    def list_segments(self, annotation: dict[str, Any], skips: Skips, where: str) -> dict[int, Tag]:
        """The segments of one picture by id; an id is unique in its picture only."""
        tags: dict[int, Tag] = {}
        for segment in annotation["segments_info"]:
            segment_id = segment.get("id")
            place = f"{where}, segment {segment_id}"
            possible = isinstance(segment_id, int) and 0 < segment_id < SEGMENT_IDS
            if not possible or segment_id in tags:
                skips.add("segment with an impossible or repeated id", place)
                continue
            try:
                tags[segment_id] = make_tag(self.index.categories, segment, str(segment_id))
            except BadMask as error:
                skips.add(str(error), place)
        return tags


def make_tag(
    categories: dict[str, Category], annotation: dict[str, Any], annotation_id: str
) -> Tag:
    """What an annotation says of its mask.

    Raises:
        BadMask: its category is not in the table.
    """
    category = categories.get(str(annotation.get("category_id")))
    if category is None:
        raise BadMask("entity of a category not listed")
    return Tag(category, annotation_id, bool(annotation.get("iscrowd", 0)))


def find_mask(masks: Path, file_name: str) -> Path | None:
    """The PNG of a panoptic annotation.

    COCO names the PNG; EntitySeg names the picture, whose name up to its first dot is the PNG's.
    """
    flat = file_name.rsplit("/", 1)[-1]
    for name in (file_name, flat, f"{flat.split('.')[0]}.png", f"{flat.rsplit('.', 1)[0]}.png"):
        path = masks / name
        if path.suffix == ".png" and path.is_file():
            return path
    return None


def read_segment_ids(path: Path) -> np.ndarray:
    """R + 256 G + 65536 B of an id PNG, uint32 [H, W]; widened first, 8 bits would wrap."""
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as png:
            if png.mode not in ("RGB", "RGBA", "P"):
                raise Unusable("segment-id PNG without colours", f"{path} (mode {png.mode})")
            rgb = np.asarray(png.convert("RGB")).astype(np.uint32)
    except (OSError, SyntaxError, ValueError) as error:
        raise Unusable("segment-id PNG unreadable", str(path)) from error
    return rgb[..., 0] | rgb[..., 1] << 8 | rgb[..., 2] << 16


def paint_segments(
    ids: np.ndarray, tags: dict[int, Tag], skips: Skips, where: str
) -> tuple[np.ndarray, tuple[base.Entity, ...]]:
    """Segment ids [H, W] -> labels and entities; ids nobody lists become void and are counted."""
    listed = np.asarray([0, *tags], np.uint32)
    order = np.argsort(listed)
    flat = ids.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))  # a row has few borders
    runs = flat[starts]
    places = order[np.minimum(np.searchsorted(listed[order], runs), len(tags))]
    known = listed[places] == runs
    numbers = np.where(known, places, 0).astype(np.uint16)
    painted = np.repeat(numbers, np.diff(starts, append=flat.size)).reshape(ids.shape)
    strangers = runs[~known]
    for stranger in np.unique(strangers).tolist():
        skips.add("segment in the PNG that the JSON does not list", f"{where}, id {stranger}")
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
