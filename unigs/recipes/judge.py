"""The benchmark's judge: a stock segmentation network trained on the benchmark's own pictures.

In: batches of the ``entity`` task. Out: a folder in transformers' layout, from which
``metrics.segmenter.load_segmenter`` reads it for ``unigs evaluate --segmenter``. It judges pictures
of the data it was trained on and no others; what it makes of real ones is its ceiling.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix
from transformers import (
    ResNetConfig,
    SegformerImageProcessorPil,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from unigs.data import UniGSData, list_names
from unigs.records import Batch, UnigsError
from unigs.shards.manifest import Manifest
from unigs.systems.balance import balance_sizes
from unigs.systems.pixels import to_signed
from unigs.systems.system import Learner
from unigs.tasks import speak_category

UNKNOWN = 255
"""The class of pixels whose category is not known; the loss and the figures leave them out."""

ENLARGE = 2
"""Pictures are enlarged by this: ResNet's first stage sees a quarter, too coarse at 64 px."""


def paint_classes(batch: Batch, categories: Mapping[str, int]) -> torch.Tensor:
    """The class of every pixel, int64 [B, H, W]; ``UNKNOWN`` where none of ``categories`` is known.

    Args:
        batch: its names are looked up.
        categories: spoken name -> class.
    """
    painted = [
        torch.tensor([UNKNOWN, *(categories.get(name, UNKNOWN) for name in names)])
        .to(labels.device)
        .take(labels.long())
        for names, labels in zip(batch.names, batch.labels)
    ]
    return torch.stack(painted).masked_fill(batch.ignored, UNKNOWN)


def balanced_loss(
    logits: torch.Tensor, classes: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross entropy in which an entity weighs by the root of its area.

    Surfaces cover five times what shapes do and are learnt within minutes by their texture; with
    equal pixels the shapes stay where they began. The root is what served the joint model best.

    Args:
        logits: float [B, C, H, W].
        classes: int64 [B, H, W], below C or ``UNKNOWN``.
        labels: int [B, H, W], the entities.
    """
    weight = balance_sizes(labels, (labels.shape[-2], labels.shape[-1]), 0.5)[:, 0]
    weight = weight * (classes != UNKNOWN)
    error = nn.functional.cross_entropy(logits, classes, ignore_index=UNKNOWN, reduction="none")
    return (weight * error).sum() / weight.sum()


def rate_classes(confusion: torch.Tensor) -> dict[str, torch.Tensor]:
    """Pixel accuracy, and IoU averaged over the classes that occur, of counts [true, predicted]."""
    right = confusion.diag().double()
    union = confusion.sum(0) + confusion.sum(1) - right
    return {
        "pixel_accuracy": right.sum() / confusion.sum(),
        "class_miou": (right / union)[union > 0].mean(),
    }


def list_stuff(manifests: Mapping[str, Manifest]) -> set[str]:
    """Spoken names that some data set calls stuff and none calls things."""
    kinds: dict[str, set[bool | None]] = {}
    for row in (row for manifest in manifests.values() for row in manifest.categories):
        kinds.setdefault(speak_category(row["name"]), set()).add(row["is_thing"])
    return {name for name, seen in kinds.items() if False in seen and True not in seen}


def build_network(
    categories: Mapping[str, int], stuff: Collection[str], width: int
) -> UperNetForSemanticSegmentation:
    """UperNet over a ResNet-18 of another width, random weights.

    Args:
        categories: spoken name -> class.
        stuff: names of which a picture has one segment each, however many areas it has.
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
        id2label={number: name for name, number in categories.items()},
        label2id=dict(categories),
        label_ids_to_fuse=[number for name, number in categories.items() if name in stuff],
    )
    return UperNetForSemanticSegmentation(config)


def build_processor(side_px: int) -> SegformerImageProcessorPil:
    """UperNet's image processor, as transformers pairs them, for what ``Judge.forward`` does."""
    side = ENLARGE * side_px
    half = [0.5, 0.5, 0.5]
    return SegformerImageProcessorPil(
        size={"height": side, "width": side}, image_mean=half, image_std=half
    )


class Judge(Learner):
    """Train UperNet over a ResNet from random weights.

    Args:
        learning_rate: the highest of AdamW's, after a tenth of the steps; falls to 0 by a cosine.
        total_steps: optimiser steps over which it falls.
        width: channels of the first stage; see :func:`build_network`.
        out: folder to save the trained network to.
    """

    def __init__(
        self,
        learning_rate: float = 3e-3,
        total_steps: int = 4000,
        width: int = 32,
        out: str = "runs/benchmark/judge",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.categories: dict[str, int] = {}
        self.network: Any = None
        self.confusion: Any = None

    @property
    def hp(self) -> Any:
        """The constructor's arguments."""
        return self.hparams

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
            self.categories = {name: place for place, name in enumerate(list_names(manifests))}
            network = build_network(self.categories, list_stuff(manifests), self.hp.width)
            self.network = network.to(memory_format=torch.channels_last)  # a quarter faster
            self.confusion = MulticlassConfusionMatrix(len(self.categories), ignore_index=UNKNOWN)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 [B, 3, H, W] -> logits [B, classes, H, W]."""
        resize = nn.functional.interpolate
        pixels = resize(to_signed(image), scale_factor=ENLARGE, mode="bilinear")
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        logits = self.network(pixel_values=pixels).logits
        return resize(logits.float(), image.shape[-2:], mode="bilinear")

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """The loss over the pixels whose category is known."""
        classes = paint_classes(batch, self.categories)
        loss = balanced_loss(self(batch.image), classes, batch.labels)
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count predicted against true classes."""
        self.confusion.update(self(batch.image).argmax(1), paint_classes(batch, self.categories))

    def on_validation_epoch_end(self) -> None:
        """Pixel accuracy and class mIoU over all pictures and ranks."""
        for name, value in rate_classes(self.confusion.compute()).items():
            self.log(f"val/{name}", value, prog_bar=True, rank_zero_only=True)
        self.confusion.reset()

    def on_train_end(self) -> None:
        """Save network and image processor; the folder loads without this package."""
        if self.global_rank == 0:
            self.network.config._name_or_path = ""
            self.network.save_pretrained(self.hp.out)
            build_processor(self.data.tasks.resolution_px).save_pretrained(self.hp.out)
            print(f"saved the judge of {len(self.categories)} classes to {self.hp.out}")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hp.learning_rate)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, self.hp.learning_rate, self.hp.total_steps, pct_start=0.1
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
