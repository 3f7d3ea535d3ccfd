"""The small autoencoder: a stock ``AutoencoderKL`` trained on pictures and colormaps alike.

In: the joint model's own batches. Out: ``unigs/assets/autoencoder``, which ships with the package
and lets the quickstart and the benchmark run without a download. Not needed for Stable Diffusion.
"""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from unigs.codec import Palette, encode_colormap
from unigs.noise import key_generators
from unigs.recipes.maker import Maker
from unigs.records import Batch
from unigs.systems.joint.base import load_vae
from unigs.systems.joint.presets import vae_config
from unigs.systems.pixels import to_signed
from unigs.systems.system import cycle_rate


def edge_loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of horizontal and vertical differences; keeps borders sharp."""
    down = output.diff(dim=-2) - target.diff(dim=-2)
    across = output.diff(dim=-1) - target.diff(dim=-1)
    return down.abs().mean() + across.abs().mean()


class Autoencoder(Maker):
    """Train the preset ``tiny`` of ``AutoencoderKL``.

    Args:
        learning_rate: of AdamW, after a short warm-up; falls to 0 by a cosine.
        total_steps: optimiser steps over which it falls.
        kl_weight: of the posterior's divergence from a unit normal.
        edge_weight: of the loss on differences between neighbouring pixels.
        palette: that paints the colormaps.
        start_from: folder of an autoencoder to go on from; None starts from random weights.
        freeze_encoder: train the decoder alone, so that the latents, and whatever was trained on
            them, stay valid.
        latent_noise: largest standard deviation, in units of the latents' own, of noise on what
            the decoder sees; a denoiser's latents are not exact either.
        out: folder to save the trained autoencoder to, half precision.
    """

    PARTS = ("config.json", "diffusion_pytorch_model.safetensors")

    def __init__(
        self,
        learning_rate: float = 1e-3,
        total_steps: int = 4000,
        kl_weight: float = 1e-6,
        edge_weight: float = 0.5,
        palette: Palette = Palette(),
        start_from: str | None = None,
        freeze_encoder: bool = False,
        latent_noise: float = 0.0,
        out: str = "runs/autoencoder/autoencoder",
    ) -> None:
        super().__init__()
        self.palette = palette
        self.max_painted = palette.capacity
        self.keep_options(
            learning_rate=learning_rate, total_steps=total_steps, kl_weight=kl_weight,
            edge_weight=edge_weight, palette=palette, start_from=start_from,
            freeze_encoder=freeze_encoder, latent_noise=latent_noise, out=out,
        )  # fmt: skip
        self.vae = load_vae(start_from) if start_from else AutoencoderKL(**vae_config("tiny"))
        if freeze_encoder:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Absolute error plus edges plus KL, on pictures and colormaps in equal parts."""
        target, posterior, output = self._pass(batch, sample=True)
        loss = (output - target).abs().mean() + self.hp.edge_weight * edge_loss(output, target)
        loss = loss + self.hp.kl_weight * posterior.kl().mean()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Root mean squared error in units of 0..255."""
        target, _, output = self._pass(batch, sample=False)
        picture, colormap = ((output - target) * 127.5).square().chunk(2)
        self.log("val/picture_rmse", picture.mean().sqrt(), batch_size=len(batch))
        self.log("val/colormap_rmse", colormap.mean().sqrt(), batch_size=len(batch))

    def _encode(self, batch: Batch):
        colormap = encode_colormap(batch.labels, self.palette, seeds=batch.index.tolist())
        target = to_signed(torch.cat([batch.image, colormap]))  # [2B, 3, H, W]
        return target, self.vae.encode(target).latent_dist

    def _pass(self, batch: Batch, sample: bool):
        target, posterior = self._encode(batch)
        latent = self._sample(batch, posterior) if sample else posterior.mode()
        return target, posterior, self.vae.decode(latent).sample

    def _sample(self, batch: Batch, posterior) -> torch.Tensor:
        """A draw of the posterior, noisy where that is asked for, keyed by seed and index."""
        indices = batch.index.tolist()
        keyed = [
            one
            for purpose in ("picture", "colormap")
            for one in key_generators(batch.seed, indices, purpose)
        ]
        latent = posterior.sample(keyed)
        if not self.hp.latent_noise:
            return latent
        share = torch.stack([torch.rand(1, 1, 1, generator=one) for one in keyed])
        noise = torch.stack([torch.randn(latent.shape[1:], generator=one) for one in keyed])
        level = self.hp.latent_noise * latent.detach().std()
        return latent + level * (share * noise).to(latent)

    def save_parts(self, folder: Path) -> str:
        """The network at half precision, with its scale."""
        scale = self.vae.config.scaling_factor
        if not self.hp.freeze_encoder:
            scale = self.measure_scale()
        self.vae.register_to_config(scaling_factor=scale, _name_or_path="")
        deepcopy(self.vae).half().save_pretrained(folder)
        return f"the autoencoder, scale {scale:.4f},"

    @torch.no_grad()
    def measure_scale(self) -> float:
        """What gives latents of the validation set a unit spread, as Stable Diffusion's have.

        Of the weights as they are at the end: a last validation may be older, or cut off.
        """
        spreads = []
        for batch in self.trainer.datamodule.val_dataloader():  # type: ignore[attr-defined]
            _, posterior = self._encode(batch)
            spreads.append(float(posterior.mode().std()))
        return len(spreads) / sum(spreads)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        return cycle_rate(self, self.hp.learning_rate, self.hp.total_steps, 0.05)
