"""What every posterior of GSS is: maskige <-> codes, by an autoencoder that is never trained.

In: uint8 maskiges [B, 3, H, W]. Out: codes, int64 [B, h, w], and back; or the way through in one,
with a gradient for the pixels (``pass_through``), by which colours can be learnt. ``posterior`` and
``dalle`` hold the kinds.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from unigs.records import UnigsError
from unigs.systems.pixels import to_signed, to_uint8


class Posterior(nn.Module):
    """An autoencoder of discrete codes, frozen (Section 3: p(z | c) and p(c | z)).

    A kind holds its stock networks and gives what is abstract here.
    """

    stride: int
    """Pixels of a maskige per code along a side."""

    def freeze(self) -> None:
        """No gradient, float32, evaluation mode; to be called once the networks are there."""
        self.float().eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Posterior:
        """Stay in evaluation mode whatever the trainer says."""
        return super().train(False)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain values by which ``posterior.build_posterior`` makes the same networks."""

    @property
    @abstractmethod
    def codebook(self) -> Tensor:
        """What the decoder sees of each code, float [N, C]."""

    @abstractmethod
    def score(self, pixels: Tensor) -> Tensor:
        """float -1..1 [B, 3, H, W] -> logits of the codes, float [B, N, h, w]."""

    @abstractmethod
    def render(self, latents: Tensor) -> Tensor:
        """float [B, C, h, w] -> pixels, float, about -1..1, [B, 3, h stride, w stride]."""

    @property
    def size(self) -> int:
        """Codes in the codebook."""
        return len(self.codebook)

    @torch.no_grad()
    def codes(self, maskige: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> int64 [B, H / stride, W / stride], the best code of each block.

        Raises:
            UnigsError: sides that are not multiples of ``stride``.
        """
        rows, columns = maskige.shape[-2:]
        if rows % self.stride or columns % self.stride:
            raise UnigsError(
                f"expected sides that are multiples of {self.stride}, got {rows} x {columns}, "
                "at a maskige"
            )
        return self.score(to_signed(maskige)).argmax(1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """int64 [B, h, w] in 0..size-1 -> uint8 [B, 3, h stride, w stride]."""
        return to_uint8(self.render(embedding(codes, self.codebook).movedim(-1, 1)))

    def pass_through(self, pixels: Tensor, gumbel: Tensor, temperature: float = 1.0) -> Tensor:
        """Pixels to codes and back, differentiable: codes are drawn by a hard Gumbel softmax.

        Args:
            pixels: float -1..1 [B, 3, H, W].
            gumbel: noise, float [B, N, h, w].
            temperature: of the softmax whose gradient stands in for that of the draw.

        Returns:
            float, about -1..1, [B, 3, H, W].
        """
        soft = ((self.score(pixels) + gumbel) / temperature).softmax(1)
        hard = torch.zeros_like(soft).scatter_(1, soft.argmax(1, keepdim=True), 1)
        chosen = hard + soft - soft.detach()
        return self.render(torch.einsum("bnhw,nc->bchw", chosen, self.codebook))
