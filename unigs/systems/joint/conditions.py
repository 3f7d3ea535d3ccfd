"""What is known of a sample, checked, painted and encoded once (Table 2, Eq. 8).

In: pictures, label maps, masks and words as a batch or a caller gives them. Out: ``Conditions``,
which the denoiser is told, and the clean streams where training asks for them. Training and
sampling share this paragraph and no other writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unigs.codec import Palette, encode_colormap
from unigs.records import TASKS, Batch, UnigsError
from unigs.systems.joint.towers import FrozenTowers
from unigs.systems.pixels import to_signed
from unigs.systems.sending import send
from unigs.tasks import RECIPES


@dataclass(frozen=True, slots=True, eq=False)
class Known:
    """What is known of B samples, in pixels and words.

    Attributes:
        tasks, prompts: lists of length B.
        image: uint8 [B, 3, H, W], or None if no task's context needs it.
        colormap: uint8 [B, 3, H, W], or None likewise.
        coarse_mask: bool [B, 1, H, W]; True is to be filled or searched.
        image_latents: float32 [B, 4, h, w], if those of ``image`` are known already.
    """

    tasks: list[str]
    prompts: list[str]
    image: Tensor | None
    colormap: Tensor | None
    coarse_mask: Tensor
    image_latents: Tensor | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Conditions:
    """What the denoiser is told.

    Attributes:
        mask: float [B, 1, h, w], the coarse mask m_c; 1 is to be filled.
        context: float [B, 4, h, w], z_c.
        text: float [B, L, D].
        task: int64 [B], rows of the task embedding.
    """

    mask: Tensor
    context: Tensor
    text: Tensor
    task: Tensor

    def to(self, dtype: torch.dtype) -> Conditions:
        """The same in another precision."""
        mask, context, text = (part.to(dtype) for part in (self.mask, self.context, self.text))
        return Conditions(mask, context, text, self.task)


def read_batch(batch: Batch, palette: Palette) -> Known:
    """All that a training batch knows, its colormap painted."""
    return Known(
        tasks=[TASKS[row] for row in batch.task.tolist()],
        prompts=batch.prompts,
        image=batch.image,
        colormap=encode_colormap(
            batch.labels, palette, seeds=batch.index.tolist(), largest=batch.largest
        ),
        coarse_mask=batch.coarse_mask,
        image_latents=batch.image_latents,
    )


def encode_conditions(towers: FrozenTowers, known: Known) -> Conditions:
    """Encode what the denoiser is told; each context is one pass of the VAE."""
    context, _ = _encode(towers, known, streams=False)
    mask = shrink_mask(known.coarse_mask, context.shape[-2:])
    task = torch.tensor([TASKS.index(task) for task in known.tasks])
    return add_words(towers, mask, context, known.prompts, task)


def encode_training(towers: FrozenTowers, known: Known) -> tuple[Tensor, Tensor, Tensor]:
    """All of a training batch but its words: clean streams, contexts and coarse masks.

    Where the context is the image or the colormap, its latent is reused; only inpainting rows
    cost a third pass (2.3 encodes a sample at the paper's ratios instead of 3).

    Returns:
        float32 [B, 8, h, w], image latent then colormap latent, [B, 4, h, w] and [B, 1, h, w].
    """
    context, latents = _encode(towers, known, streams=True)
    clean = torch.cat([latents["image"], latents["colormap"]], 1)
    return clean, context, shrink_mask(known.coarse_mask, context.shape[-2:])


def add_words(
    towers: FrozenTowers, mask: Tensor, context: Tensor, prompts: Sequence[str], task: Tensor
) -> Conditions:
    """Conditions of encoded samples; ``task`` lies on the host."""
    text = towers.encode_text(prompts)
    return Conditions(mask, context, text, send(task, context.device))


def _encode(towers: FrozenTowers, known: Known, streams: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """One call of the VAE for all pictures but those whose latents are known.

    Returns:
        The contexts, and latents by kind of picture.
    """
    kinds = [RECIPES[task].context for task in known.tasks]
    every = list(range(len(kinds)))
    rows = {
        kind: every
        if streams and kind != "masked image"
        else [i for i in every if kinds[i] == kind]
        for kind in ("image", "colormap", "masked image")
    }
    rows = {kind: own for kind, own in rows.items() if own}
    ready = {} if known.image_latents is None else {"image": known.image_latents}
    new = {kind: own for kind, own in rows.items() if kind not in ready}
    pictures = torch.cat([_take_pictures(known, kind, own) for kind, own in new.items()])
    parts = towers.encode_pixels(pictures).split([len(own) for own in new.values()])
    latents = ready | dict(zip(new, parts, strict=True))
    return torch.stack([latents[kinds[i]][rows[kinds[i]].index(i)] for i in every]), latents


def _take_pictures(known: Known, kind: str, rows: list[int]) -> Tensor:
    """The pictures of one kind behind z_c (Table 2), float -1..1 [len(rows), 3, H, W].

    The hole of a masked image is 0 of -1..1 (mid-grey), as Stable Diffusion learnt it.
    """
    pixels = known.colormap if kind == "colormap" else known.image
    assert pixels is not None, f"{kind} is needed as a context"
    signed = to_signed(_take_rows(pixels, rows))
    if kind == "masked image":
        signed = signed * ~_take_rows(known.coarse_mask, rows)
    return signed


def _take_rows(values: Tensor, rows: list[int]) -> Tensor:
    """``values[rows]``, whose list would be copied to the device, and waited for."""
    return values if len(rows) == len(values) else torch.stack([values[row] for row in rows])


def shrink_mask(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Coarse mask bool [B, 1, H, W] -> float [B, 1, h, w]; a cell with any pixel to fill is 1."""
    return nn.functional.adaptive_max_pool2d(mask.float(), tuple(size))


# --- what a caller gives -------------------------------------------------------------------------


def list_prompts(task: str, prompt: str | Sequence[str] | None, batch: int) -> list[str]:
    """One prompt per input; a task without words has its own.

    Raises:
        UnigsError: none for a task that needs words, or another number of them.
    """
    prompts = [prompt] * batch if isinstance(prompt, str) else list(prompt or ())
    own = RECIPES[task].prompt
    if not prompts and "{names}" in own:  # of the recipe alone: names in data may hold anything
        raise UnigsError(f"expected a prompt for {task}, e.g. {own!r}")
    prompts = prompts or [own] * batch
    if len(prompts) != batch:
        raise UnigsError(f"expected {batch} prompts for {batch} inputs, got {len(prompts)}")
    return prompts


def check_inputs(task, image, labels, coarse_mask) -> Tensor:
    """The input that gives the size; errors where a task lacks one."""
    if task not in RECIPES:
        raise UnigsError(f"expected a task of {TASKS}, got {task!r}")
    needs = {"colormap": "labels"}.get(RECIPES[task].context, "image")
    known = labels if needs == "labels" else image
    if known is None:
        raise UnigsError(f"expected {needs} for {task}, got none")
    if RECIPES[task].context == "masked image" and coarse_mask is None:
        raise UnigsError(f"expected a coarse_mask for {task}, got none")
    if needs == "image" and (known.dim() != 4 or known.shape[1] != 3 or known.dtype != torch.uint8):
        raise UnigsError(
            f"expected image uint8 [B, 3, H, W], got {known.dtype} {list(known.shape)}"
        )
    if needs == "labels" and (known.dim() != 3 or known.is_floating_point()):
        raise UnigsError(f"expected labels int [B, H, W], got {known.dtype} {list(known.shape)}")
    wanted = (known.shape[0], 1, *known.shape[-2:])
    if coarse_mask is not None and (
        tuple(coarse_mask.shape) != wanted or coarse_mask.dtype != torch.bool
    ):
        raise UnigsError(
            f"expected coarse_mask bool {list(wanted)}, got {coarse_mask.dtype} "
            f"{list(coarse_mask.shape)}"
        )
    return known
