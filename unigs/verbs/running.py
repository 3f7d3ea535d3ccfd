"""A model on a device -> answers at the full size of pictures, whatever its system.

Pictures run at the size that the model was trained on, those of one size together. Their masks are
enlarged to the pixels of the picture, and what was drawn is laid into it there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unigs.batches import stack_samples
from unigs.outputs import Found
from unigs.records import Prediction, TaskSample, UnigsError, lacks_memory
from unigs.systems.clips import ClipState
from unigs.systems.load import load_predictor
from unigs.systems.pixels import fit_size, resize_labels, resize_pixels
from unigs.systems.predictor import SystemPredictor
from unigs.tasks import RECIPES
from unigs.verbs.answer import Item, Order

WAITING = 4
"""Batches of pictures that may be held while others of their size are looked for."""

Size = tuple[int, int]
Refuse = Callable[[Item, Exception], None]


def load_runner(order: Order, model: Path, loaded: SystemPredictor | None = None) -> Runner:
    """The model of an order on its device.

    Args:
        order: what was typed; its device is there.
        model: its folder.
        loaded: what that folder holds, where it is on the device already.

    Raises:
        UnigsError: a damaged model, one of another system than the task needs, or sampling that the
            model refuses.
    """
    predictor = loaded or load_predictor(str(model), device=order.device, sampling=order.sampling)
    if order.task not in predictor.tasks:
        raise UnigsError(
            f"expected a model for {order.task}, got a {type(predictor).__name__}, which knows "
            f"{', '.join(predictor.tasks)}, at {model}"
        )
    how = predictor.options.get(order.task, {})
    side_px = how.get("processing_resolution") or predictor.side_px
    return Runner(predictor, side_px, order.device, order.dtype, order.batch_size)


@dataclass(frozen=True, slots=True)
class Runner:
    """A loaded model and how it is run.

    Attributes:
        predictor: of any system, on ``device``.
        side_px: short side at which pictures run.
        device, dtype, batch_size: as ordered.
    """

    predictor: SystemPredictor
    side_px: int
    device: str
    dtype: str
    batch_size: int

    def run(self, items: Iterable[Item], refuse: Refuse) -> Iterator[Found]:
        """Answer all items, those of one size together.

        Args:
            items: read one after the other, so that few are in memory.
            refuse: is told of each that the model refuses.

        Raises:
            MemoryError: the device has no room for a batch.
        """
        waiting: dict[Size, list[Item]] = {}
        for item in items:
            height, width = item.sample.labels.shape
            size = fit_size(height, width, self.side_px, self.predictor.multiple_px)
            waiting.setdefault(size, []).append(item)
            if len(waiting[size]) >= self.batch_size:
                yield from self.answer(waiting.pop(size), size, refuse)
            elif sum(map(len, waiting.values())) >= WAITING * self.batch_size:
                fullest = max(waiting, key=lambda one: len(waiting[one]))
                yield from self.answer(waiting.pop(fullest), fullest, refuse)
        for size, rest in waiting.items():
            yield from self.answer(rest, size, refuse)

    def answer(self, items: list[Item], size: Size, refuse: Refuse) -> Iterator[Found]:
        """Answer items that run at one size; if one of them is refused, each by itself."""
        try:
            prediction = self.predict([fit_sample(item.sample, size) for item in items])
        except RuntimeError as error:
            if lacks_memory(error):
                raise MemoryError from error
            raise
        except UnigsError as error:
            if len(items) == 1:
                refuse(items[0], error)
                return
            for item in items:
                yield from self.answer([item], size, refuse)
            return
        for place, item in enumerate(items):
            yield self.finish(item, prediction, place)

    def require_past(self, model: Path) -> None:
        """Insist on a model that follows entities through a clip.

        Raises:
            UnigsError: it is one of pictures.
        """
        if not getattr(self.predictor, "past_frames", 0):
            raise UnigsError(
                "expected a model that looks back at the frames before, got a "
                f"{type(self.predictor).__name__} of pictures, at {model}; "
                "configs/pix2seq-d-video.yaml trains one"
            )

    def follow(self, item: Item, state: ClipState) -> tuple[Found, ClipState]:
        """The answer to the next frame of a clip at its full size, and what to go on with."""
        predictor: Any = self.predictor
        height, width = item.sample.labels.shape
        size = fit_size(height, width, self.side_px, predictor.multiple_px)
        image = resize_pixels(torch.from_numpy(item.sample.image)[None], size)
        with torch.no_grad(), self.set_precision():
            prediction, after = predictor.follow(image, state)
        return self.finish(item, prediction.cpu(), 0), after

    def predict(self, samples: list[TaskSample]) -> Prediction:
        """One batch, on the CPU."""
        with torch.no_grad(), self.set_precision():
            return self.predictor(stack_samples(samples)).cpu()

    def set_precision(self) -> AbstractContextManager[object]:
        """Autocast to the precision that was asked for."""
        if self.dtype == "auto":
            return nullcontext()
        kind = torch.device(self.device).type
        return torch.autocast(kind, getattr(torch, self.dtype))

    def finish(self, item: Item, prediction: Prediction, place: int) -> Found:
        """The answer to one item at its full size."""
        sample = item.sample
        size = sample.labels.shape
        drawn = RECIPES[sample.task].draws_picture
        scores = prediction.scores[place]
        named = item.words[0] if len(item.words) == 1 else ""
        names = [named] * len(scores) if prediction.names is None else prediction.names[place]
        key = item.picture.key
        return Found(
            key=key,
            source=item.picture.file_name,
            file_name=f"{key}.png" if drawn else item.picture.file_name,
            image=lay_in(sample, prediction.image[place]) if drawn else sample.image,
            labels=resize_labels(prediction.labels[place][None], size)[0].numpy(),
            scores=scores,
            names=names,
            inputs=item.inputs,
            prompt=sample.prompt,
            drawn=drawn,
        )


def fit_sample(sample: TaskSample, size: Size) -> TaskSample:
    """A sample at another size, H x W."""
    shrink = lambda labels: resize_labels(torch.from_numpy(labels)[None], size)[0].numpy()
    return replace(
        sample,
        image=resize_pixels(torch.from_numpy(sample.image)[None], size)[0].numpy(),
        labels=shrink(sample.labels),
        ignored=shrink(sample.ignored),
        coarse_mask=shrink(sample.coarse_mask),
    )


def lay_in(sample: TaskSample, drawn: torch.Tensor) -> np.ndarray:
    """What was drawn, uint8 [3, h, w], at the sample's size; outside a hole its own pixels stay."""
    pixels = resize_pixels(drawn[None], sample.labels.shape)[0].numpy()
    if RECIPES[sample.task].context != "masked image":
        return pixels
    return np.where(sample.coarse_mask, pixels, sample.image)
