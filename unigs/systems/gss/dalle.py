"""DALL-E's discrete autoencoder as a posterior (Ramesh et al., arXiv 2102.12092, appendix A).

Encoder: transformers' ``FlavaImageCodebook``. Decoder: :class:`Decoder`, whose weights were
published as a pickle and come here as safetensors (``tools/convert_dalle.py``). A folder holds
``config.json`` and ``model.safetensors``, the encoder as transformers writes it, and
``decoder.safetensors``, whose tensors are named as those of :class:`Decoder`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from unigs.records import UnigsError
from unigs.systems.gss.discrete import Posterior
from unigs.weights import check_finite, check_names, in_words, load_module, read_tensors

MODEL_TYPE = FlavaImageCodebookConfig.model_type
DECODER = "decoder.safetensors"
GROUPS = 4
"""Of residual blocks, in encoder and decoder; a code is 8 x 8 pixels, as three of them resize."""
MARGIN = 0.1
"""Pixels x of 0..1 are 0.8 x + 0.1 in the networks, since a sigmoid never gives 0 or 1."""


class Block(nn.Module):
    """A residual block of the decoder: ReLU before each of four convolutions, a small gain after.

    Args:
        channels_in, channels_out: the middle has a quarter of ``channels_out``.
        gain: of the residual.
    """

    def __init__(self, channels_in: int, channels_out: int, gain: float) -> None:
        super().__init__()
        hidden = channels_out // 4
        widths, kernels = (channels_in, hidden, hidden, hidden, channels_out), (1, 3, 3, 3)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        for k, (a, b, kernel) in enumerate(zip(widths, widths[1:], kernels), 1):
            layers[f"relu_{k}"] = nn.ReLU()
            layers[f"conv_{k}"] = nn.Conv2d(a, b, kernel, padding=kernel // 2)
        same = channels_in == channels_out
        self.id_path = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)
        self.res_path = nn.Sequential(layers)
        self.gain = gain

    def forward(self, features: Tensor) -> Tensor:
        """float [B, channels_in, h, w] -> float [B, channels_out, h, w]."""
        return self.id_path(features) + self.gain * self.res_path(features)


class Decoder(nn.Module):
    """Codes -> pixels: groups of residual blocks, each but the last enlarged by two, nearest.

    Args:
        codes: of the codebook (8192).
        channels: that a code is embedded in (128).
        width: of the last group; earlier ones have 2, 4 and 8 times as many (256).
        blocks: of each group (2).
    """

    def __init__(self, codes: int, channels: int, width: int, blocks: int) -> None:
        super().__init__()
        gain, inner = 1 / (GROUPS * blocks) ** 2, channels
        layers: OrderedDict[str, nn.Module] = OrderedDict(input=nn.Conv2d(codes, channels, 1))
        for group in range(1, GROUPS + 1):
            outer = width * 2 ** (GROUPS - group)
            parts: OrderedDict[str, nn.Module] = OrderedDict()
            for k in range(1, blocks + 1):
                parts[f"block_{k}"] = Block(inner if k == 1 else outer, outer, gain)
            if group < GROUPS:
                parts["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            layers[f"group_{group}"] = nn.Sequential(parts)
            inner = outer
        # Three means and three log scales of a logit-Laplace distribution.
        output = OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(inner, 6, 1))
        layers["output"] = nn.Sequential(output)
        self.blocks = nn.Sequential(layers)

    @property
    def codebook(self) -> Tensor:
        """The first convolution of each one-hot code, float [N, C]."""
        first: Any = self.blocks.get_submodule("input")
        return first.weight[..., 0, 0].t() + first.bias

    def forward(self, latents: Tensor) -> Tensor:
        """Rows of ``codebook`` as float [B, C, h, w] -> float [B, 6, 8 h, 8 w]."""
        return self.blocks[1:](latents)


class DallePosterior(Posterior):
    """DALL-E's encoder and decoder; the best code is the likeliest.

    Args:
        encoder, decoder: they are frozen in place.
    """

    def __init__(self, encoder: FlavaImageCodebook, decoder: Decoder) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder
        self.stride = 2 ** (GROUPS - 1)
        self.freeze()

    def describe(self) -> dict[str, Any]:
        names = ("vocab_size", "num_blocks_per_group", "hidden_size")
        sizes = {name: getattr(self.encoder.config, name) for name in names}
        return {"model_type": MODEL_TYPE, **sizes, "channels": self.codebook.shape[1]}

    @property
    def codebook(self) -> Tensor:
        return self.decoder.codebook

    def score(self, pixels: Tensor) -> Tensor:
        return self.encoder((1 - 2 * MARGIN) * (pixels + 1) / 2 + MARGIN)

    def render(self, latents: Tensor) -> Tensor:
        means = self.decoder(latents)[:, :3].sigmoid()
        return 2 * (means - MARGIN) / (1 - 2 * MARGIN) - 1


def build_decoder(config: FlavaImageCodebookConfig, channels: int) -> Decoder:
    """The decoder beside an encoder of that config."""
    return Decoder(config.vocab_size, channels, config.hidden_size, config.num_blocks_per_group)


def build_dalle(described: Mapping[str, Any]) -> DallePosterior:
    """Random weights by ``DallePosterior.describe``."""
    sizes = {k: v for k, v in described.items() if k not in ("model_type", "channels")}
    config = FlavaImageCodebookConfig(**sizes)
    decoder = build_decoder(config, described["channels"])
    return DallePosterior(FlavaImageCodebook(config), decoder)


def load_dalle(folder: Path) -> DallePosterior:
    """Encoder and decoder of a folder.

    Raises:
        UnigsError: a part is missing, damaged, or of other sizes; names the file.
    """
    encoder = load_module(FlavaImageCodebook, folder, "model")
    return DallePosterior(encoder, load_decoder(folder / DECODER, encoder.config))


def load_decoder(path: Path, config: FlavaImageCodebookConfig) -> Decoder:
    """The decoder of a file; how wide a code's embedding is, its first tensor says.

    Raises:
        UnigsError: no such file, or one of other tensors or shapes.
    """
    shapes = read_tensors(path)
    channels = shapes.get("blocks.input.weight", (0,))[0]
    with torch.device("meta"):
        decoder = build_decoder(config, channels)
    wanted = {name: tuple(weight.shape) for name, weight in decoder.state_dict().items()}
    check_names(wanted.keys() - shapes.keys(), shapes.keys() - wanted.keys(), path)
    for name, shape in wanted.items():
        if shapes[name] != shape:
            raise UnigsError(f"expected {name} of shape {shape}, got {shapes[name]}, at {path}")
    with in_words("whole weights", path):
        decoder.load_state_dict(load_file(path), assign=True)
    check_finite(decoder.state_dict().items(), path)
    return decoder
