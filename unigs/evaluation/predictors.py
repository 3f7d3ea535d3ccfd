"""What a model is read between: oracles, which know the truth, and floors, which know nothing.

An oracle loses only what palette, decoder (and VAE) lose: no model can be expected above it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from unigs.codec import Decoder, Palette, decode_colormap, encode_colormap
from unigs.metrics.overlaps import count_overlaps
from unigs.records import TASKS, Batch, Prediction
from unigs.seeds import rng
from unigs.systems.joint.towers import FrozenTowers
from unigs.systems.predictor import name_task
from unigs.tasks import RECIPES


class Oracle:
    """Ground truth -> palette -> decoder; with towers, through the VAE as well. Names are true.

    Args:
        name: for tables.
        palette: paints and decodes.
        towers: the frozen VAE; None leaves picture and colormap as they are.
        decoder: by which masks are found.
    """

    tasks = TASKS

    def __init__(
        self,
        name: str = "oracle",
        palette: Palette = Palette(),
        towers: FrozenTowers | None = None,
        decoder: Decoder = "refined",
    ) -> None:
        self.palette, self.towers, self.decoder = palette, towers, decoder
        self.name = name
        self.options = {"palette": str(palette), "decoder": decoder}

    def __call__(self, batch: Batch) -> Prediction:
        if self.towers is not None:
            batch = batch.to(self.towers.vae.device)
        image = batch.image
        colormap = encode_colormap(batch.labels, self.palette, seeds=batch.index.tolist())
        if self.towers is not None:
            image, colormap = (
                self.towers.decode_latents(self.towers.encode_pixels(pixels))
                for pixels in (image, colormap)
            )
        mode = RECIPES[name_task(batch)].mode
        decoded = decode_colormap(colormap, self.palette, mode=mode, decoder=self.decoder)
        names = [
            name_masks(mine, len(scores), truth, said)
            for mine, scores, truth, said in zip(
                decoded.labels, decoded.scores, batch.labels, batch.names
            )
        ]
        return Prediction(image, colormap, decoded.labels, decoded.scores, names)


def name_masks(
    labels: torch.Tensor, count: int, true: torch.Tensor, true_names: Sequence[str]
) -> list[str]:
    """Name each mask after the true entity with which it shares most pixels.

    Args:
        labels: int [H, W], 0..count.
        count: of masks.
        true: int [H, W], 0..N.
        true_names: N of them.

    Returns:
        ``count`` names, ``""`` of a mask that shares no pixel with an entity.
    """
    overlaps = count_overlaps(labels, true)
    names = [""] * count
    for label, shared in zip(overlaps.predicted_labels, overlaps.shared):
        if shared.any():
            names[label - 1] = true_names[overlaps.true_labels[shared.argmax()] - 1]
    return names


class EmptyFloor:
    """Says nothing: no mask, and grey where something was to be drawn."""

    name = "floor-empty"
    tasks = TASKS

    def __call__(self, batch: Batch) -> Prediction:
        grey = torch.full_like(batch.image, 128)
        return Prediction(
            image=_fill(batch, grey),
            colormap=torch.zeros_like(batch.image),
            labels=torch.zeros_like(batch.labels),
            scores=[[] for _ in batch.keys],
        )


class RandomFloor:
    """Says anything: rectangles at random places with random scores, and noise for pictures.

    Args:
        seed: with a sample's index it decides everything.
        masks: rectangles per picture.
    """

    name = "floor-random"
    tasks = TASKS

    def __init__(self, seed: int = 0, masks: int = 6) -> None:
        self.seed, self.masks = seed, masks
        self.options = {"seed": seed, "masks": masks}

    def __call__(self, batch: Batch) -> Prediction:
        size = batch.labels.shape[-2:]
        noise, labels, scores = [], [], []
        for index in batch.index.tolist():
            draw = rng(self.seed, index, "random floor")
            noise.append(draw.integers(0, 256, (3, *size), dtype=np.uint8))
            canvas = np.zeros(size, np.int32)
            for label in range(1, self.masks + 1):
                top, bottom = sorted(draw.integers(0, size[0] + 1, 2))
                left, right = sorted(draw.integers(0, size[1] + 1, 2))
                canvas[top:bottom, left:right] = label
            labels.append(canvas)
            scores.append(draw.random(self.masks).tolist())
        masks = torch.from_numpy(np.stack(labels)).to(batch.labels.device)
        return Prediction(
            image=_fill(batch, torch.from_numpy(np.stack(noise)).to(batch.image.device)),
            colormap=encode_colormap(masks),
            labels=masks,
            scores=scores,
        )


def _fill(batch: Batch, made: torch.Tensor) -> torch.Tensor:
    """The picture with ``made`` where the task had to make it."""
    if not RECIPES[name_task(batch)].draws_picture:
        return batch.image
    return torch.where(batch.coarse_mask, made, batch.image)
