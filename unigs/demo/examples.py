"""Scenes that no training has seen, drawn as files for a page's examples."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from unigs.outputs import encode_grey16, encode_pixels
from unigs.verbs.tryout import draw_samples

MOST_ENTITIES = 6
"""Of a drawn scene: two surfaces and four things."""


@dataclass(frozen=True, slots=True)
class Example:
    """A drawn scene.

    Attributes:
        picture: its file.
        thing: the name of a thing in it.
        labels: file of its label map.
        names: of all that the label map holds.
    """

    picture: Path
    thing: str
    labels: Path
    names: tuple[str, ...]


def draw_examples(folder: Path, side_px: int, count: int = 3) -> list[Example]:
    """Draw scenes at the size that a model learnt, into a new folder.

    Args:
        folder: for the files.
        side_px: of a scene.
        count: how many.
    """
    folder.mkdir(parents=True)
    return [_draw_example(folder / f"scene-{seed + 1}", side_px, seed) for seed in range(count)]


def _draw_example(stem: Path, side_px: int, seed: int) -> Example:
    samples = draw_samples(side_px, MOST_ENTITIES, seed)
    picture, labels = stem.with_suffix(".png"), stem.with_name(f"{stem.name}-labels.png")
    picture.write_bytes(encode_pixels(samples["referring"].image))
    labels.write_bytes(encode_grey16(samples["synthesis"].labels))
    return Example(picture, samples["referring"].asked[0], labels, samples["synthesis"].asked)
