"""Records of pictures -> COCO's results and COCO's panoptic format.

In: what :meth:`unigs.outputs.found.Found.describe` gives, by key. Out: plain values for JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

Records = Mapping[str, Mapping[str, Any]]


def number_pictures(records: Records) -> dict[str, int]:
    """An image id per key: the number in the file's name where every name is one, as in COCO.

    Else 1..N in the order of the keys.
    """
    stems = [str(one["file_name"]).rsplit("/", 1)[-1].partition(".")[0] for one in records.values()]
    numeric = all(re.fullmatch("[0-9]{1,15}", stem) for stem in stems)
    numbers = [int(stem) for stem in stems] if numeric else []
    if len(set(numbers)) < len(records):
        numbers = list(range(1, len(records) + 1))
    return dict(zip(records, numbers))


def number_categories(records: Records) -> dict[str, int]:
    """A category id 1..K per name, in the order of the alphabet."""
    names = {segment["category"] for one in records.values() for segment in one["segments"]}
    return {name: number for number, name in enumerate(sorted(names), 1)}


def list_results(records: Records) -> list[dict[str, Any]]:
    """One row per mask, in the form that pycocotools' ``loadRes`` takes."""
    pictures, categories = number_pictures(records), number_categories(records)
    return [
        {
            "image_id": pictures[key],
            "file_name": one["file_name"],
            "category_id": categories[segment["category"]],
            "segmentation": segment["segmentation"],
            "score": segment["score"],
        }
        for key, one in records.items()
        for segment in one["segments"]
    ]


def list_panoptic(records: Records, about: str) -> dict[str, Any]:
    """COCO's panoptic JSON; a segment's id in its PNG is its label.

    Args:
        records: by key.
        about: one line on what made it.
    """
    pictures, categories = number_pictures(records), number_categories(records)
    return {
        "info": {"description": about},
        "images": [
            {"id": pictures[key], **{name: one[name] for name in ("file_name", "width", "height")}}
            for key, one in records.items()
        ],
        "annotations": [
            {
                "image_id": pictures[key],
                "file_name": f"{key}.png",
                "segments_info": [
                    {
                        "id": segment["label"],
                        "category_id": categories[segment["category"]],
                        "area": segment["area"],
                        "bbox": segment["bbox"],
                        "iscrowd": 0,
                        "score": segment["score"],
                    }
                    for segment in one["segments"]
                ],
            }
            for key, one in records.items()
        ],
        "categories": [
            {"id": number, "name": name, "supercategory": name, "isthing": 1}
            for name, number in categories.items()
        ],
    }
