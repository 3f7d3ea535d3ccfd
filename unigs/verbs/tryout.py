"""One picture through a pipeline with all that can be looked at: the work of ``unigs sample``.

In: a task and the files of a user; or nothing, and a scene that no training has seen is drawn for
all four tasks. Out: picture, colormap, label map and their list, and a sheet. A user's files become
a ``TaskSample`` at the door, so that conditions, noise and sheets are those of the evaluation.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unigs.batches import stack_samples
from unigs.evaluation.judging import sheet_row
from unigs.files import write_bytes
from unigs.images import encode_image
from unigs.outputs import encode_grey16, encode_pixels
from unigs.pictures import SHEET_TITLES, draw_sheet
from unigs.records import Annotated, Batch, Prediction, TaskSample, UnigsError, show
from unigs.synthetic import draw_scene, scene_seed
from unigs.systems.joint.predictor import JointPredictor
from unigs.systems.joint.tokens import find_cut
from unigs.systems.load import load_predictor
from unigs.systems.pixels import resize_labels, resize_pixels
from unigs.systems.sampling import Sampling
from unigs.tasks import RECIPES, TaskOptions, make_sample
from unigs.tasks.coarse_masks import entity_box

SCENE = 4
"""Of the test split; at seed 0 it holds two things on two surfaces, of four categories."""

TILE_PX = (128, 256)
"""Least and greatest side of a sheet's tiles."""


def try_out(chosen: TaskSample | None, model: Path, sampling: Sampling) -> dict[str, bytes]:
    """Run one sample, or all tasks on a drawn scene; the files that came of it, by name."""
    predictor = open_predictor(model, sampling)
    if chosen is None:
        return try_tasks(predictor, sampling.seed or 0)
    return run_request(predictor, chosen)


def open_predictor(model: Path, sampling: Sampling) -> JointPredictor:
    """A predictor on the best device; pictures are run at the size that it was trained on.

    Raises:
        UnigsError: a damaged pipeline.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    predictor = load_predictor(str(model), device=device)
    assert isinstance(predictor, JointPredictor), "the door refuses other systems"
    trained = Sampling(processing_resolution=predictor.side_px)
    return JointPredictor(predictor.pipeline, sampling=sampling.over(trained))


# --- one task ------------------------------------------------------------------------------------


def run_request(predictor: JointPredictor, sample: TaskSample) -> dict[str, bytes]:
    """Run one sample and encode what came out, by file name.

    Raises:
        UnigsError: more entities than the pipeline's palette has colours.
    """
    pipe = predictor.pipeline
    count, room = int(sample.labels.max()), pipe.palette.capacity
    if count > room:
        raise UnigsError(
            f"expected at most {room} values but black, one per entity, got {count}, in "
            f"{sample.key}; soft edges and JPEG make values of their own"
        )
    how = predictor.options[sample.task]
    side_px = how["processing_resolution"]
    batch = stack_samples([sample])
    prediction = predictor(batch, progress=True).cpu()
    labels = prediction.labels[0].numpy()
    masks = list_masks(labels, prediction.scores[0])
    height, width = labels.shape
    length = pipe.text_encoder.config.max_position_embeddings
    cut = find_cut(pipe.tokenizer, [sample.prompt], length)
    about = {
        "task": sample.task,
        "prompt": sample.prompt,
        "prompt_not_read": cut.get(sample.prompt, ""),
        "width_px": width,
        "height_px": height,
        "sampling": how,
        "masks": masks,
    }
    sheet = draw_rows([(batch, prediction)], side_px, truth=False)
    found = f"{len(masks)} {'entity' if len(masks) == 1 else 'entities'}"
    print(
        f"{sample.task} of {show(sample.key)}, {width} x {height} px, by a model run at "
        f"{side_px} px, {sample.prompt!r}: {found}"
    )
    return {
        "image.png": encode_pixels(prediction.image[0].numpy()),
        "colormap.png": encode_pixels(prediction.colormap[0].numpy()),
        "labels.png": encode_grey16(labels),
        "masks.json": (json.dumps(about, indent=1, ensure_ascii=False) + "\n").encode("utf-8"),
        "sheet.png": encode_pixels(sheet),
    }


def list_masks(labels: np.ndarray, scores: Sequence[float]) -> list[dict[str, Any]]:
    """What is known of each entity that has pixels.

    Args:
        labels: int [H, W], 0 = background.
        scores: one per label 1..N. A label without a pixel (its entity was smaller than a pixel of
            the input) is left out.

    Returns:
        Per entity its label, score, area in pixels, and box: left, top, right, bottom, the last
        two exclusive.
    """
    areas = np.bincount(labels.ravel(), minlength=len(scores) + 1)
    return [
        {
            "label": label,
            "score": round(float(score), 4),
            "area_px": int(areas[label]),
            "box_px": list(entity_box(labels == label)),
        }
        for label, score in enumerate(scores, 1)
        if areas[label]
    ]


# --- all tasks on a drawn scene ------------------------------------------------------------------


def try_tasks(predictor: JointPredictor, seed: int) -> dict[str, bytes]:
    """Draw a scene, run every task on it, and encode the sheet and the scene, by file name."""
    side_px = predictor.side_px
    rows, samples = [], draw_samples(side_px, predictor.pipeline.palette.capacity, seed)
    for sample in samples.values():
        batch = stack_samples([sample])
        rows.append((batch, predictor(batch, progress=True).cpu()))
        print(f"{sample.task}: {sample.prompt!r}")
    hole, drawn = (find_sample(samples, context) for context in ("masked image", "colormap"))
    return {
        "sheet.png": encode_pixels(draw_rows(rows, side_px)),
        "scene.png": encode_pixels(hole.image),
        "scene_mask.png": encode_pixels(np.repeat(hole.coarse_mask[None] * np.uint8(255), 3, 0)),
        "scene_labels.png": encode_grey16(drawn.labels),
    }


def find_sample(samples: Mapping[str, TaskSample], context: str) -> TaskSample:
    """That of the task with this context."""
    return next(one for task, one in samples.items() if RECIPES[task].context == context)


def draw_samples(side_px: int, max_painted: int, seed: int) -> dict[str, TaskSample]:
    """One scene of the test split for each task, as simple as the shipped pipeline learnt them.

    Inpainting and referring draw things, because around a surface the whole picture is a hole.
    """
    at = scene_seed("test", SCENE, seed)
    scene = draw_scene(at, side_px * 5 // 4, max_things=4, max_stuff=2, min_radius=0.08)
    data = encode_image(scene.image, "PNG")
    whole = Annotated("scene", data, scene.labels, scene.entities, "background", "synthetic")
    things = tuple(entity for entity in scene.entities if entity.is_thing)
    make = partial(
        make_sample,
        index=0,
        seed=seed,
        options=TaskOptions(
            side_px, negative_probability=0.0, text_dropout=0.0, max_painted=max_painted
        ),
        vocabulary=(),  # of negatives, and there are none
        augment=False,
    )
    return {
        task: make(replace(whole, entities=things) if recipe.local and things else whole, task)
        for task, recipe in RECIPES.items()
    }


# --- files to write ------------------------------------------------------------------------------


def draw_rows(
    rows: Sequence[tuple[Batch, Prediction]], side_px: int, truth: bool = True
) -> np.ndarray:
    """A sheet with one row per sample, uint8 [3, H', W']; the last column is the truth."""
    tile_px = min(max(TILE_PX[0], side_px), TILE_PX[1])
    columns = len(SHEET_TITLES) - (not truth)
    shown = [sheet_row(*shrink_sample(*row, tile_px), 0) for row in rows]
    return draw_sheet(
        SHEET_TITLES[:columns],
        [(caption, tiles[:columns]) for caption, tiles in shown],
        tile_px,
    )


def shrink_sample(batch: Batch, prediction: Prediction, tile_px: int) -> tuple[Batch, Prediction]:
    """Both at the size of a tile, if they are larger: a photo takes gigabytes as a sheet."""
    scale = tile_px / max(batch.labels.shape[-2:])
    if scale >= 1:
        return batch, prediction
    size = [max(1, round(side * scale)) for side in batch.labels.shape[-2:]]
    small_batch = replace(
        batch,
        image=resize_pixels(batch.image, size),
        labels=resize_labels(batch.labels, size),
        ignored=resize_labels(batch.ignored, size),
        coarse_mask=resize_labels(batch.coarse_mask[:, 0], size)[:, None],
    )
    small_prediction = replace(
        prediction,
        image=resize_pixels(prediction.image, size),
        colormap=resize_pixels(prediction.colormap, size),
        labels=resize_labels(prediction.labels, size),
    )
    return small_batch, small_prediction


CONTENTS = {
    "image.png": "the picture",
    "colormap.png": "the colormap as generated",
    "labels.png": "its masks, 16-bit grey: 0 is background, k the entity of that label",
    "masks.json": "score, area and box of each label",
    "sheet.png": "all of it side by side: look at this first",
    "scene.png": "the drawn scene; try it with --image",
    "scene_mask.png": "what was filled and searched; try it with --mask",
    "scene_labels.png": "what was synthesised; try it with --labels",
}


def write_files(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write every file whole or not at all, and say what each is.

    Raises:
        UnigsError: the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            write_bytes(folder / name, data)
            print(f"  {folder / name}  {CONTENTS[name]}")
    except OSError as error:
        raise UnigsError(
            f"expected a folder to write to, got {error.strerror}, at {folder}"
        ) from error
