"""The small posterior of GSS: a stock ``VQModel`` trained on maskiges alone.

In: batches of any task, of whose label maps only the shapes are used. Out: a folder that
``systems.gss`` takes as ``posterior``. It sees each entity in the colour of a random class, so that
all colours meet; colours of another palette it does not know.

An autoencoder first learns colours with its latents as they are; then the codebook begins with
latents that it has made, and all is quantised (delayed quantisation: Lancucki et al.,
arXiv 2005.08520). All draws are keyed, and all ranks move the same codes onto the same latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import VQModel
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unigs.codec.maskige import paint_maskige, read_maskige
from unigs.noise import key_generators
from unigs.recipes.maker import Maker
from unigs.records import Batch
from unigs.systems.gss.painting import Colours, choose_painting
from unigs.systems.pixels import resize_labels, to_signed, to_uint8
from unigs.systems.system import cycle_rate
from unigs.tasks import list_classes

CODES, CHANNELS, LATENT = 512, (16, 32, 64), 16
"""Of the codebook; of the network, whose two halvings make blocks of 4 x 4 pixels; of a code."""

TEMPERATURE = 0.1
"""Squared distance, of pixels in -1..1, at which a colour is e times less likely to be read."""

READING = 0.25
"""Weight of how a maskige is read, beside its squared error of 1."""


def build_vq() -> VQModel:
    """Random weights: 0.7 M parameters, f4, without attention, so that any size looks the same."""
    blocks = len(CHANNELS)
    return VQModel(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=CHANNELS,
        latent_channels=LATENT,
        num_vq_embeddings=CODES,
        norm_num_groups=8,
        mid_block_add_attention=False,
    )


@torch.no_grad()
def revive_codes(codebook: Tensor, used: Tensor, cells: Tensor, generator: torch.Generator) -> None:
    """Move codes that nothing was nearest to onto random latents, in place.

    A code that is nowhere nearest gets no gradient and would stay so for good.

    Args:
        codebook: float [N, C].
        used: bool [N].
        cells: latents, float [M, C].
        generator: of the CPU; it draws as often whatever is used.
    """
    drawn = torch.randint(len(cells), (len(codebook),), generator=generator)
    drawn = cells[drawn.to(cells.device)].to(codebook)
    codebook.copy_(torch.where(used[:, None], codebook, drawn))


def paint_randomly(
    labels: Tensor, palette: Tensor, generators: Sequence[torch.Generator]
) -> Tensor:
    """Each label of each picture in the colour of a random class: [B, H, W] -> uint8 maskige.

    Args:
        labels: int [B, H, W].
        palette: uint8 [K, 3].
        generators: one of each picture, of the CPU.
    """
    counts = [highest + 1 for highest in labels.flatten(1).amax(1).tolist()]
    drawn = [
        torch.randint(len(palette), (count,), generator=generator)
        for count, generator in zip(counts, generators, strict=True)
    ]
    classes = pad_sequence(drawn, batch_first=True).to(labels.device)  # [B, N]
    return paint_maskige(classes.gather(1, labels.flatten(1).long()).view_as(labels), palette)


def crop_randomly(pixels: Tensor, side: int, generator: torch.Generator) -> Tensor:
    """The same random square of all pictures [B, C, H, W], or all of a side that is shorter."""
    rows, columns = (
        slice(start := int(torch.randint(room + 1, (), generator=generator)), start + side)
        for room in (max(0, length - side) for length in pixels.shape[-2:])
    )
    return pixels[..., rows, columns]


def measure_reading(pixels: Tensor, classes: Tensor, palette: Tensor) -> Tensor:
    """Cross entropy of reading each pixel's nearest colour, softly: a scalar.

    The error of a pixel says how far it is from its colour; this says whether another is nearer,
    which is all that reading a maskige asks.

    Args:
        pixels: float [B, 3, H, W], in -1..1 when right.
        classes: int64 [B, H, W] below K, the colours that were painted.
        palette: uint8 [K, 3].
    """
    colours = to_signed(palette).to(pixels.device)  # [K, 3]
    away = (pixels[:, None] - colours[..., None, None]).square().sum(2)  # [B, K, H, W]
    return F.cross_entropy(-away / TEMPERATURE, classes)


class VQ(Maker):
    """Train a small ``VQModel``.

    Args:
        learning_rate: of AdamW, after a short warm-up; falls to 0 by a cosine.
        total_steps: optimiser steps over which it falls.
        colours: the palette that GSS will paint by: ``farthest`` for FF, ``random`` for FF-R.
        enlarge: maskiges are larger than the pictures by this, as in GSS.
        crop_px: side of the part of each maskige that is learnt at a step; the network sees no
            further than some blocks, so parts teach it as much as wholes.
        quantize_after: steps before the first that quantises.
        revive_every: steps after which codes that were not used since are revived; not in the
            last quarter, so that the codebook settles.
        out: folder to save to, half precision.
    """

    PARTS = ("config.json", "diffusion_pytorch_model.safetensors")

    used: Tensor
    """Codes that were nearest to something since the last revival, on any rank; bool [CODES]."""

    def __init__(
        self,
        learning_rate: float = 2e-3,
        total_steps: int = 3000,
        colours: Colours = "farthest",
        enlarge: int = 2,
        crop_px: int = 64,
        quantize_after: int = 600,
        revive_every: int = 50,
        out: str = "runs/vq/vq",
    ) -> None:
        super().__init__()
        self.keep_options(
            learning_rate=learning_rate, total_steps=total_steps, colours=colours,
            enlarge=enlarge, crop_px=crop_px, quantize_after=quantize_after,
            revive_every=revive_every, out=out,
        )  # fmt: skip
        self.vq: Any = build_vq()
        self.vq.quantize.legacy = False  # else its beta falls on the wrong of its two terms
        self.palette: Any = None
        self.register_buffer("used", torch.zeros(CODES, dtype=torch.bool))
        self._seen: Tensor | None = None

    def setup(self, stage: str) -> None:
        """Choose the colours that GSS will choose for these data.

        Raises:
            UnigsError: a precision or a strategy that no learner takes.
        """
        super().setup(stage)
        self._seen = None
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        table = list_classes(data.select_sources(data.train_split)[0])
        self.palette = choose_painting(table, self.hp.colours).palette

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Squared error of the maskige, how it is read, and the codebook's own loss."""
        maskige = crop_randomly(self.paint(batch), self.hp.crop_px, self.key_step(batch, "crop"))
        target, classes = to_signed(maskige), read_maskige(maskige, self.palette)
        latents = self.vq.encode(target).latents
        if self._seen is None and self.is_reviving():
            self.revive(latents, self.key_step(batch, "revive"))
        latents, codebook_loss = self.quantize(latents)
        output = self.vq.decode(latents, force_not_quantize=True).sample
        error, reading = F.mse_loss(output, target), measure_reading(output, classes, self.palette)
        for name, value in (("error", error), ("reading", reading)):
            self.log(f"train/{name}", value.detach(), prog_bar=True, batch_size=len(batch))
        return error + READING * reading + codebook_loss

    def key_step(self, batch: Batch, purpose: str) -> torch.Generator:
        """What all batches and ranks of an optimiser step draw by alike."""
        return key_generators(batch.seed, [self.global_step], purpose)[0]

    def paint(self, batch: Batch) -> Tensor:
        """Enlarged maskiges of the batch's shapes, uint8 [B, 3, H e, W e]."""
        rows, columns = batch.labels.shape[-2:]
        size = (rows * self.hp.enlarge, columns * self.hp.enlarge)
        keyed = key_generators(batch.seed, batch.index.tolist(), "colours")
        return paint_randomly(resize_labels(batch.labels, size), self.palette, keyed)

    def quantize(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """float [B, C, h, w] as nearest codes, and the codebook's loss; at first neither."""
        if self.global_step < self.hp.quantize_after:
            return latents, latents.new_zeros(())
        quantized, codebook_loss, (_, _, codes) = self.vq.quantize(latents)
        if self._seen is None:
            self._seen = torch.zeros_like(self.used)
        self._seen[codes] = True
        return quantized, codebook_loss

    def is_reviving(self) -> bool:
        """Whether this is the first step that quantises, or one of those that revive codes."""
        since, settles = self.global_step - self.hp.quantize_after, 0.75 * self.hp.total_steps
        return since >= 0 and since % self.hp.revive_every == 0 and self.global_step <= settles

    def revive(self, latents: Tensor, generator: torch.Generator) -> None:
        """Log the share of used codes, and move the others onto latents of all ranks.

        ``used`` changes only at the end of the step, so that a step that is begun again, from a
        checkpoint inside of it, moves the same codes to the same places.
        """
        self.log("train/used", self.used.float().mean(), batch_size=len(latents))
        cells: Any = latents.detach().movedim(1, -1).flatten(0, 2)  # [M, C]
        cells = self.all_gather(cells)  # [M, C], of many ranks [R, M, C]
        codebook = self.vq.quantize.embedding.weight
        revive_codes(codebook, self.used, cells.flatten(0, -2), generator)

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Then note the codes that any rank used in this step."""
        super().optimizer_step(*args, **options)
        if self._seen is None:
            return
        seen = self.trainer.strategy.reduce(self._seen.float(), reduce_op="max") > 0
        self.used.copy_(seen if self.is_reviving() else self.used | seen)
        self._seen = None

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Share of pixels whose nearest colour is the painted one."""
        maskige = self.paint(batch)
        found = read_maskige(to_uint8(self.vq(to_signed(maskige)).sample), self.palette)
        right = found == read_maskige(maskige, self.palette)
        self.log("val/right", right.float().mean(), prog_bar=True, batch_size=len(batch))

    def save_parts(self, folder: Path) -> str:
        """The network at half precision."""
        self.vq.register_to_config(_name_or_path="")
        deepcopy(self.vq).half().save_pretrained(folder)
        return "the posterior"

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return cycle_rate(self, self.hp.learning_rate, self.hp.total_steps, 0.05)
