"""Data sets of pictures and id maps that share their names (Cityscapes, ADE20K, DAVIS).

In: a folder of pictures and one of PNGs whose pixels are ids. Out: what their readers have in
common: the index, pairs sorted by key, and id maps as labels. Every picture has its map, as COCO's
panoptic pictures have; what an id means is each reader's own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from unigs import images as pictures
from unigs.annotations import base, names
from unigs.annotations.base import Source, Tag, Unusable
from unigs.files import explain_errors
from unigs.records import Entity, Skips, UnigsError

ReadRows = Callable[[slice], np.ndarray]
"""Gives the ids of some rows of a map, int [h, W]; a map is never held twice."""


class Pair(NamedTuple):
    """A picture and its map: names below the folders of pictures and of maps."""

    key: str
    picture: str
    map: str


class Index(NamedTuple):
    """The pairs of a source, sorted by key."""

    pairs: list[Pair]
    skips: Skips


@dataclass
class PairedMaps(Source):
    """What the readers share: two folders, their index, and picture ``i`` with its map."""

    images: Path
    maps: Path
    split: str
    name: str
    licence: str

    @abstractmethod
    def list_pairs(self, skips: Skips) -> list[Pair]:
        """All pairs; what has no use is counted.

        Raises:
            UnigsError: a folder is missing, or a picture's map.
        """

    @cached_property
    def index(self) -> Index:
        skips = Skips()
        for folder, holds in ((self.images, "pictures"), (self.maps, "id maps")):
            names.require_folder(folder, f"the {holds} of {self.name} {self.split}")
        return Index(sorted(self.list_pairs(skips)), skips)

    @cached_property
    def keys(self) -> Sequence[str]:  # type: ignore[override]
        return [pair.key for pair in self.index.pairs]

    @property
    def skips(self) -> Skips:
        return self.index.skips

    def inputs(self, i: int) -> list[Path]:
        pair = self.index.pairs[i]
        return [self.images / pair.picture, self.maps / pair.map]

    def read_picture(self, i: int) -> tuple[bytes, pictures.Header]:
        """Picture ``i`` as it lies on disk, decoded once to the end."""
        name = self.index.pairs[i].picture
        data = names.read_first(self.images, [name], "picture")
        return data, base.check_picture(data, str(self.images / name))


def list_tree(folder: Path, ending: str) -> list[str]:
    """Names of the files in the folders of a folder, ``FOLDER/NAME``, sorted, without ``ending``.

    Args:
        folder: e.g. of cities.
        ending: of the files wanted; others are passed over.

    Raises:
        UnigsError: a folder cannot be listed.
    """
    found = []
    with explain_errors("to list files", folder):
        for inner in sorted(names.list_folder(folder)):
            if (folder / inner).is_dir():
                listed = names.list_folder(folder / inner)
                found += [f"{inner}/{name}" for name in listed if name.endswith(ending)]
    return sorted(name[: -len(ending)] for name in found)


def require_maps(wanted: Sequence[str], found: Collection[str], folder: Path, skips: Skips) -> None:
    """Every picture has a map of its name; maps without a picture are counted.

    Raises:
        UnigsError: with the count of those missing, as an archive half unpacked leaves them.
    """
    missing = sorted({*wanted} - {*found})
    if missing:
        raise UnigsError(
            f"expected {len(wanted):,} maps of pictures, came {len(wanted) - len(missing):,}, in "
            f"{folder} (missing e.g. that of {missing[0]}). Unpack the archive again"
        )
    for name in sorted({*found} - {*wanted}):
        skips.add("map without a picture", str(folder / name))


@contextmanager
def open_map(data: bytes, modes: Collection[str], what: str, where: str) -> Iterator[Image.Image]:
    """An id map, loaded, as stored.

    Args:
        data: the encoded file.
        modes: PIL's names of the forms that can hold such ids.
        what: for the reasons of counts, e.g. ``"instance map"``.
        where: the file, for the count.

    Raises:
        Unusable: no picture, or one of another mode.
    """
    try:
        with pictures.open_image(data) as png:
            if png.mode not in modes:
                raise Unusable(f"{what} of another form", f"{where} (mode {png.mode})")
            png.load()
            yield png
    except pictures.UnreadableImage as error:
        raise Unusable(f"{what} unreadable", f"{where} ({error.detail})") from error


def read_rows(png: Image.Image, rows: slice) -> np.ndarray:
    """Some rows as PIL stores them; palette indices, never their colours."""
    strip = png if rows == slice(0, png.height) else png.crop((0, rows.start, png.width, rows.stop))
    return np.asarray(strip)


def list_ids(read: ReadRows, size: tuple[int, int]) -> list[int]:
    """The ids of a map, ascending, without 0.

    Args:
        read: gives its rows.
        size: (width, height), pixels.
    """
    found = {0}
    for rows in pictures.split_rows(size[1], size[0]):
        found.update(np.unique(read(rows)).tolist())
    return sorted(found - {0})


def paint_ids(
    read: ReadRows, size: tuple[int, int], tags: Mapping[int, Tag], where: str
) -> tuple[np.ndarray, tuple[Entity, ...]]:
    """A map of ids -> labels and entities; ids without a tag become 0.

    Args:
        read: gives its rows.
        size: (width, height), pixels.
        tags: of ids that occur, in the order that numbers the entities.
        where: the map, for counts.
    """
    if len(tags) > base.MAX_ENTITIES:
        raise Unusable("more entities than 16 bits can number", where)
    painted = np.empty(size[::-1], np.uint16)
    listed = np.asarray([0, *tags], np.int64)
    for rows in pictures.split_rows(size[1], size[0]):
        painted[rows], _ = number_ids(read(rows), listed)
    return base.number_entities(painted, [*tags.values()], Skips(), "", where)


def number_ids(ids: np.ndarray, listed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ids [h, W] -> their places in ``listed``, uint16 [h, W], 0 where it has none, and those."""
    order = np.argsort(listed)
    flat = ids.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))  # a row has few borders
    runs = flat[starts]
    places = order[np.minimum(np.searchsorted(listed[order], runs), len(listed) - 1)]
    known = listed[places] == runs
    numbers = np.where(known, places, 0).astype(np.uint16)
    return np.repeat(numbers, np.diff(starts, append=flat.size)).reshape(ids.shape), runs[~known]
