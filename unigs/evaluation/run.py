"""The loop: a predictor on fixed inputs, scored and kept (predictors, judging, results).

``Evaluator`` is the one door: the verb ``unigs evaluate`` loops over its inputs, and a trainer's
test loop hands it the same batches. Interrupted, it continues where it stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from unigs.evaluation.figures import GROUPS
from unigs.evaluation.fingerprint import describe_predictor
from unigs.evaluation.intervals import find_intervals, resample_results, write_resampled
from unigs.evaluation.judging import Judges, draw_strip, judge_batch, take_features
from unigs.evaluation.protocol import (
    InputLoader,
    Inputs,
    describe_inputs,
    digest_header,
    read_protocol,
    write_protocol,
)
from unigs.evaluation.results import (
    ResultStore,
    draw_curves,
    name_statistics,
    pick_pictures,
    summarise_results,
    write_csv,
)
from unigs.files import locate_cache, write_json
from unigs.metrics.bootstrap import LEVEL, RESAMPLES, SEED
from unigs.metrics.frechet import locate_statistics
from unigs.records import Batch, Prediction, UnigsError
from unigs.streams import Loaded
from unigs.systems.predictor import Predictor
from unigs.tasks import list_classes

PROTOCOL = "protocol.json"
RESULTS = "results.json"


class Evaluator:
    """Scores one predictor batch by batch, on any number of ranks.

    Args:
        predictor: what is evaluated.
        inputs: on what.
        out: folder of the results; an interrupted evaluation of the same continues there.
        judges: networks for FID, CLIP score and synthesis mIoU.
        cache: folder of the real pictures' FID statistics; default ``$UNIGS_CACHE``.
        rank, world_size: batches are dealt to ranks in turn.

    Attributes:
        loader: ``Loaded`` batches of this rank that are not scored yet.

    Raises:
        UnigsError: an empty set, other inputs than the protocol's, results of another model in
            ``out``.
    """

    def __init__(
        self,
        predictor: Predictor,
        inputs: Inputs,
        out: str | Path,
        judges: Judges = Judges(),  # noqa: B008 (frozen)
        cache: str | Path | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.predictor, self.judges, self.inputs = predictor, judges, inputs
        self.header = describe_inputs(inputs)
        manifests, _ = inputs.data.select_sources(inputs.held_out.split)
        self.classes = list_classes(manifests)
        self.data = {
            "resolution_px": inputs.data.tasks.resolution_px,
            "licences": {name: manifest.licence for name, manifest in manifests.items()},
        }
        self.promised = read_protocol(Path(inputs.protocol), self.header) if inputs.protocol else {}
        self.cache = Path(cache) if cache else locate_cache()
        self.key = f"{digest_header(self.header)}/{judges.inception_id}"
        self.store = ResultStore(Path(out), describe_run(predictor, judges, self.header), rank)
        self.loader = InputLoader(inputs, predictor.tasks, self.store.rows, rank, world_size)

    def score(self, loaded: Loaded) -> None:
        """Predict a batch and keep what it is worth.

        Raises:
            UnigsError: inputs that are not the protocol's, or a prediction that does not fit.
        """
        batch = loaded.batch
        prediction, seconds = time_prediction(self.predictor, batch)
        rows = judge_batch(self.judges, batch, prediction, self.classes)
        _check_inputs(rows, self.promised)
        for row, skips in zip(rows, loaded.skips, strict=True):
            row |= {"seconds": seconds / len(batch), "skipped": dict(skips.counts)}
        real = _lacks_real(self.cache, self.key, rows[0]["task"])
        strips = [draw_strip(batch, prediction, place) for place in range(len(batch))]
        self.store.add(rows, take_features(self.judges, batch, prediction, real), strips)

    def finish(self) -> dict[str, Any]:
        """Sum up the rows of all ranks; on one rank, after all have scored.

        Returns:
            What ``results.json`` holds.

        Raises:
            UnigsError: rows are missing.
        """
        rows = self.store.read_all()
        missing = set(self.loader.indices) - {row["index"] for row in rows}
        if not self.loader.indices:
            raise UnigsError(
                f"expected pictures of {self.predictor.tasks}; got none of "
                f"{list(self.inputs.data.task_ratios)}; in {self.inputs.data.shards}"
            )
        if missing:
            raise UnigsError(
                f"expected {len(self.loader.indices)} pictures of {self.predictor.tasks}; got "
                f"{len(rows)}; in {self.store.folder} (all ranks must share it, and a test must "
                "not be limited)"
            )
        by_task = {task: [r for r in rows if r["task"] == task] for task in self.predictor.tasks}
        by_task = {task: mine for task, mine in by_task.items() if mine}
        results = {
            "model": self.predictor.name,
            "inputs": digest_header(self.header),
            "data": self.data,
            "figures": summarise_results(self.store, self.cache, self.key),
            "missing": self.judges.list_missing(),
            "curves": {task: draw_curves(mine) for task, mine in by_task.items()},
            "picks": {task: pick_pictures(mine) for task, mine in by_task.items()},
        }
        write_csv(self.store.folder / "pictures.csv", rows)
        write_protocol(self.store.folder / PROTOCOL, self.header, rows)
        return keep_results(self.store, rows, results)


def evaluate(
    predictor: Predictor,
    inputs: Inputs,
    out: str | Path,
    judges: Judges = Judges(),  # noqa: B008 (frozen)
    cache: str | Path | None = None,
) -> dict[str, Any]:
    """Score a predictor on fixed inputs, in one process; see :class:`Evaluator`."""
    evaluator = Evaluator(predictor, inputs, out, judges, cache)
    for loaded in tqdm(evaluator.loader, desc=predictor.name, unit="batch"):
        evaluator.score(loaded)
    return evaluator.finish()


def keep_results(
    store: ResultStore, rows: list[dict[str, Any]], results: dict[str, Any]
) -> dict[str, Any]:
    """Write ``results.json`` and the figures of resamples, and leave the folder to others.

    What all evaluations tell is added.
    """
    resampled = resample_results(rows)
    results = {
        **results,
        "intervals": find_intervals(resampled),
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "judges": store.header["judges"],
        "settings": store.header["settings"],
        "replaced": dict(sum((Counter(row["skipped"]) for row in rows), Counter())),
        **_measure_memory(),
    }
    write_resampled(store.folder, resampled)
    write_json(store.folder / RESULTS, _drop_nan(results))
    store.close()
    return results


def describe_run(predictor: Predictor, judges: Judges, header: dict[str, Any]) -> dict[str, Any]:
    """What a row of results depends on, as JSON."""
    return {
        "model": predictor.name,
        "parts": describe_predictor(predictor),
        "settings": {k: str(v) for k, v in getattr(predictor, "options", {}).items()},
        "inputs": digest_header(header),
        "judges": {
            "fid": judges.inception_id,
            "clip_score": judges.clip.description if judges.clip else "",
            "synthesis_miou": judges.segmenter.name if judges.segmenter else "",
        },
    }


def time_prediction(predictor: Predictor, batch: Batch) -> tuple[Prediction, float]:
    """A prediction and the seconds it took, the device's work included."""
    started = time.perf_counter()
    prediction = predictor(batch)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return prediction, time.perf_counter() - started


def _check_inputs(rows: list[dict[str, Any]], promised: dict[int, str]) -> None:
    """Refuse inputs that are not the protocol's."""
    for row in rows:
        if promised and promised.get(row["index"]) != row["digest"]:
            raise UnigsError(
                f"expected input {promised.get(row['index'])} of the protocol; got "
                f"{row['digest']}; index {row['index']}, {row['key']}"
            )


def _lacks_real(cache: Path, key: str, task: str) -> bool:
    """Whether some group's statistics of the real pictures of a task are not in the cache yet."""
    return not all(
        locate_statistics(cache, name_statistics(key, task, group)).exists() for group in GROUPS
    )


def _measure_memory() -> dict[str, float]:
    if not torch.cuda.is_available():
        return {}
    return {"peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30}


def _drop_nan(value: Any) -> Any:
    """NaN -> None, which JSON has."""
    if isinstance(value, dict):
        return {name: _drop_nan(part) for name, part in value.items()}
    return None if isinstance(value, float) and value != value else value
