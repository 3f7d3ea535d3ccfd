"""The network of Pix2Seq-D: an encoder that sees the picture once, a decoder that denoises bits.

In: uint8 pictures; noisy bits and how much signal they hold. Out: logits on the mask grid. Stock
parts (arXiv 2210.06366, Section 3, architecture). What differs from the paper:

- Tokens come from the backbone's last level (stride 32, the paper: C4, stride 16), and have fixed
  sines and cosines for places. No dropout and no drop path: a run resumes bit for bit, so the
  network draws nothing.
- The decoder is diffusers' UNet with plain blocks and cross-attention in the middle. Its attention
  is as wide as its coarsest level (the paper: 512 whatever that is), sums of branches are not
  divided by sqrt(2), and time comes by the residual blocks alone, not as a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from torch import Tensor, nn

from unigs.codec.analog_bits import BitCode
from unigs.records import UnigsError
from unigs.systems.backbone import Backbone, Encoder

TIME_SCALE = 1000.0
"""gamma times this is the "timestep" whose sines and cosines the decoder is told."""

HEAD = 32
"""Channels of an attention head."""


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Network:
    """How large the network is; the defaults are the paper's.

    Args:
        backbone: that looks at the picture.
        divisor: the mask grid's cells are squares of this many pixels a side (the paper: pictures
            of 1024, grids of 512).
        features: channels of the picture's features on the mask grid.
        tokens: width of the encoder's tokens, a multiple of 32.
        encoder_layers: of the transformer over the backbone's last level.
        base: channels of the decoder's finest level, a multiple of 4.
        multipliers: of ``base``, by level, from the finest; each level halves the grid.
        decoder_layers: of the transformer in the decoder's middle.
        normalize_noisy: scale noisy bits to a variance of 1 before the decoder sees them. At a
            small scale of the bits, clean ones are else faint beside the features (the paper: not).
        past: frames of a clip whose bits the decoder sees besides; 0 of pictures (paper: 2).
    """

    backbone: Backbone = Backbone()  # noqa: RUF009 (frozen)
    divisor: int = 2
    features: int = 256
    tokens: int = 512
    encoder_layers: int = 12
    base: int = 128
    multipliers: tuple[int, ...] = (1, 1, 2, 2)
    decoder_layers: int = 6
    normalize_noisy: bool = False
    past: int = 0

    def __post_init__(self) -> None:
        if self.past < 0:
            raise UnigsError(f"expected 0 frames or more, got {self.past}, at model.network.past")
        for name, step in (("divisor", 1), ("features", 1), ("tokens", HEAD), ("base", 4)):
            value = getattr(self, name)
            if value < step or value % step:
                raise UnigsError(
                    f"expected a multiple of {step}, got {value!r}, at model.network.{name}"
                )


class BitDenoiser(nn.Module):
    """Encoder and decoder.

    Args:
        told: sizes.
        code: of the bits that it denoises.
        outputs: channels it answers with.
        blind: never look at the picture: features and tokens are zeros.
        download: whether the hub may be asked for the backbone.
        config: the backbone's, by which it is built with random weights; see ``Encoder``.
    """

    def __init__(
        self, told: Network, code: BitCode, outputs: int, blind: bool = False,
        download: bool = True, config: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.told, self.blind, self.scale = told, blind, code.scale
        self.past_channels = told.past * code.channels
        self.encoder = PictureEncoder(told, download, config)
        inputs = code.channels + told.features + self.past_channels
        self.decoder = build_decoder(told, inputs, outputs)
        self.encoder.requires_grad_(not blind)

    def encode(self, image: Tensor, past: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Look at the picture, and back; once, however often its bits are denoised.

        Args:
            image: uint8 [B, 3, H, W].
            past: bits of the frames before, float [B, past, C, h, w], the nearest first; None:
                dropped, all bits are low.

        Returns:
            Features float [B, F + past C, h, w] on the mask grid and tokens float [B, L, D].

        Raises:
            UnigsError: the divisor does not divide the picture.
        """
        grid = find_grid((image.shape[-2], image.shape[-1]), self.told.divisor)
        zeros = self.decoder.conv_in.weight.new_zeros
        if self.blind:
            features = zeros(len(image), self.told.features, *grid)
            tokens = zeros(len(image), 1, self.told.tokens)
        else:
            features, tokens = self.encoder(image, grid)
        if not self.past_channels:
            return features, tokens
        if past is None:
            bits = zeros(len(image), self.past_channels, *grid) - self.scale
        else:
            bits = past.flatten(1, 2).to(features.dtype)
        if self.told.normalize_noisy:
            bits = bits / self.scale
        return torch.cat((features, bits), 1), tokens

    def denoise(self, noisy: Tensor, gamma: Tensor, features: Tensor, tokens: Tensor) -> Tensor:
        """One look at noisy bits.

        Args:
            noisy: float [B, C, h, w].
            gamma: float [B] in 0..1, the share of signal in them, which the network is told.
            features, tokens: of :meth:`encode`; what it looked back at lies in the features.

        Returns:
            float [B, outputs, h, w].
        """
        if self.told.normalize_noisy:
            noisy = noisy / noisy_deviation(gamma, self.scale)
        seen = torch.cat((noisy, features), 1)
        return self.decoder(seen, TIME_SCALE * gamma, tokens).sample


def noisy_deviation(gamma: Tensor, scale: float) -> Tensor:
    """Standard deviation of bits of +-``scale`` under noise, [B] -> [B, 1, 1, 1]."""
    return (gamma * scale**2 + 1 - gamma).sqrt()[:, None, None, None]


class PictureEncoder(nn.Module):
    """Backbone, transformer over its last level, and a merge of all levels on the mask grid."""

    def __init__(
        self, told: Network, download: bool = True, config: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.look = Encoder(told.backbone, download, config)
        *fine, coarse = self.look.channels
        self.to_tokens = nn.Conv2d(coarse, told.tokens, 1)
        layer = nn.TransformerEncoderLayer(
            told.tokens, told.tokens // HEAD, 4 * told.tokens, dropout=0.0, activation="gelu",
            batch_first=True, norm_first=True,
        )  # fmt: skip
        norm = nn.LayerNorm(told.tokens)
        self.layers = nn.TransformerEncoder(
            layer, told.encoder_layers, norm, enable_nested_tensor=False
        )
        self.merges = nn.ModuleList(
            nn.Conv2d(count, told.features, 1) for count in (*fine, told.tokens)
        )
        self.smooth = nn.Sequential(
            nn.GroupNorm(gcd(32, told.features), told.features),
            nn.SiLU(),
            nn.Conv2d(told.features, told.features, 3, padding=1),
        )

    def forward(self, image: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """uint8 [B, 3, H, W] -> features float [B, F, *grid], tokens float [B, L, D]."""
        *fine, coarse = self.look(image)
        cells = self.to_tokens(coarse)
        tokens = self.layers(cells.flatten(2).mT + place_tokens(cells))
        levels = [*fine, tokens.mT.reshape(cells.shape)]
        *finer, merged = [merge(level) for merge, level in zip(self.merges, levels)]
        for level in reversed(finer):
            merged = level + resize(merged, level.shape[-2:])
        return self.smooth(resize(merged, grid)), tokens


def find_grid(size: tuple[int, int], divisor: int) -> tuple[int, int]:
    """Cells of the mask grid of a picture of H x W pixels.

    Raises:
        UnigsError: the divisor does not divide the size.
    """
    if any(side % divisor for side in size):
        raise UnigsError(
            f"expected pictures whose sides are multiples of {divisor}, got "
            f"{size[0]} x {size[1]}, at model.network.divisor"
        )
    return size[0] // divisor, size[1] // divisor


def place_tokens(cells: Tensor) -> Tensor:
    """Sines and cosines of each cell's place: for [B, D, h, w], [h w, D]."""
    width, *size = cells.shape[1:]
    places = get_2d_sincos_pos_embed(width, tuple(size), device=cells.device, output_type="pt")
    return places.to(cells.dtype)


def resize(values: Tensor, size: Any) -> Tensor:
    """[B, C, *] at another size, bilinear."""
    return nn.functional.interpolate(values, tuple(size), mode="bilinear", align_corners=False)


def widen_past(weights: Mapping[str, Tensor], network: BitDenoiser) -> dict[str, Tensor]:
    """Weights of a network that looks back at fewer frames, for one that looks back at more.

    What it sees besides weighs nothing yet, so both answer alike.
    """
    name = "decoder.conv_in.weight"
    missing = network.decoder.conv_in.weight.shape[1] - weights[name].shape[1]
    wide = nn.functional.pad(weights[name], (0, 0, 0, 0, 0, missing))
    return {**weights, name: wide}


def build_decoder(told: Network, inputs: int, outputs: int) -> UNet2DConditionModel:
    """The stock UNet: plain blocks, cross-attention in the middle, 1 x 1 first and last."""
    channels = tuple(told.base * times for times in told.multipliers)
    return UNet2DConditionModel(
        in_channels=inputs,
        out_channels=outputs,
        block_out_channels=channels,
        down_block_types=("DownBlock2D",) * len(channels),
        up_block_types=("UpBlock2D",) * len(channels),
        mid_block_type="UNetMidBlock2DCrossAttn",
        layers_per_block=1,
        transformer_layers_per_block=told.decoder_layers,
        cross_attention_dim=told.tokens,
        attention_head_dim=max(1, channels[-1] // HEAD),  # diffusers reads it as their number
        norm_num_groups=gcd(32, told.base // 4),
        conv_in_kernel=1,
        conv_out_kernel=1,
    )
