"""Checkpoint -> pipeline folder -> one sheet of pictures.

In: what ``unigs fit`` leaves. Out: a folder of stock components (safetensors) for
``UniGSPipeline.load``, and a PNG with a row per sample: condition, image, colormap, masks, truth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from unigs.callbacks import read_ema
from unigs.checkpoints import read_checkpoint
from unigs.data import JOINT_SOURCES, UniGSData
from unigs.diffusion.base import locate_base
from unigs.diffusion.folders import INDEX
from unigs.diffusion.weights import check_finite, in_words
from unigs.evaluation.judging import sheet_row
from unigs.evaluation.predictors import run_batch
from unigs.files import new_folder, write_bytes
from unigs.images import encode_image
from unigs.pictures import SHEET_TITLES, draw_sheet
from unigs.pipeline import Solver, UniGSPipeline
from unigs.records import TASKS, UnigsError
from unigs.tasks import TaskOptions
from unigs.training import UniGS


def load_checkpoint(path: str, ema: bool = True, base: str | None = None) -> UniGS:
    """The module of a training checkpoint, in evaluation mode; nothing in the file is run.

    Args:
        path: a ``.ckpt`` file of ``unigs fit``.
        ema: take the averaged weights where the checkpoint holds them.
        base: the base it was trained from; None takes the one that the checkpoint names, which is
            data: looked for here and in the hub's local cache, and never fetched.

    Raises:
        UnigsError: no such file, a damaged or foreign one, its base not found, or weights that are
            of another model or not finite.
    """
    checkpoint = read_checkpoint(path)
    where = Path(path)
    with in_words("a checkpoint of unigs fit", where):
        stored = checkpoint["hyper_parameters"].items()
        settings = {k: v for k, v in stored if not k.startswith("_")}  # LightningCLI adds some
        settings |= find_base(settings, base, where)
        model = UniGS(**settings)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"], strict=False)
        averaged = read_ema(checkpoint) if ema else None
        if averaged is not None:
            model.unet.load_state_dict(averaged)
    check_finite(model.unet.state_dict().items(), where)
    return model.eval()


def find_base(settings: dict[str, Any], base: str | None, path: Path) -> dict[str, Any]:
    """Settings of the base: where it lies here. The hub is asked only for what a user typed.

    Raises:
        UnigsError: not found.
    """
    if base is not None:
        return {"base": base, "revision": None}
    named, revision = settings.get("base"), settings.get("revision")
    try:
        if not isinstance(named, str) or not isinstance(revision, str | None):
            raise UnigsError(f"expected the name of a base, got {named!r} ({revision!r})")
        return {"base": str(locate_base(named, revision, download=False)), "revision": None}
    except UnigsError as error:
        raise UnigsError(f"{error}, named by {path}; give its base with --base") from error


def export_pipeline(
    checkpoint: str, out: str, ema: bool = True, half: bool = False, base: str | None = None
) -> None:
    """Write a pipeline folder from a training checkpoint.

    Args:
        checkpoint: a ``.ckpt`` file of ``unigs fit``.
        out: folder to write; an older pipeline there is replaced at once or not at all.
        ema: export the averaged weights where the checkpoint holds them.
        half: store weights in half precision.
        base: the base it was trained from, if it is not where the checkpoint says; a name inside
            a checkpoint is never downloaded, one that you give may be.
    """
    check_target(Path(out))
    save_pipeline(load_checkpoint(checkpoint, ema, base).make_pipeline(), out, half)


def save_pipeline(pipeline: UniGSPipeline, out: str, half: bool = False) -> None:
    """Write a pipeline folder.

    Args:
        pipeline: what to write.
        out: folder to write; an older pipeline there is replaced at once or not at all.
        half: store weights in half precision.

    Raises:
        UnigsError: other files lie there, or weights are not finite, at half precision perhaps.
    """
    target = Path(out)
    check_target(target)
    pipeline.vae.register_to_config(_name_or_path="")  # where the base lay is nobody's business
    if half:
        pipeline.to(torch.float16)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        where = f"{type(part).__name__}{' in half precision' * half}"
        check_finite(part.state_dict().items(), where)
    with new_folder(target) as folder, in_words("room and rights to write", target):
        pipeline.save_pretrained(folder)
    print(f"wrote the pipeline to {target}")


def check_target(target: Path) -> None:
    """Refuse to replace anything but a pipeline.

    Raises:
        UnigsError: something else lies there.
    """
    if target.exists() and not (target / INDEX).exists():
        raise UnigsError(f"expected a pipeline or nothing at {target}, found other files")


def render_sheet(
    pipeline: str,
    shards: list[str],
    out: str,
    resolution_px: int = 512,
    per_task: int = 1,
    split: str = "val",
    source_weights: dict[str, dict[str, float]] = JOINT_SOURCES,
    tasks: list[str] = list(TASKS),  # noqa: B006 (a default for the command line)
    steps: int = 20,
    solver: Solver = "unipc",
    ensemble_size: int = 1,
    seed: int = 0,
) -> None:
    """Sample every task on a few validation pictures and save one PNG.

    Args:
        pipeline: folder that ``unigs export`` wrote.
        shards: folders that ``unigs shards`` wrote.
        out: the PNG to write.
        resolution_px: side of the samples.
        per_task: rows per task.
        split: split to draw from.
        source_weights: per task the weights of its sources, as in the data config.
        tasks: those to show.
        steps: sampling steps.
        solver: ``unipc`` or ``ddim``.
        ensemble_size: average the colormaps of this many noises for referring and entity.
        seed: of pictures, conditions and noise.
    """
    pipe = UniGSPipeline.load(pipeline)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe.to(device)
    data = UniGSData(
        shards,
        TaskOptions(resolution_px, palette_cells=pipe.config.palette_cells),
        task_ratios={task: 1.0 for task in tasks},
        source_weights=source_weights,
        num_workers=0,
        val_samples_per_task=per_task,
        val_batch_size=per_task,
        val_split=split,
        seed=seed,
    )
    options = {"steps": steps, "solver": solver, "ensemble_size": ensemble_size, "seed": seed}
    rows = []
    for batch in tqdm(data.val_dataloader(), desc="sampling", unit="task"):
        prediction = run_batch(pipe, batch.to(device), **options)
        rows += [sheet_row(batch, prediction, i) for i in range(len(batch))]
    sheet = draw_sheet(SHEET_TITLES, rows, tile_px=max(128, min(256, resolution_px)))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(Path(out), encode_image(np.ascontiguousarray(sheet.transpose(1, 2, 0)), "PNG"))
    print(f"wrote {out}")
