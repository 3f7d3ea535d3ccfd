"""``Predictor``: a ``Batch`` of one task -> a ``Prediction``; our pipeline, its ceiling, its floor.

An oracle knows the truth and loses only what palette, decoder (and VAE) lose: no model can be
expected above it. A floor knows nothing. A model is read between the two.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from unigs.codec import Palette, decode_colormap, encode_colormap
from unigs.diffusion.encoders import FrozenTowers
from unigs.pipeline import UniGSPipeline
from unigs.records import TASKS, Batch, Prediction
from unigs.seeds import rng
from unigs.tasks import RECIPES


class Predictor(Protocol):
    """What is evaluated.

    Attributes:
        name: for tables and folders.
        tasks: those it can do.
        options: settings that its predictions depend on, if it has any; see ``fingerprint``.
    """

    @property
    def name(self) -> str: ...

    @property
    def tasks(self) -> tuple[str, ...]: ...

    def __call__(self, batch: Batch) -> Prediction:
        """Predict a batch of one of its tasks, at the batch's size."""
        ...


def run_batch(pipeline: UniGSPipeline, batch: Batch, **options: Any) -> Prediction:
    """Sample a batch of one task under its own conditions and noise.

    Args:
        pipeline: the model.
        batch: all of one task.
        options: further arguments of the pipeline's call.
    """
    task = name_task(batch)
    recipe = RECIPES[task]
    return pipeline(
        task,
        image=None if recipe.context == "colormap" else batch.image,
        labels=batch.labels if recipe.context == "colormap" else None,
        coarse_mask=batch.coarse_mask if recipe.local else None,
        prompt=batch.prompts,
        indices=batch.index.tolist(),
        **options,
    )


class PipelinePredictor:
    """Our pipeline.

    Args:
        pipeline: the model, on its device.
        name: for tables.
        options: arguments of its call: steps, solver, seed, guidance, ...; what the model decides
            for itself where it is not told is put down among them, as it is part of a result.
    """

    tasks = TASKS

    def __init__(self, pipeline: UniGSPipeline, name: str = "UniGS", **options: Any) -> None:
        own = {key: pipeline.config[key] for key in ("given_stream", "sharpen")}
        told = {key: value for key, value in options.items() if value is not None}
        self.pipeline, self.name, self.options = pipeline, name, own | told

    def __call__(self, batch: Batch) -> Prediction:
        return run_batch(self.pipeline, batch.to(self.pipeline.unet.device), **self.options)


class Oracle:
    """Ground truth -> palette -> decoder; with towers, through the VAE as well.

    Args:
        palette: how colormaps are painted.
        towers: the frozen VAE; None leaves picture and colormap as they are.
    """

    tasks = TASKS

    def __init__(self, palette: Palette = Palette(), towers: FrozenTowers | None = None) -> None:
        self.palette, self.towers = palette, towers
        self.name = "oracle" if towers is None else "oracle-vae"

    def __call__(self, batch: Batch) -> Prediction:
        if self.towers is not None:
            batch = batch.to(self.towers.vae.device)
        image, colormap = (
            batch.image,
            encode_colormap(batch.labels, self.palette, seeds=batch.index.tolist()),
        )
        if self.towers is not None:
            image, colormap = (
                self.towers.decode_latents(self.towers.encode_pixels(pixels))
                for pixels in (image, colormap)
            )
        mode = "foreground" if RECIPES[name_task(batch)].draws else "entity"
        decoded = decode_colormap(colormap, self.palette, mode=mode)  # type: ignore[arg-type]
        return Prediction(image, colormap, decoded.labels, decoded.scores)


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


def name_task(batch: Batch) -> str:
    """The one task of a batch."""
    return TASKS[int(batch.task[0])]


def _fill(batch: Batch, made: torch.Tensor) -> torch.Tensor:
    """The picture with ``made`` where the task had to make it."""
    recipe = RECIPES[name_task(batch)]
    if recipe.given == "image":
        return batch.image
    return torch.where(batch.coarse_mask, made, batch.image)
