"""Writes synthetic scenes as COCO, Open Images and EntitySeg lie on disk.

In: a folder and counts. Out: ``coco/``, ``openimages/`` and ``entityseg/`` with the released names,
folders and encodings, so that the real readers are exercised with no download. The same arguments
give the same bytes. :func:`draw_known` gives the very scene behind a written picture, which is how
tests compare what a reader sees with the truth.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from unigs.images import encode_image
from unigs.records import Entity, UnigsError
from unigs.seeds import derive_seed
from unigs.synthetic.folder import LICENCE, end_drawing, is_drawn, save_bytes
from unigs.synthetic.polygons import bounding_box, encode_polygons, encode_rle, encode_runs
from unigs.synthetic.scenes import (
    STUFF_IDS,
    THING_IDS,
    Scene,
    check_drawing,
    draw_scene,
    scene_seed,
    shift_hue,
)

CROWD_SHARE = 0.2
DATA_SETS = ("coco", "openimages", "entityseg")
SCENES_PER_SET = 10**6
MASK_SCALES = (1.0, 1.5625, 1.25)
"""Open Images masks are 1600, 1280 or 1024 long against pictures 1024 long."""

ENTITYSEG_FOLDERS = ("entity_01_11580", "entity_02_11598", "entity_03_10049")


@dataclass(frozen=True, slots=True)
class Options:
    """What fixes every byte written; kept beside the data as ``synthetic.json``.

    Raises:
        UnigsError: scenes that cannot be drawn.
    """

    images: int
    val_images: int
    size_px: int
    seed: int
    max_things: int = 8
    max_stuff: int = 4
    min_radius: float = 0.055
    held_out: str = "val"
    colour_shift: float = 0.0

    def __post_init__(self) -> None:
        check_drawing(self.size_px, self.max_things, self.max_stuff, self.min_radius)

    def to_json(self) -> str:
        """What lies beside the data; without a shift as before there was one."""
        known = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps({k: v for k, v in known.items() if k != "colour_shift" or v})


def write_datasets(
    out: Path,
    images: int = 240,
    val_images: int = 48,
    size_px: int = 64,
    seed: int = 0,
    max_things: int = 8,
    max_stuff: int = 4,
    min_radius: float = 0.055,
    held_out: Literal["val", "test"] = "val",
    colour_shift: float = 0.0,
) -> None:
    """Draw three small data sets with known masks in the layouts of COCO, Open Images, EntitySeg.

    A folder already drawn with the same options is left as it is.

    Args:
        out: folder to make ``coco``, ``openimages`` and ``entityseg`` in.
        images: training pictures per data set.
        val_images: validation pictures per data set.
        size_px: longer side of the pictures, 32 to 1024.
        seed: another seed draws other scenes.
        max_things: shapes in a scene, 1 to so many.
        max_stuff: surfaces in a scene, 2 to so many, at most 8.
        min_radius: of a shape, as a part of the shorter side, up to 0.138; the largest has six
            times it.
        held_out: whose seeds the validation pictures are drawn from. A test set is written under
            the validation names too, in a folder of its own: the layouts know no other.
        colour_shift: degrees by which all hues are turned, of the same scenes.

    Raises:
        UnigsError: an option outside of its bounds, a folder drawn with other options, or one that
            holds files that were not drawn.
    """
    options = Options(
        images, val_images, size_px, seed, max_things, max_stuff, min_radius, held_out,
        colour_shift,
    )  # fmt: skip
    if min(images, val_images) < 1 or max(images, val_images) > SCENES_PER_SET or size_px < 32:
        raise UnigsError(
            f"expected pictures and a size of at least 32 px, came {options}, at {out}"
        )
    out = Path(out)
    text = options.to_json()
    if is_drawn(out, DATA_SETS, text):
        return
    with tqdm(total=3 * (images + val_images), desc="drawing", unit="scene") as bar:
        write_coco(out / "coco", options, bar)
        write_openimages(out / "openimages", options, bar)
        write_entityseg(out / "entityseg", options, bar)
    for name in DATA_SETS:
        (out / name / "licence.txt").write_text(LICENCE + "\n")
    end_drawing(out)


def draw_known(options: Options, data_set: str, split: str, index: int) -> Scene:
    """The scene behind picture ``index`` of a written data set."""
    place = DATA_SETS.index(data_set)
    seeds = options.held_out if split == "val" else split
    at = scene_seed(seeds, place * SCENES_PER_SET + index, options.seed)
    short = options.size_px * 3 // 4
    sides = ((options.size_px, options.size_px), (short, options.size_px), (options.size_px, short))
    size = sides[derive_seed(at, 0, "aspect") % 3]
    scene = draw_scene(
        at,
        size,
        max_things=options.max_things,
        max_stuff=options.max_stuff,
        min_radius=options.min_radius,
        crowd_share=CROWD_SHARE if data_set == "coco" else 0.0,
    )
    shifted = shift_hue(scene.image, options.colour_shift) if options.colour_shift else scene.image
    return replace(scene, image=shifted)


def _draw_split(
    options: Options, data_set: str, split: str, bar: tqdm
) -> Iterator[tuple[int, Scene]]:
    for index in range(options.images if split == "train" else options.val_images):
        yield index, draw_known(options, data_set, split, index)
        bar.update()


def _save_json(path: Path, value: object) -> None:
    save_bytes(path, json.dumps(value).encode())


def _encode_png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def _category_table() -> list[tuple[str, int, bool]]:
    things = [(name, k, True) for name, k in THING_IDS.items()]
    return things + [(name, k, False) for name, k in STUFF_IDS.items()]


def _category_colour(category_id: int) -> tuple[int, int, int]:
    digest = hashlib.blake2b(f"{category_id}".encode(), digest_size=3).digest()
    return digest[0], digest[1], digest[2]


# COCO ---------------------------------------------------------------------------------------------


def write_coco(root: Path, options: Options, bar: tqdm) -> None:
    """Panoptic JSON with id PNGs, and instances JSON with polygons and crowd run lengths."""
    for split in ("train", "val"):
        name = f"{split}2017"
        pictures, panoptic = [], []
        instances: list[dict[str, object]] = []
        for index, scene in _draw_split(options, "coco", split, bar):
            image_id = 7 * index + (139 if split == "train" else 500_139)
            stem = f"{image_id:012d}"
            height, width = scene.labels.shape
            save_bytes(root / name / f"{stem}.jpg", encode_image(scene.image))
            pictures.append(
                {"id": image_id, "file_name": f"{stem}.jpg", "width": width, "height": height}
            )
            segments, ids = _number_segments(scene)
            png = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], axis=-1).astype(np.uint8)
            folder = root / "annotations" / f"panoptic_{name}"
            save_bytes(folder / f"{stem}.png", _encode_png(Image.fromarray(png)))
            panoptic.append(
                {"image_id": image_id, "file_name": f"{stem}.png", "segments_info": segments}
            )
            instances += _list_instances(scene, image_id, len(instances) + 1)
        for kind, rows in (("panoptic", panoptic), ("instances", instances)):
            value = {
                "info": {"description": f"synthetic scenes in the layout of COCO {kind}"},
                "licenses": [{"id": 1, "name": LICENCE, "url": ""}],
                "images": pictures,
                "annotations": rows,
                "categories": _coco_categories(kind),
            }
            _save_json(root / "annotations" / f"{kind}_{name}.json", value)


def _coco_categories(kind: str) -> list[dict[str, object]]:
    if kind == "instances":
        return [{"supercategory": "shape", "id": k, "name": n} for n, k in THING_IDS.items()]
    return [
        {
            "supercategory": "shape" if is_thing else "surface",
            "color": list(_category_colour(k)),
            "isthing": int(is_thing),
            "id": k,
            "name": name,
        }
        for name, k, is_thing in _category_table()
    ]


def _number_segments(scene: Scene) -> tuple[list[dict[str, object]], np.ndarray]:
    """Segment records and id map; stuff wears its category's colour, things one close to it."""
    ids = np.zeros(len(scene.entities) + 1, np.int64)
    segments: list[dict[str, object]] = []
    for entity in scene.entities:
        red, green, blue = _category_colour(int(entity.category_id))
        colour = red + 256 * green + 65536 * blue
        while colour in ids:
            colour = (colour + 0x050301) % 0x1000000
        ids[entity.label] = colour
        mask = scene.labels == entity.label
        segments.append(
            {
                "id": colour,
                "category_id": int(entity.category_id),
                "area": int(mask.sum()),
                "bbox": bounding_box(mask),
                "iscrowd": int(entity.is_crowd),
            }
        )
    return segments, ids[scene.labels]


def _list_instances(scene: Scene, image_id: int, next_id: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for entity in scene.entities:
        if not entity.is_thing:
            continue
        mask = scene.labels == entity.label
        category_id = int(entity.category_id)
        crowd_id = int(f"900{category_id:03d}{image_id:06d}")  # passes 32 bits, as COCO's do
        rows.append(
            {
                "segmentation": encode_runs(mask) if entity.is_crowd else encode_polygons(mask),
                "area": float(mask.sum()),
                "iscrowd": int(entity.is_crowd),
                "image_id": image_id,
                "bbox": [float(value) for value in bounding_box(mask)],
                "category_id": category_id,
                "id": crowd_id if entity.is_crowd else next_id + len(rows),
            }
        )
    return rows


# Open Images --------------------------------------------------------------------------------------

CSV_HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"


def class_mid(category_id: int) -> str:
    """An Open Images class id; every other one has an underscore, as ``/m/01_5g``."""
    return f"/m/0{category_id}_s" if category_id % 2 else f"/m/0{category_id}s"


def write_openimages(root: Path, options: Options, bar: tqdm) -> None:
    """CSV, 1-bit mask PNGs mostly of another size than the picture, class list without header."""
    rows = [f"{class_mid(k)},{name.capitalize()}\n" for name, k in THING_IDS.items()]
    save_bytes(root / "class-descriptions-boxable.csv", "".join(rows).encode())
    for split, released in (("train", "train"), ("val", "validation")):
        table = []
        for index, scene in _draw_split(options, "openimages", split, bar):
            image_id = openimages_id(options.seed, split, index)
            save_bytes(root / "images" / released / f"{image_id}.jpg", encode_image(scene.image))
            for entity in scene.entities:
                if entity.is_thing:
                    mask = scene.labels == entity.label
                    row = _openimages_row(image_id, entity, mask, split)
                    scale = MASK_SCALES[index % 3]
                    save_bytes(
                        root / "masks" / released / row.split(",", 1)[0], _scale_mask(mask, scale)
                    )
                    table.append((row.split(",")[3], row))
        lines = [CSV_HEADER, *(row for _, row in sorted(table))]  # an image's rows lie apart
        path = root / f"{released}-annotations-object-segmentation.csv"
        save_bytes(path, ("\n".join(lines) + "\n").encode())


def openimages_id(seed: int, split: str, index: int) -> str:
    """16 hex digits, as released."""
    return hashlib.blake2b(f"{seed}/{split}/{index}".encode(), digest_size=8).hexdigest()


def _openimages_row(image_id: str, entity: Entity, mask: np.ndarray, split: str) -> str:
    mid = class_mid(int(entity.category_id))
    text = f"{image_id}/{entity.label}".encode()
    box_id = hashlib.blake2b(text, digest_size=4).hexdigest()
    x, y, w, h = bounding_box(mask)
    height, width = mask.shape
    box = (x / width, (x + w) / width, y / height, (y + h) / height)
    numbers = ",".join(f"{value:.6f}" for value in box)
    tail = "0.90000,0.50000 0.50000 1;0.10000 0.10000 0" if split == "train" else ","
    return (
        f"{image_id}_{mid.replace('/', '')}_{box_id}.png,{image_id},{mid},{box_id},{numbers},{tail}"
    )


def _scale_mask(mask: np.ndarray, scale: float) -> bytes:
    """Enlarge both sides, not by exactly one factor; reading it back by nearest is exact."""
    height, width = mask.shape
    size = (round(width * scale), int(np.ceil(height * scale)))
    return _encode_png(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))


# EntitySeg ----------------------------------------------------------------------------------------


def write_entityseg(root: Path, options: Options, bar: tqdm) -> None:
    """COCO-style JSON with one compressed run length per entity, things and stuff alike."""
    next_image, next_annotation = 1, 1
    for split in ("train", "val"):
        pictures, rows = [], []
        for index, scene in _draw_split(options, "entityseg", split, bar):
            name, format = entityseg_name(split, index)
            height, width = scene.labels.shape
            save_bytes(root / "images" / name, encode_image(scene.image, format))
            pictures.append({"file_name": name, "height": height, "width": width, "id": next_image})
            for entity in scene.entities:
                mask = scene.labels == entity.label
                rows.append(
                    {
                        "id": next_annotation,
                        "image_id": next_image,
                        "category_id": int(entity.category_id),
                        "iscrowd": 0,
                        "area": int(mask.sum()),
                        "bbox": bounding_box(mask),
                        "segmentation": encode_rle(mask),
                    }
                )
                next_annotation += 1
            next_image += 1
        value = {
            "images": pictures,
            "annotations": rows,
            "categories": _entityseg_categories(),
        }
        folder = root / "annotations" / "entity_segmentation"
        _save_json(folder / f"entityv2_010203_entity_{split}.json", value)


def entityseg_name(split: str, index: int) -> tuple[str, str]:
    """File name with folder, and format: some names have inner dots, some pictures are PNG."""
    stem = f"scene.{split}.{index:06d}" if index % 4 == 1 else f"scene_{split}_{index:06d}"
    suffix, format = (".png", "PNG") if index % 5 == 2 else (".jpg", "JPEG")
    return f"{ENTITYSEG_FOLDERS[index % 3]}/{stem}{suffix}", format


def _entityseg_categories() -> list[dict[str, object]]:
    unknown = ("unknown", 0, True)
    return [
        {
            "supercategory": "entity",
            "id": k,
            "name": f" {name}" if k % 5 == 0 and k else name,  # blanks as in the released table
            "c_name": "未知物" if k == 0 else name,
            "type": "thing" if is_thing else "stuff",
        }
        for name, k, is_thing in [unknown, *_category_table()]
    ]
