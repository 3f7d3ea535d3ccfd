"""``unigs sheet``: a model's tasks on a few validation pictures, as one picture to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from unigs.evaluation.options import Scenes
from unigs.files import write_bytes
from unigs.images import encode_image
from unigs.pictures import SHEET_TITLES, draw_sheet
from unigs.systems.sampling import Sampling
from unigs.verbs.evaluate import check_folders


def render_sheet(
    pipeline: str,
    shards: list[str],
    out: str,
    per_task: int = 1,
    scenes: Scenes | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> None:
    """Sample every task of a model on a few validation pictures and save one PNG.

    Args:
        pipeline: folder that ``unigs export`` wrote, of any system.
        shards: folders that ``unigs shards`` wrote.
        out: the PNG to write.
        per_task: rows per task.
        scenes: which pictures; default: for the model's tasks, of the size it was trained on.
        sampling: what to do in another way than the model remembers.
    """
    check_folders([pipeline], shards, (scenes or Scenes()).tasks)
    import torch  # late: help and errors start no torch

    from unigs.evaluation.judging import sheet_row
    from unigs.evaluation.protocol import InputLoader, open_inputs
    from unigs.systems.load import load_predictor

    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = load_predictor(pipeline, device=device, sampling=sampling)
    scenes = scenes or Scenes(predictor.tasks, resolution_px=predictor.side_px)
    scenes = replace(scenes, samples_per_task=per_task, batch_size=per_task, num_workers=0)
    loader = InputLoader(open_inputs(scenes, shards), predictor.tasks)
    rows = []
    for batch, _ in tqdm(loader, desc="sampling", unit="task"):
        prediction = predictor(batch)
        rows += [sheet_row(batch, prediction, i) for i in range(len(batch))]
    sheet = draw_sheet(SHEET_TITLES, rows, tile_px=max(128, min(256, scenes.resolution_px)))
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    write_bytes(Path(out), encode_image(np.ascontiguousarray(sheet.transpose(1, 2, 0)), "PNG"))
    print(f"wrote {out}")
