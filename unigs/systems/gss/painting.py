"""The targets of GSS: which class and colour each pixel has, and what of it is known.

In: batches with classes. Out: class numbers without holes, to be painted, and the codes that count
in the loss. Background, where the truth is that no entity is there, is a class of its own: number K
after the K of the table. Data that have none never teach it; its colour costs them little.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from unigs.codec.maskige import farthest_colours, random_colours
from unigs.records import Batch, UnigsError
from unigs.tasks import BACKGROUND, UNKNOWN, ClassTable, paint_classes

Colours = Literal["farthest", "random"]


@dataclass(frozen=True, slots=True)
class Painting:
    """The classes of a model and their colours.

    Attributes:
        table: K classes.
        colours: K + 1 distinct ones of 0..255, the background's last.
    """

    table: ClassTable
    colours: tuple[tuple[int, ...], ...]

    @property
    def palette(self) -> Tensor:
        """The colours, uint8 [K + 1, 3]."""
        return torch.tensor(self.colours, dtype=torch.uint8)

    def to_json(self) -> dict[str, Any]:
        """What hyperparameters or a folder's index hold."""
        return {**self.table.to_json(), "colours": [list(colour) for colour in self.colours]}

    @staticmethod
    def from_json(stored: Any, where: str) -> Painting:
        """The inverse of :meth:`to_json`.

        Raises:
            UnigsError: no class table, or other than K + 1 distinct colours.
        """
        table = ClassTable.from_json(stored, where)
        rows = stored.get("colours") if isinstance(stored, Mapping) else None
        colours = tuple(tuple(row) for row in rows) if isinstance(rows, list | tuple) else ()
        plain = all(
            len(colour) == 3 and all(type(level) is int and 0 <= level <= 255 for level in colour)
            for colour in colours
        )
        if not plain or not len(colours) == len(set(colours)) == len(table) + 1:
            raise UnigsError(
                f"expected {len(table) + 1} distinct colours of three levels 0..255, got "
                f"{len(set(colours))} distinct of {len(colours)}, at {where}"
            )
        return Painting(table, colours)


def choose_painting(table: ClassTable, kind: Colours) -> Painting:
    """Colours for the classes: as far apart as can be (FF), or at random (FF-R)."""
    count = len(table) + 1
    colours = farthest_colours(count) if kind == "farthest" else random_colours(count, seed=0)
    return Painting(table, tuple(map(tuple, colours.tolist())))


def keep_colours(table: ClassTable, colours: Tensor) -> Painting:
    """A painting of learnt colours, uint8 [K + 1, 3]; equal ones part by their blue."""
    kept: list[tuple[int, ...]] = []
    for red, green, blue in colours.tolist():
        levels = sorted(range(256), key=lambda level: abs(level - blue))
        kept.append(next((red, green, b) for b in levels if (red, green, b) not in kept))
    return Painting(table, tuple(kept))


def number_pixels(batch: Batch, table: ClassTable) -> Tensor:
    """The class of each pixel, int64 [B, H, W]: 0..K-1, K for background, ``UNKNOWN``."""
    classes = paint_classes(batch, table)
    return classes.masked_fill(classes == BACKGROUND, len(table))


def fill_unknown(classes: Tensor, guess: Tensor) -> Tensor:
    """Classes with ``UNKNOWN`` ones guessed, both int64 [B, H, W] (unlabelled areas)."""
    return torch.where(classes == UNKNOWN, guess, classes)


def find_known(classes: Tensor, stride: int) -> Tensor:
    """The codes that count: those with a known pixel in their block.

    Args:
        classes: int64 [B, H, W] at the maskige's size.
        stride: pixels per code.

    Returns:
        bool [B, H / stride, W / stride].
    """
    known = (classes != UNKNOWN).float()[:, None]
    return nn.functional.max_pool2d(known, stride)[:, 0] > 0


def average_known(loss: Tensor, known: Tensor) -> Tensor:
    """Mean of float [B, h, w] over what is known, float [B]; 0 of a picture with nothing known."""
    return (loss * known).sum((1, 2)) / known.sum((1, 2)).clamp(min=1)
