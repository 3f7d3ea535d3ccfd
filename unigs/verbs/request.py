"""A user's own files -> ``TaskSample``: the door of the verbs that run a model.

In: paths of pictures in any format, and words. Out: one sample of one task, at the picture's own
size. What a task needs is read off its recipe, so a new row of the table needs nothing here. How
pictures are understood stands in ``unigs.inputs``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from unigs.images import UnreadableImage, decode_picture, open_image, read_header
from unigs.inputs import (
    check_aspect,
    check_entities,
    check_mask,
    count_colours,
    keep_values,
    number_entities,
    turn_picture,
    understand_mask,
)
from unigs.records import TASKS, TaskSample, UnigsError, show
from unigs.tasks import RECIPES, list_inputs, list_misfits, speak_category, write_prompt


def check_request(
    task: str | None,
    given: Mapping[str, Path | None],
    words: Sequence[str] | None,
    prompt: str | None,
) -> None:
    """Refuse a request that lacks what its task needs, or holds what would be ignored.

    Args:
        task: one of ``TASKS``, or None to try all of them on a drawn scene.
        given: ``image``, ``mask`` and ``labels``, None where not given.
        words, prompt: None where not given.

    Raises:
        UnigsError: what was expected, what came.
    """
    if task is not None and task not in TASKS:
        raise UnigsError(f"expected a task of {', '.join(TASKS)}, got {task!r}, at --task")
    texts = {"words": words, "prompt": prompt}
    asked = [name for name, value in {**given, **texts}.items() if value is not None]
    if task is None:
        if asked:
            raise UnigsError(f"expected --task with --{asked[0]}, got none of {', '.join(TASKS)}")
        return
    lacks, ignores = list_misfits(task, asked)
    if lacks:
        raise UnigsError(
            f"expected --{lacks[0]} FILE for {task}, got none; leave --task out to try every task "
            "on a drawn scene"
        )
    if ignores:
        got = {**given, **texts}[ignores[0]]
        raise UnigsError(f"expected no --{ignores[0]} for {task}, got {got}")
    _, takes = list_inputs(task)
    if "words" in takes and not any(texts.values()):
        raise UnigsError(f"expected --words star sand or --prompt for {task}, got neither")
    if all(texts.values()):
        raise UnigsError("expected --words or --prompt, got both")
    if prompt is not None:
        check_text(prompt, "--prompt")
        if "prompt" in takes and not prompt.strip():
            raise UnigsError(f"expected a prompt with a word in it, got {prompt!r}, at --prompt")


# --- files of a user -----------------------------------------------------------------------------


def read_request(
    task: str,
    image: Path | None,
    mask: Path | None,
    labels: Path | None,
    words: Sequence[str] | None,
    prompt: str | None,
    pixels: np.ndarray | None = None,
) -> TaskSample:
    """Read a user's files as the sample of one task; see :func:`sample_pictures`.

    ``pixels``, uint8 [3, H, W], are those of the image, where they are known already.
    """
    if image is not None and pixels is None:
        pixels = read_pixels(image)
    given = None if labels is None else number_entities(read_values(labels))
    known, where = (pixels, image) if given is None else (given, labels)
    assert known is not None
    size = known.shape[-2:]
    check_aspect(size, where)
    if given is not None:
        check_entities(given, labels)
    searches = RECIPES[task].context != "masked image"
    spoken = speak_words(words or ())
    return TaskSample(
        key=Path(str(where)).name,
        index=0,
        seed=0,
        task=task,
        image=np.zeros((3, *size), np.uint8) if pixels is None else pixels,
        labels=np.zeros(size, np.int32) if given is None else given,
        ignored=np.zeros(size, bool),
        coarse_mask=np.ones(size, bool) if mask is None else read_mask(mask, size, searches),
        prompt=prompt or write_prompt(task, spoken),
        asked=tuple(spoken),
        names=tuple(spoken),
    )


def speak_words(given: Sequence[str]) -> list[str]:
    """Names of things as prompts say them.

    Raises:
        UnigsError: one without a word, or that is no text.
    """
    spoken = [speak_category(name.strip()) for name in given]
    for name, words in zip(given, spoken):
        check_text(name, "--words")
        if not words.strip():
            raise UnigsError(f"expected a name with a word in it, got {name!r}, at --words")
    return spoken


def check_text(text: str, where: str) -> None:
    """Refuse bytes that are no text in this locale, which arrive as lone surrogates.

    Raises:
        UnigsError: names the option.
    """
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise UnigsError(f"expected UTF-8, got {text!r}, at {where}")


def read_pixels(path: Path) -> np.ndarray:
    """A picture as a viewer shows it, uint8 [3, H, W].

    Raises:
        UnigsError: no such file, or no picture.
    """
    return turn_picture(*open_file(path, decode_picture)).transpose(2, 0, 1).copy()


def read_values(path: Path) -> np.ndarray:
    """One number per pixel of a drawn map, int64 [H, W]; 0 is black or fully transparent.

    A grey value is its own number, of 8 or 16 bits; a colour is its 24 bits, the palette's too.

    Raises:
        UnigsError: no such file, or no picture.
    """

    def decode(data: bytes) -> Image.Image:
        with open_image(data) as image:
            image.load()
            return keep_values(image)

    return count_colours(turn_picture(*open_file(path, decode)))


def open_file(path: Path, decode: Callable[[bytes], Image.Image]) -> tuple[Image.Image, int]:
    """A picture by ``decode`` and its EXIF orientation; errors name the file."""
    try:
        data = Path(path).read_bytes()
        return decode(data), read_header(data).orientation
    except OSError as error:
        raise UnigsError(f"expected a picture file, got {error.strerror}, at {path}") from error
    except UnreadableImage as error:
        raise UnigsError(f"{error}, at {path}") from error


def read_mask(path: Path, size: tuple[int, ...], may_fill: bool = True) -> np.ndarray:
    """Where to fill or to search, bool [H, W]; prints how the file was understood.

    Args:
        path: a picture; see :func:`understand_mask`.
        size: the picture's H, W.
        may_fill: whether all of the picture may be chosen.

    Raises:
        UnigsError: another size than the picture's, or nothing or everything chosen.
    """
    told: list[str] = []

    def decode(data: bytes) -> Image.Image:
        with open_image(data) as image:
            image.load()
            mask, words = understand_mask(image)
        told.append(words)
        return Image.fromarray(mask)

    mask = turn_picture(*open_file(path, decode))
    check_mask(mask, told[0], size, may_fill, path)
    print(f"mask {show(path.name)}: {mask.mean():.1%} of the picture is chosen, by {told[0]}")
    return mask
