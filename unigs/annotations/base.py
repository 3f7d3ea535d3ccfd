"""What every reader gives: a ``Source`` of pictures, and how regions become one label map.

In: files of a data set as it is distributed. Out: :class:`unigs.records.Annotated`. First link of
the chain (annotations -> shards). A reader works in two steps, so that shards can be written by any
number of processes with the same bytes: an *index* (cheap, sorted by key, offsets into the
annotation file instead of its contents) and ``load(i)``, a pure function of ``i`` that opens one
picture and its masks.
"""

from __future__ import annotations

import hashlib
import re
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import numpy as np

from unigs import images
from unigs.records import Annotated, Entity, Skips, UnigsError, Unlabelled

MAX_KEY_LETTERS = 85
"""With the longest ending, ``.labels.png``, and a shard's tar header in USTAR form: 100 bytes."""

DIGEST_LETTERS = 12
MAX_ENTITIES = 65_535
SAMPLE_FAULTS = (
    ArithmeticError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)
"""What hostile bytes raise somewhere below; the fault of one picture and not of the run."""


class Unusable(UnigsError):
    """One picture cannot be used; :meth:`Source.load` counts it and gives None.

    Args:
        reason: the words it is counted under, without names or numbers.
        where: the file, row or id.
    """

    def __init__(self, reason: str, where: str) -> None:
        super().__init__(f"{reason}: {where}")
        self.reason = reason
        self.where = where

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.where)  # as a worker process sends it


class Category(TypedDict):
    """A row of a data set's category table; names may repeat, ids do not."""

    id: str
    name: str
    is_thing: bool | None


class Source(ABC):
    """The pictures of one split of one data set; picklable, and fork-safe.

    The index is built on first use of ``keys``, ``categories``, ``skips`` or ``len``, so that
    finding sources costs nothing.

    Attributes:
        name: e.g. ``"coco-panoptic"``; becomes ``Annotated.source``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        licence: one line on what may be done with it.
    """

    name: str
    split: str
    licence: str

    @property
    @abstractmethod
    def keys(self) -> Sequence[str]:
        """The WebDataset keys, sorted and unique."""

    @property
    @abstractmethod
    def categories(self) -> tuple[Category, ...]:
        """The category table, sorted as the source gives it."""

    @property
    @abstractmethod
    def skips(self) -> Skips:
        """What the index left out; not counted again by :meth:`load`."""

    @abstractmethod
    def read(self, i: int, skips: Skips) -> Annotated:
        """Picture ``i``; entities left out are counted in ``skips``.

        Raises:
            Unusable: the picture cannot be used.
            UnigsError: the data set is damaged, the run should stop.
        """

    @property
    def remarks(self) -> tuple[str, ...]:
        """Lines to say of the whole source, beside what was left out."""
        return ()

    def files(self) -> list[Path]:
        """The annotation files: shards know them by their content."""
        return []

    def inputs(self, i: int) -> list[Path]:
        """The files that ``read(i)`` opens beside those: shards know them by size and time.

        Raises:
            UnigsError: as ``read`` does.
        """
        return []

    def __len__(self) -> int:
        return len(self.keys)

    def tell_losses(self, skips: Skips) -> list[str]:
        """Lines for people: what the index and then ``skips`` left out, and the remarks."""
        both = Skips()
        both.update(self.skips)
        both.update(skips)
        return [f"{self.name} {self.split}: left out {both}"] * (both.total > 0) + [*self.remarks]

    def require_pictures(self) -> None:
        """Refuse a source of nothing, which would be learnt in silence.

        Raises:
            UnigsError: no picture is left in the index, and why.
        """
        if not self.keys:
            raise UnigsError(
                f"expected pictures with annotations, got none, in {self.name} {self.split}; "
                f"left out: {self.skips}"
            )

    def load(self, i: int, skips: Skips) -> Annotated | None:
        """Picture ``i``, or None if it is unusable, which ``skips`` then counts with its reason.

        A pure function of ``i``: any process gives the same record.

        Args:
            i: place in ``keys``.
            skips: tally of pictures and entities left out.
        """
        try:
            return self.read(i, skips)
        except Unusable as error:
            skips.add(error.reason, error.where)
        except SAMPLE_FAULTS as error:
            where = f"{self.keys[i]} of {self.name} {self.split} ({type(error).__name__}: {error})"
            skips.add("picture or annotation that cannot be worked on", where)
        return None

    def iterate(self, skips: Skips) -> Iterator[Annotated]:
        """All usable pictures in the order of their keys, one in memory at a time."""
        skips.update(self.skips)
        for i in range(len(self)):
            sample = self.load(i, skips)
            if sample is not None:
                yield sample


class Tag(NamedTuple):
    """What is said of one annotated mask."""

    category: Category
    annotation_id: str
    is_crowd: bool = False


class Region(NamedTuple):
    """One annotated mask before overlaps are resolved.

    Attributes:
        area_px: pixels of the mask; never the annotation's own ``area``, which is the polygon's.
        box: (left, top, right, bottom) around all pixels of the mask, ends exclusive.
        mask: gives the bool [H, W] mask when it is painted, so that one is in memory at a time.
    """

    tag: Tag
    area_px: int
    box: tuple[int, int, int, int]
    mask: Callable[[], np.ndarray]


def paint_regions(
    regions: Sequence[Region], height: int, width: int, skips: Skips, where: str
) -> tuple[np.ndarray, tuple[Entity, ...]]:
    """Resolve overlaps: crowds lowest, then large to small, so that small lies over large.

    Args:
        regions: in the order of the annotation file, which numbers the entities.
        height, width: of the picture, pixels.
        skips: counts regions that the others hide wholly.
        where: the picture, for the count.

    Returns:
        uint16 labels [H, W] with values 0..N and the N entities that own a pixel.
    """
    if len(regions) > MAX_ENTITIES:
        raise Unusable("more entities than 16 bits can number", where)
    painted = np.zeros((height, width), np.uint16)
    order = sorted(
        range(len(regions)), key=lambda k: (not regions[k].tag.is_crowd, -regions[k].area_px)
    )
    for k in order:
        left, top, right, bottom = regions[k].box
        window = np.s_[top:bottom, left:right]
        np.copyto(painted[window], k + 1, where=regions[k].mask()[window])
    tags = [region.tag for region in regions]
    return number_entities(painted, tags, skips, "entity hidden by others", where)


def number_entities(
    painted: np.ndarray, tags: Sequence[Tag], skips: Skips, reason: str, where: str
) -> tuple[np.ndarray, tuple[Entity, ...]]:
    """Renumber a map of ``place in tags + 1`` so that those with pixels count 1..N.

    Args:
        painted: uint16 [H, W], 0..len(tags).
        tags: in the order that numbers the entities.
        skips: counts those without a pixel under ``reason``.
    """
    visible = np.zeros(len(tags) + 1, bool)
    strips = [painted[rows] for rows in images.split_rows(*painted.shape)]
    for strip in strips:  # numpy widens an index to 64 bits
        visible[strip.ravel()] = True
    visible[0] = False
    numbers = (np.cumsum(visible) * visible).astype(np.uint16)
    entities = []
    for k, tag in enumerate(tags, start=1):
        if visible[k]:
            entities.append(_make_entity(tag, int(numbers[k])))
        else:
            skips.add(reason, f"{where}, annotation {tag.annotation_id}")
    if not visible[1:].all():
        for strip in strips:
            strip[...] = numbers[strip]
    return painted, tuple(entities)


def _make_entity(tag: Tag, label: int) -> Entity:
    return Entity(
        label=label,
        category=tag.category["name"],
        category_id=tag.category["id"],
        annotation_id=tag.annotation_id,
        is_thing=tag.category["is_thing"],
        is_crowd=tag.is_crowd,
    )


def finish_sample(
    key: str,
    image: bytes,
    painted: tuple[np.ndarray, tuple[Entity, ...]],
    unlabelled: Unlabelled,
    source: str,
) -> Annotated:
    """Build the record; a picture that lost all its entities is unusable."""
    labels, entities = painted
    if not entities:
        raise Unusable("no entity left in the picture", f"{source} {key}")
    return Annotated(key, image, labels, entities, unlabelled, source)


def fit_picture(data: bytes, header: images.Header, size: tuple[int, int], where: str) -> bytes:
    """Make the stored pixels the annotated ones.

    Sizes in annotation files are never trusted: ``size`` is that of the masks. If it is the file's,
    the stored pixels are the truth and an orientation tag is taken out. If it is the file's after
    turning by its tag, the annotator saw it turned, and so do we.

    Args:
        data: the encoded file. header: what :func:`check_picture` said of it.
        size: (width, height) of the masks, pixels.
        where: the picture, for the count.

    Raises:
        Unusable: a picture of another size than its masks.
    """
    if (header.width, header.height) == size:
        return data if header.orientation == 1 else images.strip_orientation(data)
    if (header.height, header.width) == size and header.orientation >= 5:
        return images.turn_upright(data)
    sizes = f"masks {size[0]}x{size[1]}, picture {header.width}x{header.height}"
    raise Unusable("picture and masks differ in size", f"{where} ({sizes})")


def check_picture(data: bytes, where: str) -> images.Header:
    """Header of a picture after a cheap decode of all its data."""
    try:
        return images.check_image(data)
    except images.UnreadableImage as error:
        raise Unusable(error.reason, f"{where} ({error.detail})") from error


def make_key(file_name: str) -> str:
    """A WebDataset key from a file name: no extension, dots, slashes or odd letters.

    Example:
        >>> make_key("entity_01/a.b.jpg")
        'entity_01-a_b'
    """
    stem = file_name.rsplit(".", 1)[0] if "." in file_name.rsplit("/", 1)[-1] else file_name
    key = re.sub(r"[^A-Za-z0-9_-]", "_", stem.strip("/").replace("/", "-")) or "_"
    return key if len(key) <= MAX_KEY_LETTERS else _append_digest(key, file_name)


def _append_digest(key: str, file_name: str, letters: int = DIGEST_LETTERS) -> str:
    """A key that no other file has, cut to the length that fits."""
    digest = hashlib.blake2b(file_name.encode("utf-8", "surrogatepass"), digest_size=letters // 2)
    return f"{key[: MAX_KEY_LETTERS - letters - 1]}-{digest.hexdigest()}"


def make_unique_keys(file_names: Iterable[str]) -> list[str]:
    """Keys of distinct files, in their order; files that would share one get a digest appended."""
    names = list(file_names)
    keys = [make_key(name) for name in names]
    owners: dict[str, str] = {}
    for name, key in sorted(zip(names, keys, strict=True)):
        owners.setdefault(key, name)
    for k, name in enumerate(names):
        if owners[keys[k]] != name:
            keys[k] = _append_digest(keys[k], name)
            if owners.setdefault(keys[k], name) != name:  # somebody's file has that very name
                keys[k] = _append_digest(keys[k], name, 4 * DIGEST_LETTERS)
    return keys


def distinguish_ids(ids: Sequence[str]) -> list[str]:
    """Ids of one picture's annotations; one that repeats, as in hand-made files, gets its place.

    Example:
        >>> distinguish_ids(["7", "8", "7"])
        ['7', '8', '7-2']
    """
    first = {name: k for k, name in reversed(list(enumerate(ids)))}
    return [name if first[name] == k else f"{name}-{k}" for k, name in enumerate(ids)]
