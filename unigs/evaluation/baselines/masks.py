"""Segment Anything: masks of everything, by a grid of points, without names (Table 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unigs.codec import encode_colormap
from unigs.metrics.segmenter import require_torchvision
from unigs.records import Batch, Prediction
from unigs.weights import in_words, resolve_source

SAM = "facebook/sam-vit-huge"
SAM_CLASS = "SamModel"


class SamBaseline:
    """SAM's automatic masks, made disjoint: each pixel goes to the mask of the best score.

    Args:
        generator: ``MaskGenerationPipeline`` of transformers.
        points_per_side: of the grid; 32 is SAM's own.
        least_iou: masks of a lower predicted IoU are left out; 0.88 is SAM's own.
        least_stability: masks that change more with the threshold are left out; 0.95 is SAM's own.
    """

    name = "sam"
    tasks = ("entity",)

    def __init__(
        self,
        generator: Any,
        points_per_side: int = 32,
        least_iou: float = 0.88,
        least_stability: float = 0.95,
    ) -> None:
        self.model, self.processor = generator.model, generator.image_processor
        self._generator = generator
        self.options = {
            "points_per_side": points_per_side,
            "least_iou": least_iou,
            "least_stability": least_stability,
        }

    def __call__(self, batch: Batch) -> Prediction:
        found = [self.find(image) for image in batch.image.cpu().numpy()]
        labels = torch.from_numpy(np.stack([one for one, _ in found]))
        colormap = encode_colormap(labels, overflow="drop")  # to look at; the masks are all there
        return Prediction(batch.image, colormap, labels, [scores for _, scores in found])

    def find(self, image: np.ndarray) -> tuple[np.ndarray, list[float]]:
        """Disjoint masks of one picture, uint8 [3, H, W]; see :func:`flatten_masks`."""
        made = self._generator(
            Image.fromarray(image.transpose(1, 2, 0)),
            points_per_crop=self.options["points_per_side"],
            pred_iou_thresh=self.options["least_iou"],
            stability_score_thresh=self.options["least_stability"],
        )
        masks = np.array(made["masks"], bool).reshape(-1, *image.shape[1:])
        return flatten_masks(masks, [float(score) for score in made["scores"]])


def flatten_masks(masks: np.ndarray, scores: Sequence[float]) -> tuple[np.ndarray, list[float]]:
    """Masks that may overlap -> a label map in which each pixel has the mask of the best score.

    Args:
        masks: bool [N, H, W].
        scores: N of them; of equal ones the smaller mask wins.

    Returns:
        int32 [H, W], labels 1..M and 0 where no mask is; M scores in 0..1. Masks of which nothing
        is left are left out.

    Example:
        >>> masks = np.array([[[True, True, False]], [[False, True, False]]])
        >>> flatten_masks(masks, [0.5, 0.9])
        (array([[1, 2, 0]], dtype=int32), [0.5, 0.9])
    """
    areas_px = masks.sum((1, 2))
    canvas = np.zeros(masks.shape[1:], np.int32)
    for place in np.lexsort((-areas_px, scores)):  # the worst first, so that better ones cover it
        canvas[masks[place]] = place + 1
    kept, labels = np.unique(np.append(canvas, 0), return_inverse=True)  # 0 comes first
    labels = labels.reshape(-1)[:-1].reshape(canvas.shape).astype(np.int32)
    return labels, [float(np.clip(scores[k - 1], 0, 1)) for k in kept[1:]]


def load_sam(
    name: str | Path = SAM,
    device: str | torch.device = "cpu",
    offline: bool = True,
    **options: Any,
) -> SamBaseline:
    """Load Segment Anything in transformers' layout.

    Args:
        name: a local folder, or an id of the hub.
        device: where it runs.
        offline: read the hub's local cache only; False allows the download.
        options: further arguments of :class:`SamBaseline`.

    Raises:
        UnigsError: nothing there, a network of another kind, or no torchvision.
    """
    from transformers import AutoConfig, MaskGenerationPipeline, SamImageProcessorPil, SamModel

    require_torchvision("SAM")
    where, offline = resolve_source(name, offline)
    source: dict[str, Any] = {"local_files_only": offline, "trust_remote_code": False}
    with in_words(
        f"sam=FOLDER with a {SAM_CLASS} in safetensors, or an id of the hub (downloaded only when "
        "asked to)",
        name,
    ):
        found = (AutoConfig.from_pretrained(where, **source).architectures or [""])[0]
        if found != SAM_CLASS:
            raise ValueError(f"its config.json names the architecture {found!r}")
        model = SamModel.from_pretrained(where, use_safetensors=True, **source)
        processor = SamImageProcessorPil.from_pretrained(where, **source)
    generator = MaskGenerationPipeline(
        model=model.eval(), image_processor=processor, device=torch.device(device)
    )
    return SamBaseline(generator, **options)
