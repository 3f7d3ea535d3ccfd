"""The joint denoiser: one stock UNet, 13 channels in, 8 out (Eqs. 8 and 11).

In: the noisy streams, coarse mask and context latent. Out: the scheduler's target for both streams.
This module alone owns the order of the channels. The network is a plain ``UNet2DConditionModel``;
the task embedding sits in its own ``num_class_embeds`` slot.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DConditionModel
from torch import nn

from unigs.records import TASKS, UnigsError
from unigs.systems.adapters import merge
from unigs.systems.joint.conditions import Conditions
from unigs.systems.joint.towers import LATENT_CHANNELS

IN_CHANNELS = 3 * LATENT_CHANNELS + 1  # z_i, z_s, m_c, z_c
OUT_CHANNELS = 2 * LATENT_CHANNELS

NEW_LAYERS = ("conv_in", "conv_out", "class_embedding")
"""What Stable Diffusion lacks, wholly or in part; adapters of low rank would not do for it."""

# Where the input columns of a pretrained UNet go: (first old column, first new column, how many).
_MOVES = {
    4: [(0, 0, 4)],  # text-to-image: the latent
    9: [(0, 0, 4), (4, 8, 1), (5, 9, 4)],  # inpainting: latent, mask, masked-image latent
}


def join_inputs(streams: torch.Tensor, mask: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
    """Eq. 8: [B, 8, h, w] streams (z_i, z_s), [B, 1, h, w], [B, 4, h, w] -> [B, 13, h, w]."""
    return torch.cat([streams, mask, context], dim=1)


def spread_streams(values: torch.Tensor) -> torch.Tensor:
    """One value per stream [..., 2] -> one per channel [..., 8, 1, 1]."""
    return values.repeat_interleave(LATENT_CHANNELS, dim=-1)[..., None, None]


def denoise(unet, noisy, timesteps, conditions: Conditions) -> torch.Tensor:
    """One pass of the joint UNet.

    Args:
        unet: the widened denoiser.
        noisy: float [B, 8, h, w], both streams at ``timesteps``.
        timesteps: int64 [B] or scalar, 0..T-1.
        conditions: in the precision of ``noisy``.

    Returns:
        float [B, 8, h, w]: the target's estimate, image then colormap (Eq. 11).
    """
    joined = join_inputs(noisy, conditions.mask, conditions.context)
    return unet(
        joined, timesteps, encoder_hidden_states=conditions.text, class_labels=conditions.task
    ).sample


def is_joint(unet: UNet2DConditionModel) -> bool:
    """Whether the UNet already has the joint model's channels and task embedding."""
    config = unet.config
    return (config.in_channels, config.out_channels) == (IN_CHANNELS, OUT_CHANNELS) and (
        config.num_class_embeds == len(TASKS)
    )


def widen_unet(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Grow a Stable Diffusion UNet into the joint denoiser (Sec. 3.3).

    Old input columns move to the place of the same meaning, old output rows stay first; everything
    new, the task embedding too, is zero. So, with any colormap stream, the first four outputs are
    the original's.

    Args:
        unet: text-to-image (4 channels in) or inpainting (9 in) UNet, 4 channels out, or a joint
            one, which is returned as it is.

    Returns:
        A ``UNet2DConditionModel`` whose config says 13 in, 8 out and 4 classes, so it reloads.

    Raises:
        UnigsError: another number of channels.
    """
    if is_joint(unet):
        return unet
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    if config["in_channels"] not in _MOVES or config["out_channels"] != LATENT_CHANNELS:
        raise UnigsError(
            "expected a UNet with 4 or 9 channels in and 4 out, or a joint one with 13 and 8, got "
            f"{config['in_channels']} in and {config['out_channels']} out"
        )
    if config.get("num_class_embeds") or config.get("class_embed_type"):
        raise UnigsError("expected a UNet without class embedding, got one that has it already")
    wide_config = {
        **config,
        "in_channels": IN_CHANNELS,
        "out_channels": OUT_CHANNELS,
        "num_class_embeds": len(TASKS),
    }
    with torch.device("meta"):  # the old tensors are taken over, nothing is allocated twice
        wide = UNet2DConditionModel.from_config(wide_config)
    wide.load_state_dict(_widen_weights(unet), strict=True, assign=True)
    return wide.train(unet.training).requires_grad_(True)


def merge_unet(unet: nn.Module) -> UNet2DConditionModel:
    """A stock UNet in float32 that gives what an adapted one does (see ``systems.adapters``)."""
    with torch.device("meta"):
        stock = UNet2DConditionModel.from_config(unet.config)
    stock.load_state_dict(merge(unet), strict=True, assign=True)
    return stock.train(unet.training)


def _widen_weights(unet: UNet2DConditionModel) -> dict[str, torch.Tensor]:
    weights = dict(unet.state_dict())
    conv_in = weights["conv_in.weight"]
    wide_in = conv_in.new_zeros(conv_in.shape[0], IN_CHANNELS, *conv_in.shape[2:])
    for old, new, count in _MOVES[conv_in.shape[1]]:
        wide_in[:, new : new + count] = conv_in[:, old : old + count]
    weights["conv_in.weight"] = wide_in
    for name in ("conv_out.weight", "conv_out.bias"):
        weights[name] = torch.cat([weights[name], torch.zeros_like(weights[name])])
    time_dim = unet.time_embedding.linear_2.out_features
    weights["class_embedding.weight"] = conv_in.new_zeros(len(TASKS), time_dim)
    return weights
