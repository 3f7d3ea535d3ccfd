"""A batch and its prediction -> what is kept of each picture (protocol -> judging -> results).

In: ``Batch``, ``Prediction``. Out: per picture one JSON row of tallies (``metrics.tally``), from
which every mask figure of any subset is recomputed exactly (by class too, if the prediction names
its masks and all are meant, not a few that were asked for); features for FID; a strip of pictures
to look at. Figures whose network was not given are left out and named in the results.

``recognised`` is the share of asked entities that a segmenter finds, by name, in what was drawn:

- synthesis: a segment of the asked name has IoU >= 0.5 with the entity's mask;
- inpainting: a segment of the asked name covers at least 1/256 of the picture, half of it or more
  inside the coarse mask. One answers for every asked entity of its name, since a prompt says a
  repeated name once.

Names are compared as ``tasks.speak_category`` says them. The oracle's share is the ceiling: what
the segmenter recognises of the real picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from unigs.evaluation.options import JudgeFiles
from unigs.evaluation.protocol import digest_item
from unigs.files import hash_file
from unigs.metrics.average_precision import measure_detections
from unigs.metrics.classes import (
    Named,
    Tally,
    measure_pixels,
    measure_segments,
    split_kinds,
)
from unigs.metrics.clip_score import Clip, load_clip, score_pictures
from unigs.metrics.frechet import extract_features, load_inception
from unigs.metrics.overlaps import count_overlaps, match_entities
from unigs.metrics.panoptic import PanopticEntityQuality
from unigs.metrics.segmentation import EntityQuality, ReferringQuality
from unigs.metrics.segmenter import Segmenter, Segments, load_segmenter
from unigs.pictures import blend_labels, colour_labels
from unigs.records import Batch, Prediction, UnigsError
from unigs.systems.predictor import name_task
from unigs.tasks import RECIPES, ClassTable, english_list, speak_category

TALLIES = {
    "entities": EntityQuality,
    "region": ReferringQuality,
    "segments": PanopticEntityQuality,
}

LEAST_IOU = 0.5
"""Of a recognised segment with the mask that was asked for (synthesis)."""

LEAST_SHARE = 1 / 256
"""Of the picture, for a recognised segment (inpainting)."""


@dataclass(frozen=True, slots=True, eq=False)
class Judges:
    """The networks that judge pictures; None leaves their figures out.

    Attributes:
        inception: FID's feature extractor.
        clip: the CLIP score's network.
        segmenter: finds entities in drawn pictures, for synthesis mIoU and ``recognised``.
        inception_id: names the extractor in the key of cached statistics.
    """

    inception: nn.Module | None = None
    clip: Clip | None = None
    segmenter: Segmenter | None = None
    inception_id: str = ""

    def list_missing(self) -> dict[str, str]:
        """Figures that cannot be computed, and what to pass for them."""
        hints = {
            "fid": (self.inception, "--judges.inception_weights FILE"),
            "clip_score": (self.clip, "--judges.clip_weights FILE (or --judges.clip_download TAG)"),
            "synthesis_miou": (self.segmenter, "--judges.segmenter FOLDER"),
            "recognised": (self.segmenter, "--judges.segmenter FOLDER"),
        }
        return {figure: hint for figure, (judge, hint) in hints.items() if judge is None}


def load_judges(files: JudgeFiles, device: str = "cpu") -> Judges:
    """The networks that were given."""
    weights, segmenter = files.inception_weights, files.segmenter
    wants_clip = files.clip_weights is not None or files.clip_download is not None
    return Judges(
        inception=load_inception(weights, device) if weights else None,
        clip=load_clip(files.clip_backbone, files.clip_weights, files.clip_download, device)
        if wants_clip
        else None,
        segmenter=load_segmenter(segmenter, device, not files.allow_download)
        if segmenter
        else None,
        inception_id=hash_file(Path(weights))[:16] if weights else "",
    )


def judge_batch(
    judges: Judges, batch: Batch, prediction: Prediction, classes: ClassTable | None = None
) -> list[dict[str, Any]]:
    """One row per picture.

    Args:
        judges: networks at hand.
        batch: inputs and truth of one task.
        prediction: what the model made of them.
        classes: of the data, for tallies by class; None leaves them out.

    Raises:
        UnigsError: a prediction of another size or number, labels without a score, NaN.
    """
    check_prediction(batch, prediction)
    task = name_task(batch)
    rows = [
        {
            "index": int(batch.index[place]),
            "task": task,
            "key": batch.keys[place],
            "prompt": batch.prompts[place],
            "names": list(batch.names[place]),
            "digest": digest_item(batch, place),
        }
        for place in range(len(batch))
    ]
    if prediction.has_masks:
        for place, scores in enumerate(prediction.scores):
            rows[place] |= tally_masks(batch, prediction.labels, scores, place)
    if classes is not None and prediction.names is not None and not RECIPES[task].draws:
        for place, row in enumerate(rows):
            row |= tally_classes(batch, prediction.labels, prediction.names, classes, place)
    if RECIPES[task].draws_picture:
        _judge_pictures(judges, batch, prediction, rows)
    if RECIPES[task].context == "masked image":
        for row, error in zip(rows, measure_known(batch, prediction)):
            row |= {} if error is None else {"known_error": error}
    return rows


def tally_masks(
    batch: Batch, labels: torch.Tensor, scores: Sequence[float], place: int
) -> dict[str, Any]:
    """Tallies of one picture's masks, whatever they are called.

    Args:
        batch: the truth.
        labels: int [B, H, W], predicted.
        scores: one per label of the picture.
        place: of the picture in both.
    """
    maps = (labels[place].cpu(), batch.labels[place].cpu(), batch.ignored[place].cpu())
    detections, truths = measure_detections(scores, *maps)
    return {
        **{name: kind.measure(*maps).tolist() for name, kind in TALLIES.items()},
        "detections": detections.tolist(),
        "truths": truths.tolist(),
    }


def tally_classes(
    batch: Batch,
    labels: torch.Tensor,
    names: Sequence[Sequence[str]],
    classes: ClassTable,
    place: int,
) -> dict[str, Tally]:
    """Pixels and segments of one picture by class name: see ``metrics.classes``.

    Args:
        batch: the truth.
        labels: int [B, H, W], predicted.
        names: per picture one per label.
        classes: of the data.
        place: of the picture in both.
    """
    pair = (
        Named(labels[place].cpu(), names[place]),
        Named(batch.labels[place].cpu(), batch.names[place]),
    )
    ignored = batch.ignored[place].cpu()
    things, stuff = split_kinds(measure_segments(*pair, classes, ignored), classes)
    pixels = measure_pixels(*pair, classes, ignored)
    return {"class_pixels": pixels, "class_things": things, "class_stuff": stuff}


def _judge_pictures(
    judges: Judges, batch: Batch, prediction: Prediction, rows: list[dict[str, Any]]
) -> None:
    if judges.clip is not None:
        texts = [english_list(list(dict.fromkeys(names))) or "a picture" for names in batch.names]
        for row, score in zip(rows, score_pictures(judges.clip, prediction.image, texts)):
            row["clip_score"] = float(score)
    if judges.segmenter is not None:
        found = judges.segmenter(prediction.image)
        for place, row in enumerate(rows):
            row["recognised"] = count_recognised(found, batch, place)
            if RECIPES[name_task(batch)].judged == "placed":
                tally = EntityQuality.measure(found.labels[place], batch.labels[place].cpu())
                row["synthesis"] = tally.tolist()


def count_recognised(found: Segments, batch: Batch, place: int) -> list[int]:
    """How many asked entities of one picture are recognised, and how many there are.

    Args:
        found: segments of the drawn pictures, at the batch's size.
        batch: what was asked for.
        place: of the picture in both.
    """
    labels, truth = found.labels[place].cpu(), batch.labels[place].cpu()
    said = [speak_category(name) for name in found.names[place]]
    if RECIPES[name_task(batch)].judged == "named":
        drawn = {said[k - 1] for k in list_filling(labels, batch.coarse_mask[place, 0].cpu())}
        hits = [name in drawn for name in batch.names[place]]
    else:
        overlaps = count_overlaps(labels, truth)
        rows, columns = np.nonzero(overlaps.iou >= LEAST_IOU)
        pairs = set(zip(overlaps.predicted_labels[rows], overlaps.true_labels[columns]))
        hit = {true for mine, true in pairs if said[mine - 1] == batch.names[place][true - 1]}
        hits = [label in hit for label in range(1, len(batch.names[place]) + 1)]
    return [sum(hits), len(hits)]


def list_filling(labels: torch.Tensor, coarse_mask: torch.Tensor) -> list[int]:
    """Labels of segments that are large enough and lie at least by half inside the coarse mask.

    Args:
        labels: int [H, W]; 0 is none.
        coarse_mask: bool [H, W].
    """
    whole_px = torch.bincount(labels.flatten())
    inside_px = torch.bincount(labels[coarse_mask], minlength=len(whole_px))
    fills = (2 * inside_px >= whole_px) & (whole_px >= LEAST_SHARE * labels.numel())
    return [label for label in fills.nonzero().flatten().tolist() if label]


def measure_known(batch: Batch, prediction: Prediction) -> list[float | None]:
    """Mean absolute error, 0..255, of each picture outside of its coarse mask.

    What is known there must come back as it was. None where the mask covers the whole picture.
    """
    away = (prediction.image.cpu().float() - batch.image.cpu().float()).abs().mean(1)  # [B, H, W]
    known = ~batch.coarse_mask[:, 0].cpu()
    return [float(one[mine].mean()) if mine.any() else None for one, mine in zip(away, known)]


def take_features(
    judges: Judges, batch: Batch, prediction: Prediction, real: bool
) -> np.ndarray | None:
    """FID features of made and, if asked for, real pictures.

    Returns:
        float32 [B, 1 or 2, F]; None where there is no FID.
    """
    if judges.inception is None or not RECIPES[name_task(batch)].draws_picture:
        return None
    device = next((p.device for p in judges.inception.parameters()), batch.image.device)
    sides = [
        extract_features(judges.inception, images.to(device)).cpu().numpy()
        for images in ([prediction.image, batch.image] if real else [prediction.image])
    ]
    return np.stack(sides, 1).astype(np.float32)


def check_prediction(batch: Batch, prediction: Prediction) -> None:
    """Refuse a prediction that does not fit its batch.

    Raises:
        UnigsError: what was expected, what came, for which field.
    """
    wanted = {
        "image": tuple(batch.image.shape),
        "colormap": tuple(batch.image.shape),
        "labels": tuple(batch.labels.shape),
    }
    for name, shape in wanted.items():
        got = getattr(prediction, name)
        if tuple(got.shape) != shape or got.is_floating_point():
            raise UnigsError(
                f"expected integers {shape} as {name}; got {got.dtype} {tuple(got.shape)}; "
                f"in the prediction for {batch.keys[0]}"
            )
    if len(prediction.scores) != len(batch):
        raise UnigsError(
            f"expected {len(batch)} lists of scores; got {len(prediction.scores)}; "
            f"in the prediction for {batch.keys[0]}"
        )
    counts = [len(scores) for scores in prediction.scores]
    if prediction.names is not None and [len(names) for names in prediction.names] != counts:
        raise UnigsError(
            f"expected a name for each score, {counts}; got {[len(n) for n in prediction.names]}; "
            f"in the prediction for {batch.keys[0]}"
        )


def sheet_row(
    batch: Batch, prediction: Prediction, place: int, others: Sequence[Prediction] = ()
) -> tuple[str, list[np.ndarray]]:
    """Caption and the five pictures of one sample: see ``pictures.SHEET_TITLES``.

    Args:
        batch, prediction: of one task.
        place: of the sample in both.
        others: predictions whose masks are shown as well, before the truth.
    """
    image, truth = batch.image[place].cpu().numpy(), batch.labels[place].cpu().numpy()
    recipe = RECIPES[name_task(batch)]
    condition = colour_labels(truth) if recipe.context == "colormap" else image.copy()
    if recipe.local:  # what is to be filled is grey; what is only to be searched stays visible
        hole = batch.coarse_mask[place, 0].cpu().numpy()
        keep = 0.0 if recipe.context == "masked image" else 0.5
        condition = np.where(hole, keep * condition + (1 - keep) * 128, condition).astype(np.uint8)
    made = prediction.image[place].cpu().numpy()
    decoded = [
        blend_labels(made, number_alike(one.labels[place].cpu(), batch.labels[place].cpu()))
        for one in (prediction, *others)
    ]
    shown = [
        condition,
        made,
        prediction.colormap[place].cpu().numpy(),
        *decoded,
        blend_labels(image, truth),
    ]
    return batch.prompts[place], shown


def number_alike(predicted: torch.Tensor, true: torch.Tensor) -> np.ndarray:
    """Predicted labels under the numbers of their true pairs, so that both show in one colour.

    Args:
        predicted: int [H, W]. true: int [H, W].

    Returns:
        int64 [H, W]; predictions without a pair are numbered after the true ones.
    """
    overlaps = count_overlaps(predicted, true)
    rows, columns = match_entities(overlaps.iou)
    table = np.arange(int(predicted.max()) + 1) + int(true.max())
    table[0] = 0
    table[overlaps.predicted_labels[rows]] = overlaps.true_labels[columns]
    return table[predicted.numpy()]


def draw_strip(batch: Batch, prediction: Prediction, place: int, tile_px: int = 160) -> np.ndarray:
    """The five pictures of one sample side by side, uint8 [tile_px, 5 tile_px, 3]."""
    _, shown = sheet_row(batch, prediction, place)
    pixels = torch.from_numpy(np.stack(shown)).float()
    small = nn.functional.interpolate(pixels, (tile_px, tile_px), mode="area")
    return np.concatenate(list(small.round().byte().permute(0, 2, 3, 1).numpy()), axis=1)
