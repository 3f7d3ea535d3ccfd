"""Mask2Former as the judge of synthesis (Table 4) and as a baseline (Tables 4 and 5).

In: uint8 [B, 3, H, W]. Out: labels int32 [B, H, W], a score and a class name per label. Synthesis
mIoU is ``segmentation.EntityQuality`` between these labels of the generated picture and the given
colormap's; classes play no part in it. Works without torchvision.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from unigs.metrics.extras import to_uint8
from unigs.records import UnigsError

MASK2FORMER = "facebook/mask2former-swin-large-coco-panoptic"
"""The paper's judge (Swin-L)."""


@dataclass(frozen=True, slots=True, eq=False)
class Segments:
    """What a segmenter says of a batch.

    Attributes:
        labels: int32 [B, H, W]; 0 is none.
        scores: per picture one float in 0..1 per label 1..N.
        names: per picture one class name per label 1..N.
    """

    labels: torch.Tensor
    scores: list[list[float]]
    names: list[list[str]]


class Segmenter:
    """Mask2Former, panoptic.

    Args:
        model: ``Mask2FormerForUniversalSegmentation``.
        processor: its image processor.
        name: where it came from, for tables.
        things: class ids from here on are stuff, of which a picture has one segment each.
        threshold: least class score of a segment.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        name: str,
        things: int = 80,
        threshold: float = 0.5,
    ) -> None:
        self.name = name
        self.model = model.eval()
        self.processor = processor
        self.classes: dict[int, str] = model.config.id2label  # type: ignore[union-attr, assignment]
        self.stuff = {number for number in self.classes if number >= things}
        self.threshold = threshold

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Segments:
        """Segment pictures at their own size.

        Args:
            images: uint8, or float in 0..1, [B, 3, H, W].

        Raises:
            UnigsError: NaN, another shape.
        """
        rows = list(to_uint8(images).cpu().numpy())
        device = next(self.model.parameters()).device
        inputs = self.processor(
            images=rows, input_data_format="channels_first", return_tensors="pt"
        )
        with torch.autocast(device.type, enabled=False):
            outputs = self.model(**inputs.to(device))
        found = self.processor.post_process_panoptic_segmentation(
            outputs,
            threshold=self.threshold,
            label_ids_to_fuse=self.stuff,
            target_sizes=[tuple(images.shape[-2:])] * len(images),
        )
        # The processor marks a picture without any segment by -1 everywhere.
        labels = torch.stack([one["segmentation"].cpu().clamp(min=0).int() for one in found])
        return Segments(
            labels,
            [_collect(one["segments_info"], "score") for one in found],
            [
                [self.classes[k] for k in _collect(one["segments_info"], "label_id")]
                for one in found
            ],
        )


def load_segmenter(
    name: str | Path = MASK2FORMER, device: str | torch.device = "cpu", offline: bool = True
) -> Segmenter:
    """Load Mask2Former.

    Args:
        name: a local folder, or an id of the hub.
        device: where it runs.
        offline: read the hub's local cache only; False allows the download.

    Raises:
        UnigsError: nothing there.
    """
    from transformers import (
        Mask2FormerForUniversalSegmentation,
        Mask2FormerImageProcessorPil,
    )

    try:
        model = Mask2FormerForUniversalSegmentation.from_pretrained(
            str(name), local_files_only=offline, use_safetensors=True
        )
        processor = Mask2FormerImageProcessorPil.from_pretrained(
            str(name), local_files_only=offline
        )
    except (OSError, ValueError) as error:
        raise UnigsError(
            "expected --segmenter FOLDER with a Mask2Former in safetensors, or an id of the hub "
            f"(downloaded only when asked to); got {name}; {error}"
        ) from error
    return Segmenter(model.to(device), processor, Path(name).name)


def _collect(segments: list[dict[str, Any]], field: str) -> list[Any]:
    """One value per label 1..N; of fused segments the best, which comes with the highest score."""
    best: dict[int, dict[str, Any]] = {}
    for segment in segments:
        kept = best.setdefault(segment["id"], segment)
        if segment["score"] > kept["score"]:
            best[segment["id"]] = segment
    return [best[label][field] for label in range(1, len(best) + 1)]
