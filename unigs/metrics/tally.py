"""A metric as a vector: measured per picture, summed over pictures and ranks, summarised once.

The vector of one picture is what ``unigs evaluate`` keeps per picture, so that any figure of any
subset can be recomputed from the table without the pictures.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torchmetrics import Metric

from unigs.metrics.overlaps import each_picture


class TallyMetric(Metric):
    """Sums ``measure`` of each picture in float64 and gives ``summarise`` of the sum.

    Subclasses state ``entries`` and the two pure functions. Entries lie on the grid of
    ``overlaps.to_grid``, so that the sum is the same to the last bit in any order.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    entries: ClassVar[int]
    tally: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        zero = torch.zeros(self.entries, dtype=torch.float64)
        self.add_state("tally", zero, dist_reduce_fx="sum")

    @staticmethod
    def measure(
        predicted: torch.Tensor, true: torch.Tensor, ignored: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One picture, int [H, W] twice and bool [H, W], to float64 [entries] on the CPU."""
        raise NotImplementedError

    @staticmethod
    def summarise(tally: torch.Tensor) -> dict[str, torch.Tensor]:
        """The figures of sums of tallies, float64 [..., entries] -> [...]; NaN where nothing was
        seen."""
        raise NotImplementedError

    def update(
        self,
        predicted: torch.Tensor,
        true: torch.Tensor,
        ignored: torch.Tensor | None = None,
    ) -> None:
        """Add pictures.

        Args:
            predicted: int [B, H, W] or [H, W].
            true: int, the same shape.
            ignored: bool, the same shape; left out of both.

        Raises:
            UnigsError: shapes that differ, labels that are no integers.
        """
        for picture in each_picture(predicted, true, ignored):
            self.tally += self.measure(*picture).to(self.tally.device)

    def compute(self) -> dict[str, torch.Tensor]:
        return self.summarise(self.tally)
