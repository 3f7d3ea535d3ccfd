"""Two label maps of one picture -> how many pixels every pair of entities shares.

In: predicted and true labels, int [H, W], 0 is background; optionally ignored bool [H, W], True
where the truth is unknown. Out: ``Overlaps``, small NumPy tables on the CPU. One joint histogram,
taken on the labels' own device, serves every mask metric of this package.

Ignored pixels are left out of both maps. What remains of a prediction of which more than half lay
on ignored pixels is never held against it (the void rule of panoptic quality).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment

from unigs.records import UnigsError

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
"""COCO's ten, bit for bit as pycocotools writes them."""

LARGEST_LABEL = 65535
"""Label maps travel as uint16 (``records.Annotated``)."""

_GRID = 2.0**32


@dataclass(frozen=True, slots=True, eq=False)
class Overlaps:
    """Pixel counts of one picture; P predicted and N true entities, absent labels left out.

    Attributes:
        shared: int64 [P, N], pixels in both.
        predicted_px, true_px: int64 [P] and [N], areas without ignored pixels.
        predicted_labels, true_labels: int64 [P] and [N], ascending.
        excused: bool [P], more than half of the prediction lay on ignored pixels.
    """

    shared: np.ndarray
    predicted_px: np.ndarray
    true_px: np.ndarray
    predicted_labels: np.ndarray
    true_labels: np.ndarray
    excused: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        """float64 [P, N], intersection over union of each pair."""
        union = self.predicted_px[:, None] + self.true_px[None, :] - self.shared
        return self.shared / np.maximum(union, 1)


def count_overlaps(
    predicted: torch.Tensor, true: torch.Tensor, ignored: torch.Tensor | None = None
) -> Overlaps:
    """Count the pixels shared by each pair of predicted and true entities.

    Args:
        predicted: int [H, W], 0..65535.
        true: int [H, W], 0..65535.
        ignored: bool [H, W]; True is left out of both.

    Returns:
        The tables, on the CPU.

    Raises:
        UnigsError: another size or rank, labels that are no integers or out of range.
    """
    check_labels(predicted, true, ignored)
    predicted, true = predicted.reshape(-1).long(), true.reshape(-1).long().to(predicted.device)
    whole_px = torch.bincount(predicted)
    if ignored is not None:
        seen = ~ignored.reshape(-1).to(predicted.device)
        predicted, true = predicted[seen], true[seen]
    rows, row_of = _number_labels(predicted)
    columns, column_of = _number_labels(true)
    size = (len(rows) + 1, len(columns) + 1)
    joint = torch.bincount(row_of * size[1] + column_of, minlength=size[0] * size[1])
    table = joint.reshape(size).cpu().numpy()
    predicted_px = table[1:].sum(1)
    return Overlaps(
        shared=table[1:, 1:],
        predicted_px=predicted_px,
        true_px=table[:, 1:].sum(0),
        predicted_labels=rows.cpu().numpy(),
        true_labels=columns.cpu().numpy(),
        excused=2 * predicted_px < whole_px[rows].cpu().numpy(),
    )


def match_entities(iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pair predicted and true entities one to one so that the sum of their IoU is largest.

    Equal sums are decided by the larger sum of squares, so that the order of labels decides
    nothing. Pairs that share no pixel are no pairs.

    Args:
        iou: float64 [P, N].

    Returns:
        Places of the paired predictions and of the paired truths, int64 [K] each.
    """
    rows, columns = linear_sum_assignment(iou + 1e-9 * iou**2, maximize=True)
    paired = iou[rows, columns] > 0
    return rows[paired], columns[paired]


def each_picture(
    predicted: torch.Tensor, true: torch.Tensor, ignored: torch.Tensor | None
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Yield [H, W] maps from [H, W] or [B, H, W] ones.

    Raises:
        UnigsError: prediction, truth and ignored differ in shape.
    """
    for name, other in (("true labels", true), ("ignored", ignored)):
        if other is not None and other.shape != predicted.shape:
            raise UnigsError(
                f"expected {name} of the prediction's shape {tuple(predicted.shape)}; "
                f"got {tuple(other.shape)}; in a mask metric"
            )
    if predicted.ndim == 2:
        yield predicted, true, ignored
        return
    for place in range(len(predicted)):
        yield predicted[place], true[place], None if ignored is None else ignored[place]


def check_labels(predicted: torch.Tensor, true: torch.Tensor, ignored: torch.Tensor | None) -> None:
    """Refuse maps that cannot be compared pixel by pixel.

    Raises:
        UnigsError: what was expected, what came, and for which of the maps.
    """
    for name, labels in (("predicted labels", predicted), ("true labels", true)):
        if labels.ndim != 2 or labels.is_floating_point() or labels.is_complex():
            raise UnigsError(
                f"expected {name} as integers [H, W] (bfloat16 cannot count past 256); "
                f"got {labels.dtype} {tuple(labels.shape)}; in a mask metric"
            )
        wide = labels.long()
        if wide.numel() and not 0 <= int(wide.min()) <= int(wide.max()) <= LARGEST_LABEL:
            raise UnigsError(
                f"expected {name} in 0..{LARGEST_LABEL}; "
                f"got {int(wide.min())}..{int(wide.max())}; in a mask metric"
            )
    if ignored is not None and ignored.dtype != torch.bool:
        raise UnigsError(f"expected ignored as bool; got {ignored.dtype}; in a mask metric")
    for name, other in (("true labels", true), ("ignored", ignored)):
        if other is not None and other.shape != predicted.shape:
            raise UnigsError(
                f"expected {name} of the prediction's size {tuple(predicted.shape)}; "
                f"got {tuple(other.shape)}; in a mask metric"
            )


def to_grid(values: np.ndarray) -> np.ndarray:
    """Round to multiples of 2**-32: float64 then adds two million of them in any order exactly.

    This is what makes a figure the same, to the last bit, for any order of entities, pictures and
    ranks; the cost is an error below 1.2e-10.
    """
    return np.round(np.asarray(values, dtype=np.float64) * _GRID) / _GRID


def _number_labels(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Number the labels that occur, 1..K in ascending order; 0 stays 0."""
    counts = torch.bincount(labels, minlength=1)
    counts[0] = 0
    present = counts.nonzero().squeeze(1)
    number = torch.zeros_like(counts)
    number[present] = torch.arange(1, len(present) + 1, device=labels.device)
    return present, number[labels]
