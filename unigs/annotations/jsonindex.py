"""Annotation JSON of any size in bounded memory: elements by their place in the file.

In: a JSON file whose top level is an object of arrays (COCO's form). Out: its elements one by one
with byte offset and length, so that an index keeps a dozen bytes per annotation and ``load`` reads
back only the spans of one picture. COCO's and EntitySeg's files would need gigabytes as objects.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from unigs.files import decode_text, explain_errors
from unigs.records import UnigsError

CHUNK_BYTES = 1 << 22
MAX_ELEMENT_BYTES = 1 << 25
"""Of one value, and of all annotations of one picture; as objects a dozen times as large."""

MAX_BRACKETS = 1 << 21
"""In one value of more than two chunks: an empty list takes thirty times its text."""

LARGE_FILE_BYTES = 1 << 26
LONGEST_TOKEN = 16  # of one letter more than -Infinity, or an escape
_BLANKS = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\[\]{},]*')
_LETTERS = re.compile(r'(?:[^"\\]|\\.)*+', re.DOTALL)
_WIDE_MARKS = (b"\xff\xfe", b"\xfe\xff")


class Element(NamedTuple):
    """An array element: the array's name, the value, and where its text lies (bytes)."""

    section: str
    value: Any
    offset: int
    length: int


class UnreadableValue(NamedTuple):
    """Stands for a value that was passed over unread; ``reason`` is what it is counted under."""

    reason: str


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
            self.at = _BLANKS.match(self.text, self.at).end()  # type: ignore[union-attr]
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
                if self.is_cut(error):
                    self.check_size()
                if not self.is_cut(error) or not self.grow():
                    self.check_letters(error.pos)
                    raise self.error("a JSON value", error.msg) from error
                continue
            except (RecursionError, ValueError) as error:
                deep = isinstance(error, RecursionError)
                self.skip_value()
                return UnreadableValue("nested too deeply" if deep else "with a number too long")
            length = end - self.at
            if end + 2 >= len(self.text) and self.grow():  # a number may go on: 1|.5, 1e+|5
                continue
            self.at += length
            return value

    def skip_value(self) -> None:
        """Consume the next value by its brackets alone, in bounded memory and without depth."""
        depth = 0
        while letter := self.peek():
            if letter == '"':
                self.at += 1
                self.skip_string()
            elif letter in ",]}" and depth == 0:
                return
            else:
                self.at += 1
                depth += (letter in "[{") - (letter in "]}")
            self.at = _PLAIN.match(self.text, self.at).end()  # type: ignore[union-attr]

    def skip_string(self) -> None:
        """Consume the rest of a string."""
        while True:
            self.at = _LETTERS.match(self.text, self.at).end()  # type: ignore[union-attr]
            if self.text[self.at : self.at + 1] == '"':
                self.at += 1
                return
            if not self.grow():
                raise self.error("a JSON value", "a string without an end")

    def is_cut(self, error: json.JSONDecodeError) -> bool:
        """Whether the window ends in the value, and not the value in a mistake."""
        near = error.pos + LONGEST_TOKEN >= len(self.text)
        return near or error.msg.startswith("Unterminated string")

    def check_size(self) -> None:
        """Refuse a value before it takes the memory.

        Raises:
            UnigsError: what is left of the window, all of it one value, is too large.
        """
        letters = len(self.text) - self.at
        if letters > MAX_ELEMENT_BYTES:
            raise self.error(f"JSON values of at most {MAX_ELEMENT_BYTES:,} bytes", "a larger one")
        if letters > 2 * CHUNK_BYTES:
            brackets = self.text.count("[", self.at) + self.text.count("{", self.at)
            if brackets > MAX_BRACKETS:
                raise self.error("a JSON value", f"one of more than {MAX_BRACKETS:,} lists")

    def check_letters(self, end: int) -> None:
        """Name the byte that is not UTF-8, if that is what is wrong before ``end``."""
        data = self.text[self.at : end].encode("latin-1")
        decode_text(data.rstrip(bytes(range(128, 256))), str(self.path), self.base + self.at)

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
    with explain_errors("to read an annotation file", path), path.open("rb") as file:
        start = file.read(3)
        if start[:2] in _WIDE_MARKS:
            decode_text(start, str(path))
        if start != b"\xef\xbb\xbf":
            file.seek(0)
        with reading_bar(path) as bar:
            window = _Window(file, path, bar)
            window.base = file.tell()
            window.expect("{")
            while window.peek() == '"':
                name = window.value()
                window.expect(":")
                if name in sections and window.peek() == "[":
                    if name not in missing:
                        raise window.error(f"one array {name}", "a second")
                    missing.discard(name)
                    yield from _iterate_array(window, name)
                else:
                    _pass_over(window)
                if window.expect(",}") == "}":
                    break
    if missing:
        raise UnigsError(
            f"expected the arrays {', '.join(sections)}, came none named "
            f"{', '.join(sorted(missing))}, in {path}"
        )


def _pass_over(window: _Window) -> None:
    """Consume a value that nobody wants, an array or object part by part."""
    opening = window.peek()
    if opening not in ("[", "{"):
        window.value()
        return
    window.at += 1
    closing = "]" if opening == "[" else "}"
    if window.peek() == closing:
        window.at += 1
        return
    while True:
        if opening == "{":
            window.value()
            window.expect(":")
        window.value()
        if window.expect("," + closing) == closing:
            return


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
        if isinstance(value, UnreadableValue):
            yield Element(section, value, start, length)
            if window.expect(",]") == "]":
                return
            continue
        text = window.text[window.at - length : window.at]
        if not text.isascii():
            value = None  # or both would be in memory
            value = json.loads(decode_text(text.encode("latin-1"), str(window.path), start))
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

    def size(self, picture: int) -> int:
        """Bytes of one picture's annotations."""
        return int(
            self.lengths[self.starts[picture] : self.starts[picture + 1]].sum(dtype=np.int64)
        )

    def read(self, picture: int) -> list[bytes]:
        """The texts of one picture's annotations, in the order of the file.

        Raises:
            ValueError: so many that they would not fit into memory.
        """
        if self.size(picture) > MAX_ELEMENT_BYTES:
            raise ValueError(f"{self.size(picture):,} bytes of annotations for one picture")
        texts = []
        with self.path.open("rb") as file:
            for k in range(self.starts[picture], self.starts[picture + 1]):
                file.seek(self.offsets[k])
                texts.append(file.read(self.lengths[k]))
        return texts
