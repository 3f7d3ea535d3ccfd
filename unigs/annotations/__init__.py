"""Data sets as they are distributed -> ``Annotated`` records; see :mod:`unigs.annotations.base`."""

from unigs.annotations.ade20k import read_ade20k
from unigs.annotations.base import Category, Source, Unusable
from unigs.annotations.cityscapes import read_cityscapes
from unigs.annotations.coco import read_coco_instances, read_coco_panoptic
from unigs.annotations.davis import read_davis, split_key
from unigs.annotations.entityseg import read_entityseg
from unigs.annotations.find import find_sources
from unigs.annotations.openimages import read_openimages

__all__ = [
    "Category",
    "Source",
    "Unusable",
    "find_sources",
    "read_ade20k",
    "read_cityscapes",
    "read_coco_instances",
    "read_coco_panoptic",
    "read_davis",
    "read_entityseg",
    "read_openimages",
    "split_key",
]
