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
import zlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path

import numpy as np
from PIL import Image

from unigs import images
from unigs.annotations import base, names
from unigs.annotations.base import Category, Region, Source, Tag, Unusable
from unigs.annotations.jsonindex import Spans, reading_bar
from unigs.annotations.masks import BadMask
from unigs.annotations.rows import to_category_name, to_flag
from unigs.files import decode_text, explain_errors
from unigs.images import Header
from unigs.records import Annotated, Skips, UnigsError

LICENCE = "annotations CC BY 4.0 (Google); pictures listed as CC BY 2.0"
COLUMNS = ("MaskPath", "ImageID", "LabelName", "BoxID")
GROUP_COLUMN = "IsGroupOf"  # of files joined with those of the boxes
UNKNOWN = ("-1", "-1.0")  # how the boxes say so
RELEASED_SPLITS = {"train": "train", "val": "validation", "test": "test"}
MASK_SHAPE_TOLERANCE = 0.02
OPEN_ZIPS = 2
ROWS_PER_UPDATE = 1 << 16
MAX_ROW_BYTES = 1 << 17
"""What Python's csv takes for one field; a released row has 200."""

MAX_CLASSES_BYTES = 1 << 26
_ZIP_FAULTS = (NotImplementedError, RuntimeError, EOFError)  # odd compression, a password, a cut
MASKS_BYTES = 1 << 27
"""Of masks kept between measuring and painting a picture; the rest are read twice."""


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
        names.require_folder(self.images, f"the pictures of {self.name} {self.split}")
        names.require_folder(self.masks, f"the mask PNGs or zips of {self.name} {self.split}")
        return index_rows(names.require_file(self.csv, f"the rows of {self.name} {self.split}"))

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
        released = RELEASED_SPLITS[self.split]
        masks = [find_mask(self.masks, released, row["MaskPath"]) for row in self.read_rows(i)]
        spelt = spell_picture(self.index.image_ids[i], released)
        return [names.find_first(self.images, spelt), *masks]

    def read(self, i: int, skips: Skips) -> Annotated:
        image_id, released = self.index.image_ids[i], RELEASED_SPLITS[self.split]
        where = str(self.images / f"{image_id}.jpg")
        data = names.read_first(self.images, spell_picture(image_id, released), "picture")
        header = base.check_picture(data, where)
        regions: list[Region] = []
        kept = 0
        rows = self.read_rows(i)
        ids = base.distinguish_ids([row["BoxID"] for row in rows])
        for annotation_id, row in zip(ids, rows, strict=True):
            try:
                tag = self.make_tag(row, annotation_id)
                mask, box = self.read_mask(row["MaskPath"], header)
            except (BadMask, Unusable) as error:
                reason = error.reason if isinstance(error, Unusable) else str(error)
                skips.add(reason, f"{row['MaskPath']} in {self.masks}")
                continue
            kept += mask.nbytes
            again = partial(self.read_mask, row["MaskPath"], header)
            paint = (lambda m=mask: m) if kept <= MASKS_BYTES else (lambda a=again: a()[0])
            regions.append(Region(tag, int(np.count_nonzero(mask)), box, paint))
        painted = base.paint_regions(regions, header.height, header.width, skips, where)
        data = data if header.orientation == 1 else images.strip_orientation(data)
        return base.finish_sample(self.keys[i], data, painted, "unannotated", self.name)

    def read_rows(self, i: int) -> list[dict[str, str]]:
        """The rows of picture ``i``, the columns that are needed, in the order of the file."""
        return [self.read_cells(text) for text in self.index.spans.read(i)]

    def read_cells(self, text: bytes) -> dict[str, str]:
        """The needed cells of one row; those it has not are empty."""
        try:
            cells = next(csv.reader([decode_text(text, str(self.csv))]), [])
        except (UnigsError, csv.Error) as error:
            raise Unusable("row unreadable", f"{self.csv} ({error})") from error
        columns = self.index.columns.items()
        return {name: cells[at] if at < len(cells) else "" for name, at in columns}

    def make_tag(self, row: dict[str, str], annotation_id: str) -> Tag:
        """What a row says of its mask.

        Raises:
            BadMask: class not listed, or a flag that is none.
        """
        category = self.classes_by_id.get(row["LabelName"])
        if category is None:
            raise BadMask("entity of a category not listed")
        said = row.get(GROUP_COLUMN, "").strip()
        try:
            return Tag(category, annotation_id, said not in UNKNOWN and to_flag(said))
        except KeyError:
            raise BadMask(f"entity with {GROUP_COLUMN} of another form") from None

    def read_mask(self, name: str, header: Header) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        """A mask at its picture's size and its box.

        Raises:
            BadMask, Unusable: missing, unreadable, empty or of another shape.
        """
        data = read_mask_file(self.masks, RELEASED_SPLITS[self.split], name)
        return fit_mask(data, header.width, header.height)


def spell_picture(image_id: str, released_split: str) -> Iterator[str]:
    """Where a picture may lie: as synced, or as the packed download unpacks."""
    yield from names.spell_name(f"{image_id}.jpg")
    yield from names.spell_name(f"{released_split}_{image_id[:1]}/{image_id}.jpg")


def index_rows(path: Path) -> Index:
    """Read the CSV once, keeping the picture and the place of each row (bounded memory).

    Raises:
        UnigsError: the header lacks a column.
    """
    places: dict[bytes, int] = {}
    owners, offsets, lengths = array("i"), array("q"), array("i")
    skips = Skips()
    with explain_errors("to read rows", path), path.open("rb") as file, reading_bar(path) as bar:
        columns = find_columns(file.readline(MAX_ROW_BYTES), path)
        at, needed, offset = columns["ImageID"], max(columns.values()), file.tell()
        for line in iter(partial(file.readline, MAX_ROW_BYTES), b""):
            fields = line.rstrip(b"\r\n").split(b",", needed + 1)
            if len(line) == MAX_ROW_BYTES and not line.endswith(b"\n"):
                raise UnigsError(
                    f"expected rows of less than {MAX_ROW_BYTES:,} bytes, came a longer one, at "
                    f"byte {offset} of {path}"
                )
            if len(fields) > needed:
                owners.append(places.setdefault(fields[at].strip(b'" '), len(places)))
                offsets.append(offset)
                lengths.append(len(line))
                if len(offsets) % ROWS_PER_UPDATE == 0:
                    bar.update(offset - bar.n)
            elif line.strip():
                skips.add("row with too few columns", f"byte {offset} of {path}")
            offset += len(line)
    found = [read_image_id(image_id, path) for image_id in places]
    keys = base.make_unique_keys(f"{image_id}.jpg" for image_id in found)
    order = sorted(range(len(keys)), key=keys.__getitem__)
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    spans = Spans(path, rank[np.frombuffer(owners, np.int32)], offsets, lengths, len(order))
    return Index([found[k] for k in order], [keys[k] for k in order], columns, spans, skips)


def read_image_id(cell: bytes, path: Path) -> str:
    """The text of an ImageID.

    Raises:
        UnigsError: not UTF-8.
    """
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return decode_text(cell, f"the ImageID {cell[:60]!r} in {path}")


def find_columns(header: bytes, path: Path) -> dict[str, int]:
    """Place of each needed column.

    Raises:
        UnigsError: the header lacks one.
    """
    text = header.decode("utf-8-sig", "replace").strip()
    columns = [name.strip('" ') for name in text.split(",")]
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise UnigsError(
            f"expected a header with {', '.join(COLUMNS)}, came {text[:80]!r}, in {path}"
        )
    wanted = [*COLUMNS, *({GROUP_COLUMN} & set(columns))]
    return {name: columns.index(name) for name in wanted}


def read_classes(path: Path) -> dict[str, Category]:
    """Class names by MID, from a file with or without header, with or without further columns.

    Raises:
        UnigsError: no such file, not UTF-8, no row that starts with a MID, or a MID of two names.
    """
    names.require_file(path, "Open Images class names")
    with explain_errors("to read class names", path), path.open("rb") as file:
        data = file.read(MAX_CLASSES_BYTES + 1)
    if len(data) > MAX_CLASSES_BYTES:
        raise UnigsError(f"expected at most {MAX_CLASSES_BYTES:,} bytes, came more, in {path}")
    text = decode_text(data, str(path))
    classes: dict[str, Category] = {}
    try:
        for row in csv.reader(io.StringIO(text, newline="")):
            if len(row) >= 2 and row[0].startswith(("/m/", "/g/")):
                add_class(classes, row, path)
    except csv.Error as error:
        raise UnigsError(f"expected rows of MID and name, came {error}, in {path}") from None
    if not classes:
        raise UnigsError(f"expected rows of MID and name, came none, in {path}")
    return classes


def add_class(classes: dict[str, Category], row: Sequence[str], path: Path) -> None:
    """Keep a row of MID and name.

    Raises:
        UnigsError: no name, or another one than before.
    """
    mid = row[0].strip()
    try:
        name = to_category_name(row[1])
    except TypeError:
        raise UnigsError(
            f"expected a name, came {row[1][:60]!r}, for {mid[:60]} in {path}"
        ) from None
    known = classes.setdefault(mid, Category(id=mid, name=name, is_thing=True))
    if known["name"] != name:
        raise UnigsError(
            f"expected one name of {mid[:60]}, came {known['name'][:60]!r} and {name[:60]!r}, "
            f"in {path}"
        )


def read_mask_file(masks: Path, released_split: str, name: str) -> bytes:
    """A mask's bytes from any of the layouts in use.

    ``masks/<name>``, ``masks/<split>/<name>``, ``masks/<FIRST LETTER>/<name>`` (either case),
    ``masks/<split>-masks-<first letter>/<name>``, or the zips as released,
    ``masks/<split>-masks-<first letter>.zip``.

    Raises:
        BadMask: in none of them.
        Unusable: no plain file of bounded size inside of the folder.
    """
    places, archive = list_places(masks, released_split, name)
    try:
        return names.read_first(masks, places, "mask")
    except Unusable as error:
        if not error.reason.endswith("missing") or not archive.is_file():
            raise
    try:
        opened = _open_zip(archive, os.getpid())
        if opened.getinfo(name).file_size > images.MAX_FILE_BYTES:
            raise BadMask("mask: file too large")
        return opened.read(name)
    except KeyError:
        raise BadMask("mask file missing") from None
    except (zipfile.BadZipFile, zlib.error, OSError, *_ZIP_FAULTS) as error:
        raise BadMask("mask unreadable") from error


def find_mask(masks: Path, released_split: str, name: str) -> Path:
    """The file that :func:`read_mask_file` would read, the PNG or its zip."""
    places, archive = list_places(masks, released_split, name)
    found = names.find_first(masks, places)
    return archive if archive.is_file() and not found.is_file() else found


def list_places(masks: Path, released_split: str, name: str) -> tuple[list[str], Path]:
    """Where a mask may lie, the likeliest first, and the zip it was released in."""
    first = name[:1]
    packed = f"{released_split}-masks-{first}"
    folders = ["", released_split, first.upper(), first, packed, f"{released_split}-masks"]
    if not first.isalnum():
        return [name], masks / f"{released_split}-masks.zip"
    return [f"{folder}/{name}" if folder else name for folder in folders], masks / f"{packed}.zip"


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
        with images.open_image(data) as png:
            mask = png if png.mode in ("1", "L", "P") else png.convert("L")
            mask = Image.fromarray(np.asarray(mask) > 0)
    except images.UnreadableImage as error:
        raise BadMask(error.reason.replace("picture", "mask")) from error
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
