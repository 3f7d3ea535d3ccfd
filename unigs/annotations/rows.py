"""What a row of an annotation file must hold, kind by kind: the one door for JSON of any form.

In: a value as JSON gives it, of whatever type. Out: a tuple of the fields that are used, each of
the type that the tables below promise; a number is the same number as text, as a float or as an
integer. Nothing else in the readers looks at a row's raw fields but ``segmentation``, which
:mod:`unigs.annotations.masks` checks.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_NAME_LETTERS = 1000
MAX_SIDE_PX = 1 << 31
_INTEGER = re.compile(r"[+-]?\d{1,4000}(\.0*)?", re.ASCII)
_FLAGS = {
    **dict.fromkeys(("1", "1.0", "true", "yes"), True),
    **dict.fromkeys(("0", "0.0", "false", "no", ""), False),
}
_MISSING = object()


class BadRow(ValueError):
    """A row of another form; its text says which field and what came.

    Attributes:
        field: the field at fault, empty for the row itself.
    """

    def __init__(self, field: str, expected: str, value: Any) -> None:
        came = "none" if value is _MISSING else show_value(value)
        super().__init__(f"{field or 'row'}: expected {expected}, got {came}")
        self.field = field


class Field(NamedTuple):
    """One field of a kind of row.

    Attributes:
        name: in the file.
        expected: words for what it must be.
        convert: raises ``ValueError`` or ``TypeError`` for anything else.
        default: where the field is absent or null; without one it must be there.
    """

    name: str
    expected: str
    convert: Callable[[Any], Any]
    default: Any = _MISSING


def show_value(value: Any) -> str:
    """A value in a few letters, however large or deep it is."""
    if isinstance(value, str):
        return repr(value[:60])
    if isinstance(value, dict | list):
        return f"{'an object' if isinstance(value, dict) else 'a list'} of {len(value)}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)[:60] if isinstance(value, float) or abs(value) < 1 << 64 else "a huge number"


def to_id(value: Any) -> int | str:
    """An id: 1, 1.0, "1" and "01" are one id; other texts are themselves."""
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        text = clean_name(value)
        return int(text.partition(".")[0]) if _INTEGER.fullmatch(text) else text
    raise TypeError


def to_flag(value: Any) -> bool:
    """0 or 1 in any spelling; anything else is not guessed."""
    if isinstance(value, str):
        return _FLAGS[value.strip().lower()]
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise TypeError


def to_file_name(value: Any) -> str:
    """A name of a file, not empty."""
    if isinstance(value, str) and value.strip():
        return value
    raise TypeError


def to_category_name(value: Any) -> str:
    """Words of one line that can be written and drawn; a number is read as its digits."""
    if type(value) is int:
        value = str(value)
    name = clean_name(value) if isinstance(value, str) else ""
    if not name or len(name) > MAX_NAME_LETTERS:
        raise TypeError
    return name


def clean_name(text: str) -> str:
    """Control characters as blanks, lone surrogates, which no UTF-8 has, as U+FFFD."""
    if not text.isprintable():
        text = "".join(map(_clean_letter, text))
    return text.strip()


def _clean_letter(letter: str) -> str:
    kind = unicodedata.category(letter)
    return " " if kind in ("Cc", "Zl", "Zp") else "\ufffd" if kind == "Cs" else letter


def to_size(value: Any) -> int:
    """Pixels, or 0: what cannot be a size is no claim, and claims are never trusted."""
    if type(value) is int:
        return value if 0 < value < MAX_SIDE_PX else 0
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return 0
    return int(number) if math.isfinite(number) and 0 < number < MAX_SIDE_PX else 0


def to_list(value: Any) -> list[Any]:
    """A JSON array."""
    if isinstance(value, list):
        return value
    raise TypeError


def to_kind(value: Any) -> bool | None:
    """EntitySeg's thing or stuff; a table that says other words does not say."""
    text = value.strip().lower() if isinstance(value, str) else ""
    return {"thing": True, "stuff": False}.get(text)


_ID = "an id (a number or a text)"
_FLAG = "0 or 1"

PICTURE = (
    Field("id", _ID, to_id),
    Field("file_name", "a file's name", to_file_name),
    Field("width", "pixels", to_size, 0),
    Field("height", "pixels", to_size, 0),
)
CATEGORY = (
    Field("id", _ID, to_id),
    Field("name", f"words, at most {MAX_NAME_LETTERS} letters", to_category_name),
    Field("isthing", _FLAG, to_flag, None),
    Field("type", "thing or stuff", to_kind, None),
)
INSTANCE = (Field("image_id", _ID, to_id),)
PANOPTIC = (
    Field("image_id", _ID, to_id),
    Field("file_name", "the name of a PNG", to_file_name),
    Field("segments_info", "a list of segments", to_list),
)
SEGMENT = (Field("id", _ID, to_id),)
ENTITY = (
    Field("category_id", _ID, to_id, ""),
    Field("iscrowd", _FLAG, to_flag, False),
)


def read_row(row: Any, kind: tuple[Field, ...]) -> tuple[Any, ...]:
    """The fields of a row of one kind, in the order of its table.

    Raises:
        BadRow: not an object, or a field is missing or of another form.
    """
    if not isinstance(row, dict):
        raise BadRow("", "an object", row)
    values = []
    for name, expected, convert, default in kind:
        value = row.get(name)
        try:
            if value is None and default is not _MISSING:
                values.append(default)
            else:
                values.append(convert(value))
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise BadRow(name, expected, row.get(name, _MISSING)) from error
    return tuple(values)
