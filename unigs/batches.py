"""Samples -> one ``Batch``, with the noise of its step where it is for training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from unigs.noise import training_noise
from unigs.records import TASKS, Batch, Latents, TaskSample


def stack_samples(samples: Sequence[TaskSample]) -> Batch:
    """``TaskSample`` s of one size -> one ``Batch`` on the CPU."""
    stack = lambda field: torch.from_numpy(np.stack([getattr(s, field) for s in samples]))
    return Batch(
        keys=[s.key for s in samples],
        prompts=[s.prompt for s in samples],
        asked=[s.asked for s in samples],
        names=[s.names for s in samples],
        seed=samples[0].seed,
        index=torch.tensor([s.index for s in samples]),
        task=torch.tensor([TASKS.index(s.task) for s in samples]),
        image=stack("image"),
        labels=stack("labels"),
        ignored=stack("ignored"),
        coarse_mask=stack("coarse_mask")[:, None],
        largest=max(int(s.labels.max()) for s in samples),
        image_latents=None if samples[0].image_latents is None else stack("image_latents"),
        **stack_past(samples),
    )


def stack_past(samples: Sequence[TaskSample]) -> dict[str, Any]:
    """``past`` and ``gone`` of a batch; nothing if no sample is a frame of a clip."""
    frames = [s.past for s in samples if s.past is not None]
    if not frames:
        return {}
    most = max(map(len, frames))
    past = np.zeros((len(samples), most, *samples[0].labels.shape), np.int32)
    for row, sample in zip(past, samples, strict=True):
        if sample.past is not None:
            row[: len(sample.past)] = sample.past
    return {"past": torch.from_numpy(past), "gone": [s.gone for s in samples]}


def stack_training(
    samples: Sequence[Any], stack: Callable[[Sequence[Any]], Batch | Latents], shape: Sequence[int]
) -> Batch | Latents:
    """What ``stack`` makes of samples, with the noise of its step: of ``shape`` a sample."""
    batch = stack(samples)
    return replace(batch, noise=training_noise(batch, shape))
