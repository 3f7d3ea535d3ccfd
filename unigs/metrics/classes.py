"""How well masks are found *and named*: class mIoU, mAcc, pixel accuracy; PQ with classes.

In: predicted and true labels, int [H, W], with a name per label 1..N, optionally ignored pixels,
and the ``ClassTable`` of the data. Out: per picture a tally by class, which pictures and ranks add
up, and figures of a sum of tallies.

Who has no class: an entity of a name that the table lacks is void, as ignored pixels are; a mask of
such a name says nothing, as label 0 does. Where the truth is known to be background, a named mask
is wrong. Stuff of one class is one segment of a picture, in both maps.

- **class_miou**: IoU of a class over the pixels of all pictures, averaged over the classes that
  occur, in truth or prediction; **class_macc**: its recall, over the classes that truly occur;
  **pixel_accuracy**: share of all pixels that are not void, background among them.
- **class_pq** = SQ x RQ of a class (``panoptic``: pairs with IoU > 0.5, here of one class),
  averaged over the classes that occur; **class_sq** and **class_rq** by themselves (0 of a class
  without a pair); the same of things and of stuff.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torchmetrics import Metric

from unigs.metrics.overlaps import check_labels, count_overlaps, each_picture, to_grid
from unigs.records import UnigsError
from unigs.tasks import UNKNOWN, ClassTable, number_labels

NOTHING = ""
"""The key of a tally for the pixels of no class."""

Tally = dict[str, list[float]]
"""By class name, of the classes that occur."""

Entries = Sequence[float] | np.ndarray
"""Of one class: float [E], or [E, R] of R sums at once."""


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """The masks of one picture.

    Attributes:
        labels: int [H, W], 0..N.
        names: spoken, of label k at ``names[k - 1]``.
    """

    labels: torch.Tensor
    names: Sequence[str]


def measure_pixels(
    predicted: Named, true: Named, table: ClassTable, ignored: torch.Tensor | None = None
) -> Tally:
    """Pixels by class: shared, predicted, true; under ``NOTHING`` those of no class.

    Args:
        predicted, true: of one size.
        table: the classes of the data.
        ignored: bool [H, W]; void.

    Raises:
        UnigsError: maps that cannot be compared, or a label without a name.
    """
    check_labels(predicted.labels, true.labels, ignored)
    found, wanted = (_number(one, table)[one.labels.long()] for one in (predicted, true))
    void = _join_void(wanted, ignored)
    overlaps = count_overlaps(_count_from_one(found), _count_from_one(wanted), void)
    rows = {int(c) - 1: k for k, c in enumerate(overlaps.predicted_labels)}
    columns = {int(c) - 1: k for k, c in enumerate(overlaps.true_labels)}
    tally: Tally = {}
    for number in sorted(rows.keys() | columns.keys()):
        row, column = rows.get(number), columns.get(number)
        tally[table.names[number]] = [
            0 if row is None or column is None else int(overlaps.shared[row, column]),
            0 if row is None else int(overlaps.predicted_px[row]),
            0 if column is None else int(overlaps.true_px[column]),
        ]
    known_px, both_px = int((~void).sum()), int(overlaps.shared.sum())
    predicted_px, true_px = int(overlaps.predicted_px.sum()), int(overlaps.true_px.sum())
    neither_px = known_px - predicted_px - true_px + both_px
    return tally | {NOTHING: [neither_px, known_px - predicted_px, known_px - true_px]}


def measure_segments(
    predicted: Named, true: Named, table: ClassTable, ignored: torch.Tensor | None = None
) -> Tally:
    """Segments by class: sum of IoU over pairs, pairs, false, missed; see :func:`measure_pixels`.

    A prediction of which more than half is void is never false.
    """
    check_labels(predicted.labels, true.labels, ignored)
    numbers = [_number(one, table) for one in (predicted, true)]
    void = _join_void(numbers[1][true.labels.long()], ignored)
    found, wanted = (
        _fuse_stuff(each, table)[one.labels.long()] for each, one in zip(numbers, (predicted, true))
    )
    overlaps = count_overlaps(found, wanted, void)
    rows, columns = (
        each.cpu().numpy()[labels]
        for each, labels in zip(numbers, (overlaps.predicted_labels, overlaps.true_labels))
    )
    pairs = (overlaps.iou > 0.5) & (rows[:, None] == columns[None, :])
    false, missed = ~pairs.any(1) & ~overlaps.excused, ~pairs.any(0)
    tally: Tally = {}
    for number in sorted({*rows[pairs.any(1) | false].tolist(), *columns.tolist()}):
        mine = pairs & (rows == number)[:, None]
        tally[table.names[number]] = [
            float(to_grid(overlaps.iou[mine]).sum()),
            int(mine.sum()),
            int((false & (rows == number)).sum()),
            int((missed & (columns == number)).sum()),
        ]
    return tally


def sum_tallies(
    tallies: Iterable[Mapping[str, Sequence[float]]], weights: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """One tally of many; of pictures and of sums alike.

    Args:
        tallies: N of them.
        weights: float64 [R, N], how often each counts, whole numbers; None: once.

    Returns:
        By class name float64 [E], or [E, R].
    """
    listed = list(tallies)
    weights = np.ones(len(listed)) if weights is None else weights
    occurring = {name: entries for tally in listed for name, entries in tally.items()}
    total = {}
    for name, entries in sorted(occurring.items()):
        absent = [0.0] * len(entries)
        table = np.array([tally.get(name, absent) for tally in listed], np.float64)  # [N, E]
        total[name] = (weights @ table).T  # exact in any order: to_grid
    return total


def split_kinds(tally: Tally, table: ClassTable) -> tuple[Tally, Tally]:
    """The classes that are things, and those that are stuff."""
    kinds = dict(zip(table.names, table.things))
    things = {name: entries for name, entries in tally.items() if kinds[name]}
    return things, {name: entries for name, entries in tally.items() if not kinds[name]}


def rate_pixels(tally: Mapping[str, Entries]) -> dict[str, np.ndarray]:
    """Figures of a sum of :func:`measure_pixels`; NaN where nothing was seen.

    Args:
        tally: by class name float [3], or [3, R] of R sums at once.

    Returns:
        float64 [] or [R] each.
    """
    shared_px, _, true_px = np.array([*tally.values()]).sum(0) if tally else np.zeros(3)
    classes = [entries for name, entries in tally.items() if name != NOTHING]
    shared, predicted, true = _stack(classes, 3)
    either = predicted + true
    return {
        "class_miou": _average(shared / np.maximum(either - shared, 1), either > 0),
        "class_macc": _average(shared / np.maximum(true, 1), true > 0),
        "pixel_accuracy": np.where(true_px > 0, shared_px / np.maximum(true_px, 1), math.nan),
    }


def rate_segments(
    things: Mapping[str, Entries], stuff: Mapping[str, Entries]
) -> dict[str, np.ndarray]:
    """Figures of a sum of :func:`measure_segments`, by kind; NaN where nothing was seen.

    Args:
        things, stuff: by class name float [4], or [4, R] of R sums at once.

    Returns:
        float64 [] or [R] each.
    """
    groups = {"": [*things.values(), *stuff.values()]}
    groups |= {"_things": [*things.values()], "_stuff": [*stuff.values()]}
    figures: dict[str, np.ndarray] = {}
    for suffix, rows in groups.items():
        iou_sum, found, false, missed = _stack(rows, 4)
        segments = found + 0.5 * (false + missed)
        seen, some = segments > 0, np.maximum(segments, 0.5)
        figures |= {
            f"class_pq{suffix}": _average(iou_sum / some, seen),
            f"class_sq{suffix}": _average(iou_sum / np.maximum(found, 1), seen),
            f"class_rq{suffix}": _average(found / some, seen),
        }
    return figures


class ClassMetric(Metric):
    """Sums tallies of pictures over ranks, one row a class; subclasses state the pure functions.

    Args:
        table: the classes of the data.
    """

    full_state_update = False
    is_differentiable = False
    higher_is_better = True
    entries: ClassVar[int]
    measure: Callable[..., Tally]
    tally: torch.Tensor

    def __init__(self, table: ClassTable) -> None:
        super().__init__()
        self.table = table
        zeros = torch.zeros(len(table) + 1, self.entries, dtype=torch.float64)  # last: NOTHING
        self.add_state("tally", zeros, dist_reduce_fx="sum")

    def summarise(self, tally: Tally) -> dict[str, float]:
        """The figures of a sum of tallies."""
        raise NotImplementedError

    def update(
        self,
        predicted: torch.Tensor,
        predicted_names: Sequence[Sequence[str]],
        true: torch.Tensor,
        true_names: Sequence[Sequence[str]],
        ignored: torch.Tensor | None = None,
    ) -> None:
        """Add pictures.

        Args:
            predicted: int [B, H, W].
            predicted_names: per picture a spoken name per label 1..N.
            true: int [B, H, W].
            true_names: per picture a spoken name per label 1..M.
            ignored: bool [B, H, W]; void.

        Raises:
            UnigsError: shapes or numbers that differ, labels without a name.
        """
        if not len(predicted) == len(predicted_names) == len(true_names):
            raise UnigsError(
                f"expected names for each of {len(predicted)} pictures; got "
                f"{len(predicted_names)} and {len(true_names)} lists; in a class metric"
            )
        pictures = each_picture(predicted, true, ignored)
        for (found, wanted, void), *names in zip(pictures, predicted_names, true_names):
            pair = (Named(found, names[0]), Named(wanted, names[1]))
            for name, entries in self.measure(*pair, self.table, void).items():
                place = self.table.number(name)
                self.tally[-1 if place is None else place] += self.tally.new_tensor(entries)

    def compute(self) -> dict[str, torch.Tensor]:
        """float64 each, NaN where nothing was seen."""
        rows = dict(zip((*self.table.names, NOTHING), self.tally.tolist()))
        figures = self.summarise({name: row for name, row in rows.items() if any(row)})
        return {name: self.tally.new_tensor(value) for name, value in figures.items()}


class SemanticQuality(ClassMetric):
    """``{"class_miou", "class_macc", "pixel_accuracy"}`` over any number of pictures and ranks.

    Example:
        >>> metric = SemanticQuality(ClassTable(("dog", "sky"), (True, False)))
        >>> labels = torch.tensor([[[1, 1], [2, 0]]])
        >>> metric.update(labels, [["dog", "dog"]], labels, [["dog", "sky"]])
        >>> float(metric.compute()["pixel_accuracy"])
        0.75
    """

    entries = 3
    measure = staticmethod(measure_pixels)

    def summarise(self, tally: Tally) -> dict[str, float]:
        return {name: float(value) for name, value in rate_pixels(tally).items()}


class PanopticClassQuality(ClassMetric):
    """``{"class_pq", "class_sq", "class_rq"}``, and each with ``_things`` and ``_stuff``."""

    entries = 4
    measure = staticmethod(measure_segments)

    def summarise(self, tally: Tally) -> dict[str, float]:
        figures = rate_segments(*split_kinds(tally, self.table))
        return {name: float(value) for name, value in figures.items()}


def _number(one: Named, table: ClassTable) -> torch.Tensor:
    """The class of each label 0..N, int64 [N + 1], on the labels' device."""
    count = int(one.labels.max()) if one.labels.numel() else 0
    if count > len(one.names):
        raise UnigsError(
            f"expected a name for each of {count} labels; got {len(one.names)}; in a class metric"
        )
    return number_labels(one.names, table).to(one.labels.device)


def _count_from_one(classes: torch.Tensor) -> torch.Tensor:
    """Class numbers as the labels of a map in which no class is 0."""
    return classes.clamp(min=-1) + 1


def _join_void(wanted: torch.Tensor, ignored: torch.Tensor | None) -> torch.Tensor:
    """Pixels without a known truth, bool [H, W]; ``wanted`` are true classes, int64 [H, W]."""
    unnamed = wanted == UNKNOWN
    return unnamed if ignored is None else unnamed | ignored.to(unnamed.device)


def _fuse_stuff(numbers: torch.Tensor, table: ClassTable) -> torch.Tensor:
    """New labels by old ones, int64 [N + 1]: stuff of a class is one, what has no class is 0."""
    first: dict[int, int] = {}
    fused = [
        0 if number < 0 else label if table.things[number] else first.setdefault(number, label)
        for label, number in enumerate(numbers.tolist())
    ]
    return numbers.new_tensor(fused)


def _stack(rows: Sequence[Entries], entries: int) -> np.ndarray:
    """C classes of E entries, each float [E] or [E, R] -> float64 [E, C] or [E, C, R]."""
    return np.stack([*rows], 1).astype(np.float64) if rows else np.zeros((entries, 0))


def _average(values: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """Mean of what was seen along the first axis, the same to the last bit in any order; NaN of
    none."""
    kept, counts = np.where(seen, values, 0.0), seen.sum(0)
    sums = [math.fsum(column) for column in np.atleast_2d(kept.T).tolist()]
    mean = np.reshape(sums, counts.shape) / np.maximum(counts, 1)
    return np.where(counts > 0, mean, math.nan)
