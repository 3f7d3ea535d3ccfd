"""J&F of clips (DAVIS 2017, unsupervised protocol), and how often an object changes its id.

In: the frames of a clip one after the other, predicted and true ids, int [H, W], 0 is background,
optionally ignored bool [H, W]. Out: J and F of each true object in each frame; per clip a tally,
which clips and ranks add up. What is kept of a frame are tables of pairs, and no pixels.

- **J** is the IoU of a pair in a frame, 1 where neither is there.
- **F** is the harmonic mean of precision and recall of the pixels of the outlines, which count as
  found within 0.8 % of the frame's diagonal; 1 where neither has an outline.
- Predicted ids are paired with true objects once per clip, so that the sum of their mean J and
  mean F is largest, as DAVIS' own evaluation does; an object without a partner is compared with an
  empty mask. Spare predictions cost nothing.
- By object: **mean** over the frames; **recall**, the share of frames above 0.5; **decay**, the
  mean of the first quarter of the frames minus that of the last. Then the mean over all objects of
  all clips. All frames count.
- **id_switches**: how often an object is found (IoU > 0.5) under another id than when it was found
  last, over all clips (the IDSW of CLEAR MOT).

Equal to ``trackeval`` 1.3 (``JAndF`` with ``optim_type`` J&F, ``CLEAR``), but for two things of
its own: quarters of clips over 256 frames, whose ends it keeps in 8 bits, and switches by pairs of
exactly 0.5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.optimize import linear_sum_assignment

from unigs.metrics.overlaps import count_overlaps, each_picture, to_grid
from unigs.metrics.tally import TallyMetric

TOLERANCE = 0.008
"""Of the diagonal, within which an outline counts as found; rounded up to whole pixels."""

FOUND = 0.5
QUARTERS = 4


class FrameScores(NamedTuple):
    """One frame; P predicted and N true ids that occur.

    Attributes:
        predicted_ids, true_ids: int64 [P] and [N], ascending.
        j, f: float64 [P + 1, N + 1] of each pair; the last row and column are of an empty mask.
    """

    predicted_ids: np.ndarray
    true_ids: np.ndarray
    j: np.ndarray
    f: np.ndarray


class ClipScores(NamedTuple):
    """One clip of T frames with N true objects.

    Attributes:
        j, f: float64 [N, T], of each object with its partner.
        partners: int64 [N], the predicted id of each object, 0 of none.
        id_switches: over all objects.
    """

    j: np.ndarray
    f: np.ndarray
    partners: np.ndarray
    id_switches: int


def score_frame(
    predicted: torch.Tensor, true: torch.Tensor, ignored: torch.Tensor | None = None
) -> FrameScores:
    """J and F of all pairs of one frame.

    Args:
        predicted, true: int [H, W], 0..65535.
        ignored: bool [H, W]; background in both.

    Raises:
        UnigsError: another size or rank, labels that are no integers or out of range.
    """
    overlaps = count_overlaps(predicted, true, ignored)
    seen = None if ignored is None else ~ignored.cpu().numpy()
    j = np.zeros((len(overlaps.predicted_px) + 1, len(overlaps.true_px) + 1))
    j[:-1, :-1], j[-1, -1] = overlaps.iou, 1.0
    outlines = [
        trace_outlines(labels.cpu().numpy(), ids, seen)
        for labels, ids in ((predicted, overlaps.predicted_labels), (true, overlaps.true_labels))
    ]
    f = compare_outlines(*outlines)
    return FrameScores(overlaps.predicted_labels, overlaps.true_labels, j, f)


def trace_outlines(labels: np.ndarray, ids: np.ndarray, seen: np.ndarray | None) -> np.ndarray:
    """The outline of each mask and of an empty one, as DAVIS draws them, bool [K + 1, H, W].

    A pixel is on the outline if it differs from that to the right, below, or both; the last row
    and column compare with what they have.
    """
    masks = labels == np.append(ids, -1)[:, None, None]
    if seen is not None:
        masks &= seen
    right, below = masks[:, :-1, :-1] ^ masks[:, :-1, 1:], masks[:, :-1, :-1] ^ masks[:, 1:, :-1]
    outlines = np.zeros_like(masks)
    outlines[:, :-1, :-1] = right | below | (masks[:, :-1, :-1] ^ masks[:, 1:, 1:])
    outlines[:, -1, :-1] = masks[:, -1, :-1] ^ masks[:, -1, 1:]
    outlines[:, :-1, -1] = masks[:, :-1, -1] ^ masks[:, 1:, -1]
    return outlines


def compare_outlines(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """F of all pairs, float64 [P, N], of outlines bool [P, H, W] and [N, H, W]."""
    reach_px = math.ceil(TOLERANCE * float(np.linalg.norm(predicted.shape[1:])))
    near_predicted, near_true = (widen(outlines, reach_px) for outlines in (predicted, true))
    predicted_px, true_px = predicted.sum((1, 2))[:, None], true.sum((1, 2))[None]
    precision = count_shared(predicted, near_true) / np.maximum(predicted_px, 1)
    recall = count_shared(near_predicted, true) / np.maximum(true_px, 1)
    f = 2 * precision * recall / np.where(precision + recall > 0, precision + recall, 1)
    return np.where((predicted_px == 0) & (true_px == 0), 1.0, f)


def widen(outlines: np.ndarray, reach_px: int) -> np.ndarray:
    """All pixels within a distance of each outline, bool [K, H, W]."""
    wide = np.zeros_like(outlines)
    for outline, out in zip(outlines, wide, strict=True):
        if outline.any():
            out[...] = distance_transform_edt(~outline) <= reach_px
    return wide


def count_shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pixels that each pair of bool [P, H, W] and [N, H, W] shares, float64 [P, N]."""
    flat = [masks.reshape(len(masks), -1).astype(np.float64) for masks in (one, other)]
    return flat[0] @ flat[1].T


def score_clip(frames: Sequence[FrameScores]) -> ClipScores:
    """Pair predicted ids with true objects and follow them through the frames.

    Args:
        frames: in their order; ids that recur are one object.
    """
    predicted, true = (sorted({int(k) for frame in frames for k in frame[side]}) for side in (0, 1))
    predicted += [0] * max(0, len(true) - len(predicted))  # an empty mask for each that lacks one
    places = [
        np.ix_(find_places(frame.predicted_ids, predicted), find_places(frame.true_ids, true))
        for frame in frames
    ]
    size = (len(predicted), len(true), len(frames))
    j, f = np.zeros(size), np.zeros(size)
    for t, (frame, place) in enumerate(zip(frames, places, strict=True)):
        j[..., t], f[..., t] = frame.j[place], frame.f[place]
    rows, columns = linear_sum_assignment(j.mean(-1) + f.mean(-1), maximize=True)
    rows = rows[np.argsort(columns)]
    objects = np.arange(len(true))
    partners = np.asarray(predicted, np.int64)[rows]
    return ClipScores(j[rows, objects], f[rows, objects], partners, count_switches(frames))


def find_places(ids: np.ndarray, wanted: Sequence[int]) -> list[int]:
    """The place of each wanted id among those of a frame; -1, the empty mask, where it is not."""
    place = {int(k): at for at, k in enumerate(ids)}
    return [place.get(k, -1) for k in wanted]


def count_switches(frames: Sequence[FrameScores]) -> int:
    """How often a true object is found under another id than when it was found last."""
    last: dict[int, int] = {}
    switches = 0
    for frame in frames:
        for row, column in np.argwhere(frame.j[:-1, :-1] > FOUND):  # one at most an object
            found, wanted = int(frame.predicted_ids[row]), int(frame.true_ids[column])
            switches += last.get(wanted, found) != found
            last[wanted] = found
    return switches


def rate_series(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, recall and decay of J or F of N objects, float64 [N, T] -> [N] each."""
    ends = np.round(np.linspace(1, values.shape[1], QUARTERS + 1) + 1e-10).astype(int) - 1
    first, final = values[:, : ends[1] + 1], values[:, ends[-2] : ends[-1] + 1]
    recall = (values > FOUND + np.finfo(float).eps).mean(1)
    return values.mean(1), recall, first.mean(1) - final.mean(1)


def tally_clip(scores: ClipScores) -> torch.Tensor:
    """A clip's part of :class:`ClipQuality`: objects, sums of J's and F's figures, switches."""
    if not scores.j.size:
        return torch.zeros(ClipQuality.entries, dtype=torch.float64)
    figures = [*rate_series(scores.j), *rate_series(scores.f)]
    sums = [to_grid(to_grid(values).sum()) for values in figures]
    return torch.tensor([len(scores.j), *sums, scores.id_switches], dtype=torch.float64)


class ClipQuality(TallyMetric):
    """J&F over any number of clips and ranks; ``update`` takes one clip at a time.

    ``compute`` gives ``{"j_and_f", "j_mean", "j_recall", "j_decay", "f_mean", "f_recall",
    "f_decay", "id_switches"}``, float64; NaN where no true object has been seen.

    Example:
        >>> metric = ClipQuality()
        >>> clip = torch.tensor([[[1, 1], [2, 0]], [[1, 0], [2, 0]]])
        >>> metric.update(3 - clip, clip)
        >>> float(metric.compute()["j_recall"])
        1.0
    """

    entries = 8

    @staticmethod
    def measure(predicted, true, ignored=None) -> torch.Tensor:
        """One clip, int [T, H, W] twice and bool [T, H, W]."""
        frames = each_picture(predicted, true, ignored)
        return tally_clip(score_clip([score_frame(*frame) for frame in frames]))

    @staticmethod
    def summarise(tally: torch.Tensor) -> dict[str, torch.Tensor]:
        objects, *sums, switches = tally.unbind(-1)
        names = [f"{kind}_{figure}" for kind in "jf" for figure in ("mean", "recall", "decay")]
        figures = {name: total / objects for name, total in zip(names, sums, strict=True)}
        both = (figures["j_mean"] + figures["f_mean"]) / 2
        return {"j_and_f": both, **figures, "id_switches": switches}

    def update(
        self,
        predicted: torch.Tensor,
        true: torch.Tensor,
        ignored: torch.Tensor | None = None,
    ) -> None:
        """Add one clip.

        Args:
            predicted: int [T, H, W].
            true: int, the same shape.
            ignored: bool, the same shape; background in both.

        Raises:
            UnigsError: shapes that differ, labels that are no integers.
        """
        self.tally += self.measure(predicted, true, ignored).to(self.tally.device)
