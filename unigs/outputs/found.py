"""One picture's answer and its segments, measured at the picture's full size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

NAMELESS = "entity"
"""The category of a mask that the model gives no name."""


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """What a model answered for one picture.

    Attributes:
        key: names its files; without dots and slashes.
        source: the picture that was given, below the ``root`` of the run's record.
        file_name: of the picture, below the ``images`` of the run's record.
        image: uint8 [3, H, W], the picture given, or the one that was drawn.
        labels: int [H, W], 0 = background.
        scores: one in 0..1 per label 1..N.
        names: one per label 1..N, ``""`` where the model names nothing.
        inputs: sha256 of each file it was made of, by option.
        prompt: what was asked.
        drawn: whether the picture is part of the answer.
    """

    key: str
    source: str
    file_name: str
    image: np.ndarray
    labels: np.ndarray
    scores: Sequence[float]
    names: Sequence[str]
    inputs: Mapping[str, str]
    prompt: str
    drawn: bool

    def describe(self) -> dict[str, Any]:
        """All but pixels, as plain values."""
        height, width = self.labels.shape
        return {
            "source": self.source,
            "file_name": self.file_name,
            "width": width,
            "height": height,
            "prompt": self.prompt,
            "inputs": dict(self.inputs),
            "segments": [asdict(segment) for segment in list_segments(self)],
        }


@dataclass(frozen=True, slots=True)
class Segment:
    """One mask.

    Attributes:
        label: its value in ``Found.labels``.
        category: what the model calls it, or ``NAMELESS``.
        score: 0..1.
        area: pixels.
        bbox: left, top, width, height, pixels.
        segmentation: COCO's compressed run lengths: ``size`` [H, W] and ``counts``.
    """

    label: int
    category: str
    score: float
    area: int
    bbox: list[int]
    segmentation: dict[str, Any]


def list_segments(found: Found) -> Iterator[Segment]:
    """The labels that have pixels, ascending; one smaller than a pixel of its picture has none."""
    for label, (score, name) in enumerate(zip(found.scores, found.names, strict=True), 1):
        runs = coco_mask.encode(np.asfortranarray(found.labels == label, np.uint8))
        area = int(coco_mask.area(runs))
        if area:
            box = [int(side) for side in coco_mask.toBbox(runs)]
            written = {"size": runs["size"], "counts": runs["counts"].decode("ascii")}
            yield Segment(label, name or NAMELESS, round(float(score), 6), area, box, written)
