"""The frozen posterior of GSS: maskige <-> codes, by a stock VQ autoencoder that is never trained.

In: uint8 maskiges [B, 3, H, W]. Out: codes, int64 [B, h, w], and back. Ours is a diffusers
``VQModel``, from its folder (``recipes.VQ`` makes one). The paper's, DALL-E's, is not built: its
encoder is transformers' ``FlavaImageCodebook``, its decoder exists as a pickle only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import VQModel
from torch import Tensor, nn

from unigs.records import UnigsError
from unigs.systems.pixels import to_signed, to_uint8
from unigs.weights import load_module


class Posterior(nn.Module):
    """A VQ autoencoder, frozen (Section 3: p(z | c) and p(c | z)).

    Args:
        vq: diffusers ``VQModel``.
    """

    def __init__(self, vq: VQModel) -> None:
        super().__init__()
        self.vq = vq.float().eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Posterior:
        """Stay in evaluation mode whatever the trainer says."""
        return super().train(False)

    @property
    def stride(self) -> int:
        """Pixels of a maskige per code along a side."""
        return 2 ** (len(self.vq.config.block_out_channels) - 1)

    @property
    def size(self) -> int:
        """Codes in the codebook."""
        return self.vq.config.num_vq_embeddings

    @torch.no_grad()
    def codes(self, maskige: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> int64 [B, H / stride, W / stride], the nearest of each latent.

        Raises:
            UnigsError: sides that are not multiples of ``stride``.
        """
        rows, columns = maskige.shape[-2:]
        if rows % self.stride or columns % self.stride:
            raise UnigsError(
                f"expected sides that are multiples of {self.stride}, got {rows} x {columns}, "
                "at a maskige"
            )
        latents = self.vq.encode(to_signed(maskige)).latents
        _, _, (_, _, codes) = self.vq.quantize(latents)  # flat
        return codes.view(len(latents), *latents.shape[-2:])

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] in 0..size-1 -> uint8 [B, 3, h stride, w stride]."""
        quantize = self.vq.quantize
        shape = (*codes.shape, quantize.vq_embed_dim)
        latents = quantize.get_codebook_entry(codes.flatten(), shape)  # [B, C, h, w]
        return to_uint8(self.vq.decode(latents, force_not_quantize=True).sample)


def load_posterior(folder: str) -> Posterior:
    """The posterior of a diffusers ``VQModel`` folder; nothing is fetched.

    Raises:
        UnigsError: no such folder, or a damaged or other one; names the file.
    """
    return Posterior(load_module(VQModel, Path(folder), "diffusion_pytorch_model"))
