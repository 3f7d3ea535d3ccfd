"""Segmenters that judge drawn pictures (Table 4) and stand as baselines (Tables 5 and 6).

In: uint8 [B, 3, H, W]. Out: labels int32 [B, H, W], a score and a class name per label. Three
kinds, told apart by the architecture that a folder's ``config.json`` names: the paper's
Mask2Former, OneFormer, and any stock network for semantic segmentation, whose connected areas of
one class are its segments. The first two can be read as the third as well. What is made of them is
said in ``evaluation.judging``. Works without torchvision, OneFormer aside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from unigs.annotations.ade20k import THING_CLASSES
from unigs.files import hash_network
from unigs.metrics.extras import check_pictures
from unigs.records import UnigsError
from unigs.weights import in_words, resolve_source

MASK2FORMER = "facebook/mask2former-swin-large-coco-panoptic"
"""The paper's judge (Swin-L)."""

MASK2FORMER_CLASS = "Mask2FormerForUniversalSegmentation"
ONEFORMER_CLASS = "OneFormerForUniversalSegmentation"

LEAST_SHARE = 1 / 512
"""Smallest segment of a semantic network, as a share of the picture: 8 pixels at 64 px."""

STUFF = {
    133: frozenset(range(80, 133)),  # COCO panoptic: things first
    150: frozenset(range(150)) - {number - 1 for number in THING_CLASSES},  # ADE20K
    19: frozenset(range(11)),  # Cityscapes: things last
}
"""Ids of stuff by the number of a network's classes, where its files do not list them."""


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
            images=rows,
            input_data_format="channels_first",
            return_tensors="pt",
            **self.ask(len(rows)),
        )
        with torch.autocast(device.type, enabled=False):
            outputs = self.model(**inputs.to(device))
        return self.read_outputs(outputs, len(rows), (images.shape[-2], images.shape[-1]))

    def ask(self, count: int) -> dict[str, Any]:
        """What the processor is told of ``count`` pictures besides them."""
        return {}

    @abstractmethod
    def read_outputs(self, outputs: Any, count: int, size_px: tuple[int, int]) -> Segments:
        """The network's output for ``count`` pictures -> segments of ``size_px``, (H, W)."""


class PanopticSegmenter(Segmenter):
    """Mask2Former: its queries are the segments; stuff of one class is one segment.

    Args:
        model: ``Mask2FormerForUniversalSegmentation``.
        processor: its image processor.
        name: where it came from, for tables.
        threshold: least class score of a segment.
    """

    def __init__(self, model: nn.Module, processor: Any, name: str, threshold: float = 0.5) -> None:
        super().__init__(model, processor, name)
        self.stuff = find_stuff(model, processor)
        self.threshold = threshold

    def read_outputs(self, outputs: Any, count: int, size_px: tuple[int, int]) -> Segments:
        found = self.processor.post_process_panoptic_segmentation(
            outputs,
            threshold=self.threshold,
            label_ids_to_fuse=set(),  # transformers' own fusing numbers other segments twice
            target_sizes=[size_px] * count,
        )
        fused = [fuse_segments(one, self.stuff) for one in found]
        return Segments(
            torch.stack([labels for labels, _ in fused]),
            [[score for _, score in kept] for _, kept in fused],
            [[self.classes[number] for number, _ in kept] for _, kept in fused],
        )


class OneFormerSegmenter(PanopticSegmenter):
    """OneFormer, asked for its panoptic task."""

    def ask(self, count: int) -> dict[str, Any]:
        return {"task_inputs": ["panoptic"] * count}


class SemanticSegmenter(Segmenter):
    """A network that names pixels: every 4-connected area of one class is a segment.

    Stuff (see :func:`find_stuff`) is one segment a class, however many areas it has. A
    segment's score is the mean probability of its class over its pixels. Things of one class that
    touch are one segment, and a thing cut in two by another is two.
    """

    def __init__(self, model: nn.Module, processor: Any, name: str) -> None:
        super().__init__(model, processor, name)
        self.stuff = find_stuff(model, processor)

    def rate_classes(self, outputs: Any, count: int, size_px: tuple[int, int]) -> torch.Tensor:
        """The probability of each class at each pixel, float [B, K, H, W]."""
        logits = nn.functional.interpolate(outputs.logits.float(), size_px, mode="bilinear")
        return logits.softmax(1)

    def read_outputs(self, outputs: Any, count: int, size_px: tuple[int, int]) -> Segments:
        sure, classes = self.rate_classes(outputs, count, size_px).max(1)  # [B, H, W] each
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


class SemanticReading(SemanticSegmenter):
    """Mask2Former or OneFormer as networks that name pixels: queries vote for their classes."""

    def ask(self, count: int) -> dict[str, Any]:
        asks = self.model.config.model_type == "oneformer"  # type: ignore[union-attr]
        return {"task_inputs": ["semantic"] * count} if asks else {}

    def rate_classes(self, outputs: Any, count: int, size_px: tuple[int, int]) -> torch.Tensor:
        found = self.processor.post_process_semantic_segmentation(
            outputs, target_sizes=[size_px] * count, return_segmentation_scores=True
        )
        votes = torch.stack([one.segmentation_scores for one in found]).float()
        return votes / votes.sum(1, keepdim=True).clamp(min=1e-6)


def find_stuff(model: nn.Module, processor: Any) -> frozenset[int]:
    """Ids of the classes of which a picture has one segment each.

    What the config lists as ``label_ids_to_fuse``; else what the processor of OneFormer does not
    list as things; else those of COCO, ADE20K and Cityscapes, by the number of classes.
    """
    config: Any = model.config
    if (listed := getattr(config, "label_ids_to_fuse", None)) is not None:
        return frozenset(listed)
    metadata = getattr(getattr(processor, "image_processor", processor), "metadata", None) or {}
    if things := metadata.get("thing_ids"):
        return frozenset(config.id2label) - frozenset(things)
    return STUFF.get(len(config.id2label), frozenset())


def fuse_segments(
    found: dict[str, Any], stuff: Container[int]
) -> tuple[torch.Tensor, list[tuple[int, float]]]:
    """One picture's segments with those of one class of stuff as one.

    Args:
        found: of ``post_process_panoptic_segmentation`` that fused nothing.
        stuff: ids of classes.

    Returns:
        int32 [H, W] on the CPU, 0 is none; the class and the best score of each label 1..N.
    """
    segments = found["segments_info"]
    table = torch.zeros(len(segments) + 1, dtype=torch.int32)
    kept: list[tuple[int, float]] = []
    first: dict[int, int] = {}
    for segment in segments:
        number, score = segment["label_id"], segment["score"]
        label = first.get(number, 0)
        if label:
            kept[label - 1] = (number, max(score, kept[label - 1][1]))
        else:
            kept.append((number, score))
            label = len(kept)
            if number in stuff:
                first[number] = label
        table[segment["id"]] = label
    # The processor marks a picture without any segment by -1 everywhere.
    return table[found["segmentation"].cpu().clamp(min=0).long()], kept


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
    name: str | Path = MASK2FORMER,
    device: str | torch.device = "cpu",
    offline: bool = True,
    architecture: str | None = None,
    semantic: bool = False,
    asked: str = "--segmenter",
) -> Segmenter:
    """Load Mask2Former, OneFormer or a semantic network in transformers' layout.

    Args:
        name: a local folder, or an id of the hub.
        device: where it runs.
        offline: read the hub's local cache only; False allows the download.
        architecture: the one that it must be; None takes any of them.
        semantic: read it as a network that names pixels.
        asked: how the folder was asked for, for messages.

    Raises:
        UnigsError: nothing there, or a network of another kind.
    """
    from transformers import AutoConfig

    where, offline = resolve_source(name, offline)
    source: dict[str, Any] = {"local_files_only": offline, "trust_remote_code": False}
    wanted = architecture or "a Mask2Former, OneFormer or semantic segmentation network"
    with in_words(
        f"{asked} FOLDER with {wanted} in safetensors, or an id of the hub (downloaded only when "
        "asked to)",
        name,
    ):
        config = AutoConfig.from_pretrained(where, **source)
        found = (config.architectures or [""])[0]
        if architecture not in (None, found):
            raise ValueError(f"its config.json names the architecture {found!r}")
        kind, load_model, load_processor = _choose_kind(found, semantic)
        model = load_model(where, use_safetensors=True, **source)
        processor = load_processor(where, **source)
    return kind(model.to(device), processor, _describe(Path(where)))


def _choose_kind(
    architecture: str, semantic: bool
) -> tuple[type[Segmenter], Callable[..., Any], Callable[..., Any]]:
    """The segmenter of an architecture, and what loads its network and its image processor."""
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES as SEMANTIC,
    )

    if architecture == MASK2FORMER_CLASS:
        return (
            SemanticReading if semantic else PanopticSegmenter,
            transformers.Mask2FormerForUniversalSegmentation.from_pretrained,
            transformers.Mask2FormerImageProcessorPil.from_pretrained,
        )
    if architecture == ONEFORMER_CLASS:
        return (
            SemanticReading if semantic else OneFormerSegmenter,
            transformers.OneFormerForUniversalSegmentation.from_pretrained,
            _load_oneformer_processor,
        )
    if architecture in SEMANTIC.values():
        return (
            SemanticSegmenter,
            transformers.AutoModelForSemanticSegmentation.from_pretrained,
            partial(transformers.AutoImageProcessor.from_pretrained, backend="pil"),
        )
    raise ValueError(f"its config.json names the architecture {architecture!r}")


def _load_oneformer_processor(name: str, **source: Any) -> Any:
    """OneFormer's processor without the class file that it would fetch; only training reads it."""
    import transformers

    require_torchvision("OneFormer")
    images = transformers.OneFormerImageProcessorPil.from_pretrained(
        name, class_info_file=None, **source
    )
    words = transformers.AutoTokenizer.from_pretrained(name, **source)
    return transformers.OneFormerProcessor(images, words)


def require_torchvision(what: str) -> None:
    """Refuse a model whose masks transformers only finds by torchvision.

    Raises:
        UnigsError: it is not installed.
    """
    if find_spec("torchvision") is None:
        raise UnigsError(
            f"expected torchvision, which {what} needs, got none, in this Python; "
            "pip install 'unigs[eval]'"
        )


def _describe(folder: Path) -> str:
    """The folder's name; of a local network also its files, which change when it is retrained."""
    return f"{folder.name} {hash_network(folder)[:12]}" if folder.is_dir() else folder.name
