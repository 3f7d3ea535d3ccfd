"""Class-agnostic panoptic quality, and how well borders are drawn (boundary IoU).

In: predicted and true labels, int [B, H, W] or [H, W], optionally ignored pixels. Out: floats.

- **PQ** = SQ x RQ over pairs with IoU > 0.5 (which are unique, since masks do not overlap): SQ is
  their mean IoU; RQ is true / (true + half the false + half the missed). Label 0 is background and
  no segment of its own. Equal to torchmetrics' ``PanopticQuality`` with one thing class, one stuff
  class for the background, and ignored pixels as void.
- **boundary_iou** (Cheng et al., 2021): the IoU of the bands within d of the masks' own borders,
  for the pairs that mIoU uses (``segmentation``), averaged over true entities, 0 without a pair;
  d is 2 % of the picture's diagonal, and the picture's edge is a border.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from unigs.metrics.overlaps import (
    Overlaps,
    count_overlaps,
    match_entities,
    to_grid,
)
from unigs.metrics.tally import TallyMetric


def count_segments(overlaps: Overlaps) -> tuple[float, int, int, int]:
    """Sum of IoU over true pairs, and how many predictions are true, false, and truths missed."""
    iou = overlaps.iou
    pairs = iou > 0.5
    false = ~pairs.any(1) & ~overlaps.excused
    missed = ~pairs.any(0)
    return float(to_grid(iou[pairs]).sum()), int(pairs.sum()), int(false.sum()), int(missed.sum())


def keep_boundaries(labels: torch.Tensor, distance_px: int) -> torch.Tensor:
    """Set to 0 every pixel farther than ``distance_px`` from its entity's border.

    Args:
        labels: int [H, W], 0..65535.
        distance_px: width of the band, in chessboard distance.

    Returns:
        int64 [H, W].
    """
    level = F.pad(labels.float()[None, None], [distance_px] * 4)
    window = 2 * distance_px + 1
    inside = _pool(level, window) == -_pool(-level, window)
    return torch.where(inside[0, 0], 0, labels.long())


def rate_boundaries(
    predicted: torch.Tensor, true: torch.Tensor, ignored: torch.Tensor | None = None
) -> np.ndarray:
    """Boundary IoU of each true entity with its pair, float64 [N].

    Entities none of whose border is outside of the ignored pixels are left out.
    """
    whole = count_overlaps(predicted, true, ignored)
    distance_px = max(1, round(0.02 * math.hypot(*true.shape)))
    bands = count_overlaps(
        keep_boundaries(predicted, distance_px), keep_boundaries(true, distance_px), ignored
    )
    found = dict(zip(bands.predicted_labels.tolist(), range(len(bands.predicted_labels))))
    wanted = dict(zip(bands.true_labels.tolist(), range(len(bands.true_labels))))
    rating = np.zeros(len(wanted))
    for row, column in zip(*match_entities(whole.iou)):
        place = wanted.get(int(whole.true_labels[column]))
        pair = found.get(int(whole.predicted_labels[row]))
        if place is not None and pair is not None:
            rating[place] = bands.iou[pair, place]
    return rating


class PanopticEntityQuality(TallyMetric):
    """PQ, SQ, RQ and boundary IoU over any number of pictures and ranks.

    ``compute`` gives ``{"pq", "sq", "rq", "boundary_iou"}``, float64, NaN where nothing was seen.
    """

    entries = 6

    @staticmethod
    def measure(predicted, true, ignored=None) -> torch.Tensor:
        """Segments as in :func:`count_segments`; sum of boundary IoU, and of how many."""
        segments = count_segments(count_overlaps(predicted, true, ignored))
        boundaries = rate_boundaries(predicted, true, ignored)
        row = [*segments, to_grid(boundaries).sum(), len(boundaries)]
        return torch.tensor(row, dtype=torch.float64)

    @staticmethod
    def summarise(tally: torch.Tensor) -> dict[str, torch.Tensor]:
        iou_sum, found, false, missed, boundary_sum, boundaries = tally.unbind(-1)
        segments = found + 0.5 * (false + missed)
        return {
            "pq": iou_sum / segments,
            "sq": iou_sum / found,
            "rq": found / segments,
            "boundary_iou": boundary_sum / boundaries,
        }


def _pool(level: torch.Tensor, window: int) -> torch.Tensor:
    """Largest value in a square window, one axis after the other."""
    rows = F.max_pool2d(level, (window, 1), stride=1)
    return F.max_pool2d(rows, (1, window), stride=1)
