"""What people hand to a pipeline -> pixels, masks and words of one picture each.

In: PIL pictures, arrays, tensors, or lists of them, as diffusers' pipelines take them. Out: uint8
tensors on the CPU and the words of Table 2. Nothing is scaled: sizes are the pipeline's business.
What is taken and what is refused stands in ``unigs.inputs``, as for files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unigs.images import UnreadableImage, convert_rgb, read_orientation, tell_unreadable
from unigs.inputs import (
    check_aspect,
    check_entities,
    check_mask,
    choose_bright,
    count_colours,
    keep_values,
    number_entities,
    turn_picture,
    understand_mask,
)
from unigs.records import UnigsError
from unigs.tasks import RECIPES, list_misfits

NAMES = {"image": "image", "labels": "labels", "mask": "mask_image"}
"""What the inputs of a task are called in a call."""


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
        UnigsError: an unknown task, an input that is missing, that the task would ignore or that is
            of a form that is not read, or another number of masks or prompts than of pictures.
    """
    check_call(task, {"image": image, "labels": labels, "mask": mask})
    if repeats < 1:
        raise UnigsError(f"expected 1 or more, got {repeats}, at num_images_per_prompt")
    images = [to_pixels(*one) for one in split_pictures(image, "image")]
    maps = [to_labels(*one) for one in split_maps(labels, "labels")]
    masks = [(*to_mask(*one), one[1]) for one in split_maps(mask, "mask_image")]
    count = max(len(images), len(maps))
    if not count:
        raise UnigsError(f"expected a picture or a label map for {task}, got an empty list")
    words = write_words(task, prompt, count)
    indices = draw_indices(generator, count * repeats)
    pictures, drawn, holes = (spread(part, count, name) for part, name in (
        (images, "images"), (maps, "labels"), (masks, "masks"),
    ))  # fmt: skip
    may_fill = RECIPES[task].context != "masked image"
    asked = [
        Asked(one, label, None, said, word, 0)
        for one, label, (said, word) in zip(pictures, drawn, words, strict=True)
    ]
    for place, hole in enumerate(holes):
        if hole is not None:
            chosen, told, where = hole
            check_mask(chosen, told, asked[place].size, may_fill, where)
            asked[place] = replace(asked[place], mask=torch.from_numpy(chosen)[None])
    every = [one for one in asked for _ in range(repeats)]
    return [replace(one, index=index) for one, index in zip(every, indices, strict=True)]


def check_call(task: str, given: Mapping[str, Any]) -> None:
    """Refuse a call that lacks what its task needs, or holds what would be ignored.

    Args:
        task: any word.
        given: by the names of ``tasks.list_inputs``; None where not given.

    Raises:
        UnigsError: what was expected, what came.
    """
    if task not in RECIPES:
        raise UnigsError(f"expected a task of {', '.join(RECIPES)}, got {task!r}")
    lacks, ignores = list_misfits(task, [k for k, value in given.items() if value is not None])
    if lacks:
        raise UnigsError(f"expected {NAMES[lacks[0]]} for {task}, got none")
    if ignores:
        got = type(given[ignores[0]]).__name__
        raise UnigsError(f"expected no {NAMES[ignores[0]]} for {task}, got {got}")


def spread(parts: Sequence[Any], count: int, name: str) -> list[Any]:
    """One per picture: as many as there are, one for all, or none."""
    if len(parts) not in (0, 1, count):
        raise UnigsError(f"expected {count} {name}, one per picture, got {len(parts)}")
    return list(parts) if len(parts) == count else [parts[0] if parts else None] * count


def split_pictures(given: Any, name: str) -> list[tuple[Any, str]]:
    """Pictures, each with where it stood: of a list, or along the first axis of four."""
    return _split(given, name, 4)


def split_maps(given: Any, name: str) -> list[tuple[Any, str]]:
    """Maps of one value a pixel; [B, 1, H, W] is B of them, as [B, H, W] is."""
    if isinstance(given, np.ndarray | Tensor) and given.ndim == 4 and given.shape[1] == 1:
        given = given[:, 0]
    return _split(given, name, 3)


def _split(given: Any, name: str, axes: int) -> list[tuple[Any, str]]:
    if given is None:
        return []
    several = isinstance(given, list | tuple)
    several |= isinstance(given, np.ndarray | Tensor) and given.ndim == axes
    parts = [(one, f"{name}[{k}]") for k, one in enumerate(given)] if several else [(given, name)]
    for one, where in parts:
        if not isinstance(one, Image.Image | np.ndarray | Tensor):
            came = type(one).__name__
            raise UnigsError(
                f"expected a PIL picture, an array or a tensor, got {came}, at {where}"
            )
    return parts


def turn_loaded(
    picture: Image.Image, take: Callable[[Image.Image], Image.Image | np.ndarray], where: str
) -> np.ndarray:
    """What ``take`` reads in a PIL picture, turned as a viewer shows it.

    Raises:
        UnigsError: it cannot be decoded, or holds numbers without a known range.
    """
    try:
        with tell_unreadable():
            picture.load()
            return turn_picture(take(picture), read_orientation(picture))
    except UnreadableImage as error:
        raise UnigsError(f"{error}, at {where}") from error


def to_numbers(given: np.ndarray | Tensor, where: str) -> np.ndarray:
    """An array or tensor of bool, uint8, uint16, int64, float32 or float64.

    Raises:
        UnigsError: it holds no real numbers.
    """
    if isinstance(given, Tensor):
        given = given.detach().cpu()
        given = (given.float() if given.is_floating_point() else given).numpy()
    kind, came = given.dtype.kind, given.dtype
    if kind not in "buif":
        raise UnigsError(f"expected whole numbers, floats or bool, got {came}, at {where}")
    if kind == "f":
        given = given.astype(np.float64 if given.itemsize >= 8 else np.float32)
    elif kind != "b" and came not in (np.uint8, np.uint16):
        given = given.astype(np.int64)
    return np.ascontiguousarray(given)


def to_pixels(picture: Any, where: str = "image") -> Tensor:
    """One picture as uint8 [3, H, W].

    Args:
        picture: PIL of any mode, turned as its EXIF tag asks; array [H, W, 3] or [H, W]; tensor
            [3, H, W]. Whole numbers are 0..255; floats are 0..1, or -1..1 if any is below 0, as in
            diffusers.
        where: for the message.

    Raises:
        UnigsError: of another shape or range, or a strip.
    """
    if isinstance(picture, Image.Image):
        values = turn_loaded(picture, convert_rgb, where).transpose(2, 0, 1)
    else:
        values = to_numbers(picture, where)
        if isinstance(picture, np.ndarray):
            values = np.repeat(values[..., None], 3, -1) if values.ndim == 2 else values
            values = np.moveaxis(values, -1, 0) if values.ndim == 3 else values
    if values.ndim != 3 or len(values) != 3 or 0 in values.shape:
        raise UnigsError(
            "expected a picture of three colours, array [H, W, 3] or tensor [3, H, W], got "
            f"{list(picture.shape)}, at {where}"
        )
    check_aspect(values.shape[1:], where)
    return torch.from_numpy(np.ascontiguousarray(_to_bytes(values, where)))


def _to_bytes(values: np.ndarray, where: str) -> np.ndarray:
    """uint8 of whole numbers 0..255, or of floats in 0..1 or -1..1."""
    if values.dtype == np.uint8:
        return values
    floats = values.dtype.kind == "f"
    low, high = float(values.min()), float(values.max())
    least, most = (-1.0, 1.0) if floats else (0.0, 255.0)
    if values.dtype == bool or not least <= low <= high <= most:
        came = "bool" if values.dtype == bool else f"{low:g}..{high:g}"
        raise UnigsError(
            f"expected pixels in {least:g}..{most:g}, as they are {values.dtype}, got {came}, "
            f"at {where}"
        )
    if floats:
        values = values.astype(np.float32)
        values = ((values + 1) / 2 if low < 0 else values) * 255
    return values.round().astype(np.uint8)


def to_labels(given: Any, where: str = "labels") -> Tensor:
    """A label map as int64 [H, W], entities 1..N in the order of their values, 0 is nothing.

    Args:
        given: PIL of any mode, each value or colour but black an entity, turned as its EXIF tag
            asks; whole numbers [H, W].
        where: for the message.

    Raises:
        UnigsError: of another form, a strip, or without an entity.
    """
    if isinstance(given, Image.Image):
        values = count_colours(turn_loaded(given, keep_values, where))
    else:
        values = to_numbers(given, where)
    if values.ndim != 2 or values.dtype.kind == "f" or 0 in values.shape or values.min() < 0:
        raise UnigsError(
            "expected a label map, whole numbers [H, W] of 0 or more, got "
            f"{values.dtype} {list(values.shape)}, at {where}"
        )
    check_aspect(values.shape, where)
    labels = number_entities(values)
    check_entities(labels, where)
    return torch.from_numpy(labels.astype(np.int64))


def to_mask(given: Any, where: str = "mask_image") -> tuple[np.ndarray, str]:
    """What a mask chooses, bool [H, W], and how it was understood.

    Args:
        given: PIL of any mode, see :func:`unigs.inputs.understand_mask`; bool or numbers [H, W] or
            [1, H, W], of which those above half of their range are chosen: of 1 (floats), 255, or
            65,535 (uint16, or numbers above 255).
        where: for the message.

    Raises:
        UnigsError: of another shape, or of numbers that are negative or not finite.
    """
    if isinstance(given, Image.Image):
        told: list[str] = []

        def take(image: Image.Image) -> np.ndarray:
            mask, words = understand_mask(image)
            told.append(words)
            return mask

        return turn_loaded(given, take, where), told[0]
    values = to_numbers(given, where)
    values = values[0] if values.ndim == 3 and len(values) == 1 else values
    if values.ndim != 2 or 0 in values.shape:
        raise UnigsError(f"expected a mask [H, W], got {list(values.shape)}, at {where}")
    if values.dtype == bool:
        return values, "True"
    if values.min() < 0:
        raise UnigsError(f"expected a mask of 0 or more, got {values.min():g}, at {where}")
    if values.dtype == np.int64 and values.max() <= 255:
        values = values.astype(np.uint8)
    try:
        return choose_bright(values)
    except UnreadableImage as error:
        raise UnigsError(f"{error}, at {where}") from error


def write_words(task: str, prompt: Any, count: int) -> list[tuple[str, str]]:
    """The prompt of each picture as the model reads it, and the bare words that were asked for.

    Bare words are put into the task's template (Table 2). A prompt that begins as the template does
    stays as it is.

    Raises:
        UnigsError: none where the task needs words, bare ones where it takes none, empty ones, or
            another number than pictures.
    """
    template = RECIPES[task].prompt
    begins = template.partition(" ")[0]
    speaks = "{names}" in template
    if prompt is None and not speaks:
        return [(template, "")] * count
    said: Sequence[Any] = [prompt] if isinstance(prompt, str) or prompt is None else list(prompt)
    if len(said) not in (1, count):
        raise UnigsError(f"expected {count} prompts, one per picture, got {len(said)}")
    found = []
    for one in said:
        if not isinstance(one, str) or not one.strip():
            raise UnigsError(f"expected words for {task}, such as 'star', got {one!r}, at prompt")
        whole = one.startswith(begins)
        if not whole and not speaks:
            raise UnigsError(
                f"expected no words for {task}, or a prompt that begins with {begins!r}, got "
                f"{one!r}, at prompt"
            )
        found.append((one, "") if whole else (template.format(names=one.strip()), one.strip()))
    return found * (count // len(found))


def draw_indices(generator: Any, count: int) -> list[int]:
    """What tells one noise from another: 0, 1, ... or drawn from torch's generators.

    Raises:
        UnigsError: a list of another length, or something else than generators.
    """
    if generator is None:
        return list(range(count))
    listed = generator if isinstance(generator, list | tuple) else [generator] * count
    if len(listed) != count:
        raise UnigsError(f"expected {count} generators, one per answer, got {len(listed)}")
    for one in listed:
        if not isinstance(one, torch.Generator):
            raise UnigsError(
                f"expected a torch.Generator, or a list of them, got {one!r}, at generator; a "
                "number goes to seed"
            )
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
