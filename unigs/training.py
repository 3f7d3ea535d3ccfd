"""The ``LightningModule``: the objective in ``training_step``; sampling is the callbacks' business.

In: ``records.Batch`` es. Out: losses, checkpoints that hold the trained UNet and nothing frozen,
and, on request, a ``UniGSPipeline``. What a step does: paint and encode the batch once, add noise
keyed by (seed, index), denoise both streams, weigh the two errors (Eq. 2).
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from diffusers.training_utils import cast_training_params
from lightning.pytorch.utilities.types import OptimizerLRScheduler

from unigs.callbacks import read_ema
from unigs.codec.palette import Kind, Palette
from unigs.diffusion.base import load_components, resolve_prediction_type
from unigs.diffusion.denoiser import denoise, widen_unet
from unigs.diffusion.encoders import LATENT_CHANNELS, encode_batch
from unigs.diffusion.objective import (
    balance_sizes,
    branch_losses,
    draw_noise,
    draw_timesteps,
    given_streams,
    known_share,
    regression_target,
    shift_timesteps,
    snr_weights,
)
from unigs.learner import Learner
from unigs.pipeline import GivenStream, UniGSPipeline
from unigs.records import TASKS, Batch, UnigsError
from unigs.runs import Rule


class UniGS(Learner):
    """The joint one-to-many model.

    Args:
        base: diffusers folder, single file or hub id whose UNet is widened to 13 channels in and 8
            out; see ``unigs base --help`` for folders of random weights.
        revision: hub revision to pin.
        prediction_type: what the network is asked for: epsilon, v_prediction or sample; None does
            as the base was trained.
        learning_rate: of AdamW, after warm-up.
        warmup_steps: optimiser steps over which the rate rises linearly from 0.
        decay_steps: optimiser steps after which a cosine has brought the rate to 0; None: constant.
        weight_decay: of AdamW.
        betas: of AdamW.
        image_weight: of the image branch's loss.
        colormap_weight: of the colormap branch's loss.
        min_snr_gamma: cap of the signal-to-noise weighting; None weighs all timesteps alike.
        snr_floor: least weight under it, in units of the sample's error; see
            ``objective.snr_weights``. At 0 tasks that are trained near pure noise count for little.
        mask_timestep_shift: moves the timesteps of the tasks that only find masks towards noise,
            see ``objective.shift_timesteps``; 1 leaves them uniform, as the paper's are.
        size_balance: 0 weighs the pixels of a picture alike (paper), 1 its entities; see
            ``objective.balance_sizes``.
        given_stream: whether the pipeline denoises a stream that equals the context like the other
            (paper) or clamps it to its re-noised truth. In training it is that truth either way.
        given_weight: of the loss of a given stream, beside its branch's weight (paper: 1). At 0 it
            is seen and not learnt, which is enough where it is clamped.
        sharpen: the pipeline decodes colormaps with the outlines of the given picture, see
            ``codec.guided_filter``; no part of the training.
        palette: colour by place (paper), by place with neighbours alike (learnt sooner, few cells),
            by place and size, or at random (ablation of Table 7); see ``codec.Palette``.
        palette_cells: cells per side of the palette; linked to the data's.
        gradient_checkpointing: recompute activations in the backward pass; about 30 % slower, far
            less memory.
        compile: ``torch.compile`` the UNet.
        channels_last: NHWC memory format for UNet and VAE, faster for convolutions.
        towers_dtype: precision of the frozen VAE and text encoder.
        seed: with a sample's index it decides noise and timestep; linked to the data's.
    """

    ON_RESUME: ClassVar[dict[str, Rule]] = {
        **dict.fromkeys(("model.base", "model.revision", "model.towers_dtype"), "warned"),
        **dict.fromkeys(("model.image_weight", "model.colormap_weight"), "warned"),
        **dict.fromkeys(("model.min_snr_gamma", "model.snr_floor"), "warned"),
        **dict.fromkeys(("model.mask_timestep_shift", "model.size_balance"), "warned"),
        "model.given_weight": "warned",
        **dict.fromkeys(("model.learning_rate", "model.warmup_steps"), "taken"),
        **dict.fromkeys(("model.decay_steps", "model.weight_decay", "model.betas"), "taken"),
        **dict.fromkeys(("model.given_stream", "model.sharpen"), "taken"),
        **dict.fromkeys(("model.gradient_checkpointing", "model.compile"), "taken"),
        "model.channels_last": "taken",
    }

    def __init__(
        self,
        base: str,
        revision: str | None = None,
        prediction_type: Literal["epsilon", "v_prediction", "sample"] | None = None,
        learning_rate: float = 1e-5,
        warmup_steps: int = 1000,
        decay_steps: int | None = None,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.999),
        image_weight: float = 1.0,
        colormap_weight: float = 1.0,
        min_snr_gamma: float | None = None,
        snr_floor: float = 0.0,
        mask_timestep_shift: float = 1.0,
        size_balance: float = 0.0,
        given_stream: GivenStream = "denoise",
        given_weight: float = 1.0,
        sharpen: bool = False,
        palette: Kind = "location",
        palette_cells: int = 11,
        gradient_checkpointing: bool = False,
        compile: bool = False,
        channels_last: bool = False,
        towers_dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.strict_loading = False  # frozen towers are not in checkpoints; see on_load_checkpoint
        self.unet: Any = None
        self.towers: Any = None
        self.scheduler: Any = None

    @property
    def hp(self) -> Any:
        """The constructor's arguments."""
        return self.hparams

    def configure_model(self) -> None:
        """Load the base and widen its UNet; once, when the trainer or a checkpoint asks for it."""
        if self.unet is not None:
            return
        hp = self.hp
        components = load_components(hp.base, hp.revision)
        self.unet = widen_unet(components.unet)
        self.towers = components.towers.to(getattr(torch, hp.towers_dtype))
        self.scheduler = components.scheduler
        hp.prediction_type = resolve_prediction_type(hp.prediction_type, self.scheduler, hp.base)
        self.scheduler.register_to_config(prediction_type=hp.prediction_type)
        cast_training_params(self.unet, torch.float32)
        if hp.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if hp.channels_last:
            self.unet.to(memory_format=torch.channels_last)
            self.towers.vae.to(memory_format=torch.channels_last)
        if hp.compile:
            self.unet.compile()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Eq. 2 for one batch of mixed tasks; logs the loss by branch and by task."""
        image, colormap = self.losses(batch)  # [B] each
        hp = self.hp
        loss = (hp.image_weight * image + hp.colormap_weight * colormap).mean()
        size, rows = len(batch), batch.task.tolist()  # one wait for the device, not one per log
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=size)
        for name, branch in (("image", image.detach()), ("colormap", colormap.detach())):
            self.log(f"train/{name}", branch.mean(), batch_size=size)
            for row in sorted(set(rows)):
                mean = branch[batch.task == row].mean()
                self.log(f"train/{TASKS[row]}/{name}", mean, batch_size=rows.count(row))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The same losses on the fixed validation set, averaged over the ranks."""
        image, colormap = self.losses(batch)
        for name, branch in (("image", image), ("colormap", colormap)):
            self.log(f"val/{name}", branch.mean(), batch_size=len(batch), sync_dist=True)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing by itself: ``callbacks.Evaluation`` does the whole protocol."""

    def losses(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted mean squared errors of the image and the colormap stream, float32 [B] each."""
        hp = self.hp
        indices = batch.index.tolist()
        palette = {"palette": Palette(hp.palette, hp.palette_cells), "seeds": indices}
        latents = encode_batch(self.towers, batch, palette)
        clean = latents.streams  # [B, 8, h, w]
        noise = draw_noise(hp.seed, indices, clean.shape[1:], "noise").to(clean.device)
        steps = self.scheduler.config.num_train_timesteps
        timesteps = draw_timesteps(hp.seed, indices, steps).to(clean.device)
        given = given_streams(latents.task)[:, ::LATENT_CHANNELS, 0, 0]  # [B, 2]
        shifted = shift_timesteps(timesteps, steps, hp.mask_timestep_shift)
        timesteps = torch.where(given[:, 0], shifted, timesteps)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        prediction = denoise(self.unet, noisy, timesteps, latents)
        target = regression_target(self.scheduler, clean, noise, timesteps)
        grid = (clean.shape[-2], clean.shape[-1])
        known = known_share(batch.ignored, grid)  # [B, 1, h, w]
        balance = (batch.labels, grid, hp.size_balance, batch.coarse_mask)
        weight = balance_sizes(*balance) if hp.size_balance else 1.0
        losses = branch_losses(prediction, target, known, weight)
        share = torch.where(given, hp.given_weight, 1.0)  # [B, 2]
        losses = losses[0] * share[:, 0], losses[1] * share[:, 1]
        if hp.min_snr_gamma is not None:
            weights = snr_weights(self.scheduler, timesteps, hp.min_snr_gamma, hp.snr_floor)
            losses = losses[0] * weights, losses[1] * weights
        return losses

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW on the UNet, linear warm-up, then constant or cosine, by optimiser step."""
        hp = self.hp
        optimizer = torch.optim.AdamW(
            self.unet.parameters(),
            lr=hp.learning_rate,
            betas=tuple(hp.betas),
            weight_decay=hp.weight_decay,
        )

        def rate(step: int) -> float:
            rise = min(1.0, (step + 1) / max(1, hp.warmup_steps))
            if hp.decay_steps is None:
                return rise
            share = min(1.0, step / hp.decay_steps)
            return rise * 0.5 * (1 + float(torch.cos(torch.tensor(share * torch.pi))))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        (group,) = optimizer.param_groups
        self._asked = {name: value for name, value in group.items() if name != "params"}
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_start(self) -> None:
        """Rates, betas and weight decay are the config's, not those a checkpoint remembers."""
        schedule: Any = self.trainer.lr_scheduler_configs[0].scheduler
        (group,), (share,) = schedule.optimizer.param_groups, schedule.lr_lambdas
        rate = self._asked["initial_lr"]
        schedule.base_lrs = [rate]
        group.update(self._asked, lr=rate * share(schedule.last_epoch))

    def make_pipeline(self) -> UniGSPipeline:
        """A pipeline over the live components, without a copy."""
        towers = self.towers
        return UniGSPipeline(
            towers.vae, towers.text_encoder, towers.tokenizer, self.unet, self.scheduler,
            palette_cells=self.hp.palette_cells, palette=self.hp.palette,
            given_stream=self.hp.given_stream, sharpen=self.hp.sharpen,
        )  # fmt: skip

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the frozen towers out: they are named by ``base`` and never change."""
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in weights.items() if k.startswith("unet.")}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another model by name and shape; outside of fit take its average.

        Raises:
            UnigsError: a parameter is missing, unknown, or of another shape.
        """
        self.configure_model()
        mine = {f"unet.{name}": tuple(p.shape) for name, p in self.unet.state_dict().items()}
        theirs = {name: tuple(p.shape) for name, p in checkpoint["state_dict"].items()}
        for name in sorted(mine.keys() | theirs.keys()):
            if mine.get(name) != theirs.get(name):
                raise UnigsError(
                    f"expected {name} of shape {mine.get(name, 'none')} for base "
                    f"{self.hp.base!r}, the checkpoint has {theirs.get(name, 'none')}"
                )
        averaged = read_ema(checkpoint)
        if averaged and self._trainer is not None and self.trainer.state.fn != "fit":
            checkpoint["state_dict"] = {f"unet.{name}": w for name, w in averaged.items()}
