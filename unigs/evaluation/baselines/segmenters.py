"""Networks that find and name segments: Mask2Former (Tables 5 and 6), OneFormer (6), any other.

They name what they find, so they have the figures of classes too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from unigs.codec import encode_colormap
from unigs.metrics.segmenter import Segmenter
from unigs.records import Batch, Prediction
from unigs.systems.predictor import name_task
from unigs.tasks import RECIPES, speak_category


class SegmenterBaseline:
    """A segmenter for entity segmentation and referring.

    For referring it keeps the segments whose class the prompt names and of which more than half
    lies inside the coarse mask.

    Args:
        segmenter: the network.
        name: for tables.
    """

    tasks = ("referring", "entity")

    def __init__(self, segmenter: Segmenter, name: str = "mask2former") -> None:
        self.segmenter, self.name = segmenter, name

    def __call__(self, batch: Batch) -> Prediction:
        found = self.segmenter(batch.image)
        labels, scores = found.labels, found.scores
        names = [[speak_category(name) for name in said] for said in found.names]
        if RECIPES[name_task(batch)].draws:
            chosen = [
                keep_named(labels[i], names[i], batch.asked[i], mask)
                for i, mask in enumerate(batch.coarse_mask[:, 0].cpu())
            ]
            labels = torch.stack([one for one, _ in chosen])
            scores = [[scores[i][k - 1] for k in kept] for i, (_, kept) in enumerate(chosen)]
            names = [[names[i][k - 1] for k in kept] for i, (_, kept) in enumerate(chosen)]
        colormap = encode_colormap(labels, overflow="drop")  # to look at; the masks are all there
        return Prediction(batch.image, colormap, labels, scores, names)


def keep_named(
    labels: torch.Tensor,
    names: Sequence[str],
    asked: Sequence[str],
    coarse_mask: torch.Tensor,
) -> tuple[torch.Tensor, list[int]]:
    """Segments of the names that were asked for and that lie mostly inside the coarse mask.

    Args:
        labels: int32 [H, W].
        names: spoken, of label k at ``names[k - 1]``.
        asked: spoken names.
        coarse_mask: bool [H, W].

    Returns:
        int32 [H, W] with labels 1..M, and the labels that they had.
    """
    count = len(names) + 1
    whole = np.bincount(labels.flatten(), minlength=count)
    inside = np.bincount(labels[coarse_mask], minlength=count)
    table = torch.zeros(count, dtype=torch.int32)
    kept: list[int] = []
    for label, name in enumerate(names, 1):
        if name in asked and 2 * inside[label] > whole[label]:
            kept.append(label)
            table[label] = len(kept)
    return table[labels.long()], kept
