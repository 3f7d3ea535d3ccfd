"""The command line of a verb, as people type it, in the form that jsonargparse reads.

``--words star sand`` is a list, said again it goes on, ``--flag`` is true, words before the first
option belong to the verb's first list, and an option that there is none of is told with the nearest
that there is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from unigs.records import suggest

EXAMPLES = "examples:"
Kind = Literal["flag", "list", "one"]


class ExampleFormatter(DefaultHelpFormatter):
    """Keeps the lines of the examples."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        wraps = not text.startswith(EXAMPLES)
        return super()._fill_text(text, width, indent) if wraps else text


class VerbParser(ArgumentParser):
    """A parser of one function's signature; errors are one line and exit code 2."""

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, *others: Any, **more: Any
    ) -> Any:
        options: dict[str, Kind] = {}
        for action in self._actions:
            for name in action.option_strings:
                options |= list_options(name, getattr(action, "_typehint", None))
        try:
            spelt = spell_words(list(args or ()), options)
        except ValueError as error:
            self.error(str(error))
        return super().parse_args(spelt, *others, **more)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"unigs: {message}\n{self.prog} --help lists every option", file=sys.stderr)
        self.exit(2)


def list_options(name: str, hint: Any) -> dict[str, Kind]:
    """An option and how it is typed; of a record that may be None, its fields as well."""
    kinds = {name: read_kind(hint)}
    for record in filter(is_dataclass, get_args(hint)):
        for field, type in get_type_hints(record).items():
            kinds[f"{name}.{field}"] = read_kind(type)
    return kinds


def read_kind(hint: Any) -> Kind:
    """How an option of this type is typed."""
    kinds = {get_origin(one) or one for one in (hint, *get_args(hint))}
    if bool in kinds:
        return "flag"
    return "list" if kinds & {list, tuple} and dict not in kinds else "one"


def spell_words(words: Sequence[str], options: Mapping[str, Kind]) -> list[str]:
    """Words as typed -> one value per option, lists in JSON.

    Args:
        words: from the verb on.
        options: how each is typed, in the order of the signature.

    Raises:
        ValueError: an option that there is none of, a word that belongs to none.

    Example:
        >>> spell_words(["a.jpg", "--words", "star"], {"--images": "list", "--words": "list"})
        ['--images', '["a.jpg"]', '--words', '["star"]']
    """
    spelt: list[str] = []
    loose: list[str] = []
    begun: set[str] = set()
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            (spelt if word == "-h" else loose).append(word)
            continue
        name, equals, value = word.partition("=")
        if name not in options and name != "--help":
            raise ValueError(f"expected an option of this verb, got {name}{suggest(name, options)}")
        if options.get(name) == "list":
            word = f"{go_on(name, begun)}{equals}{join_list([value]) if equals else ''}"
        spelt.append(word)
        if equals or name == "--help":
            continue
        if options[name] == "flag" and not (rest and rest[0] in ("true", "false", "null")):
            spelt.append("true")
        elif options[name] == "list":
            spelt.append(join_list(take_values(rest)))
        elif rest:
            spelt.append(rest.pop(0))
    if loose:
        first = next((name for name, kind in options.items() if kind != "one"), "")
        if options.get(first) != "list" or "." in first:
            raise ValueError(f"expected an option, as in --out FOLDER, got {loose[0]!r}")
        spelt += [go_on(first, begun), join_list(loose)]
    return spelt


def go_on(name: str, begun: set[str]) -> str:
    """A list's option; from the second time on in the form that adds to what was said."""
    again = name in begun and not name.endswith("+")
    begun.add(name)
    return f"{name}+" if again else name


def take_values(rest: list[str]) -> list[str]:
    """Remove and return the words before the next option."""
    values = []
    while rest and not rest[0].startswith("--"):
        values.append(rest.pop(0))
    return values


def join_list(values: Sequence[str]) -> str:
    """A list in JSON; one that is written as a list already is left to the reader.

    Raises:
        ValueError: bytes that are no text in this locale.
    """
    for value in values:
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise ValueError(f"expected UTF-8, got {value!r}; a folder or a glob may lead there")
    return values[0] if len(values) == 1 and is_list(values[0]) else json.dumps(list(values))


def is_list(value: str) -> bool:
    """Whether a value is written as a list: in JSON, or ``[star, sand]``.

    What is none: the name of a file, or a glob that begins with ``[``.
    """
    if not (value.startswith("[") and value.endswith("]")) or os.path.lexists(value):
        return False
    try:
        return isinstance(json.loads(value), list)
    except (ValueError, RecursionError):
        pass
    try:
        found = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError):
        return False
    return isinstance(found, list)
