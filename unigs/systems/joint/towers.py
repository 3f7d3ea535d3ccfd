"""The frozen towers: pixels <-> latents and words -> embeddings. The only home of the latent scale.

In: uint8 pictures and colormaps, prompts. Out: scaled latents z [B, 4, h, w] and text embeddings
[B, L, D]. The same VAE serves pictures and colormaps (Sec. 3.1). Nothing here is trained: every
call runs without gradients and in the towers' own dtype.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from unigs.systems.joint.tokens import as_utf8
from unigs.systems.pixels import check_finite, to_signed, to_uint8
from unigs.systems.sending import send

LATENT_CHANNELS = 4


class FrozenTowers(nn.Module):
    """VAE, CLIP text encoder and tokenizer, frozen.

    Args:
        vae: ``AutoencoderKL``; its config gives the pixel factor and the latent scale.
        text_encoder: ``CLIPTextModel``.
        tokenizer: ``CLIPTokenizer``.
        encode_chunk: pictures that the VAE encodes at a time, which bounds its memory; None: all.
    """

    def __init__(self, vae, text_encoder, tokenizer, encode_chunk: int | None = None) -> None:
        super().__init__()
        self.encode_chunk = encode_chunk
        self.vae = vae.eval().requires_grad_(False)
        self.text_encoder = text_encoder.eval().requires_grad_(False)
        self.tokenizer = tokenizer

    def train(self, mode: bool = True) -> FrozenTowers:
        """Stay in evaluation mode whatever the trainer says."""
        return super().train(False)

    @property
    def factor(self) -> int:
        """Pixels per latent cell along a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @torch.no_grad()
    def encode_pixels(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pictures to scaled latents, by the posterior's mode so that a sample stays pure.

        Args:
            pixels: uint8 [B, 3, H, W] or float -1..1 of that shape; H, W multiples of ``factor``.

        Returns:
            float32 [B, 4, h, w].
        """
        parts = [
            self.vae.encode(_sign(part).to(self.vae.dtype)).latent_dist.mode()
            for part in pixels.split(self.encode_chunk or len(pixels))
        ]
        scaled = torch.cat(parts).float() * self.vae.config.scaling_factor  # [B, 4, h, w]
        return scaled.contiguous()  # whatever the VAE's memory format: sums round alike

    def digest_vae(self) -> str:
        """sha256 over the weights of the VAE, their precision and the latent scale."""
        digest = hashlib.sha256(f"{self.vae.config.scaling_factor}".encode())
        for name, weight in sorted(self.vae.state_dict().items()):
            digest.update(f" {name} {weight.dtype} {list(weight.shape)} ".encode())
            digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, 4, h, w] to uint8 [B, 3, H, W]; the inverse of ``encode_pixels``.

        Raises:
            UnigsError: pixels that are not finite.
        """
        latents = latents / self.vae.config.scaling_factor
        signed = self.vae.decode(latents.to(self.vae.dtype)).sample  # [B, 3, H, W]
        return to_uint8(check_finite(signed, "pixels", "the VAE's decoder"))

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts to embeddings float32 [B, L, D], padded and cut to the text encoder's length."""
        length = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(
            [as_utf8(text) for text in prompts], padding="max_length", max_length=length,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        ids = send(tokens.input_ids, self.text_encoder.device)
        return self.text_encoder(ids)[0].float()  # [B, L, D]


def _sign(pixels: torch.Tensor) -> torch.Tensor:
    return to_signed(pixels) if pixels.dtype == torch.uint8 else pixels
