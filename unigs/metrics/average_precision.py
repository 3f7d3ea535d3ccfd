"""AP^e: COCO's average precision over class-agnostic masks that do not overlap (Table 6).

In: predicted labels int [H, W] with one score per label, true labels, optionally ignored pixels.
Out: AP over IoU 0.50:0.05:0.95, AP50, AP75 and AP by size. Things and stuff are one class. 101
recall points, the 100 best detections of a picture, greedy matching by score, areas in pixels of
the maps given (a picture resized to 512 x 512 has other "small" entities than COCO's own).

Equal to pycocotools with ``useCats=0``, but for what pycocotools leaves to the order of its input:
of equal scores the larger area goes first, of equal scores and areas the false one. So AP is a
function of the set of pictures and of nothing else.

Ranks exchange four numbers per detection, never masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torchmetrics import Metric

from unigs.metrics.overlaps import IOU_THRESHOLDS, count_overlaps, each_picture
from unigs.records import UnigsError

RECALL_POINTS = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100
AREA_RANGES_PX = {
    "": (0.0, 1e10),
    "_small": (0.0, 32.0**2),
    "_medium": (32.0**2, 96.0**2),
    "_large": (96.0**2, 1e10),
}
"""COCO's, both ends included, by the suffix of the result's name."""

_CELLS = (len(AREA_RANGES_PX), len(IOU_THRESHOLDS))
_BLOCK = 1 << 17  # weights of detections at once: 1 MiB, which a core's cache holds
_BITS = 2.0 ** np.arange(_CELLS[0] * _CELLS[1])


def match_detections(
    iou: np.ndarray,
    scores: np.ndarray,
    predicted_px: np.ndarray,
    true_px: np.ndarray,
    excused: np.ndarray | None = None,
) -> np.ndarray:
    """COCO's greedy matching in one picture, for all sizes and thresholds at once.

    Args:
        iou: float64 [P, N].
        scores: float64 [P].
        predicted_px: [P]. true_px: [N], areas.
        excused: bool [P]; unmatched, these are neither true nor false.

    Returns:
        float64 [min(P, 100), 4], the best first: score, area, and as 40 bits each (size-major)
        whether the detection is true and whether it does not count.
    """
    order = np.lexsort((iou.max(1, initial=0), -predicted_px, -scores))[:MOST_DETECTIONS]
    void = np.zeros(len(scores), bool) if excused is None else excused
    counted = ~_find_outsiders(true_px)[:, None, :]  # [A, 1, N]
    uncounted_if_unmatched = _find_outsiders(predicted_px) | void  # [A, P]
    limits = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]
    taken = np.zeros((*_CELLS, len(true_px)), bool)
    records = np.zeros((len(order), 4))
    for place, detection in enumerate(order):
        row = iou[detection]
        hit = np.zeros(_CELLS, bool)
        left_out = np.repeat(uncounted_if_unmatched[:, detection, None], _CELLS[1], 1)
        if row.max(initial=0) >= limits[0]:
            free = ~taken & (row >= limits)
            hit, first = _choose_last_best(np.where(free & counted, row, -1.0))
            spare, second = _choose_last_best(np.where(free & ~counted, row, -1.0))
            matched = hit | spare
            left_out = np.where(matched, ~hit, left_out)
            sizes, levels = np.nonzero(matched)
            taken[sizes, levels, np.where(hit, first, second)[matched]] = True
        records[place] = (
            scores[detection],
            predicted_px[detection],
            hit.reshape(-1) @ _BITS,
            left_out.reshape(-1) @ _BITS,
        )
    return records


def count_truths(true_px: np.ndarray) -> np.ndarray:
    """How many true entities count in each size range, float64 [4]."""
    return (~_find_outsiders(true_px)).sum(1).astype(np.float64)


def integrate_precision(records: np.ndarray, truths: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean precision at COCO's 101 recall points, of R weighted sets at once.

    Args:
        records: float64 [K, 4] of all pictures, in any order; see :func:`match_detections`.
        truths: float64 [R, 4]; see :func:`count_truths`.
        weights: int [R, K], how often each detection counts.

    Returns:
        float64 [R, 4, 10], by size and threshold; NaN where no true entity counts (COCO prints -1).
    """
    order = np.lexsort((-records[:, 1], -records[:, 0]))
    records, weights = records[order], weights[:, order]
    new = np.any(np.diff(records[:, :2], axis=0, prepend=np.nan) != 0, axis=1)
    tie = np.cumsum(new)
    last = np.searchsorted(tie, tie, side="right") - 1  # of the ties of each
    hits, left_out = records[:, 2:].astype(np.int64).T
    precision = np.full((len(weights), *_CELLS), np.nan)
    for size in np.flatnonzero(truths.any(0)):
        for level in range(_CELLS[1]):
            bit = 1 << int(size * _CELLS[1] + level)
            kept = np.flatnonzero((left_out & bit) == 0)
            hit = np.flatnonzero((hits & bit) > 0)
            end = np.flatnonzero(np.diff(last[hit], append=-1))  # false ones of a tie go first
            place = np.searchsorted(kept, last[hit[end]], side="right") - 1
            true = weights.take(hit, 1).cumsum(1).take(end, 1)
            seen = weights.take(kept, 1).cumsum(1).take(place, 1)
            precision[:, size, level] = _integrate(true, seen, truths[:, size])
    return precision


def measure_detections(
    scores: Sequence[float] | torch.Tensor,
    predicted: torch.Tensor,
    true: torch.Tensor,
    ignored: torch.Tensor | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Records of :func:`match_detections` and :func:`count_truths` of one picture.

    Args:
        scores: one per predicted label 1..N.
        predicted: int [H, W]. true: int [H, W]. ignored: bool [H, W], left out of both.
    """
    overlaps = count_overlaps(predicted, true, ignored)
    records = match_detections(
        overlaps.iou,
        pick_scores(scores, overlaps.predicted_labels),
        overlaps.predicted_px,
        overlaps.true_px,
        overlaps.excused,
    )
    return records, count_truths(overlaps.true_px)


def summarise_detections(
    records: np.ndarray, pictures: np.ndarray, truths: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    """AP, AP50, AP75 and AP by size of R weighted sets of N pictures.

    Args:
        records: float64 [K, 4] of all pictures.
        pictures: int [K], the picture of each record, 0..N-1.
        truths: float64 [N, 4].
        weights: float64 [R, N], how often each picture counts, whole numbers.

    Returns:
        float64 [R] each.
    """
    parts = np.array_split(weights, max(1, len(weights) * len(records) // _BLOCK))
    counts = (part.astype(np.int64)[:, pictures] for part in parts)  # integers add up faster
    table = np.concatenate(
        [integrate_precision(records, part @ truths, c) for part, c in zip(parts, counts)]
    )
    by_size = {f"ap{name}": one for name, one in zip(AREA_RANGES_PX, table.mean(2).T)}
    return {"ap": by_size["ap"], "ap50": table[:, 0, 0], "ap75": table[:, 0, 5]} | by_size


class EntityAP(Metric):
    """AP^e over any number of pictures and ranks; see the module's definitions.

    ``compute`` gives ``{"ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"}``, float64; NaN
    where no true entity of that size has been seen.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    records: list[torch.Tensor]
    truths: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        # A rank without pictures sends an empty vector of the metric's own dtype: so the records
        # travel flat and in float64, which holds the 40 bits exactly.
        self.set_dtype(torch.float64)
        self.add_state("records", [], dist_reduce_fx="cat")
        truths = torch.zeros(len(AREA_RANGES_PX), dtype=torch.float64)
        self.add_state("truths", truths, dist_reduce_fx="sum")

    def update(
        self,
        predicted: torch.Tensor,
        scores: Sequence[Sequence[float] | torch.Tensor],
        true: torch.Tensor,
        ignored: torch.Tensor | None = None,
    ) -> None:
        """Add pictures.

        Args:
            predicted: int [B, H, W].
            scores: per picture one score per label 1..N (``records.Prediction.scores``).
            true: int [B, H, W].
            ignored: bool [B, H, W]; left out of both.

        Raises:
            UnigsError: shapes that differ, labels without a score, scores that are not finite.
        """
        if predicted.ndim != 3 or len(scores) != len(predicted):
            raise UnigsError(
                "expected labels [B, H, W] and one list of scores per picture; "
                f"got {tuple(predicted.shape)} and {len(scores)} lists; in EntityAP"
            )
        for picture, row in zip(each_picture(predicted, true, ignored), scores, strict=True):
            records, truths = measure_detections(row, *picture)
            self.records.append(torch.from_numpy(records.reshape(-1)).to(self.truths.device))
            self.truths += torch.from_numpy(truths).to(self.truths.device)

    def compute(self) -> dict[str, torch.Tensor]:
        rows = self.records if isinstance(self.records, torch.Tensor) else _join(self.records)
        records, truths = rows.cpu().numpy().reshape(-1, 4), self.truths.cpu().numpy()
        whole = np.zeros(len(records), np.int64)  # all of one "picture", counted once
        figures = summarise_detections(records, whole, truths[None], np.ones((1, 1)))
        return {name: torch.tensor(value[0]) for name, value in figures.items()}


def pick_scores(scores: Sequence[float] | torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Scores of the labels that are there, float64 [P].

    Args:
        scores: one per label 1..N.
        labels: int [P], each at least 1.

    Raises:
        UnigsError: a label without a score, or a score that is not finite.
    """
    if isinstance(scores, torch.Tensor):
        scores = scores.double().tolist()
    values = np.asarray(scores, dtype=np.float64)
    if len(labels) and labels.max() > len(values):
        raise UnigsError(
            f"expected a score for each label up to {labels.max()}; got {len(values)} scores; "
            "in EntityAP"
        )
    if not np.isfinite(values).all():
        raise UnigsError(f"expected finite scores; got {values.tolist()}; in EntityAP")
    return values[labels - 1]


def _join(rows: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat(rows) if rows else torch.zeros(0, dtype=torch.float64)


def _find_outsiders(areas_px: np.ndarray) -> np.ndarray:
    """Which areas lie outside of each size range, bool [4, n]."""
    ranges = np.array(list(AREA_RANGES_PX.values()))
    return (areas_px < ranges[:, :1]) | (areas_px > ranges[:, 1:])


def _choose_last_best(value: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether any entry is >= 0 along the last axis, and where the last largest one is."""
    last = value.shape[-1] - 1 - value[..., ::-1].argmax(-1)
    return value.max(-1) >= 0, last


def _integrate(true: np.ndarray, seen: np.ndarray, truths: np.ndarray) -> np.ndarray:
    """Mean over the recall points of the best precision at that recall or a higher one.

    Args:
        true, seen: int [R, H], after each score with a hit, how many are true and how many are
            there so far.
        truths: float64 [R].

    Returns:
        float64 [R].
    """
    precision = true / np.maximum(seen, 1)
    best = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    recall = true / np.maximum(truths, 1)[:, None]
    near = np.floor(recall * (len(RECALL_POINTS) - 1) + 1e-9).astype(np.int64)
    reached = near + (RECALL_POINTS.take(near) <= recall)  # how many points
    total = (best * np.diff(reached, axis=1, prepend=0)).sum(1)
    return np.where(truths > 0, total / len(RECALL_POINTS), np.nan)
