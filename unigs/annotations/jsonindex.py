"""Annotation JSON of any size in bounded memory: elements by their place in the file.

In: a JSON file whose top level is an object of arrays (COCO's form). Out: its elements one by one
with byte offset and length, so that an index keeps a dozen bytes per annotation and ``load`` reads
back only the spans of one picture. COCO's and EntitySeg's files would need gigabytes as objects.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from unigs.records import UnigsError

CHUNK_BYTES = 1 << 22
MAX_ELEMENT_BYTES = 1 << 28
LARGE_FILE_BYTES = 1 << 26
_BLANKS = " \t\r\n"


class Element(NamedTuple):
    """An array element: the array's name, the value, and where its text lies (bytes)."""

    section: str
    value: Any
    offset: int
    length: int


class _Window:
    """A sliding piece of the file, read as Latin-1 so that one letter is one byte.

    UTF-8 text comes out garbled but whole, because no byte of a multi-byte letter looks like JSON
    syntax; elements with such letters are parsed once more.
    """

    def __init__(self, file: BinaryIO, path: Path, bar: tqdm) -> None:
        self.file, self.path, self.bar = file, path, bar
        self.text, self.at, self.base = "", 0, 0
        self.decoder = json.JSONDecoder()

    def grow(self) -> bool:
        """Drop what is read, append as much again as is left; False at the end of the file."""
        more = self.file.read(max(CHUNK_BYTES, len(self.text) - self.at))
        self.text = self.text[self.at :] + more.decode("latin-1")
        self.bar.update(len(more))
        self.base, self.at = self.base + self.at, 0
        return bool(more)

    def peek(self) -> str:
        """The next letter that is not blank, not consumed; empty at the end of the file."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in _BLANKS:
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.grow():
                return ""

    def expect(self, letters: str) -> str:
        """Consume the next letter, which must be one of ``letters``."""
        letter = self.peek()
        if not letter or letter not in letters:
            raise self.error(f"one of {' '.join(letters)}", letter or "the end of the file")
        self.at += 1
        return letter

    def value(self) -> Any:
        """Consume the next JSON value."""
        self.peek()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                if len(self.text) - self.at > MAX_ELEMENT_BYTES or not self.grow():
                    raise self.error("a JSON value", error.msg) from error
                continue
            length = end - self.at
            if end + 2 >= len(self.text) and self.grow():  # a number may go on: 1|.5, 1e+|5
                continue
            self.at += length
            return value

    def error(self, expected: str, came: str) -> UnigsError:
        return UnigsError(
            f"expected {expected}, came {came}, at byte {self.base + self.at} of {self.path}"
        )


def reading_bar(path: Path) -> tqdm:
    """A progress bar over the bytes of a large file; silent for a small one."""
    size = path.stat().st_size
    return tqdm(
        desc=f"indexing {path.name}",
        total=size,
        unit="B",
        unit_scale=True,
        leave=False,
        disable=size < LARGE_FILE_BYTES,
    )


def iterate_elements(path: Path, sections: tuple[str, ...]) -> Iterator[Element]:
    """Elements of the named top-level arrays in the order of the file, one in memory at a time.

    Args:
        path: the JSON file.
        sections: names of the arrays wanted; the others are passed over.

    Raises:
        UnigsError: no such file, not a JSON object, cut short, or a wanted array is missing.
    """
    missing = set(sections)
    with path.open("rb") as file, reading_bar(path) as bar:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        window = _Window(file, path, bar)
        window.base = file.tell()
        window.expect("{")
        while window.peek() == '"':
            name = window.value()
            window.expect(":")
            if name in missing and window.peek() == "[":
                missing.discard(name)
                yield from _iterate_array(window, name)
            else:
                window.value()
            if window.expect(",}") == "}":
                break
    if missing:
        raise UnigsError(
            f"expected the arrays {', '.join(sections)}, came none named "
            f"{', '.join(sorted(missing))}, in {path}"
        )


def _iterate_array(window: _Window, section: str) -> Iterator[Element]:
    window.expect("[")
    if window.peek() == "]":
        window.expect("]")
        return
    while True:
        window.peek()
        start = window.base + window.at
        value = window.value()
        length = window.base + window.at - start
        text = window.text[window.at - length : window.at]
        if not text.isascii():
            value = json.loads(text.encode("latin-1"))
        yield Element(section, value, start, length)
        if window.expect(",]") == "]":
            return


class Spans:
    """Where each picture's annotations lie: 20 bytes per annotation, in numpy arrays.

    Args:
        path: the file they lie in.
        owners: place of the picture of each annotation, -1 for none.
        offsets: byte offset of each annotation's text.
        lengths: its bytes.
        pictures: how many pictures there are.
    """

    def __init__(
        self,
        path: Path,
        owners: np.ndarray,
        offsets: array[int],
        lengths: array[int],
        pictures: int,
    ) -> None:
        order = np.argsort(owners, kind="stable")
        order = order[np.searchsorted(owners[order], 0) :]
        self.path = path
        self.offsets = np.frombuffer(offsets, np.int64)[order]
        self.lengths = np.frombuffer(lengths, np.int32)[order]
        self.starts = np.searchsorted(owners[order], np.arange(pictures + 1))

    def counts(self) -> np.ndarray:
        """Annotations per picture, int64 [pictures]."""
        return np.diff(self.starts)

    def read(self, picture: int) -> list[bytes]:
        """The texts of one picture's annotations, in the order of the file."""
        texts = []
        with self.path.open("rb") as file:
            for k in range(self.starts[picture], self.starts[picture + 1]):
                file.seek(self.offsets[k])
                texts.append(file.read(self.lengths[k]))
        return texts
