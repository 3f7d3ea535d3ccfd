"""The first stage of GSS where it learns: how classes are painted, read, or both (Table 1).

In: batches of entity segmentation, whose pictures are not looked at. Out: a folder that
``systems.GSS`` takes as ``start_from`` of the same variant. The posterior between painting and
reading stays as it is.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from unigs.metrics.classes import SemanticQuality
from unigs.noise import draw_gumbel
from unigs.recipes.maker import Maker
from unigs.records import Batch
from unigs.systems.gss.coder import Coder, resize_maskige, save_coder
from unigs.systems.gss.module import measure_pixels
from unigs.systems.gss.painting import choose_painting, keep_colours, number_pixels
from unigs.systems.gss.posterior import load_posterior
from unigs.systems.gss.readers import ConvReader
from unigs.systems.pixels import resize_labels, to_signed, to_uint8
from unigs.systems.system import cycle_rate
from unigs.tasks import UNKNOWN, list_classes
from unigs.weights import check_target

SHARPNESS = 8.0
"""Logits of the nearest colour are minus so many times its squared distance, on -1..1."""


class Maskige(Maker):
    """Learn to paint and to read class maps through a frozen posterior.

    Args:
        posterior: folder of a diffusers ``VQModel``, or of DALL-E's networks.
        variant: FT learns a reader of three convolutions; TF the colours, read by the nearest; TT
            both. Colours begin as those of FF; through them the codes are drawn by a hard Gumbel
            softmax.
        learning_rate: of AdamW, after a short warm-up; falls to 0 by a cosine.
        total_steps: optimiser steps over which it falls.
        enlarge: maskiges are larger than the pictures by this, as in GSS.
        temperature: of the Gumbel softmax.
        out: folder to save to.
    """

    def __init__(
        self,
        posterior: str,
        variant: Literal["FT", "TF", "TT"] = "FT",
        learning_rate: float = 2e-3,
        total_steps: int = 2000,
        enlarge: int = 2,
        temperature: float = 1.0,
        out: str = "runs/maskige/maskige",
    ) -> None:
        super().__init__()
        self.keep_options(
            posterior=posterior, variant=variant, learning_rate=learning_rate,
            total_steps=total_steps, enlarge=enlarge, temperature=temperature, out=out,
        )  # fmt: skip
        self.strict_loading = False  # the posterior is not in checkpoints
        self.trained: Any = None
        self.posterior: Any = None
        self.quality: Any = None

    def configure_model(self) -> None:
        """Load the posterior, and build what is trained for the classes of the data; once."""
        if self.trained is not None:
            return
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        table = list_classes(data.select_sources(data.train_split)[0])
        self.quality = SemanticQuality(table)
        self.posterior = load_posterior(self.hp.posterior)
        colours = to_signed(choose_painting(table, "farthest").palette)
        paints, reads = (letter == "T" for letter in self.hp.variant)
        palette = nn.Embedding.from_pretrained(colours, freeze=not paints)
        self.trained = nn.ModuleDict({"palette": palette})
        if reads:
            self.trained["reader"] = ConvReader(len(colours))

    @property
    def palette(self) -> nn.Embedding:
        """The colours, -1..1, [K + 1, 3]."""
        return self.trained["palette"]

    @property
    def reader(self) -> ConvReader | None:
        """What learns to read, if something does."""
        return dict(self.trained.items()).get("reader")

    def make_coder(self) -> Coder:
        """What is learnt so far, colours rounded to levels of 0..255."""
        colours = to_uint8(self.palette.weight.detach())
        return Coder(self.posterior, keep_colours(self.quality.table, colours), self.reader)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Cross entropy of the classes that are read, over known pixels."""
        classes = number_pixels(batch, self.quality.table)
        decoded = resize_maskige(self.draw(batch, self.fill(classes)), classes.shape[-2:])
        loss = measure_pixels(self.read(decoded), classes).mean()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def fill(self, classes: Tensor) -> Tensor:
        """int64 [B, H, W] without ``UNKNOWN``: such pixels are painted as background."""
        return classes.masked_fill(classes == UNKNOWN, len(self.quality.table))

    def draw(self, batch: Batch, classes: Tensor) -> Tensor:
        """int64 [B, H, W] -> the decoded maskige, float -1..1 [B, 3, H e, W e].

        Codes are the best ones if nothing is to be learnt through them, and else drawn, by noise
        that is the batch's own.
        """
        size = [side * self.hp.enlarge for side in classes.shape[-2:]]
        maskige = self.palette(resize_labels(classes, size)).movedim(-1, 1)
        if maskige.requires_grad:
            stride = self.posterior.stride
            shape = (self.posterior.size, size[0] // stride, size[1] // stride)
            gumbel = draw_gumbel(batch.seed, batch.index.tolist(), shape, "codes")
            return self.posterior.pass_through(maskige, gumbel.to(maskige), self.hp.temperature)
        return to_signed(self.posterior.decode(self.posterior.codes(to_uint8(maskige))))

    def read(self, maskige: Tensor) -> Tensor:
        """float -1..1 [B, 3, H, W] -> logits of the classes, float [B, K + 1, H, W]."""
        if self.reader is not None:
            return self.reader(maskige)
        away = maskige[:, None] - self.palette.weight[:, :, None, None]  # [B, K + 1, 3, H, W]
        return -SHARPNESS * away.square().sum(2)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Colours stay in range: inside of the step, before anybody saves or averages them."""
        super().optimizer_step(*args, **options)
        with torch.no_grad():
            self.palette.weight.clamp_(-1, 1)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Count classes there and back against true ones."""
        table = self.quality.table
        classes = number_pixels(batch, table)
        found = self.make_coder().reconstruct(self.fill(classes), self.hp.enlarge)
        names = [table.names] * len(batch)
        labels, true = ((maps + 1) % (len(table) + 1) for maps in (found, self.fill(classes)))
        self.quality.update(labels, names, true, names, classes == UNKNOWN)

    def on_validation_epoch_end(self) -> None:
        """Class mIoU, mAcc and pixel accuracy of the reconstruction."""
        for name, value in self.quality.compute().items():
            self.log(f"val/{name}", value, prog_bar=True, rank_zero_only=True)
        self.quality.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the posterior out: it never changes."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in weights.items() if k.startswith("trained.")}

    def check_out(self) -> None:
        """Refuse to replace anything but a model's folder.

        Raises:
            UnigsError: something else lies there.
        """
        check_target(Path(self.hp.out))

    def write_out(self) -> None:
        """Save painting, posterior and reader."""
        save_coder(self.make_coder().eval(), self.hp.variant, self.hp.out)
        print(f"saved the maskige of {self.hp.variant} to {self.hp.out}")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return cycle_rate(self.trained, self.hp.learning_rate, self.hp.total_steps, 0.05)
