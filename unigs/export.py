"""Checkpoint -> pipeline folder -> one sheet of pictures.

In: what ``unigs fit`` leaves. Out: a folder of stock components (safetensors) for
``UniGSPipeline.load``, and a PNG with a row per sample: condition, image, colormap, masks, truth.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from unigs.callbacks import read_ema
from unigs.checkpoints import read_checkpoint
from unigs.data import JOINT_SOURCES, UniGSData
from unigs.evaluation.judging import sheet_row
from unigs.evaluation.predictors import run_batch
from unigs.pictures import SHEET_TITLES, draw_sheet
from unigs.pipeline import Solver, UniGSPipeline
from unigs.records import TASKS, UnigsError
from unigs.tasks import TaskOptions
from unigs.training import UniGS


def load_checkpoint(path: str, ema: bool = True) -> UniGS:
    """The module of a training checkpoint, in evaluation mode.

    Args:
        path: a ``.ckpt`` file of ``unigs fit``.
        ema: take the averaged weights where the checkpoint holds them.

    Raises:
        UnigsError: no such file, or weights of another model.
    """
    checkpoint = read_checkpoint(path)
    settings = checkpoint["hyper_parameters"].items()
    model = UniGS(**{k: v for k, v in settings if not k.startswith("_")})  # LightningCLI adds some
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"], strict=False)
    averaged = read_ema(checkpoint) if ema else None
    if averaged is not None:
        model.unet.load_state_dict(averaged)
    return model.eval()


def export_pipeline(checkpoint: str, out: str, ema: bool = True, half: bool = False) -> None:
    """Write a pipeline folder from a training checkpoint.

    Args:
        checkpoint: a ``.ckpt`` file of ``unigs fit``.
        out: folder to write; an older pipeline there is replaced at once or not at all.
        ema: export the averaged weights where the checkpoint holds them.
        half: store weights in half precision.
    """
    save_pipeline(load_checkpoint(checkpoint, ema).make_pipeline(), out, half)


def save_pipeline(pipeline: UniGSPipeline, out: str, half: bool = False) -> None:
    """Write a pipeline folder.

    Args:
        pipeline: what to write.
        out: folder to write; an older pipeline there is replaced at once or not at all.
        half: store weights in half precision.

    Raises:
        UnigsError: other files lie there.
    """
    pipeline.vae.register_to_config(_name_or_path="")  # where the base lay is nobody's business
    target = Path(out)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch) / "pipeline"
        (pipeline.to(torch.float16) if half else pipeline).save_pretrained(folder)
        if target.exists():
            if not (target / "model_index.json").exists():
                raise UnigsError(f"expected a pipeline or nothing at {target}, found other files")
            target.rename(Path(scratch) / "old")
        shutil.move(folder, target)
    print(f"wrote the pipeline to {target}")


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
    Image.fromarray(np.ascontiguousarray(sheet.transpose(1, 2, 0))).save(out)
    print(f"wrote {out}")
