"""``unigs data inspect``: look at a data set before training on it.

In: roots of data sets as distributed. Out: one contact sheet per source (picture, masks, names) and
a printed table of what the readers found and what they left out. Reads through the very readers
that write shards, so what is seen here is what will be learnt.
"""

from __future__ import annotations

import colorsys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from unigs.annotations import Source, find_sources
from unigs.annotations.find import FINDERS, Roots
from unigs.files import explain_errors, write_bytes
from unigs.images import decode_image, encode_image
from unigs.records import Annotated, Skips, UnigsError, show

CELL_PX = 320
CAPTION_PX = 16
COLUMNS = 2
TOP_CATEGORIES = 20
NAME_LETTERS = 48


@dataclass
class Tally:
    """What the pictures of one source hold."""

    pictures: int = 0
    crowds: int = 0
    entities: list[int] = field(default_factory=list)
    covered: list[float] = field(default_factory=list)
    categories: Counter[tuple[str, str]] = field(default_factory=Counter)
    skips: Skips = field(default_factory=Skips)

    def add(self, sample: Annotated) -> None:
        """Count one picture."""
        self.pictures += 1
        self.entities.append(len(sample.entities))
        self.covered.append(float(np.count_nonzero(sample.labels)) / sample.labels.size)
        self.crowds += sum(entity.is_crowd for entity in sample.entities)
        self.categories.update((e.category_id, e.category) for e in sample.entities)


def inspect_data(
    out: Path,
    pictures: int = 12,
    limit: int = 200,
    **roots: Unpack[Roots],
) -> None:
    """Draw a contact sheet per source and print counts by category, coverage and skips.

    Args:
        out: folder for the sheets, ``<source>-<split>.png``.
        pictures: how many to draw per sheet.
        limit: how many to count per source, evenly spread; 0 counts all.
        **roots: folders of data sets as distributed.

    Raises:
        UnigsError: no data set given, or one whose files are missing.
    """
    sources = find_sources(**roots)
    if not sources:
        raise UnigsError(f"expected a data set, came none, at --{', --'.join(FINDERS)}")
    with explain_errors("to write sheets", Path(out)):
        Path(out).mkdir(parents=True, exist_ok=True)
    for source in sources:
        source.require_pictures()
        tally, shown = tally_source(source, pictures, limit)
        print(format_tally(source, tally))
        if shown:
            path = Path(out) / f"{source.name}-{source.split}.png"
            with explain_errors("to write a sheet", path):
                write_bytes(path, encode_image(np.asarray(tile_pairs(shown)), "PNG"))
            print(f"  sheet: {path}\n")


def tally_source(source: Source, pictures: int, limit: int) -> tuple[Tally, list[Image.Image]]:
    """Count up to ``limit`` evenly spread pictures and draw up to ``pictures`` of them to show."""
    tally = Tally()
    tally.skips.update(source.skips)
    shown: list[Image.Image] = []  # a dozen large samples would not fit into memory
    for place, i in enumerate(tqdm(spread(len(source), limit), desc=source.name, leave=False)):
        sample = source.load(i, tally.skips)
        if sample is None:
            continue
        tally.add(sample)
        wanted = place * pictures // max(1, min(limit or len(source), len(source)))
        if len(shown) < pictures and len(shown) <= wanted:
            shown.append(draw_pair(sample))
    return tally, shown


def spread(count: int, limit: int) -> list[int]:
    """Up to ``limit`` places of ``count``, evenly apart; all where limit is 0.

    Example:
        >>> spread(10, 3)
        [0, 3, 6]
    """
    wanted = count if limit <= 0 else min(count, limit)
    return [k * count // wanted for k in range(wanted)]


def format_tally(source: Source, tally: Tally) -> str:
    """The table of one source."""
    lines = [
        f"{source.name} {source.split}: {len(source):,} pictures, {tally.pictures:,} read",
        f"  licence: {show(source.licence)}",
    ]
    if tally.pictures:
        per_picture, covered = np.asarray(tally.entities), np.asarray(tally.covered)
        lines += [
            f"  entities: {per_picture.sum():,} ({tally.crowds} crowds); per picture mean "
            f"{per_picture.mean():.1f}, median {np.median(per_picture):.0f}, "
            f"most {per_picture.max()}",
            f"  labelled area: mean {covered.mean():.1%}, least {covered.min():.1%}",
            f"  categories seen: {len(tally.categories)} of {len(source.categories)}",
        ]
        lines += [
            f"    {count:7,}  {show(name)} ({show(category_id)})"
            for (category_id, name), count in tally.categories.most_common(TOP_CATEGORIES)
        ]
    lines.append(f"  left out: {tally.skips}")
    lines += [f"  {remark}" for remark in source.remarks]
    return "\n".join(lines)


def tile_pairs(pairs: list[Image.Image]) -> Image.Image:
    """Pairs of picture and masks, two pairs in a row."""
    rows = -(-len(pairs) // COLUMNS)
    cell_height = CELL_PX + CAPTION_PX
    sheet = Image.new("RGB", (2 * COLUMNS * CELL_PX, rows * cell_height), "white")
    for k, pair in enumerate(pairs):
        place = (k % COLUMNS * 2 * CELL_PX, k // COLUMNS * cell_height)
        sheet.paste(pair, place)
    return sheet


def draw_pair(sample: Annotated) -> Image.Image:
    """One picture beside its masks with names; what has no label is dimmed grey."""
    pair = Image.new("RGB", (2 * CELL_PX, CELL_PX + CAPTION_PX), "white")
    pixels = decode_image(sample.image)
    scale = CELL_PX / max(pixels.shape[:2])
    size = (max(1, round(sample.width * scale)), max(1, round(sample.height * scale)))
    small = Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    labels = Image.fromarray(sample.labels).resize(size, Image.Resampling.NEAREST)
    pair.paste(small, (0, CAPTION_PX))
    pair.paste(paint_overlay(np.asarray(small), np.asarray(labels), sample), (CELL_PX, CAPTION_PX))
    covered = np.count_nonzero(sample.labels) / sample.labels.size
    caption = (
        f"{sample.key[:48]}  {sample.width}x{sample.height}  {len(sample.entities)} entities  "
        f"{covered:.0%} labelled, rest {sample.unlabelled}"
    )
    ImageDraw.Draw(pair).text((2, 1), caption, fill="black", font=ImageFont.load_default(11))
    return pair


def paint_overlay(pixels: np.ndarray, labels: np.ndarray, sample: Annotated) -> Image.Image:
    """Entities in distinct hues with their names; crowds are striped.

    Args:
        pixels: uint8 [h, w, 3]. labels: [h, w], both at the size to draw.
    """
    grey = pixels.mean(2, keepdims=True)
    hues = [colorsys.hsv_to_rgb(k * 0.618 % 1, 0.85, 1.0) for k in range(len(sample.entities) + 1)]
    tint = np.asarray(hues)[labels] * 255
    mixed = np.where((labels == 0)[..., None], 0.4 * grey, 0.45 * grey + 0.55 * tint)
    stripes = np.add.outer(np.arange(labels.shape[0]), np.arange(labels.shape[1])) // 4 % 2 == 0
    crowd = np.asarray([False, *(entity.is_crowd for entity in sample.entities)])[labels]
    mixed[crowd & stripes] = grey[crowd & stripes]
    overlay = Image.fromarray(mixed.astype(np.uint8))
    pen, font = ImageDraw.Draw(overlay), ImageFont.load_default(10)
    for entity in sample.entities:
        ys, xs = np.nonzero(labels == entity.label)
        if len(ys):
            nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
            place = (int(xs[nearest]), int(ys[nearest]))
            name = show(entity.category, NAME_LETTERS) + " (crowd)" * entity.is_crowd
            pen.text(place, name, "white", font, "mm", stroke_width=1, stroke_fill="black")
    return overlay
