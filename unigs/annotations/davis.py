"""DAVIS 2016 and 2017: clips, frame by frame, in their released layout.

In: the folders of frames and of annotations, each with one folder per clip, and the names of a
split's clips. Out: ``Source``, a frame a picture. A frame knows its place by its key,
``CLIP-NUMBER`` (:func:`split_key`), and keys are sorted: the sample before a frame is the frame
before it, if its key says so. An object keeps its annotation id in all frames of its clip.

An annotation is a palette PNG whose index is the object, 1 to 254 (2017; 255 is void there, as in
the unsupervised annotations), or a grey one, where 255 is the one object (2016). Label 0 is
background: the objects of a clip are given. A frame in which no object is seen is a sample without
entities, so that a clip has no hole. A frame brings the labels of the two before it
(``records.Past``): what a frame is does not depend on when the others are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from unigs import images as pictures
from unigs.annotations import base, names
from unigs.annotations.base import Category, Tag, Unusable
from unigs.annotations.pairs import (
    Pair,
    PairedMaps,
    list_ids,
    open_map,
    paint_ids,
    read_rows,
    require_maps,
)
from unigs.files import decode_text, explain_errors
from unigs.records import Annotated, Entity, Past, Skips, UnigsError

LICENCE = "DAVIS: BSD 3-clause, as its authors state"
SETS = ("2017", "2016", "480p")
"""Folders of ``ImageSets``, the largest first; 2016 alone was released with the last."""

RESOLUTIONS = ("480p", "Full-Resolution", "1080p")
OBJECT = Category(id="1", name="object", is_thing=True)
VOID_ID = 255
PAST_FRAMES = 2
FRAME_DIGITS = 5
MAX_CLIP_LETTERS = base.MAX_KEY_LETTERS - FRAME_DIGITS - 1
MAX_LIST_BYTES = 1 << 24


def split_key(key: str) -> tuple[str, int]:
    """The clip and the number of a frame.

    Example:
        >>> split_key("car-shadow-00007")
        ('car-shadow', 7)

    Raises:
        UnigsError: the key is not that of a frame.
    """
    clip, _, number = key.rpartition("-")
    if not clip or not number.isdecimal():
        raise UnigsError(f"expected a frame's key such as bear-00007, came {key!r}, in split_key")
    return clip, int(number)


@dataclass
class Davis(PairedMaps):
    """The clips of one split.

    Attributes:
        clips: names of folders.
        listed: the file that lists them, or None.
    """

    clips: tuple[str, ...]
    listed: Path | None = None

    @property
    def categories(self) -> tuple[Category, ...]:
        return (OBJECT,)

    def files(self) -> list[Path]:
        return [self.listed] if self.listed else []

    def list_pairs(self, skips: Skips) -> list[Pair]:
        keys = base.make_unique_keys(f"{clip}.jpg" for clip in self.clips)
        return [
            pair
            for clip, key in zip(self.clips, keys, strict=True)
            for pair in self.list_frames(clip, key, skips)
        ]

    def list_frames(self, clip: str, key: str, skips: Skips) -> list[Pair]:
        """The frames of one clip; a number that is left out between two frames is counted."""
        stems = number_files(self.images / clip, ".jpg", skips)
        maps = number_files(self.maps / clip, ".png", skips)
        require_maps([*stems.values()], maps.values(), self.maps / clip, skips)
        if len(key) > MAX_CLIP_LETTERS:
            skips.add("clip of too long a name", clip, len(stems))
            return []
        if stems and (gaps := max(stems) - min(stems) + 1 - len(stems)):
            skips.add("number without a frame", str(self.images / clip), gaps)
        return [
            Pair(f"{key}-{number:0{FRAME_DIGITS}d}", f"{clip}/{stem}.jpg", f"{clip}/{stem}.png")
            for number, stem in stems.items()
        ]

    def read(self, i: int, skips: Skips) -> Annotated:
        pair = self.index.pairs[i]
        where = str(self.maps / pair.map)
        data, header = self.read_picture(i)
        labels, entities = self.read_map(i)
        size = labels.shape[1], labels.shape[0]
        data = base.fit_picture(data, header, size, where)
        self.check_size(i, size, where)
        past = self.read_past(i, entities, size)
        return Annotated(pair.key, data, labels, entities, "background", self.name, past)

    def read_map(self, i: int) -> tuple[np.ndarray, tuple[Entity, ...]]:
        """Labels uint16 [H, W] and entities of frame ``i``.

        Raises:
            Unusable: its annotation is none.
        """
        name = self.index.pairs[i].map
        where = str(self.maps / name)
        png = names.read_first(self.maps, [name], "annotation")
        with open_map(png, ("P", "L", "1"), "annotation", where) as ids:
            rows = partial(read_rows, ids)
            tags = list_tags(list_ids(rows, ids.size), ids.mode == "P")
            return paint_ids(rows, ids.size, tags, where)

    def inputs(self, i: int) -> list[Path]:
        before = [self.maps / self.index.pairs[k].map for k in self.find_before(i) if k is not None]
        return [*super().inputs(i), *before]

    def find_before(self, i: int) -> list[int | None]:
        """Places of the frames whose numbers are one and two below, None where there is none."""
        clip, number = split_key(self.index.pairs[i].key)
        known = {self.index.pairs[k].key: k for k in range(max(0, i - PAST_FRAMES), i)}
        keys = [f"{clip}-{number - back:0{FRAME_DIGITS}d}" for back in range(1, PAST_FRAMES + 1)]
        return [known.get(key) for key in keys]

    def read_past(self, i: int, entities: Sequence[Entity], size: tuple[int, int]) -> Past:
        """The objects of the frames before, by the labels that frame ``i`` gives them.

        Of a frame that cannot be read, or is of another size, nothing is known; it is counted as
        the sample that it would be itself.

        Args:
            i: the frame.
            entities: its own; objects that it does not show are numbered on from them.
            size: its (width, height).
        """
        numbers = {entity.annotation_id: entity.label for entity in entities}
        gone: list[Entity] = []
        maps = np.zeros((PAST_FRAMES, size[1], size[0]), np.uint16)
        for row, k in zip(maps, self.find_before(i), strict=True):
            if k is None:
                continue
            try:
                labels, shown = self.read_map(k)
            except Unusable:
                continue
            if labels.shape != row.shape:
                continue
            for entity in shown:
                if entity.annotation_id not in numbers:
                    number = numbers[entity.annotation_id] = len(numbers) + 1
                    gone.append(replace(entity, label=number))
            row[...] = np.asarray([0, *(numbers[e.annotation_id] for e in shown)])[labels]
        return Past(maps, tuple(gone))

    @cached_property
    def starts(self) -> dict[str, int]:
        """Place of the first frame, by the folder of its clip."""
        folders = [pair.map.rpartition("/")[0] for pair in self.index.pairs]
        return {folder: i for i, folder in reversed([*enumerate(folders)])}

    def check_size(self, i: int, size: tuple[int, int], where: str) -> None:
        """Compare the (width, height) of a frame with its clip's first, if that can be read.

        Raises:
            Unusable: they differ.
        """
        start = self.starts[self.index.pairs[i].map.rpartition("/")[0]]
        name = self.index.pairs[start].map
        try:
            first = pictures.read_header(names.read_first(self.maps, [name], "annotation"))
        except (Unusable, pictures.UnreadableImage):
            return
        if (first.width, first.height) != size:
            sizes = f"{size[0]}x{size[1]}, first {first.width}x{first.height}"
            raise Unusable("frame of another size than its clip's first", f"{where} ({sizes})")


def number_files(folder: Path, ending: str, skips: Skips) -> dict[int, str]:
    """The files of a clip by number, without their ending.

    Raises:
        UnigsError: no such folder.
    """
    names.require_folder(folder, f"the {ending[1:]} files of a clip")
    with explain_errors("to list frames", folder):
        stems = [n.removesuffix(ending) for n in names.list_folder(folder) if n.endswith(ending)]
    numbered: dict[int, str] = {}
    for stem in sorted(stems):
        if not stem.isdecimal() or len(stem) > FRAME_DIGITS or int(stem) in numbered:
            skips.add("frame whose name is no number of its own", str(folder / (stem + ending)))
        else:
            numbered[int(stem)] = stem
    return numbered


def list_tags(ids: Sequence[int], is_palette: bool) -> dict[int, Tag]:
    """The objects of one frame; the void of a palette PNG is a crowd, which nothing is told of."""
    return {
        int(number): Tag(OBJECT, str(int(number)), is_crowd=is_palette and number == VOID_ID)
        for number in ids
    }


def read_clips(path: Path) -> tuple[str, ...]:
    """The clips of a list, in its order: one name a line, or a frame and its annotation a line.

    Raises:
        UnigsError: no such file, or no clip in it.
    """
    names.require_file(path, "the clips of DAVIS")
    with explain_errors("to read clips", path), path.open("rb") as file:
        lines = decode_text(file.read(MAX_LIST_BYTES), str(path)).split("\n")
    first = [line.split()[0].strip("/") for line in lines if line.strip()]
    clips = tuple(dict.fromkeys(name.split("/")[-2] if "/" in name else name for name in first))
    if not clips or {"", ".", ".."} & {*clips}:
        raise UnigsError(f"expected names of clips, came {len(clips)} lines of others, in {path}")
    return clips


def make_davis(
    images: Path, maps: Path, listed: Path, split: str = "train", licence: str = LICENCE
) -> Davis:
    """The source of the clips of one list: ``ImageSets/2017/<split>.txt``."""
    return Davis(images, maps, split, "davis", licence, read_clips(listed), listed)


def read_davis(images: Path, maps: Path, clips: Sequence[str], skips: Skips) -> Iterator[Annotated]:
    """Frames of some clips of DAVIS, clip by clip, in the order of their numbers.

    Args:
        images: ``JPEGImages/480p``. maps: ``Annotations/480p``.
        clips: names of folders in both.
        skips: tally of what is left out, by reason.

    Raises:
        UnigsError: a folder or a frame's annotation is missing.
    """
    return Davis(images, maps, "train", "davis", LICENCE, tuple(clips)).iterate(skips)
