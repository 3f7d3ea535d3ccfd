"""Segmenters that judge drawn pictures (Table 4) and stand as baselines (Tables 4 and 5).

In: uint8 [B, 3, H, W]. Out: labels int32 [B, H, W], a score and a class name per label. Two kinds,
told apart by the architecture that a folder's ``config.json`` names: the paper's Mask2Former, and
any stock network for semantic segmentation, whose connected areas of one class are its segments.
What is made of them is said in ``evaluation.judging``. Works without torchvision.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from unigs.files import hash_file
from unigs.metrics.extras import check_pictures
from unigs.records import UnigsError

MASK2FORMER = "facebook/mask2former-swin-large-coco-panoptic"
"""The paper's judge (Swin-L)."""

LEAST_SHARE = 1 / 512
"""Smallest segment of a semantic network, as a share of the picture: 8 pixels at 64 px."""


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


class Segmenter(ABC):
    """A network that finds and names segments; its kinds differ in how its output is read.

    Args:
        model: one of transformers, with ``config.id2label``.
        processor: its image processor.
        name: where it came from, for tables.
    """

    def __init__(self, model: nn.Module, processor: Any, name: str) -> None:
        self.name = name
        self.model = model.eval()
        self.processor = processor
        self.classes: dict[int, str] = model.config.id2label  # type: ignore[union-attr, assignment]

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> Segments:
        """Segment pictures at their own size.

        Args:
            images: uint8, or float in 0..1, [B, 3, H, W].

        Raises:
            UnigsError: NaN, another shape.
        """
        rows = list(check_pictures(images).cpu().numpy())
        device = next(self.model.parameters()).device
        inputs = self.processor(
            images=rows, input_data_format="channels_first", return_tensors="pt"
        )
        with torch.autocast(device.type, enabled=False):
            outputs = self.model(**inputs.to(device))
        return self.read_outputs(outputs, len(rows), (images.shape[-2], images.shape[-1]))

    @abstractmethod
    def read_outputs(self, outputs: Any, count: int, size_px: tuple[int, int]) -> Segments:
        """The network's output for ``count`` pictures -> segments of ``size_px``, (H, W)."""


class PanopticSegmenter(Segmenter):
    """Mask2Former.

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
        super().__init__(model, processor, name)
        self.stuff = {number for number in self.classes if number >= things}
        self.threshold = threshold

    def read_outputs(self, outputs: Any, count: int, size_px: tuple[int, int]) -> Segments:
        found = self.processor.post_process_panoptic_segmentation(
            outputs,
            threshold=self.threshold,
            label_ids_to_fuse=self.stuff,
            target_sizes=[size_px] * count,
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


class SemanticSegmenter(Segmenter):
    """A network that names pixels: every 4-connected area of one class is a segment.

    Classes whose ids the network's config lists as ``label_ids_to_fuse`` (the stuff, in the words
    of transformers' panoptic processors) are one segment each, however many areas they have. A
    segment's score is the mean probability of its class over its pixels. Things of one class that
    touch are one segment, and a thing cut in two by another is two.
    """

    def __init__(self, model: nn.Module, processor: Any, name: str) -> None:
        super().__init__(model, processor, name)
        self.stuff = frozenset(getattr(model.config, "label_ids_to_fuse", None) or ())

    def read_outputs(self, outputs: Any, count: int, size_px: tuple[int, int]) -> Segments:
        logits = nn.functional.interpolate(outputs.logits.float(), size_px, mode="bilinear")
        sure, classes = logits.softmax(1).max(1)  # [B, H, W] each
        least_px = LEAST_SHARE * size_px[0] * size_px[1]
        parts = [split_classes(one, least_px, self.stuff) for one in classes.cpu().numpy()]
        return Segments(
            torch.from_numpy(np.stack([labels for labels, _ in parts])),
            [
                ndimage.mean(one, labels, np.arange(len(numbers)) + 1).tolist()
                for one, (labels, numbers) in zip(sure.cpu().numpy(), parts, strict=True)
            ],
            [[self.classes[number] for number in numbers] for _, numbers in parts],
        )


def split_classes(
    classes: np.ndarray, least_px: float, fused: Container[int] = ()
) -> tuple[np.ndarray, list[int]]:
    """Connected areas of one class each; pixels are neighbours across an edge, not a corner.

    Args:
        classes: int [H, W].
        least_px: smaller areas are left out.
        fused: classes of which all areas are one.

    Returns:
        int32 [H, W], areas 1..N and 0 for what was left out; the class of each area.
    """
    labels = np.zeros(classes.shape, np.int32)
    found: list[int] = []
    for number in np.unique(classes).tolist():
        mine = classes == number
        areas, count = (mine, 1) if number in fused else ndimage.label(mine)  # 4-connected
        sizes_px = np.bincount(areas.ravel(), minlength=count + 1)
        kept = 1 + np.flatnonzero(sizes_px[1:] >= least_px)
        table = np.zeros(count + 1, np.int32)
        table[kept] = len(found) + 1 + np.arange(len(kept))
        labels += table[areas.astype(np.intp)]
        found += [number] * len(kept)
    return labels, found


def load_segmenter(
    name: str | Path = MASK2FORMER, device: str | torch.device = "cpu", offline: bool = True
) -> Segmenter:
    """Load Mask2Former or a semantic network in transformers' layout.

    Args:
        name: a local folder, or an id of the hub.
        device: where it runs.
        offline: read the hub's local cache only; False allows the download.

    Raises:
        UnigsError: nothing there, or a network of another kind.
    """
    from transformers import AutoConfig

    source: dict[str, Any] = {"local_files_only": offline, "trust_remote_code": False}
    try:
        config = AutoConfig.from_pretrained(str(name), **source)
        kind, load_model, load_processor = _choose_kind((config.architectures or [""])[0])
        model = load_model(str(name), use_safetensors=True, **source)
        processor = load_processor(str(name), **source)
    except (OSError, ValueError) as error:
        raise UnigsError(
            "expected --segmenter FOLDER with a Mask2Former or a semantic segmentation network in "
            f"safetensors, or an id of the hub (downloaded only when asked to); got {name}; {error}"
        ) from error
    return kind(model.to(device), processor, _describe(Path(name)))


def _choose_kind(
    architecture: str,
) -> tuple[type[Segmenter], Callable[..., Any], Callable[..., Any]]:
    """The segmenter of an architecture, and what loads its network and its image processor."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as SEMANTIC,
    )

    if architecture == "Mask2FormerForUniversalSegmentation":
        return (
            PanopticSegmenter,
            transformers.Mask2FormerForUniversalSegmentation.from_pretrained,
            transformers.Mask2FormerImageProcessorPil.from_pretrained,
        )
    if architecture in SEMANTIC.values():
        return (
            SemanticSegmenter,
            transformers.AutoModelForSemanticSegmentation.from_pretrained,
            partial(transformers.AutoImageProcessor.from_pretrained, backend="pil"),
        )
    raise ValueError(f"its config.json names the architecture {architecture!r}")


def _describe(folder: Path) -> str:
    """The folder's name; of a local network also its weights, which change when it is retrained."""
    weights = folder / "model.safetensors"
    return f"{folder.name} {hash_file(weights)[:12]}" if weights.is_file() else folder.name


def _collect(segments: list[dict[str, Any]], field: str) -> list[Any]:
    """One value per label 1..N; of fused segments the best, which comes with the highest score."""
    best: dict[int, dict[str, Any]] = {}
    for segment in segments:
        kept = best.setdefault(segment["id"], segment)
        if segment["score"] > kept["score"]:
            best[segment["id"]] = segment
    return [best[label][field] for label in range(1, len(best) + 1)]
