"""Noise, targets, weights and loss: Eq. 2 over both streams.

In: clean streams, conditions and the batch. Out: one loss per sample and branch. Noise and timestep
are functions of (seed, index) alone, so a resumed or re-scaled run sees the same ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import torch

from unigs.noise import draw_timesteps, training_noise
from unigs.records import TASKS, Batch, Latents, UnigsError
from unigs.systems.balance import balance_sizes, known_share
from unigs.systems.joint.conditions import Conditions
from unigs.systems.joint.denoiser import denoise
from unigs.systems.joint.towers import LATENT_CHANNELS
from unigs.systems.sending import send
from unigs.tasks import RECIPES

PredictionType = Literal["epsilon", "v_prediction", "sample"]
PREDICTION_TYPES = get_args(PredictionType)


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Objective:
    """What the joint model is asked for, and how its errors weigh.

    Args:
        prediction_type: what the network predicts: epsilon, v_prediction or sample; None: as the
            base was trained.
        image_weight: of the image branch's loss.
        colormap_weight: of the colormap branch's loss.
        given_weight: of the loss of a given stream, beside its branch's weight (paper: 1). At 0 it
            is seen and not learnt, which is enough where it is clamped.
        min_snr_gamma: cap of the signal-to-noise weighting; None weighs all timesteps alike.
        snr_floor: least weight under it, in units of the sample's error; see ``snr_weights``. At 0
            tasks that are trained near pure noise count for little.
        mask_timestep_shift: moves the timesteps of the tasks that only find masks towards noise,
            see ``shift_timesteps``; 1 leaves them uniform, as the paper's are.
        size_balance: 0 weighs the pixels of a picture alike (paper), 1 its entities; see
            ``systems.balance``.
    """

    prediction_type: PredictionType | None = None
    image_weight: float = 1.0
    colormap_weight: float = 1.0
    given_weight: float = 1.0
    min_snr_gamma: float | None = None
    snr_floor: float = 0.0
    mask_timestep_shift: float = 1.0
    size_balance: float = 0.0


def measure_losses(
    objective: Objective, unet: Any, scheduler: Any, latents: Latents, conditions: Conditions
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Eq. 2: weighted mean squared error of each branch.

    Args:
        objective: what is asked for, and how it weighs.
        unet, scheduler: the joint denoiser and the noise it is trained on.
        latents: the clean streams, and how their cells weigh.
        conditions: of the same samples.

    Returns:
        float32 [B] by branch, ``image`` and ``colormap``, without the branches' weights.
    """
    clean, indices = latents.clean, latents.index.tolist()
    noise = send(training_noise(latents, clean.shape[1:]), clean.device)
    steps = scheduler.config.num_train_timesteps
    timesteps = send(draw_timesteps(latents.seed, indices, steps), clean.device)
    given = given_streams(conditions.task)  # [B, 2]
    shifted = shift_timesteps(timesteps, steps, objective.mask_timestep_shift)
    timesteps = torch.where(given[:, 0], shifted, timesteps)
    noisy = scheduler.add_noise(clean, noise, timesteps)
    prediction = denoise(unet, noisy, timesteps, conditions)
    target = regression_target(scheduler, clean, noise, timesteps)
    image, colormap = branch_losses(prediction, target, latents.known, latents.weight)  # [B] each
    share = torch.where(given, objective.given_weight, 1.0)  # [B, 2]
    losses = {"image": image * share[:, 0], "colormap": colormap * share[:, 1]}
    if objective.min_snr_gamma is not None:
        snr = snr_weights(scheduler, timesteps, objective.min_snr_gamma, objective.snr_floor)
        losses = {name: loss * snr for name, loss in losses.items()}
    return losses


def weigh_cells(
    objective: Objective, batch: Batch, grid: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """How the latent cells of a batch count in the loss.

    Returns:
        What is known of each cell, and its weight; float32 [B, 1, h, w] each.
    """
    known = known_share(batch.ignored, grid)
    if not objective.size_balance:
        return known, torch.ones_like(known)
    balance = (batch.labels, grid, objective.size_balance, batch.coarse_mask, batch.largest)
    return known, balance_sizes(*balance)


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


def given_streams(task: torch.Tensor) -> torch.Tensor:
    """Which streams equal the context, image and colormap: bool [B, 2] for int64 [B] tasks."""
    return _list_given(task.device)[task]


@cache
def _list_given(device: torch.device) -> torch.Tensor:
    """Row by task, bool [len(TASKS), 2]; made once a device."""
    given = [RECIPES[task].given for task in TASKS]
    with torch.inference_mode(False):  # a validation may ask first, and training goes on with it
        return torch.tensor([[g == "image", g == "colormap"] for g in given]).to(device)


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
        weight: float [B, 1, h, w] of both streams' cells, see ``systems.balance``.

    Returns:
        Image and colormap losses, float32 [B] each.
    """
    error = weight * (prediction.float() - target.float()) ** 2
    image, colormap = error.split(LATENT_CHANNELS, dim=1)
    return image.mean((1, 2, 3)), (colormap * known).mean((1, 2, 3))
