"""The benchmark's judge: a stock segmentation network trained on the benchmark's own pictures.

In: batches of the ``entity`` task. Out: a folder in transformers' layout, from which
``metrics.segmenter.load_segmenter`` reads it for ``unigs evaluate --segmenter``. It judges pictures
of the data it was trained on and no others; what it makes of real ones is its ceiling.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from transformers import (
    ResNetConfig,
    SegformerImageProcessorPil,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from unigs.data import UniGSData
from unigs.metrics.classes import SemanticQuality
from unigs.recipes.maker import Maker
from unigs.records import Batch, UnigsError
from unigs.systems.balance import balance_sizes
from unigs.systems.pixels import to_signed
from unigs.systems.system import cycle_rate
from unigs.tasks import UNKNOWN, ClassTable, list_classes, paint_classes

ENLARGE = 2
"""Pictures are enlarged by this: ResNet's first stage sees a quarter, too coarse at 64 px."""


def balanced_loss(
    logits: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross entropy in which an entity weighs by the root of its area.

    Surfaces cover five times what shapes do and are learnt within minutes by their texture; with
    equal pixels the shapes stay where they began. The root is what served the joint model best.

    Args:
        logits: float [B, C, H, W].
        classes: int64 [B, H, W], below C; negative where a pixel has none.
        labels: int [B, H, W], the entities.
    """
    weight = balance_sizes(labels, (labels.shape[-2], labels.shape[-1]), 0.5)[:, 0]
    weight = weight * (classes >= 0)
    known = classes.masked_fill(classes < 0, UNKNOWN)
    error = nn.functional.cross_entropy(logits, known, ignore_index=UNKNOWN, reduction="none")
    return (weight * error).sum() / weight.sum()


def build_network(classes: ClassTable, width: int) -> UperNetForSemanticSegmentation:
    """UperNet over a ResNet-18 of another width, random weights.

    Args:
        classes: what it names.
        width: channels of the first stage; the next have 2, 4 and 6 times as many, the head 1.5.
    """
    backbone = ResNetConfig(
        layer_type="basic",
        depths=[2, 2, 2, 2],
        embedding_size=width,
        hidden_sizes=[width, 2 * width, 4 * width, 6 * width],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=3 * width // 2,
        pool_scales=[1, 2],  # the last stage is 4 cells wide
        use_auxiliary_head=False,
        id2label=dict(enumerate(classes.names)),
        label2id={name: number for number, name in enumerate(classes.names)},
        label_ids_to_fuse=[number for number, thing in enumerate(classes.things) if not thing],
    )
    return UperNetForSemanticSegmentation(config)


def build_processor(side_px: int) -> SegformerImageProcessorPil:
    """UperNet's image processor, as transformers pairs them, for what ``Judge.forward`` does."""
    side = ENLARGE * side_px
    half = [0.5, 0.5, 0.5]
    return SegformerImageProcessorPil(
        size={"height": side, "width": side}, image_mean=half, image_std=half
    )


class Judge(Maker):
    """Train UperNet over a ResNet from random weights.

    Args:
        learning_rate: the highest of AdamW's, after a tenth of the steps; falls to 0 by a cosine.
        total_steps: optimiser steps over which it falls.
        width: channels of the first stage; see :func:`build_network`.
        out: folder to save the trained network to.
    """

    PARTS = ("config.json", "model.safetensors", "preprocessor_config.json")

    def __init__(
        self,
        learning_rate: float = 3e-3,
        total_steps: int = 4000,
        width: int = 32,
        out: str = "runs/benchmark/judge",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network: Any = None
        self.quality: Any = None

    @property
    def data(self) -> UniGSData:
        """What it is trained on.

        Raises:
            UnigsError: something else than ``UniGSData``.
        """
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, UniGSData):
            raise UnigsError(f"expected UniGSData as the data; got {type(data).__name__}; in Judge")
        return data

    def configure_model(self) -> None:
        """Build the network once the data have told the categories."""
        if self.network is None:
            manifests, _ = self.data.select_sources(self.data.train_split)
            self.quality = SemanticQuality(list_classes(manifests))
            network = build_network(self.quality.table, self.hp.width)
            self.network = network.to(memory_format=torch.channels_last)  # a quarter faster

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> logits [B, classes, H, W]."""
        resize = nn.functional.interpolate
        pixels = resize(to_signed(image), scale_factor=ENLARGE, mode="bilinear")
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        logits = self.network(pixel_values=pixels).logits
        return resize(logits.float(), image.shape[-2:], mode="bilinear")

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss over the pixels whose category is known."""
        classes = paint_classes(batch, self.quality.table)
        loss = balanced_loss(self(batch.image), classes, batch.labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count predicted against true classes, where a pixel has one."""
        classes = paint_classes(batch, self.quality.table)
        names = [self.quality.table.names] * len(batch)
        labels = self(batch.image).argmax(1) + 1
        self.quality.update(labels, names, classes.clamp(min=-1) + 1, names, classes < 0)

    def on_validation_epoch_end(self) -> None:
        """Class mIoU, mAcc and pixel accuracy over all pictures and ranks."""
        for name, value in self.quality.compute().items():
            self.log(f"val/{name}", value, prog_bar=True, rank_zero_only=True)
        self.quality.reset()

    def save_parts(self, folder: Path) -> str:
        """Network and image processor; the folder loads without this package."""
        self.network.config._name_or_path = ""
        self.network.save_pretrained(folder)
        build_processor(self.data.tasks.resolution_px).save_pretrained(folder)
        return f"the judge of {len(self.quality.table)} classes"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return cycle_rate(self, self.hp.learning_rate, self.hp.total_steps, 0.1)
