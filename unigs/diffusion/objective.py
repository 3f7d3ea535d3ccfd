"""Noise, targets, weights and loss: Eq. 2 over both streams.

In: clean ``Latents`` and the samples' indices. Out: one loss per sample and branch. Noise and
timestep are functions of (seed, index) alone, so a resumed or re-scaled run sees the same ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from unigs.diffusion.encoders import LATENT_CHANNELS
from unigs.records import TASKS, UnigsError
from unigs.seeds import derive_seed
from unigs.tasks import RECIPES

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def draw_noise(
    seed: int, indices: Sequence[int], shape: Sequence[int], purpose: str
) -> torch.Tensor:
    """Standard normal float32 [B, *shape] on the CPU, one keyed generator per sample."""

    def one(index: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(derive_seed(seed, int(index), purpose))
        return torch.randn(tuple(shape), generator=generator)

    return torch.stack([one(index) for index in indices])


def draw_timesteps(seed: int, indices: Sequence[int], steps: int) -> torch.Tensor:
    """Uniform timesteps int64 [B] in 0..steps-1, keyed like the noise."""
    return torch.tensor([derive_seed(seed, int(i), "timestep") % steps for i in indices])


def shift_timesteps(timesteps: torch.Tensor, steps: int, shift: float) -> torch.Tensor:
    """Move timesteps towards noise: t/T = u becomes shift u / (1 + (shift - 1) u).

    The map of Esser et al. (2024, Sec. 5.3.2). A colormap is flat areas, so it is legible through
    noise that hides a picture: at uniform timesteps most of what a mask task trains on is copying.

    Args:
        timesteps: int64 [B] in 0..steps-1.
        steps: T.
        shift: 1 changes nothing; larger is noisier.
    """
    share = (timesteps + 0.5) / steps
    return (steps * shift * share / (1 + (shift - 1) * share)).long()


def regression_target(scheduler, clean, noise, timesteps) -> torch.Tensor:
    """What the network is asked for, by the scheduler's ``prediction_type``; [B, 8, h, w]."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    if kind == "v_prediction":
        return scheduler.get_velocity(clean, noise, timesteps)
    raise UnigsError(f"expected a prediction type of {PREDICTION_TYPES}, got {kind!r}")


def snr_weights(
    scheduler, timesteps: torch.Tensor, gamma: float, floor: float = 0.0
) -> torch.Tensor:
    """Min-SNR weights [B] (Hang et al. 2023) for the scheduler's prediction type.

    Args:
        scheduler: of the training.
        timesteps: int64 [B].
        gamma: most that the error of a sample's estimate weighs; below it, its ratio of signal to
            noise.
        floor: least that it weighs; 1 is the truncated SNR of Salimans & Ho (2022, Sec. 4).
    """
    alphas = scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alphas / (1 - alphas)
    capped = snr.clamp(min=floor, max=gamma)
    kind = scheduler.config.prediction_type
    return {"epsilon": capped / snr, "v_prediction": capped / (snr + 1), "sample": capped}[kind]


def known_share(ignored: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Part of each latent cell whose colormap is known: bool [B, H, W] -> float [B, 1, h, w]."""
    return 1 - nn.functional.adaptive_avg_pool2d(ignored[:, None].float(), size)


def balance_sizes(
    labels: torch.Tensor,
    size: tuple[int, int],
    power: float,
    coarse_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Weights of the latent cells that favour small entities.

    A pixel weighs as its region's part of the picture to the power of -``power``. At 0 all pixels
    count alike, so a region counts by its area; at 1 all regions of a picture count alike, as
    entities do in mIoU and AP. Each entity is a region, what is left of the coarse mask is one, and
    so is the rest. Without the coarse mask's, a wrong mask would weigh little in a sample whose
    answer is empty and much in one where it is right, so the network would paint when in doubt.

    Args:
        labels: int [B, H, W]; 0 is not painted.
        size: h, w of the latent grid.
        power: 0 or more.
        coarse_mask: bool [B, 1, H, W], True is to be filled or searched; None: everywhere.

    Returns:
        float [B, 1, h, w] of mean 1 in each picture.
    """
    flat = labels.flatten(1).long() + 1
    if coarse_mask is not None:
        flat = flat * (coarse_mask.flatten(1) | (flat > 1))
    area_px = flat.new_zeros(len(flat), int(flat.max()) + 1)
    area_px.scatter_add_(1, flat, torch.ones_like(flat))
    weight = area_px.gather(1, flat).view(labels.shape).float() ** -power
    pooled = nn.functional.adaptive_avg_pool2d(weight[:, None], size)
    return pooled / pooled.mean((1, 2, 3), keepdim=True)


def given_streams(task: torch.Tensor) -> torch.Tensor:
    """Which streams equal the context: bool [B, 8, 1, 1], True over a given stream's channels."""
    given = [RECIPES[TASKS[i]].given for i in task.tolist()]
    flags = torch.tensor([[g == "image", g == "colormap"] for g in given], device=task.device)
    return flags.repeat_interleave(LATENT_CHANNELS, dim=1)[:, :, None, None]


def branch_losses(
    prediction: torch.Tensor,
    target: torch.Tensor,
    known: torch.Tensor,
    weight: torch.Tensor | float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean squared error of each stream (Eq. 2).

    Args:
        prediction, target: float [B, 8, h, w].
        known: float [B, 1, h, w] in 0..1; unknown cells of the colormap count as no error, so a
            sample weighs as much as is known of it.
        weight: float [B, 1, h, w] of both streams' cells, see ``balance_sizes``.

    Returns:
        Image and colormap losses, float32 [B] each.
    """
    error = weight * (prediction.float() - target.float()) ** 2
    image, colormap = error.split(LATENT_CHANNELS, dim=1)
    return image.mean((1, 2, 3)), (colormap * known).mean((1, 2, 3))
