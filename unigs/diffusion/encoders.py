"""The frozen towers: pixels <-> latents and words -> embeddings. The only home of the latent scale.

In: uint8 pictures and colormaps, prompts. Out: scaled latents z [B, 4, h, w] and text embeddings
[B, L, D]. The same VAE serves pictures and colormaps (Sec. 3.1). Nothing here is trained: every
call runs without gradients and in the towers' own dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from unigs.codec import encode_colormap
from unigs.diffusion.tokens import as_utf8
from unigs.records import TASKS
from unigs.tasks import RECIPES

LATENT_CHANNELS = 4


def to_signed(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 0..255 -> float32 -1..1."""
    return pixels.float() / 127.5 - 1


def to_uint8(signed: torch.Tensor) -> torch.Tensor:
    """float -1..1 (clamped) -> uint8 0..255, rounded; the inverse of :func:`to_signed`."""
    return ((signed.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def shrink_mask(mask: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Coarse mask bool [B, 1, H, W] -> float [B, 1, h, w]; a cell with any pixel to fill is 1."""
    return nn.functional.adaptive_max_pool2d(mask.float(), tuple(size))


class FrozenTowers(nn.Module):
    """VAE, CLIP text encoder and tokenizer, frozen.

    Args:
        vae: ``AutoencoderKL``; its config gives the pixel factor and the latent scale.
        text_encoder: ``CLIPTextModel``.
        tokenizer: ``CLIPTokenizer``.
    """

    def __init__(self, vae, text_encoder, tokenizer) -> None:
        super().__init__()
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
        signed = to_signed(pixels) if pixels.dtype == torch.uint8 else pixels
        latent = self.vae.encode(signed.to(self.vae.dtype)).latent_dist.mode()
        return latent.float() * self.vae.config.scaling_factor  # [B, 4, h, w]

    @torch.no_grad()
    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Scaled latents [B, 4, h, w] to uint8 [B, 3, H, W]; the inverse of ``encode_pixels``."""
        latents = latents / self.vae.config.scaling_factor
        return to_uint8(self.vae.decode(latents.to(self.vae.dtype)).sample)  # [B, 3, H, W]

    @torch.no_grad()
    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """Prompts to embeddings float32 [B, L, D], padded and cut to the text encoder's length."""
        length = self.text_encoder.config.max_position_embeddings
        tokens = self.tokenizer(
            [as_utf8(text) for text in prompts], padding="max_length", max_length=length,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        ids = tokens.input_ids.to(self.text_encoder.device)
        return self.text_encoder(ids)[0].float()  # [B, L, D]


@dataclass(slots=True, eq=False)
class Latents:
    """What the denoiser trains on.

    Attributes:
        streams: float32 [B, 8, h, w], image latent then colormap latent (z_i, z_s).
        mask: float32 [B, 1, h, w], the coarse mask m_c; 1 is to be filled.
        context: float32 [B, 4, h, w], z_c.
        text: float32 [B, L, D].
        task: int64 [B], rows of the task embedding.
    """

    streams: torch.Tensor
    mask: torch.Tensor
    context: torch.Tensor
    text: torch.Tensor
    task: torch.Tensor


def context_pixels(
    task: str,
    image: torch.Tensor | None,
    colormap: torch.Tensor | None,
    coarse_mask: torch.Tensor,
) -> torch.Tensor:
    """The picture behind z_c for one task (Table 2), float -1..1 [B, 3, H, W].

    Only the one that the task's recipe names is looked at.

    The hole of an inpainting context is 0 of -1..1 (mid-grey), as Stable Diffusion learnt it.
    """
    kind = RECIPES[task].context
    pixels = colormap if kind == "colormap" else image
    assert pixels is not None, f"{task} needs its {kind}"
    return to_signed(pixels) * (~coarse_mask if kind == "masked image" else 1)


def encode_batch(towers: FrozenTowers, batch, palette: dict | None = None) -> Latents:
    """Paint, encode and embed one training batch, each picture through the VAE once.

    Where the context is the image or the colormap, its latent is reused; only inpainting rows
    cost a third pass (2.3 encodes a sample at the paper's ratios instead of 3).

    Args:
        towers: the frozen towers, on the batch's device.
        batch: a ``records.Batch``.
        palette: arguments of ``encode_colormap``, for the ablations.
    """
    colormap = encode_colormap(batch.labels, **(palette or {}))  # uint8 [B, 3, H, W]
    names = [TASKS[i] for i in batch.task.tolist()]
    own = [i for i, name in enumerate(names) if RECIPES[name].given is None]
    pictures = [to_signed(batch.image), to_signed(colormap)]
    pictures += [
        context_pixels(
            names[i], batch.image[i : i + 1], colormap[i : i + 1], batch.coarse_mask[i : i + 1]
        )
        for i in own
    ]
    latents = towers.encode_pixels(torch.cat(pictures))  # [2B + own, 4, h, w]
    image, maps, rest = latents.split([len(batch), len(batch), len(own)])
    context = image.clone()
    for i, name in enumerate(names):
        if RECIPES[name].given == "colormap":
            context[i] = maps[i]
    if own:
        context[torch.tensor(own, device=context.device)] = rest
    return Latents(
        streams=torch.cat([image, maps], 1),  # [B, 8, h, w]
        mask=shrink_mask(batch.coarse_mask, image.shape[-2:]),
        context=context,
        text=towers.encode_text(batch.prompts),
        task=batch.task,
    )
