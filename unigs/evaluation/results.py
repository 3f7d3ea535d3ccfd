"""Rows on disk, and what is made of all of them (judging -> results -> report).

A folder of results holds ``rows-<rank>.jsonl`` (one line per picture, appended and flushed, so an
interrupted evaluation continues), ``features/`` for FID, ``pictures/`` to look at, and, made anew
from these, ``pictures.csv`` and ``results.json``.
"""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from unigs.evaluation.figures import split_groups, split_tasks, summarise_rows
from unigs.evaluation.fingerprint import list_differences
from unigs.files import write_text
from unigs.locks import lock_file
from unigs.metrics.frechet import (
    Statistics,
    measure_frechet,
    recall_statistics,
    summarise_features,
)
from unigs.records import UnigsError
from unigs.tasks import RECIPES

COLUMNS = (
    "index", "task", "key", "prompt", "entities", "miou", "recall", "pq", "boundary_iou",
    "giou", "synthesis_miou", "recognised", "known_error", "clip_score", "seconds", "digest",
)  # fmt: skip


class ResultStore:
    """One model's results on disk; each rank appends to its own file.

    Args:
        folder: made if absent.
        header: what the rows depend on; rows of another header are refused.
        rank: whose file is written.

    Raises:
        UnigsError: the folder holds results of something else.
        FolderBusy: another evaluation writes there.
    """

    def __init__(self, folder: Path, header: dict[str, Any], rank: int = 0) -> None:
        self.folder, self.path = folder, folder / f"rows-{rank:05d}.jsonl"
        (folder / "features").mkdir(parents=True, exist_ok=True)
        (folder / "pictures").mkdir(exist_ok=True)
        self.header = json.loads(json.dumps(header))
        with ExitStack() as lock:
            lock.enter_context(lock_file(folder / f".rows-{rank:05d}.lock", "an evaluation"))
            self.rows = {row["index"]: row for path in self._files() for row in self._read(path)}
            self._lock = lock.pop_all()  # left with this object, however that goes
        if not self.path.exists():
            self._append([{"header": self.header}])

    def close(self) -> None:
        """Let others write rows of this rank."""
        self._lock.close()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("rows-*.jsonl"))

    def _read(self, path: Path) -> list[dict[str, Any]]:
        """Rows of one file; a last line cut by an interruption is removed from the file."""
        whole, _, cut = path.read_bytes().rpartition(b"\n")
        if cut and path == self.path:
            os.truncate(path, len(whole) + 1 if whole else 0)
        lines = [parse_row(line, path, k) for k, line in enumerate(whole.splitlines(), 1)]
        if lines and lines[0].get("header") != self.header:
            other = "; ".join(list_differences(lines[0].get("header"), self.header))
            raise UnigsError(
                f"expected results of the same model and inputs, got others: {other}; in {path} "
                "(give another --out, or remove the folder)"
            )
        if not lines and path == self.path:
            path.unlink()
        return lines[1:]

    def add(
        self,
        rows: Sequence[dict[str, Any]],
        features: np.ndarray | None,
        strips: Sequence[np.ndarray],
    ) -> None:
        """Keep a batch; pictures and features first, so that a row on disk is a whole one."""
        for place, row in enumerate(rows):
            if features is not None:
                np.save(self.folder / "features" / f"{row['index']:07d}.npy", features[place])
            picture = Image.fromarray(strips[place])
            picture.save(self.folder / "pictures" / f"{row['index']:07d}.jpg", quality=88)
        self._append(rows)
        self.rows.update({row["index"]: row for row in rows})

    def _append(self, rows: Iterable[dict[str, Any]]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def read_all(self) -> list[dict[str, Any]]:
        """Rows of all ranks, by index."""
        found = {row["index"]: row for path in self._files() for row in self._read(path)}
        return [found[index] for index in sorted(found)]

    def read_features(self, rows: Sequence[dict[str, Any]], side: int) -> np.ndarray:
        """float32 [N, F] of the rows that have them; side 0 is made, 1 is real."""
        paths = [self.folder / "features" / f"{row['index']:07d}.npy" for row in rows]
        found = [np.load(path, allow_pickle=False) for path in paths if path.exists()]
        return np.array([sides[side] for sides in found if len(sides) > side])


def parse_row(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One row of results.

    Raises:
        UnigsError: it is damaged.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        row = error
    if not isinstance(row, dict) or not ("header" in row or {"index", "task", "key"} <= row.keys()):
        raise UnigsError(
            f"expected a row of results, got {str(row)[:80]!r}, in {path}, line {number}; remove "
            "the line, and its picture is scored again"
        )
    return row


def draw_curves(rows: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    """Points of the report's curves.

    Returns:
        ``recall`` at COCO's ten thresholds; ``ratings``, 101 quantiles of ``rate_row``.
    """
    tally = np.sum([row["entities"] for row in rows if "entities" in row] or [[0, 0]], axis=0)
    ratings = np.quantile([rate_row(row) for row in rows], np.linspace(0, 1, 101))
    return {
        "recall": (tally[2:] / tally[1]).tolist() if tally[1] else [],
        "ratings": ratings.tolist(),
    }


def pick_pictures(rows: Sequence[dict[str, Any]], each: int = 2) -> list[dict[str, Any]]:
    """The best, median and worst pictures of one task, each picture once."""
    order = sorted(rows, key=lambda row: (-rate_row(row), row["index"]))
    middle = max(0, len(order) // 2 - each // 2)
    parts = {
        "best": order[:each],
        "median": order[middle : middle + each],
        "worst": order[-each:],
    }
    picks = {row["index"]: (part, row) for part, mine in parts.items() for row in mine}
    return [
        {
            "part": part,
            "index": row["index"],
            "key": row["key"],
            "prompt": row["prompt"],
            "rating": rate_row(row),
            "picture": f"pictures/{row['index']:07d}.jpg",
        }
        for part, row in picks.values()
    ]


def summarise_results(
    store: ResultStore, cache: Path, key: str
) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by task and group, FID included.

    Args:
        store: all rows.
        cache: folder of the real pictures' statistics.
        key: names pictures and network in that cache.
    """
    figures = {}
    for task, rows in split_tasks(store.read_all()).items():
        groups = split_groups(rows)
        figures[task] = {name: summarise_rows(group) for name, group in groups.items()}
        for name, group in groups.items():
            made = store.read_features(group, 0)
            if len(made) > 1:
                real = _recall_real(store, group, cache, name_statistics(key, task, name))
                figures[task][name]["fid"] = measure_frechet(summarise_features(made, "made"), real)
    return figures


def name_statistics(key: str, task: str, group: str) -> str:
    """Key of a group's real statistics in the cache."""
    return f"{key}/{task}/{group}"


def _recall_real(store: ResultStore, group: Sequence[dict], cache: Path, key: str) -> Statistics:
    statistics = recall_statistics(
        cache, key, lambda: summarise_features(store.read_features(group, 1), "real")
    )
    if statistics.count != len(group):
        raise UnigsError(
            f"expected FID statistics of {len(group)} real pictures; got {statistics.count}; in "
            f"{cache} under {key} (remove the cache and {store.folder}, and run again)"
        )
    return statistics


def rate_row(row: dict[str, Any]) -> float:
    """One number by which a task's pictures are sorted: what the paper scores them by."""
    if "rating" in row:
        return float(row["rating"])
    if RECIPES[row["task"]].judged == "named" and "clip_score" in row:
        return float(row["clip_score"])
    tally = row.get("synthesis", row.get("entities"))
    if tally is None:  # nothing was judged of a picture that was drawn
        return 0.0
    if tally[1]:
        return float(tally[0] / tally[1])
    return float(row.get("region", [0, 0, 0])[2])  # no true entity: 1 if none was predicted


def list_columns(row: dict[str, Any]) -> dict[str, Any]:
    """One line of ``pictures.csv``."""
    figures = summarise_rows([row])
    known = {name: row.get(name, "") for name in ("index", "task", "key", "prompt", "digest")}
    numbers = {name: figures.get(name, math.nan) for name in COLUMNS if name not in known}
    count = int(row["entities"][1]) if "entities" in row else len(row["names"])
    numbers |= {"entities": count, "seconds": row.get("seconds", math.nan)}
    told = {name: "" if v != v else f"{v:.6g}" for name, v in numbers.items()}
    return {name: (known | told)[name] for name in COLUMNS}


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write one line per picture."""
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(list_columns(row) for row in rows)
    write_text(path, text.getvalue())
