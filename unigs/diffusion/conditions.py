"""What a caller of the pipeline gives for a task: pictures, masks and words, checked.

In: arguments of the call. Out: the input that gives the size, and one prompt per input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unigs.records import TASKS, UnigsError
from unigs.tasks import RECIPES


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


def check_inputs(task, image, labels, coarse_mask) -> torch.Tensor:
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
