"""The loop, and the verb ``unigs evaluate`` (predictors, judging, results -> report).

``evaluate`` scores one predictor and is what a trainer's test loop calls; ``evaluate_models`` is
the command line over it. Interrupted, both continue where they stopped.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from unigs.data import JOINT_SOURCES, UniGSData
from unigs.evaluation.fingerprint import describe_predictor
from unigs.evaluation.judging import Judges, draw_strip, judge_batch, take_features
from unigs.evaluation.predictors import (
    EmptyFloor,
    Oracle,
    PipelinePredictor,
    Predictor,
    RandomFloor,
)
from unigs.evaluation.protocol import (
    InputLoader,
    describe_inputs,
    digest_header,
    read_protocol,
    write_protocol,
)
from unigs.evaluation.results import (
    GROUPS,
    ResultStore,
    draw_curves,
    name_statistics,
    pick_pictures,
    summarise_results,
    write_csv,
)
from unigs.files import hash_file, locate_cache, write_json
from unigs.metrics.clip_score import load_clip
from unigs.metrics.frechet import load_inception, locate_statistics
from unigs.metrics.segmenter import load_segmenter
from unigs.pipeline import Solver, UniGSPipeline
from unigs.records import TASKS, Batch, Prediction, UnigsError
from unigs.report import write_report
from unigs.tasks import TaskOptions

PROTOCOL = "protocol.json"
RESULTS = "results.json"


def evaluate(
    predictor: Predictor,
    data: UniGSData,
    out: str | Path,
    judges: Judges = Judges(),  # noqa: B008 (frozen)
    samples_per_task: int = 1000,
    protocol: str | Path | None = None,
    cache: str | Path | None = None,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], Any] = lambda: None,
) -> dict[str, Any] | None:
    """Score a predictor on the fixed inputs of a validation set.

    Args:
        predictor: what is evaluated.
        data: shards, mixture, geometry and seed; its validation split is used.
        out: folder of the results; an interrupted evaluation of the same continues there.
        judges: networks for FID, CLIP score and synthesis mIoU.
        samples_per_task: pictures of each task (paper: 1000).
        protocol: inputs of an earlier evaluation, to insist on the same.
        cache: folder of the real pictures' FID statistics; default ``$UNIGS_CACHE``.
        rank, world_size: batches are dealt to ranks in turn.
        barrier: waits for all ranks; ``trainer.strategy.barrier`` in a test loop.

    Returns:
        What ``results.json`` holds, on rank 0; None elsewhere.

    Raises:
        UnigsError: an empty set, other inputs than the protocol's, results of another model in
            ``out``, predictions that do not fit.
    """
    header = describe_inputs(data, samples_per_task)
    promised = read_protocol(Path(protocol), header) if protocol else {}
    cache = Path(cache) if cache else locate_cache()
    key = f"{digest_header(header)}/{judges.inception_id}"
    store = ResultStore(Path(out), describe_run(predictor, judges, header), rank)
    barrier()  # every rank has read what is done before any writes more
    loader = InputLoader(data, samples_per_task, predictor.tasks, store.rows, rank, world_size)
    for batch, skips in tqdm(loader, desc=predictor.name, unit="batch", disable=rank > 0):
        prediction, seconds = time_prediction(predictor, batch)
        rows = judge_batch(judges, batch, prediction)
        _check_inputs(rows, promised)
        for row, skipped in zip(rows, skips, strict=True):
            row |= {"seconds": seconds / len(batch), "skipped": skipped}
        real = _lacks_real(cache, key, rows[0]["task"])
        strips = [draw_strip(batch, prediction, place) for place in range(len(batch))]
        store.add(rows, take_features(judges, batch, prediction, real), strips)
    barrier()
    if rank:
        return None
    rows = store.read_all()
    if not rows:
        raise UnigsError(
            f"expected pictures of {predictor.tasks}; got none of {list(data.task_ratios)}; "
            f"in {data.shards}"
        )
    by_task = {task: [r for r in rows if r["task"] == task] for task in predictor.tasks}
    by_task = {task: mine for task, mine in by_task.items() if mine}
    results = {
        "model": predictor.name,
        "inputs": digest_header(header),
        "figures": summarise_results(store, cache, key),
        "missing": judges.list_missing(),
        "judges": store.header["judges"],
        "settings": store.header["settings"],
        "curves": {task: draw_curves(mine) for task, mine in by_task.items()},
        "picks": {task: pick_pictures(mine) for task, mine in by_task.items()},
        "replaced": dict(sum((Counter(row["skipped"]) for row in rows), Counter())),
        **_measure_memory(),
    }
    write_csv(store.folder / "pictures.csv", rows)
    write_protocol(store.folder / PROTOCOL, header, rows)
    write_json(store.folder / RESULTS, _drop_nan(results))
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


def evaluate_models(
    models: list[str],
    shards: list[str],
    out: str,
    samples_per_task: int = 1000,
    tasks: list[str] = list(TASKS),  # noqa: B006 (a default for the command line)
    source_weights: dict[str, dict[str, float]] = JOINT_SOURCES,
    split: str = "val",
    resolution_px: int = 512,
    palette_cells: int = 11,
    min_area: float = TaskOptions.min_area,
    batch_size: int = 8,
    num_workers: int = 1,
    steps: int = 200,
    solver: Solver = "ddim",
    sharpen: bool | None = None,
    ensemble_size: int = 1,
    inception_weights: str | None = None,
    clip_weights: str | None = None,
    clip_backbone: str = "ViT-L-14-quickgelu",
    clip_download: str | None = None,
    segmenter: str | None = None,
    allow_download: bool = False,
    protocol: str | None = None,
    cache: str | None = None,
    seed: int = 0,
) -> None:
    """Print and write the paper's tables for one or more models.

    Args:
        models: pipeline folders; ``oracle``, ``oracle-vae=PIPELINE`` (ceilings), ``floor-empty``,
            ``floor-random``; ``sd-inpainting=FOLDER``, ``mask2former=FOLDER`` (baselines).
        shards: folders that ``unigs shards`` wrote.
        out: folder; results of each model in a folder of its name, and one report over all.
        samples_per_task: pictures of each task (paper: 1000).
        tasks: which of the four.
        source_weights: per task the weights of its sources, as in the data config.
        split: split to evaluate on.
        resolution_px: side of the samples.
        palette_cells: cells per side of the palette.
        min_area: entities under this part of a sample are not asked for.
        batch_size: pictures per call.
        num_workers: loader processes.
        steps: sampling steps (paper: 200).
        solver: ``ddim`` (paper) or ``unipc``.
        sharpen: decode colormaps with the picture's outlines; None does as each model says.
        ensemble_size: average the colormaps of this many noises where the picture is given.
        inception_weights: FID's network, inception-2015-12-05.pt.
        clip_weights: an open_clip checkpoint file, or a folder with its config.
        clip_backbone: open_clip's name of the CLIP score's network.
        clip_download: tag of the weights to download instead, e.g. openai.
        segmenter: folder or hub id of the Mask2Former that judges synthesis.
        allow_download: baselines and segmenter may come from the hub.
        protocol: ``protocol.json`` of an earlier evaluation, to insist on the same inputs.
        cache: folder of the real pictures' FID statistics.
        seed: of pictures, conditions and noise.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    data = UniGSData(
        shards,
        TaskOptions(resolution_px, min_area=min_area, palette_cells=palette_cells),
        task_ratios={task: 1.0 for task in tasks},
        source_weights=source_weights,
        num_workers=num_workers,
        val_batch_size=batch_size,
        val_split=split,
        seed=seed,
    )
    check_names(models)
    describe_inputs(data, samples_per_task)  # an empty set is told before weights are read
    judges = load_judges(
        inception_weights,
        clip_weights,
        clip_backbone,
        clip_download,
        segmenter,
        allow_download,
        device,
    )
    folders = []
    for model in models:
        options = {
            "steps": steps,
            "solver": solver,
            "seed": seed,
            "sharpen": sharpen,
            "ensemble_size": ensemble_size,
        }
        predictor = load_predictor(model, device, not allow_download, options)
        folders.append(Path(out) / predictor.name)
        evaluate(predictor, data, folders[-1], judges, samples_per_task, protocol, cache)
    print(write_report(Path(out), folders))


def name_model(model: str) -> str:
    """What a model of the command line is called in tables and folders."""
    kind, equals, _ = model.partition("=")
    if equals or kind in ("oracle", "floor-empty", "floor-random"):
        return kind
    folder = Path(model).resolve()
    return folder.parent.name if folder.name == "pipeline" else folder.name


def check_names(models: Sequence[str]) -> None:
    """Refuse two models of one name, before the first is scored.

    Raises:
        UnigsError: with both.
    """
    names = [name_model(model) for model in models]
    for name in names:
        if names.count(name) > 1:
            twins = [model for model in models if name_model(model) == name]
            raise UnigsError(
                f"expected models of different names, got {' and '.join(twins)}, both called "
                f"{name!r}, in --models; rename a folder, or evaluate them into different --out"
            )


def load_predictor(model: str, device: str, offline: bool, options: dict[str, Any]) -> Predictor:
    """A predictor by its name on the command line; see :func:`evaluate_models`."""
    from unigs.evaluation.baselines import load_inpainting, load_mask2former

    kind, _, source = model.partition("=")
    simple: dict[str, Callable[[], Predictor]] = {
        "oracle": Oracle,
        "floor-empty": EmptyFloor,
        "floor-random": lambda: RandomFloor(options["seed"]),
    }
    if kind in simple:
        return simple[kind]()
    if kind == "sd-inpainting":
        return load_inpainting(
            source, device, offline, steps=options["steps"], seed=options["seed"]
        )
    if kind == "mask2former":
        return load_mask2former(source, device, offline)
    pipeline = UniGSPipeline.load(source if kind == "oracle-vae" else model).to(device)
    if kind == "oracle-vae":
        return Oracle(pipeline.palette, pipeline.towers)
    return PipelinePredictor(pipeline, name_model(model), **options)


def load_judges(
    inception_weights: str | None,
    clip_weights: str | None,
    clip_backbone: str,
    clip_download: str | None,
    segmenter: str | None,
    allow_download: bool,
    device: str,
) -> Judges:
    """The networks that were given; arguments as for :func:`evaluate_models`."""
    inception = load_inception(inception_weights, device) if inception_weights else None
    wants_clip = clip_weights is not None or clip_download is not None
    clip = load_clip(clip_backbone, clip_weights, clip_download, device) if wants_clip else None
    return Judges(
        inception,
        clip,
        load_segmenter(segmenter, device, not allow_download) if segmenter else None,
        hash_file(Path(str(inception_weights)))[:16] if inception_weights else "",
    )
