"""Which classes there are, and which class every pixel of a batch is of.

In: manifests of shards; label maps with a name per label. Out: a ``ClassTable``, which a model
keeps as plain JSON beside its weights, and class numbers by it.

A class number is 0 or more. Two negative ones say why a pixel has none: ``UNKNOWN``, where the
truth is not known (no loss, no score), and ``BACKGROUND``, where it is known that no entity is. So
``classes >= 0`` are the pixels of a class, ``classes != UNKNOWN`` those whose truth is known, and
no data set has too many classes for them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unigs.records import Batch, UnigsError, show
from unigs.shards.manifest import Manifest
from unigs.tasks.recipes import speak_category

if TYPE_CHECKING:
    import torch

UNKNOWN = -1
"""The class of pixels whose truth is not known, or whose name is not in the table."""

BACKGROUND = -2
"""The class of pixels that are known to hold no entity: label 0 where it is not ignored."""

NAMELESS = frozenset({"", "unknown"})
"""What data sets write where they name no category."""


@dataclass(frozen=True, slots=True)
class ClassTable:
    """The classes of a model or of data; a class's number is its place.

    Attributes:
        names: as ``speak_category`` says them, sorted, each once.
        things: for each, whether it is countable; of other classes (stuff) a picture has one
            segment each, however many areas it has.

    Example:
        >>> table = ClassTable(("dog", "sky"), (True, False))
        >>> table.number("sky"), table.number("cat")
        (1, None)
    """

    names: tuple[str, ...]
    things: tuple[bool, ...]

    def __post_init__(self) -> None:
        if list(self.names) != sorted(set(self.names)) or len(self.names) != len(self.things):
            raise UnigsError(
                f"expected class names in order, each once, and as many things; got "
                f"{_list_some(self.names)} and {len(self.things)} things; in a class table"
            )

    def __len__(self) -> int:
        return len(self.names)

    def number(self, name: str) -> int | None:
        """The class of a spoken name, 0..K-1; None where there is none."""
        place = bisect_left(self.names, name)
        return place if self.names[place : place + 1] == (name,) else None

    def to_json(self) -> dict[str, list[Any]]:
        """What a checkpoint's hyperparameters or a folder's config hold."""
        return {"names": list(self.names), "things": list(self.things)}

    @staticmethod
    def from_json(stored: Any, where: str) -> ClassTable:
        """The inverse of :meth:`to_json`.

        Args:
            stored: from a file.
            where: it came from, for the message.

        Raises:
            UnigsError: it is no class table.
        """
        kinds = {"names": str, "things": bool}
        if not isinstance(stored, Mapping) or any(
            not isinstance(stored.get(field), list | tuple)
            or any(type(value) is not kind for value in stored[field])
            for field, kind in kinds.items()
        ):
            raise UnigsError(
                f"expected classes as lists of names and things, got {show(stored, 80)}, at {where}"
            )
        try:
            return ClassTable(tuple(stored["names"]), tuple(stored["things"]))
        except UnigsError as error:
            raise UnigsError(f"{error}, at {where}") from error

    def refuse_other(self, other: ClassTable, where: str) -> None:
        """Insist on the same classes.

        Args:
            other: of the data, or of another model.
            where: it came from, for the message.

        Raises:
            UnigsError: names the classes that differ.
        """
        mine, theirs = dict(zip(self.names, self.things)), dict(zip(other.names, other.things))
        differences = {
            "without": [name for name in mine if name not in theirs],
            "also with": [name for name in theirs if name not in mine],
            "with another kind (thing or stuff) of": [
                name for name in mine if theirs.get(name, mine[name]) != mine[name]
            ],
        }
        told = [f"{how} {_list_some(names)}" for how, names in differences.items() if names]
        if told:
            raise UnigsError(
                f"expected the model's {len(self)} classes; got {len(other)}, "
                f"{', '.join(told)}; in {where}"
            )


def list_classes(manifests: Mapping[str, Manifest]) -> ClassTable:
    """The classes of some data sets; what none calls a thing and some calls stuff is stuff."""
    kinds: dict[str, set[bool | None]] = {}
    for row in (row for manifest in manifests.values() for row in manifest.categories):
        kinds.setdefault(speak_category(row["name"]), set()).add(row["is_thing"])
    names = tuple(sorted(kinds.keys() - NAMELESS))
    return ClassTable(names, tuple(True in kinds[n] or False not in kinds[n] for n in names))


def number_labels(names: Sequence[str], table: ClassTable) -> torch.Tensor:
    """The class of each label 0..N of one picture, int64 [N + 1].

    Args:
        names: spoken, of label k at ``names[k - 1]``.
        table: names that it lacks are ``UNKNOWN``; label 0 is ``BACKGROUND``.
    """
    import torch  # late: recipes and samples start without it

    numbers = [table.number(name) for name in names]
    return torch.tensor([BACKGROUND, *(UNKNOWN if n is None else n for n in numbers)])


def paint_classes(batch: Batch, table: ClassTable) -> torch.Tensor:
    """The class of every pixel, int64 [B, H, W], on the labels' device.

    ``UNKNOWN`` where pixels are ignored or their name is not in the table; ``BACKGROUND`` for
    label 0 elsewhere. Of tasks that draw a few entities, label 0 is also what was not asked for.

    Args:
        batch: of any task.
        table: the classes.
    """
    import torch

    painted = [
        number_labels(names, table).to(labels.device)[labels.long()]
        for names, labels in zip(batch.names, batch.labels, strict=True)
    ]
    return torch.stack(painted).masked_fill(batch.ignored, UNKNOWN)


def _list_some(names: Sequence[str], most: int = 8) -> str:
    """Names for a message; of many the first ones and how many more there are."""
    told = ", ".join(show(name) for name in names[:most])
    return told if len(names) <= most else f"{told} and {len(names) - most} more"
