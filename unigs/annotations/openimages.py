"""Open Images V5 to V7 segmentations.

In: the rows' CSV, the mask PNGs (folders or zips), the pictures, the class names. Out:
:class:`~unigs.annotations.base.Source`. The train CSV has 2.7 million rows in 807 MB: the index
keeps the place of each row in the file and ``load`` reads back those of one picture. Masks are of
another size than their picture, overlap, and say nothing of what they do not cover.
"""

from __future__ import annotations

import csv
import io
import os
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from unigs import images
from unigs.annotations import base
from unigs.annotations.base import Category, Region, Source, Tag
from unigs.annotations.jsonindex import Spans, reading_bar
from unigs.annotations.masks import BadMask
from unigs.records import Annotated, Skips, UnigsError

LICENCE = "annotations CC BY 4.0 (Google); pictures listed as CC BY 2.0"
COLUMNS = ("MaskPath", "ImageID", "LabelName", "BoxID")
RELEASED_SPLITS = {"train": "train", "val": "validation", "test": "test"}
MASK_SHAPE_TOLERANCE = 0.02
OPEN_ZIPS = 2
ROWS_PER_UPDATE = 1 << 16


@dataclass
class Index:
    """Ids sorted by key, where their rows lie, and the place of each column."""

    image_ids: list[str]
    keys: list[str]
    columns: dict[str, int]
    spans: Spans
    skips: Skips


@dataclass
class OpenImages(Source):
    """Pictures that have at least one row; most of the release has none."""

    csv: Path
    masks: Path
    images: Path
    classes: Path
    split: str = "train"
    name: str = "openimages"
    licence: str = LICENCE

    @cached_property
    def index(self) -> Index:
        base.require_folder(self.images, f"the pictures of {self.name} {self.split}")
        base.require_folder(self.masks, f"the mask PNGs or zips of {self.name} {self.split}")
        return index_rows(base.require_file(self.csv, f"the rows of {self.name} {self.split}"))

    @cached_property
    def classes_by_id(self) -> dict[str, Category]:
        return read_classes(self.classes)

    @property
    def keys(self) -> Sequence[str]:
        return self.index.keys

    @property
    def categories(self) -> tuple[Category, ...]:
        return tuple(self.classes_by_id.values())

    @property
    def skips(self) -> Skips:
        return self.index.skips

    def files(self) -> list[Path]:
        return [self.csv, self.classes]

    def inputs(self, i: int) -> list[Path]:
        split = RELEASED_SPLITS[self.split]
        names = [row["MaskPath"] for row in self.read_rows(i)]
        masks = [find_mask(self.masks, split, name) for name in names]
        return [self.images / f"{self.index.image_ids[i]}.jpg", *masks]

    def read(self, i: int, skips: Skips) -> Annotated:
        path = self.images / f"{self.index.image_ids[i]}.jpg"
        data = base.read_picture(path)
        header = base.check_picture(data, str(path))
        regions = []
        rows = self.read_rows(i)
        ids = base.distinguish_ids([row["BoxID"] for row in rows])
        for annotation_id, row in zip(ids, rows, strict=True):
            try:
                regions.append(self.make_region(row, annotation_id, header.width, header.height))
            except BadMask as error:
                skips.add(str(error), row["MaskPath"])
        painted = base.paint_regions(regions, header.height, header.width, skips, str(path))
        data = images.strip_orientation(data)
        return base.finish_sample(self.keys[i], data, painted, "unannotated", self.name)

    def read_rows(self, i: int) -> list[dict[str, str]]:
        """The rows of picture ``i``, the columns that are needed, in the order of the file."""
        texts = [text.decode() for text in self.index.spans.read(i)]
        columns = self.index.columns
        return [{name: row[at] for name, at in columns.items()} for row in csv.reader(texts)]

    def make_region(
        self, row: dict[str, str], annotation_id: str, width: int, height: int
    ) -> Region:
        """The mask of a row at its picture's size.

        Raises:
            BadMask: class not listed; mask missing, unreadable, empty or of another shape.
        """
        category = self.classes_by_id.get(row["LabelName"])
        if category is None:
            raise BadMask("entity of a category not listed")
        data = read_mask_file(self.masks, RELEASED_SPLITS[self.split], row["MaskPath"])
        mask, box = fit_mask(data, width, height)
        tag = Tag(category, annotation_id)
        return Region(tag, int(np.count_nonzero(mask)), box, lambda: mask)


def index_rows(path: Path) -> Index:
    """Read the CSV once, keeping the picture and the place of each row (bounded memory).

    Raises:
        UnigsError: the header lacks a column.
    """
    places: dict[bytes, int] = {}
    owners, offsets, lengths = array("i"), array("q"), array("i")
    skips = Skips()
    with path.open("rb") as file, reading_bar(path) as bar:
        columns = find_columns(file.readline(), path)
        at, needed, offset = columns["ImageID"], max(columns.values()), file.tell()
        for line in file:
            fields = line.rstrip(b"\r\n").split(b",", needed + 1)
            if len(fields) > needed:
                owners.append(places.setdefault(fields[at], len(places)))
                offsets.append(offset)
                lengths.append(len(line))
                if len(offsets) % ROWS_PER_UPDATE == 0:
                    bar.update(offset - bar.n)
            elif line.strip():
                skips.add("row with too few columns", f"byte {offset} of {path}")
            offset += len(line)
    found = [image_id.decode() for image_id in places]
    keys = base.make_unique_keys(f"{image_id}.jpg" for image_id in found)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    spans = Spans(path, rank[np.frombuffer(owners, np.int32)], offsets, lengths, len(order))
    return Index([found[k] for k in order], [keys[k] for k in order], columns, spans, skips)


def find_columns(header: bytes, path: Path) -> dict[str, int]:
    """Place of each needed column."""
    names = header.decode("utf-8-sig").strip().split(",")
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise UnigsError(
            f"expected a header with {', '.join(COLUMNS)}, came {','.join(names)[:80]!r}, in {path}"
        )
    return {name: names.index(name) for name in COLUMNS}


def read_classes(path: Path) -> dict[str, Category]:
    """Class names by MID, from a file with or without header, with or without further columns.

    Raises:
        UnigsError: no such file, or no row that starts with a MID.
    """
    base.require_file(path, "Open Images class names")
    classes = {}
    with path.open(newline="", encoding="utf-8-sig") as file:
        for row in csv.reader(file):
            if len(row) >= 2 and row[0].startswith(("/m/", "/g/")):
                classes[row[0]] = Category(id=row[0], name=row[1].strip(), is_thing=True)
    if not classes:
        raise UnigsError(f"expected rows of MID and name, came none, in {path}")
    return classes


def read_mask_file(masks: Path, released_split: str, name: str) -> bytes:
    """A mask's bytes from any of the layouts in use.

    ``masks/<name>``, ``masks/<split>/<name>``, ``masks/<FIRST LETTER>/<name>`` (either case), or
    the zips as released, ``masks/<split>-masks-<first letter>.zip``.

    Raises:
        BadMask: in none of them.
    """
    first = name[:1]
    for folder in ("", released_split, first.upper(), first):
        try:
            return (masks / folder / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            continue
    archive = masks / f"{released_split}-masks-{first}.zip"
    try:
        return _open_zip(archive, os.getpid()).read(name)
    except (FileNotFoundError, KeyError):
        raise BadMask("mask file missing") from None
    except zipfile.BadZipFile as error:
        raise BadMask("mask unreadable") from error


def find_mask(masks: Path, released_split: str, name: str) -> Path:
    """The file that holds a mask, the PNG or its zip; see :func:`read_mask_file`."""
    first = name[:1]
    for folder in ("", released_split, first.upper(), first):
        if (path := masks / folder / name).is_file():
            return path
    return masks / f"{released_split}-masks-{first}.zip"


@lru_cache(maxsize=OPEN_ZIPS)
def _open_zip(path: Path, process_id: int) -> zipfile.ZipFile:
    """An open zip; forked processes must not share one, because it has one file position."""
    return zipfile.ZipFile(path)


def fit_mask(data: bytes, width: int, height: int) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Decode a mask and bring it to its picture's size by nearest, each side by its own factor.

    Returns:
        bool [H, W], and its box (left, top, right, bottom).

    Raises:
        BadMask: unreadable, of another shape than the picture, empty before or after resizing.
    """
    try:
        with Image.open(io.BytesIO(data)) as png:
            mask = png if png.mode in ("1", "L", "P") else png.convert("L")
            mask = Image.fromarray(np.asarray(mask) > 0)
    except (OSError, SyntaxError, ValueError) as error:
        raise BadMask("mask unreadable") from error
    box = mask.getbbox()
    if box is None:
        raise BadMask("entity with an empty mask")
    if mask.size != (width, height):
        fitting = mask.height * width / mask.width
        if abs(fitting - height) > max(2, MASK_SHAPE_TOLERANCE * height):
            raise BadMask("mask of another shape than its picture")
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
        box = mask.getbbox()
        if box is None:
            raise BadMask("mask empty after resizing")
    return np.asarray(mask), box


def read_openimages(
    csv: Path, masks: Path, images: Path, classes: Path, skips: Skips, split: str = "train"
) -> Iterator[Annotated]:
    """Pictures of an Open Images split in the order of their keys.

    Args:
        csv: ``<split>-annotations-object-segmentation.csv``.
        masks: the folder of mask PNGs or zips, see :func:`read_mask_file`.
        images: the folder of ``<ImageID>.jpg``.
        classes: ``class-descriptions-boxable.csv`` or one of its kind.
        skips: tally of what is left out, by reason.
        split: ``train``, ``val`` or ``test``.

    Raises:
        UnigsError: a file, folder or column is missing.
    """
    return OpenImages(csv, masks, images, classes, split).iterate(skips)
