"""Intervals of a model's figures, and of the differences of two models (figures -> report).

In: rows. Out: figures of the same bootstrap resamples for every model, kept beside its results, so
that a difference of two models is computed resample by resample: what is hard in a picture is hard
for both and drops out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from unigs.evaluation.figures import Rows, resample_rows, split_groups, split_tasks
from unigs.files import new_file
from unigs.metrics.bootstrap import find_interval
from unigs.weights import check_file, in_words

RESAMPLED = "resamples.safetensors"

Place = tuple[str, str, str]
"""Task, group and figure."""

Nested = dict[str, dict[str, dict[str, Any]]]
"""By task, group and figure, as ``results.json`` has them."""


def resample_results(rows: Rows) -> dict[Place, np.ndarray]:
    """Figures of each resample, float64 [R], of all tasks and groups."""
    return {
        (task, group, figure): values
        for task, mine in split_tasks(rows).items()
        for group, part in split_groups(mine).items()
        for figure, values in resample_rows(part).items()
    }


def find_intervals(resampled: dict[Place, np.ndarray]) -> Nested:
    """``[low, high]`` of each figure that has one."""
    ends = {place: find_interval(values) for place, values in resampled.items()}
    return _nest({place: interval for place, interval in ends.items() if interval})


def write_resampled(folder: Path, resampled: dict[Place, np.ndarray]) -> None:
    """Keep the figures of each resample in the folder of a model's results."""
    tensors = {"/".join(place): np.ascontiguousarray(v) for place, v in resampled.items()}
    with new_file(folder / RESAMPLED) as temp:
        save_file(tensors, temp)


def read_resampled(folder: Path) -> dict[Place, np.ndarray]:
    """What :func:`write_resampled` wrote.

    Raises:
        UnigsError: none there, or damaged.
    """
    path = folder / RESAMPLED
    check_file(path)
    with in_words("figures of resamples", path), safe_open(path, "np") as file:
        return {_split(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def compare_results(first: dict[str, Any], other: dict[str, Any]) -> Nested:
    """How another model's figures differ from the first one's, on the same inputs.

    Args:
        first, other: results with their ``figures`` and ``folder``.

    Returns:
        By task, group and figure ``difference`` (other minus first), its ``interval``, and
        ``differs``: whether the interval leaves out 0. Figures without resamples are left out.

    Raises:
        UnigsError: a model's resamples are not there, or damaged.
    """
    mine, others = (read_resampled(Path(model["folder"])) for model in (first, other))
    found = {}
    for place in mine.keys() & others.keys():
        interval = find_interval(others[place] - mine[place])
        values = [_find(model["figures"], place) for model in (first, other)]
        if interval and None not in values:
            low, high = interval
            found[place] = {
                "difference": values[1] - values[0],
                "interval": interval,
                "differs": not low <= 0 <= high,
            }
    return _nest(found)


def _split(name: str) -> Place:
    task, group, figure = name.split("/")
    return task, group, figure


def _find(nested: Nested, place: Place) -> Any:
    task, group, figure = place
    return nested.get(task, {}).get(group, {}).get(figure)


def _nest(flat: dict[Place, Any]) -> Nested:
    nested: Nested = {}
    for (task, group, figure), value in sorted(flat.items()):
        nested.setdefault(task, {}).setdefault(group, {})[figure] = value
    return nested
