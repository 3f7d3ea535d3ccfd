"""What people hand to a pipeline -> pixels, masks and words of one picture each.

In: PIL pictures, arrays, tensors, or lists of them, as diffusers' pipelines take them. Out: uint8
tensors on the CPU and the words of Table 2. Nothing is scaled: sizes are the pipeline's business.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unigs.records import UnigsError
from unigs.tasks import RECIPES

HALF = 0.5
"""A mask's pixel is to be filled from this share of white."""


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """One picture of a call.

    Attributes:
        image: uint8 [3, H, W], or None for synthesis.
        labels: int64 [H, W], the entities to draw, or None.
        mask: bool [1, H, W], or None.
        prompt: as the model reads it.
        word: what was asked for in bare words, or "".
        index: with the seed it decides the noise.
    """

    image: Tensor | None
    labels: Tensor | None
    mask: Tensor | None
    prompt: str
    word: str
    index: int

    @property
    def size(self) -> tuple[int, int]:
        """H, W."""
        known = self.labels if self.image is None else self.image
        assert known is not None
        return known.shape[-2], known.shape[-1]


def gather_asked(
    task: str, image: Any, mask: Any, labels: Any, prompt: Any, repeats: int, generator: Any
) -> list[Asked]:
    """The pictures of a call, each ``repeats`` times.

    Raises:
        UnigsError: an unknown task, an input that is missing or of a form that is not read, or
            another number of masks or prompts than of pictures.
    """
    if task not in RECIPES:
        raise UnigsError(f"expected a task of {', '.join(RECIPES)}, got {task!r}")
    if repeats < 1:
        raise UnigsError(f"expected 1 or more, got {repeats}, at num_images_per_prompt")
    images = [to_pixels(one) for one in split_pictures(image, "image")]
    maps = [to_labels(one) for one in split_maps(labels, "labels")]
    masks = [to_mask(one) for one in split_maps(mask, "mask_image")]
    count = max(len(images), len(maps))
    if not count:
        needs = "labels" if RECIPES[task].context == "colormap" else "an image"
        raise UnigsError(f"expected {needs} for {task}, got none")
    words = write_words(task, prompt, count)
    indices = draw_indices(generator, count * repeats)
    parts = [spread(part, count, name) for name, part in (
        ("images", images), ("labels", maps), ("masks", masks),
    )]  # fmt: skip
    inputs = [pair for pair in zip(*parts, words, strict=True) for _ in range(repeats)]
    return [
        Asked(one, label, hole, said, word, index)
        for (one, label, hole, (said, word)), index in zip(inputs, indices, strict=True)
    ]


def spread(parts: list[Tensor], count: int, name: str) -> list[Tensor | None]:
    """One per picture: as many as there are, one for all, or none."""
    if len(parts) not in (0, 1, count):
        raise UnigsError(f"expected {count} {name}, one per picture, got {len(parts)}")
    return list(parts) if len(parts) == count else [parts[0] if parts else None] * count


def split_pictures(given: Any, name: str) -> Iterator[Any]:
    """Pictures, one by one: of a list, or along the first axis of four."""
    yield from _split(given, name, 4)


def split_maps(given: Any, name: str) -> Iterator[Any]:
    """Maps of one value a pixel; [B, 1, H, W] is B of them, as [B, H, W] is."""
    if isinstance(given, np.ndarray | Tensor) and given.ndim == 4 and given.shape[1] == 1:
        given = given[:, 0]
    yield from _split(given, name, 3)


def _split(given: Any, name: str, axes: int) -> Iterator[Any]:
    if given is None:
        return
    several = isinstance(given, list | tuple)
    several |= isinstance(given, np.ndarray | Tensor) and given.ndim == axes
    for one in given if several else [given]:
        if not isinstance(one, Image.Image | np.ndarray | Tensor):
            raise UnigsError(
                f"expected a PIL picture, an array or a tensor, got {type(one).__name__}, at {name}"
            )
        yield one


def to_pixels(picture: Any) -> Tensor:
    """One picture as uint8 [3, H, W].

    Args:
        picture: PIL of any mode; array [H, W, 3] or [H, W]; tensor [3, H, W]. Whole numbers are
            0..255; floats are 0..1, or -1..1 if any is below 0, as in diffusers.

    Raises:
        UnigsError: of another shape or range.
    """
    if isinstance(picture, Image.Image):
        values = torch.from_numpy(np.array(picture.convert("RGB"))).movedim(-1, 0)
    else:
        values = torch.as_tensor(picture).detach().cpu()
        if isinstance(picture, np.ndarray):
            values = values[..., None].expand(-1, -1, 3) if values.dim() == 2 else values
            values = values.movedim(-1, 0)
    if values.dim() != 3 or len(values) != 3 or 0 in values.shape:
        raise UnigsError(
            "expected a picture of three colours, array [H, W, 3] or tensor [3, H, W], got "
            f"{list(picture.shape)}, at image"
        )
    return _to_bytes(values)


def _to_bytes(values: Tensor) -> Tensor:
    """uint8 of whole numbers 0..255, or of floats in 0..1 or -1..1."""
    if values.dtype == torch.uint8:
        return values.contiguous()
    low, high = float(values.min()), float(values.max())
    least, most = (-1.0, 1.0) if values.is_floating_point() else (0.0, 255.0)
    if not least <= low <= high <= most:
        raise UnigsError(
            f"expected pixels in {least:g}..{most:g}, as they are {values.dtype}, got "
            f"{low:g}..{high:g}, at image"
        )
    if values.is_floating_point():
        values = ((values.float() + 1) / 2 if low < 0 else values.float()) * 255
    return values.round().to(torch.uint8).contiguous()


def to_labels(given: Any) -> Tensor:
    """A label map as int64 [H, W]: PIL of the modes L, P and I, or whole numbers [H, W]."""
    values = torch.as_tensor(np.array(given) if isinstance(given, Image.Image) else given)
    if values.dim() != 2 or values.is_floating_point() or int(values.min()) < 0:
        raise UnigsError(
            "expected a label map, whole numbers [H, W] of 0 or more, got "
            f"{values.dtype} {list(values.shape)}, at labels"
        )
    return values.detach().cpu().long()


def to_mask(given: Any) -> Tensor:
    """A mask as bool [1, H, W]: white of PIL, floats from a half on, other numbers from 128 on.

    Raises:
        UnigsError: of another shape, or with nothing to fill.
    """
    if isinstance(given, Image.Image):
        given = np.array(given.convert("L"))
    values = torch.as_tensor(given).detach().cpu()
    values = values[0] if values.dim() == 3 and len(values) == 1 else values
    if values.dim() != 2:
        raise UnigsError(f"expected a mask [H, W], got {list(values.shape)}, at mask_image")
    if values.dtype != torch.bool:
        values = values >= (HALF if values.is_floating_point() else 128)
    if not values.any():
        raise UnigsError("expected white where it is to be filled, got none, at mask_image")
    return values[None]


def write_words(task: str, prompt: Any, count: int) -> list[tuple[str, str]]:
    """The prompt of each picture as the model reads it, and the bare words that were asked for.

    Bare words are put into the task's template (Table 2). A prompt that begins as the template does
    stays as it is.

    Raises:
        UnigsError: none where the task needs words, empty ones, or another number than pictures.
    """
    template = RECIPES[task].prompt
    if "{names}" not in template:
        return [(template, "")] * count
    said: Sequence[Any] = [prompt] if isinstance(prompt, str) or prompt is None else list(prompt)
    if len(said) not in (1, count):
        raise UnigsError(f"expected {count} prompts, one per picture, got {len(said)}")
    begins = template.partition(" ")[0]
    found = []
    for one in said:
        if not isinstance(one, str) or not one.strip():
            raise UnigsError(f"expected words for {task}, such as 'star', got {one!r}, at prompt")
        whole = one.startswith(begins)
        found.append((one, "") if whole else (template.format(names=one.strip()), one.strip()))
    return found * (count // len(found))


def draw_indices(generator: Any, count: int) -> list[int]:
    """What tells one noise from another: 0, 1, ... or drawn from torch's generators.

    Raises:
        UnigsError: a list of another length.
    """
    if generator is None:
        return list(range(count))
    listed = generator if isinstance(generator, list | tuple) else [generator] * count
    if len(listed) != count:
        raise UnigsError(f"expected {count} generators, one per answer, got {len(listed)}")
    return [int(torch.randint(2**31 - 1, (), generator=one, device=one.device)) for one in listed]


def stack_asked(asked: Sequence[Asked]) -> dict[str, Any]:
    """Pictures of one size as inputs of :meth:`~unigs.UniGSPipeline.predict`."""
    image, labels, mask = (
        torch.stack([part for part in parts if part is not None]) if parts[0] is not None else None
        for parts in zip(*((one.image, one.labels, one.mask) for one in asked), strict=True)
    )
    return {
        "image": image,
        "labels": labels,
        "coarse_mask": mask,
        "prompt": [one.prompt for one in asked],
        "indices": [one.index for one in asked],
    }
