"""Class maps in the colours that ControlNet and T2I-Adapter learnt to read (Table 4).

In: label maps and a name per label. Out: colours by name, from ``assets/class-colours``. Colours
are of classes, so two entities of one class that touch become one region: these models cannot be
told more.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from unigs.tasks import speak_category

ClassPalette = Literal["ade20k", "coco", "coco-stuff"]
"""ADE20K's 150 classes; COCO panoptic's 133; COCO-Stuff's 171, in the colours of PASCAL VOC."""

TABLE = Path(__file__).parents[2] / "assets" / "class-colours" / "classes.csv"
SPARE_COLOURS = 8

Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ClassColours:
    """Colours by spoken name.

    Attributes:
        known: of the names of a palette.
        spare: for names that it lacks: no class's colours, far from all of them and from black.
    """

    known: dict[str, Colour]
    spare: tuple[Colour, ...]

    def paint(self, labels: torch.Tensor, names: Sequence[Sequence[str]]) -> torch.Tensor:
        """Paint each entity in its class's colour.

        Args:
            labels: int [B, H, W]; 0 is painted black, which is no class's colour.
            names: spoken, of label k of picture b at ``names[b][k - 1]``.

        Returns:
            uint8 [B, 3, H, W]. Names that the palette lacks get one spare colour each, in the order
            in which the picture names them.
        """
        painted = []
        for one, said in zip(labels, names, strict=True):
            unknown = list(dict.fromkeys(name for name in said if name not in self.known))
            extra = {name: self.spare[k % len(self.spare)] for k, name in enumerate(unknown)}
            table = [(0, 0, 0), *((self.known | extra)[name] for name in said)]
            colours = torch.tensor(table, dtype=torch.uint8, device=one.device)
            painted.append(colours[one.long()].permute(2, 0, 1))
        return torch.stack(painted)


@cache
def load_colours(palette: ClassPalette) -> ClassColours:
    """The colours of a palette.

    A name is a class's first name before it is another class's synonym, and a synonym before it is
    a word that we put into a wider class (``also``: a dog is an animal of ADE20K).
    """
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["palette"] == palette]
    ranks: list[dict[str, Colour]] = [{}, {}, {}]
    for row in rows:
        colour = (int(row["red"]), int(row["green"]), int(row["blue"]))
        first, *synonyms = row["names"].split(", ")
        words = ([first], synonyms, row["also"].split(", ") if row["also"] else [])
        for rank, mine in zip(ranks, words, strict=True):
            for word in mine:
                rank.setdefault(speak_category(word), colour)
    known = ranks[2] | ranks[1] | ranks[0]
    return ClassColours(known, choose_spare(list(known.values())))


def choose_spare(taken: Sequence[Colour]) -> tuple[Colour, ...]:
    """Colours, each as far as can be from the taken ones, from black and from those before it."""
    steps = np.array([0, 64, 128, 192, 255])
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    far = np.min([np.linalg.norm(grid - np.array(one), axis=1) for one in [(0, 0, 0), *taken]], 0)
    chosen: list[Colour] = []
    for _ in range(SPARE_COLOURS):
        red, green, blue = grid[far.argmax()].tolist()
        chosen.append((red, green, blue))
        far = np.minimum(far, np.linalg.norm(grid - np.array(chosen[-1]), axis=1))
    return tuple(chosen)
