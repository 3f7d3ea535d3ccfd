"""Rows of one task -> figures, of the rows as they are and of weighted sets of them.

In: rows of ``judging``. Out: figures by name. Every figure but FID and the seconds is computed of
sums over pictures, for R sets of weights at once; the figure itself is the one in which every
picture counts once. So what a resample gives is the figure of the resampled pictures, and nothing
is written twice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from unigs.evaluation.judging import TALLIES
from unigs.metrics.average_precision import summarise_detections
from unigs.metrics.bootstrap import draw_weights
from unigs.metrics.classes import rate_pixels, rate_segments, sum_tallies
from unigs.metrics.clips import ClipQuality
from unigs.metrics.overlaps import to_grid
from unigs.metrics.segmentation import EntityQuality

GROUPS = ("all", "single", "multiple")
"""Pictures with one entity asked for, and with more (Tables 3 and 4)."""

MEANS = ("clip_score", "known_error")
"""Means over the pictures that have the value."""

Rows = Sequence[dict[str, Any]]


def split_groups(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Rows by ``GROUPS``; groups that do not split the rows are left out."""
    single = [row for row in rows if len(row["names"]) <= 1]
    several = [row for row in rows if len(row["names"]) > 1]
    groups = {"all": list(rows)}
    return groups | ({"single": single, "multiple": several} if single and several else {})


def split_tasks(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    """Rows by task, in the order of the alphabet."""
    return {
        task: [row for row in rows if row["task"] == task]
        for task in sorted({row["task"] for row in rows})
    }


def summarise_rows(rows: Rows) -> dict[str, float]:
    """Figures of rows of one task, without FID; NaN where nothing counts."""
    figures = weigh_rows(rows, np.ones((1, len(rows))))
    seconds = [row["seconds"] for row in rows if "seconds" in row]
    return {
        "pictures": len(rows),
        **{name: float(values[0]) for name, values in figures.items()},
        **({"seconds_per_picture": math.fsum(seconds) / len(seconds)} if seconds else {}),
    }


def resample_rows(rows: Rows) -> dict[str, np.ndarray]:
    """The same figures, without counts and seconds, of each bootstrap resample, float64 [R]."""
    return weigh_rows(rows, draw_weights([row["key"] for row in rows]))


def weigh_rows(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of R weighted sets of rows of one task.

    Args:
        rows: N of them.
        weights: float64 [R, N], how often each counts, whole numbers.

    Returns:
        float64 [R] each, NaN where nothing counts; a figure that no row has is left out.
    """
    if not rows:
        return {}
    if "clip" in rows[0]:
        return _weigh_tallies(ClipQuality, [row["clip"] for row in rows], weights)
    figures: dict[str, np.ndarray] = {}
    if all("detections" in row for row in rows):  # not of models that draw and find no masks
        for name, kind in TALLIES.items():
            figures |= _weigh_tallies(kind, [row[name] for row in rows], weights)
        figures |= _weigh_detections(rows, weights)
    if all("class_pixels" in row for row in rows):
        figures |= _weigh_classes(rows, weights)
    judged, their = _select(rows, "synthesis", weights)
    if judged:
        figures["synthesis_miou"] = _weigh_tallies(EntityQuality, judged, their)["miou"]
    asked, their = _select(rows, "recognised", weights)
    if any(count for _, count in asked):
        figures["recognised"] = _divide(*(their @ np.array(asked, np.float64)).T)
    for name in MEANS:
        values, their = _select(rows, name, weights)
        if values:
            figures[name] = _divide(their @ to_grid(np.array(values)), their.sum(1))
    return figures


def _select(rows: Rows, field: str, weights: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The values of the rows that have a field, and the weights of these rows."""
    places = [place for place, row in enumerate(rows) if field in row]
    return [rows[place][field] for place in places], weights[:, places]


def _divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _weigh_tallies(
    kind: Any, tallies: Sequence[Sequence[float]], weights: np.ndarray
) -> dict[str, np.ndarray]:
    total = torch.from_numpy(weights @ np.array(tallies, np.float64))  # exact in any order: to_grid
    return {name: values.numpy() for name, values in kind.summarise(total).items()}


def _weigh_detections(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    records = np.array([line for row in rows for line in row["detections"]], np.float64)
    pictures = np.repeat(np.arange(len(rows)), [len(row["detections"]) for row in rows])
    truths = np.array([row["truths"] for row in rows], np.float64)
    return summarise_detections(records.reshape(-1, 4), pictures, truths, weights)


def _weigh_classes(rows: Rows, weights: np.ndarray) -> dict[str, np.ndarray]:
    pixels, things, stuff = (
        sum_tallies((row[f"class_{kind}"] for row in rows), weights)
        for kind in ("pixels", "things", "stuff")
    )
    figures = rate_pixels(pixels) | rate_segments(things, stuff)
    return {name: np.broadcast_to(values, len(weights)) for name, values in figures.items()}
