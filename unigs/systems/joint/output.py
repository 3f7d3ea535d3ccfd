"""What a call of the pipeline answers, in the forms that people's other tools read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image

from unigs.outputs import Found
from unigs.outputs.coco import list_results
from unigs.records import Prediction, UnigsError

OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class UniGSOutput(BaseOutput):
    """Answers to N pictures, in their order.

    Attributes:
        images: PIL pictures, float arrays [H, W, 3] or float tensors [3, H, W], 0..1: what was
            drawn, or the picture that was given.
        colormaps: the same of the generated colormaps.
        labels: int32 arrays [H, W], with ``pt`` tensors; 0 is no entity, 1..K the masks.
        scores: K each, 0..1.
        segments_info: K rows each: ``id`` (the label), ``label`` (the word asked for, or ""),
            ``score``, ``area`` (pixels).
    """

    images: list[Any]
    colormaps: list[Any]
    labels: list[Any]
    scores: list[list[float]]
    segments_info: list[list[dict[str, Any]]]

    def to_coco(self, file_names: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Rows of COCO's results: a mask each, as compressed run lengths; ``loadRes`` takes them.

        Args:
            file_names: of the pictures; where every one is a number it is the image id, else ids
                are 1..N.

        Raises:
            UnigsError: another number of names than of pictures.
        """
        names = [f"{number}.png" for number in range(1, len(self.labels) + 1)]
        names = names if file_names is None else list(file_names)
        if len(names) != len(self.labels):
            raise UnigsError(f"expected {len(self.labels)} file names, got {len(names)}")
        found = [self._find(place, name) for place, name in enumerate(names)]
        return list_results({str(k): one.describe() for k, one in enumerate(found)})

    def to_panoptic(self) -> list[dict[str, Any]]:
        """As ``post_process_panoptic_segmentation`` of transformers: a dict per picture.

        Returns:
            ``segmentation``, int32 tensor [H, W], and ``segments_info`` with ``id``, ``label_id``
            (1, an entity) and ``score``.
        """
        return [
            {
                "segmentation": torch.as_tensor(labels),
                "segments_info": [
                    {"id": row["id"], "label_id": 1, "was_fused": False, "score": row["score"]}
                    for row in rows
                ],
            }
            for labels, rows in zip(self.labels, self.segments_info, strict=True)
        ]

    def _find(self, place: int, file_name: str) -> Found:
        labels = np.asarray(self.labels[place])
        names = [row["label"] for row in self.segments_info[place]]
        blank = np.zeros((3, *labels.shape), np.uint8)  # the record holds no pixels
        named = (str(place), file_name, file_name)
        return Found(*named, blank, labels, self.scores[place], names, {}, "", drawn=False)


def collect_output(answers: Sequence[tuple[Prediction, int, str]], kind: str) -> UniGSOutput:
    """Answers in the order given.

    Args:
        answers: a prediction, the place in it, and the word that was asked for.
        kind: of ``OUTPUT_TYPES``.
    """
    columns: list[tuple[Any, ...]] = []
    for prediction, place, word in answers:
        labels, scores = prediction.labels[place].cpu().int(), prediction.scores[place]
        areas = torch.bincount(labels.flatten(), minlength=len(scores) + 1).tolist()
        rows = [
            {"id": number, "label": word, "score": score, "area": areas[number]}
            for number, score in enumerate(scores, 1)
        ]
        pictures = (prediction.image[place], prediction.colormap[place])
        columns.append(
            (
                *(show_pixels(one.cpu(), kind) for one in pictures),
                labels if kind == "pt" else labels.numpy(),
                list(scores),
                rows,
            )
        )
    images, colormaps, maps, scored, segments = (list(column) for column in zip(*columns))
    return UniGSOutput(images, colormaps, maps, scored, segments)


def show_pixels(pixels: torch.Tensor, kind: str) -> Any:
    """uint8 [3, H, W] in a form of ``OUTPUT_TYPES``."""
    if kind == "pt":
        return pixels.float() / 255
    array = pixels.movedim(0, -1).numpy()
    return Image.fromarray(array) if kind == "pil" else array.astype(np.float32) / 255
