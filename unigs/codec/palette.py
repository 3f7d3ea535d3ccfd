"""Which colours entities may have, and where each belongs (paper, Section 3.2).

In: the kind of a palette and its cells per side. Out: :class:`Palette`, which
:mod:`unigs.codec.paint` paints with and :mod:`unigs.codec.refine` reads places from.

Levels {0, 64, 128, 192, 255} per channel give 125 legal colours; black is background, 124 are
entities'. The picture is cut into ``cells`` x ``cells`` cells. The paper does not say which cell
has which colour: ``CELL_COLOURS`` is derived by ``tools/optimise_palette.py``. A coarser grid takes
the table's upper left corner, where neighbours are the same as in the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor

from unigs.codec.cell_colours import CELL_COLOURS
from unigs.records import UnigsError

LEVELS = (0, 64, 128, 192, 255)
SIZES = 4
"""Size classes of ``scaled``: an entity of class k is as large as a square of k to k + 1 cells."""

Kind = Literal["location", "gradient", "scaled", "random"]


class PaletteError(UnigsError):
    """A palette that there is none of, or labels that it cannot paint."""


@dataclass(frozen=True)  # without slots: the command line reads defaults by their __dict__
class Palette:
    """How entities get their colours.

    Attributes:
        kind: ``location``: by the cell of their centre, neighbouring cells far apart in colour (the
            paper's rule with our table). ``gradient``: by the cell too, but red grows by column and
            green by row, which a small network learns sooner than a table. ``scaled``: a gradient
            whose blue falls with the entity's size, so that a thing stands out from a larger one
            that it lies on. ``random``: drawn (the ablation of Table 7).
        cells: cells per side of the picture, 1..11; ``gradient`` and ``scaled`` allow 5. ``random``
            has no use for them.

    Raises:
        PaletteError: an unknown kind, or cells out of range.

    Example:
        >>> Palette("scaled", cells=5).capacity
        100
    """

    kind: Kind = "location"
    cells: int = len(CELL_COLOURS)

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        if self.kind not in kinds:
            raise PaletteError(f"expected kind in {kinds}, got {self.kind!r}, in Palette")
        limit = len(LEVELS) if self.kind in ("gradient", "scaled") else len(CELL_COLOURS)
        if type(self.cells) is not int or not 1 <= self.cells <= limit:
            raise PaletteError(
                f"expected 1..{limit} cells per side, got {self.cells!r}, "
                f"in the {self.kind} palette"
            )

    @property
    def capacity(self) -> int:
        """The most entities of a picture that it can paint, each in a colour of its own."""
        if self.kind == "random":
            return len(LEVELS) ** 3 - 1
        return self.cells**2 * (SIZES if self.kind == "scaled" else 1)

    def colours(self, device: torch.device | str = "cpu") -> Tensor:
        """Numbers of its colours among the legal ones, int64 [capacity], none of them black.

        Cell by cell, row by row; ``scaled`` has such a grid for each size class, smallest and
        bluest first.
        """
        return _number_colours(self, device)

    def homes(self, device: torch.device | str = "cpu") -> Tensor | None:
        """Where entities of each colour belong, in cells; None where colours tell no places.

        Returns:
            float64 [capacity, 2] for row and column of the cell's middle; for ``scaled``
            [capacity, 3], with the middle of the size class.
        """
        return None if self.kind == "random" else _place_homes(self, device)


# Made once a device: a copy to it for every batch would be waited for.


@cache
def _number_colours(palette: Palette, device: torch.device | str) -> Tensor:
    if palette.kind == "random":
        return torch.arange(1, palette.capacity + 1, device=device)
    if palette.kind == "location":
        table = torch.tensor(CELL_COLOURS)[: palette.cells, : palette.cells]
        return table.reshape(-1).to(device)
    level = torch.arange(palette.cells, device=device)
    blue = len(LEVELS) - 1 - torch.arange(SIZES, device=device)
    blue = blue if palette.kind == "scaled" else blue.new_full((1,), 2)
    return (level * 25 + level[:, None] * 5 + blue[:, None, None]).reshape(-1)


@cache
def _place_homes(palette: Palette, device: torch.device | str) -> Tensor:
    axes = [torch.arange(palette.cells, device=device, dtype=torch.double) + 0.5] * 2
    if palette.kind != "scaled":
        return torch.cartesian_prod(*axes)
    size = torch.arange(SIZES, device=device, dtype=torch.double) + 0.5
    return torch.cartesian_prod(size, *axes)[:, [1, 2, 0]]


@cache
def legal_colours(device: torch.device | str = "cpu") -> Tensor:
    """All 125 legal colours, black first, red slowest, blue fastest, uint8 [125, 3]."""
    levels = torch.tensor(LEVELS, dtype=torch.uint8, device=device)
    return torch.cartesian_prod(levels, levels, levels)


def nearest_legal(colour: Tensor, unit: float = 1) -> Tensor:
    """Number of the nearest legal colour of float [B, 3, ...], 1 / unit levels; int64 [B, ...]."""
    level = ((colour + 32 * unit) / (64 * unit)).floor().long()
    return level[:, 0] * 25 + level[:, 1] * 5 + level[:, 2]
