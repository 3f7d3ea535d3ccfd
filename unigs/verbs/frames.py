"""What a user names as one clip -> its frames in order, one in memory at a time. No torch.

A clip is the pictures of one folder, ordered by the numbers in their names, or one animated file
(GIF, WebP, PNG, TIFF). What lies in folders below is no frame: a data set's annotations do. Videos
are not read: nothing that is installed decodes them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from unigs.files import explain_errors, hash_file
from unigs.images import UnreadableImage, count_frames, decode_frames
from unigs.records import UnigsError, show
from unigs.verbs.gather import Picture, find_real, gather_pictures, list_pictures
from unigs.verbs.request import read_pixels

DIGITS = 5
"""Of a frame's number in the names of its files."""


@dataclass(frozen=True, slots=True, eq=False)
class Clip:
    """The frames of one clip.

    Attributes:
        root: the folder that holds them.
        frames: in their order; those of an animated file have its path.
        animation: the encoded file, None of a folder of pictures.
        digest: its sha256, empty of a folder of pictures.
    """

    root: Path
    frames: Sequence[Picture]
    animation: bytes | None = None
    digest: str = ""

    def hash_inputs(self, place: int) -> Mapping[str, str]:
        """sha256 of the file that a frame is made of; empty where it cannot be read."""
        if self.digest:
            return {"picture": self.digest}
        try:
            return {"picture": hash_file(self.frames[place].path)}
        except OSError:
            return {"picture": ""}

    def read(self, start: int) -> Iterator[np.ndarray | UnigsError]:
        """Frames from one on, uint8 [3, H, W]; the error of one that cannot be read."""
        if self.animation is None:
            for frame in self.frames[start:]:
                try:
                    yield read_pixels(frame.path)
                except UnigsError as error:
                    yield error
            return
        done = start
        try:
            for pixels in decode_frames(self.animation, start):
                yield np.ascontiguousarray(pixels.transpose(2, 0, 1))
                done += 1
        except UnreadableImage as error:  # later frames are built on this one
            yield from [error] * (len(self.frames) - done)


def open_clip(given: Sequence[str], out: Path) -> Clip:
    """The clip that is named.

    Args:
        given: a folder, of which only what lies directly in it counts; files or globs; or one file,
            animated.
        out: where the run writes; what lies there is no input.

    Raises:
        UnigsError: nothing there, pictures of several folders, two pictures of one number, or a
            file that is no picture, as a video is.
    """
    names = [name for one in given for name in list_frames(one, out)]
    root, pictures = gather_pictures(names, out, "IMAGES", merge_links=False)
    if len({picture.path.parent.resolve() for picture in pictures}) > 1:
        raise refuse_folders(root, [picture.path for picture in pictures])
    if len(pictures) > 1:
        require_numbers(root, pictures)
        return Clip(root, sorted(pictures, key=lambda picture: order_numbers(picture.file_name)))
    (one,) = pictures
    with explain_errors("a clip", one.path):
        data = one.path.read_bytes()
    try:
        count = count_frames(data)
    except UnreadableImage as error:
        name = show(one.path.name)
        raise UnigsError(
            "expected a folder of pictures, or an animated GIF, WebP, PNG or TIFF, got a file that "
            f"is none ({error.reason}), at {one.path}; cut a video into frames first, as by "
            f"ffmpeg -i {name} frames/%05d.png"
        ) from error
    if count == 1:
        return Clip(root, pictures)
    frames = [Picture(one.path, f"{one.key}-{k:0{DIGITS}d}", one.file_name) for k in range(count)]
    return Clip(root, frames, data, hash_file(one.path))


def list_frames(name: str, out: Path) -> list[str]:
    """The pictures directly in a folder; a name that is none, or holds nothing, as it stands.

    Raises:
        UnigsError: pictures lie in folders below it alone.
    """
    folder = Path(name)
    found = list_pictures(folder, {find_real(out)}) if folder.is_dir() else []
    mine = [str(path) for path in found if path.parent == folder]
    if found and not mine:
        raise refuse_folders(folder, found)
    if len(found) > len(mine):
        print(f"{folder}: {len(found) - len(mine)} pictures in folders below are no frames")
    return mine or [name]


def refuse_folders(root: Path, paths: Iterable[Path]) -> UnigsError:
    """What is said of pictures that lie elsewhere than directly in one folder."""
    folders = {path.parent for path in paths}
    likely = [one for one in folders if not any(p.startswith("Annotations") for p in one.parts)]
    return UnigsError(
        f"expected the frames of one clip directly in one folder, got pictures in {len(folders)} "
        f"folders below, at {root}; name one of them, such as {min(likely or folders)}"
    )


def require_numbers(root: Path, pictures: Iterable[Picture]) -> None:
    """Refuse two pictures of one frame, as a picture and its mask are.

    Their names have the same numbers, as have 007.jpg and 007.png, or one begins with those of the
    other, as 007_1.png does.
    """
    names = sorted((find_numbers(picture.path.stem), picture.path.name) for picture in pictures)
    for (before, one), (after, other) in pairwise(names):
        if after[: len(before)] == before:
            raise UnigsError(
                f"expected one picture a frame, got {show(one)} and {show(other)}, at {root}; name "
                "the frames alone, as by a glob such as 'frames/*.jpg'"
            )


def find_numbers(stem: str) -> tuple[tuple[int, str], ...]:
    """The numbers in a name; the name itself if it has none."""
    return tuple((int(number), "") for number in re.findall(r"\d+", stem)) or ((-1, stem),)


def order_numbers(name: str) -> list[tuple[int, str]]:
    """What sorts names by the numbers in them, so that frame 9 comes before frame 10.

    Example:
        >>> sorted(["a10.png", "a9.png"], key=order_numbers)
        ['a9.png', 'a10.png']
    """
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if k % 2 else (-1, part) for k, part in enumerate(parts)]
