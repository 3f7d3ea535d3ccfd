"""The posteriors that a folder can hold: a diffusers ``VQModel``, or DALL-E's (``dalle``).

In: a folder, whose config decides. Out: a frozen ``Posterior``. ``recipes.VQ`` makes a small
``VQModel``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import VQModel
from torch import Tensor

from unigs.systems.gss.dalle import MODEL_TYPE, build_dalle, load_dalle
from unigs.systems.gss.discrete import Posterior
from unigs.weights import load_module, locate_shipped, read_config


class VQPosterior(Posterior):
    """A diffusers ``VQModel``; the best code is the nearest.

    Args:
        vq: it is frozen in place.
    """

    def __init__(self, vq: VQModel) -> None:
        super().__init__()
        self.vq = vq
        self.stride = 2 ** (len(vq.config.block_out_channels) - 1)
        self.freeze()

    def describe(self) -> dict[str, Any]:
        stored = json.loads(self.vq.to_json_string())
        return {name: value for name, value in stored.items() if not name.startswith("_")}

    @property
    def codebook(self) -> Tensor:
        return self.vq.quantize.embedding.weight

    def score(self, pixels: Tensor) -> Tensor:
        """Minus the squared distance of each latent to each code."""
        latents = self.vq.encode(pixels).latents.movedim(1, -1)  # [B, h, w, C]
        away = torch.cdist(latents.flatten(0, 2), self.codebook)  # [B h w, N]
        return -away.square().unflatten(0, latents.shape[:3]).movedim(-1, 1)

    def render(self, latents: Tensor) -> Tensor:
        return self.vq.decode(latents, force_not_quantize=True).sample


def build_posterior(described: Mapping[str, Any]) -> Posterior:
    """Networks of random weights by ``Posterior.describe``."""
    if described.get("model_type") == MODEL_TYPE:
        return build_dalle(described)
    return VQPosterior(VQModel.from_config(dict(described)))


def load_posterior(folder: str) -> Posterior:
    """The posterior of a folder, of the kind that its ``config.json`` names; nothing is fetched.

    Args:
        folder: local, or ``vq``, which ships.

    Raises:
        UnigsError: no such folder, or a damaged or other one; names the file.
    """
    path = locate_shipped(folder)
    config = path / "config.json"
    if config.exists() and read_config(config).get("model_type") == MODEL_TYPE:
        return load_dalle(path)
    return VQPosterior(load_module(VQModel, path, "diffusion_pytorch_model"))
