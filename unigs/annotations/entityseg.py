"""EntitySeg (High-Quality Entity Segmentation): COCO's forms with twists of its own.

In: an annotation JSON and the folder that its file names start from. Out: ``Source``. The entity
and instance files are COCO instances with compressed run lengths, things and stuff alike; file
names carry a folder in the 010203 files and none in the single-part files; the panoptic files name
the picture where COCO names the PNG. Category 0, ``unknown``, is a real category. The ``_lr``
files go with ``images_lr`` only: with ``images`` every picture is a counted skip.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from unigs.annotations.base import Source
from unigs.annotations.coco import CocoInstances, CocoPanoptic
from unigs.records import Annotated, Skips

LICENCE = "Adobe Research License, non-commercial research; pictures unlicensed"


def read_entityseg(
    json: Path, images: Path, skips: Skips, masks: Path | None = None
) -> Iterator[Annotated]:
    """Pictures of an EntitySeg file of any kind in the order of their keys.

    Args:
        json: an entity, instance or panoptic annotation file.
        images: the folder that the file names in it start from.
        skips: tally of what is left out, by reason.
        masks: the folder of id PNGs; makes it a panoptic file.

    Raises:
        UnigsError: a file or folder is missing.
    """
    return make_entityseg(json, images, masks=masks).iterate(skips)


def make_entityseg(
    json: Path,
    images: Path,
    split: str = "train",
    licence: str = LICENCE,
    masks: Path | None = None,
) -> Source:
    """The source of one file; what no entity covers was never annotated."""
    if masks is None:
        return CocoInstances(json, images, split, "entityseg", licence, "unannotated")
    return CocoPanoptic(json, images, split, "entityseg-panoptic", licence, "unannotated", masks)
