"""Readers at full scale: CPU time and peak memory of index and load on annotations of true size.

Writes annotation files with as many rows as the released ones (Open Images train: 2,686,666 rows of
944,037 pictures; COCO train: 118,287 pictures, panoptic and instances; EntitySeg: 31,913), all of
whose pictures are links to one small file, indexes each in a process of its own and loads pictures
from it. Sizes 1/4, 1/2 and 1 show whether cost is linear.

    python tools/benchmark_readers.py /tmp/readers
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from PIL import Image
from tqdm import tqdm

from unigs.annotations.base import Source
from unigs.annotations.coco import make_coco_instances, make_coco_panoptic
from unigs.annotations.entityseg import make_entityseg
from unigs.annotations.openimages import COLUMNS, OpenImages
from unigs.images import encode_image
from unigs.records import Skips
from unigs.synthetic import draw_scene
from unigs.synthetic.polygons import encode_rle

SIZE_PX = 64
OPENIMAGES_ROWS, OPENIMAGES_PICTURES = 2_686_666, 944_037
COCO_PICTURES, COCO_INSTANCES = 118_287, 860_001
ENTITYSEG_PICTURES, ENTITYSEG_ENTITIES = 31_913, 570_000
POLYGON_POINTS = 34  # makes the instances file as large as the released one
RUN_LETTERS = 1500  # of an EntitySeg mask at ten megapixels
CLICKS = ";".join(["0.15388 0.50114 1"] * 10)
LOADS = 200
LINKS_PER_FILE = 30_000  # file systems count links in 16 bits


def benchmark_readers(
    work: Path, keep: bool = False, shares: tuple[float, ...] = (0.25, 0.5, 1.0)
) -> None:
    """Write, index and load annotation files of true size, and print a table.

    Args:
        work: folder for about 5 GB of files; its subfolders are replaced.
        keep: leave the files for a look.
        shares: parts of the true size to measure.
    """
    heads = ("share", "file", "pictures", "index", "load", "peak")
    print(f"{'data set':16}" + "".join(f"{head:>11}" for head in heads))
    for name, write in WRITERS.items():
        for share in shares:
            root = Path(work) / f"{name}-{share}"
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir(parents=True)
            path, source = write(root, share)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                figures = pool.apply(measure_source, (source,))
            pictures, index_s, load_s, peak_bytes = figures
            cells = (
                f"{share:.2f}",
                f"{path.stat().st_size / 1e6:.0f} MB",
                f"{pictures:,}",
                f"{index_s:.1f} s",
                f"{load_s * 1e3:.2f} ms",
                f"{peak_bytes / 1e6:.0f} MB",
            )
            print(f"{name:16}" + "".join(f"{cell:>11}" for cell in cells), flush=True)
            if not keep:
                shutil.rmtree(root)


def measure_source(source: Source) -> tuple[int, float, float, int]:
    """Pictures, CPU seconds to index and per load, peak resident bytes of this process."""
    start = time.process_time()
    count = len(source)
    index_s = time.process_time() - start
    skips = Skips()
    start = time.process_time()
    for i in np.linspace(0, count - 1, LOADS).astype(int).tolist():
        if source.load(i, skips) is None:
            raise SystemExit(f"expected a picture, came {skips}")
    load_s = (time.process_time() - start) / LOADS
    return count, index_s, load_s, read_peak_bytes()


def read_peak_bytes() -> int:
    """Peak resident bytes since this program began; ``getrusage`` would count its parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def link_files(folder: Path, names: Iterator[str], data: bytes) -> None:
    """Many names for one small file."""
    folder.mkdir(parents=True)
    for k, name in enumerate(names):
        if k % LINKS_PER_FILE == 0:
            original = folder / name
            original.write_bytes(data)
        else:
            os.link(original, folder / name)


def write_rows(
    path: Path, head: dict[str, Any], rows: Iterator[dict[str, Any]], total: int
) -> None:
    """A JSON with a long ``annotations`` array, row by row."""
    with path.open("w") as file:
        file.write(json.dumps(head)[:-1] + ', "annotations": [')
        for k, row in enumerate(tqdm(rows, path.name, total, leave=False)):
            file.write((", " if k else "") + json.dumps(row))
        file.write("]}")


def list_pictures(count: int, folder: str = "") -> list[dict[str, Any]]:
    """Rows of ``images`` as long as the released ones."""
    url = "http://images.cocodataset.org/train2017/000000391895.jpg"
    return [
        {
            "license": 3,
            "file_name": f"{folder}{k:012d}.jpg",
            "coco_url": url,
            "height": SIZE_PX,
            "width": SIZE_PX,
            "date_captured": "2013-11-14 11:18:45",
            "flickr_url": url,
            "id": k,
        }
        for k in range(count)
    ]


def write_openimages(root: Path, share: float) -> tuple[Path, Source]:
    """The train CSV; masks of the pictures that are loaded exist, at 100 x 100."""
    rows, pictures = int(OPENIMAGES_ROWS * share), int(OPENIMAGES_PICTURES * share)
    order = np.random.default_rng(0).permutation(rows) % pictures
    ids = [f"{k * 0x9E3779B97F4A7C15 % 2**64:016x}" for k in range(pictures)]
    loaded = {sorted(ids)[i] for i in np.linspace(0, pictures - 1, LOADS).astype(int).tolist()}
    mask = Image.new("1", (100, 100), 1)
    link_files(root / "images", (f"{k}.jpg" for k in sorted(loaded)), draw_picture())
    (root / "masks").mkdir()
    (root / "classes.csv").write_text("/m/01_5g,Chopsticks\n")
    path = root / "rows.csv"
    with path.open("w") as file:
        file.write(",".join([*COLUMNS, "BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks\n"]))
        for k, place in enumerate(tqdm(order.tolist(), path.name, leave=False)):
            name = f"{ids[place]}_m01_5g_{k:08x}.png"
            box = "0.8875,0.960938,0.454167,0.720833,0.86864"
            file.write(f"{name},{ids[place]},/m/01_5g,{k:08x},{box},{CLICKS}\n")
            if ids[place] in loaded:
                mask.save(root / "masks" / name)
    return path, OpenImages(path, root / "masks", root / "images", root / "classes.csv")


def draw_picture() -> bytes:
    """The one small picture."""
    return encode_image(draw_scene(0, SIZE_PX).image)


def write_panoptic(root: Path, share: float) -> tuple[Path, Source]:
    """Eleven segments per picture, as COCO has; every PNG exists."""
    count = int(COCO_PICTURES * share)
    ids = np.arange(1, 12) * 1_300_077
    png = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
    tall = Image.fromarray(np.tile(png[:, None], (1, SIZE_PX, 1)))
    (root / "one.png").parent.mkdir(exist_ok=True)
    tall.resize((SIZE_PX, SIZE_PX), Image.Resampling.NEAREST).save(root / "one.png")
    segments = [
        {"id": k, "category_id": 1, "iscrowd": 0, "bbox": [0, 10, 640, 427], "area": 120_057}
        for k in ids.tolist()
    ]
    names = [f"{k:012d}" for k in range(count)]
    link_files(root / "masks", (f"{k}.png" for k in names), (root / "one.png").read_bytes())
    link_files(root / "images", (f"{k}.jpg" for k in names), draw_picture())
    rows = (
        {"segments_info": segments, "file_name": f"{name}.png", "image_id": k}
        for k, name in enumerate(names)
    )
    head = {
        "images": list_pictures(count),
        "categories": [{"id": 1, "name": "person", "isthing": 1}],
    }
    path = root / "panoptic.json"
    write_rows(path, head, rows, count)
    return path, make_coco_panoptic(path, root / "masks", root / "images")


def write_instances(root: Path, share: float) -> tuple[Path, Source]:
    """Polygons of the released mean length, in the order of annotation ids, not of pictures."""
    count, entities = int(COCO_PICTURES * share), int(COCO_INSTANCES * share)
    link_files(root / "images", (f"{k:012d}.jpg" for k in range(count)), draw_picture())
    angles = np.linspace(0, 2 * np.pi, POLYGON_POINTS, endpoint=False)
    polygon = (32.123 + 25 * np.stack([np.cos(angles), np.sin(angles)], -1)).round(2)
    rows = (
        {
            "segmentation": [polygon.ravel().tolist()],
            "area": 702.1057499999998,
            "iscrowd": 0,
            "image_id": k % count,
            "bbox": [473.07, 395.93, 38.65, 28.67],
            "category_id": 1,
            "id": k,
        }
        for k in range(entities)
    )
    head = {"images": list_pictures(count), "categories": [{"id": 1, "name": "person"}]}
    path = root / "instances.json"
    write_rows(path, head, rows, entities)
    return path, make_coco_instances(path, root / "images")


def write_entityseg(root: Path, share: float) -> tuple[Path, Source]:
    """Run lengths as long as those of large pictures; the loaded ones are real but short."""
    count, entities = int(ENTITYSEG_PICTURES * share), int(ENTITYSEG_ENTITIES * share)
    link_files(root / "images", (f"{k:012d}.jpg" for k in range(count)), draw_picture())
    scene = draw_scene(0, SIZE_PX)
    rle = encode_rle(scene.labels == 1)
    rows = (
        {
            "id": k,
            "image_id": k % count,
            "category_id": 1,
            "iscrowd": 0,
            "area": 1198,
            "bbox": [288, 907, 31, 47],
            "segmentation": rle,
            "padding": "0" * RUN_LETTERS,
        }
        for k in range(entities)
    )
    head = {
        "images": list_pictures(count),
        "categories": [{"id": 1, "name": "未知物", "type": "thing"}],
    }
    path = root / "entity.json"
    write_rows(path, head, rows, entities)
    return path, make_entityseg(path, root / "images")


WRITERS: dict[str, Callable[[Path, float], tuple[Path, Source]]] = {
    "openimages": write_openimages,
    "coco-panoptic": write_panoptic,
    "coco-instances": write_instances,
    "entityseg": write_entityseg,
}

if __name__ == "__main__":
    auto_cli(benchmark_readers)
