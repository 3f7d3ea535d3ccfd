"""The stream against its peers: samples per second of one core, from one interleaved run.

Draws COCO-like pictures (or takes a COCO folder), writes shards, and makes the same training
samples of the same pictures in four ways: by our stream; by stock ``wds.WebDataset`` over the same
shards; by a map-style COCO folder with pycocotools; and, as the bound, bare JPEG decode and resize.
The four take turns, pass by pass, and a ratio is one of medians of CPU time, so that a busy machine
slows all alike. Then: what sharding costs beyond reading, decoding masks and encoding PNG; and the
time to the first batch of a manifest of 1.8 million samples, at its start and in the middle.

    OMP_NUM_THREADS=1 python tools/benchmark_stream.py /tmp/stream
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from jsonargparse import auto_cli
from PIL import Image
from pycocotools.coco import COCO

from unigs.annotations import find_sources
from unigs.annotations.base import Source
from unigs.data import JOINT_RATIOS
from unigs.images import encode_image
from unigs.plan import Mix, Plan
from unigs.records import Annotated, Entity, Skips, UnigsError
from unigs.shards import Manifest, ShardReader, merge_shards, read_manifests
from unigs.shards.manifest import digest_manifest
from unigs.shards.samples import decode_labels, decode_sample, encode_labels
from unigs.shards.write import write_source
from unigs.streams import StreamDataset
from unigs.synthetic import write_datasets
from unigs.tasks import TaskOptions, list_classes, make_sample
from unigs.transforms import center_crop

NAME = "coco-instances-train"
BIG_SHARDS, BIG_SAMPLES = 1800, 1000
Contender = Callable[[], None]


def benchmark_stream(
    work: Path, coco: Path | None = None, pictures: int = 60, rounds: int = 9, size_px: int = 512
) -> None:
    """Measure and print the tables.

    Args:
        work: folder for pictures and shards; a few hundred megabytes.
        coco: a COCO folder to measure on; by default one is drawn.
        pictures: how many to draw, with a longer side of 640 pixels as COCO's.
        rounds: passes of each contender, in turns.
        size_px: side of the samples.
    """
    if coco is None:
        write_datasets(work / "drawn", images=pictures, val_images=1, size_px=640)
        coco = work / "drawn" / "coco"
    sources = {f"{s.name}-{s.split}": s for s in find_sources(coco=coco)}
    out = work / "shards"
    shutil.rmtree(out, ignore_errors=True)
    write_source(sources[NAME], out, 64, 1, max_skip_fraction=1.0)
    merge_shards(str(out))
    manifest = read_manifests(out)[NAME]
    print(f"{len(manifest)} pictures, {rounds} rounds; per sample, one core")
    show_speeds(race_streams(manifest, coco, size_px), len(manifest), rounds)
    show_stages(manifest, size_px)
    for name in (NAME, "coco-panoptic-train"):
        show_speeds(race_writers(sources[name], work / "again"), len(sources[name]), rounds)
    show_start(work)


def show_speeds(contenders: dict[str, Contender], samples: int, rounds: int) -> None:
    """Run all in turns; medians, and the first one's speed as a ratio to each."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender()  # warm
    for _ in range(rounds):
        for name, contender in contenders.items():
            start = time.process_time()
            contender()
            times[name].append(time.process_time() - start)
    medians = {name: statistics.median(values) for name, values in times.items()}
    first = next(iter(medians.values()))
    for name, median in medians.items():
        spread = (max(times[name]) - min(times[name])) / median
        print(
            f"{name:44} {1e3 * median / samples:8.2f} ms  {samples / median:7.1f} /s  "
            f"first at {median / first:5.2f} of its speed  (spread {spread:.0%})"
        )


def race_streams(manifest: Manifest, coco: Path, size_px: int) -> dict[str, Contender]:
    """The stream, its peers and its bound, each as one pass over the same pictures."""
    make = bind_tasks(manifest, size_px)
    dataset, folder = make_dataset(manifest, make), CocoFolder(coco)
    tars = [f"{manifest.folder}/{shard.name}" for shard in manifest.shards]
    files = [coco / "train2017" / f"{key}.jpg" for key in list_keys(manifest)]
    return {
        "unigs stream, all tasks": lambda: drain(dataset[i].sample for i in range(len(manifest))),
        "stock wds.WebDataset, same task code": lambda: drain(mix_tasks(iterate_stock(tars), make)),
        "COCO folder + pycocotools, same task code": lambda: drain(
            mix_tasks((folder[i] for i in range(len(folder.ids))), make)
        ),
        "bare JPEG decode + resize": lambda: drain(decode_bare(f, size_px) for f in files),
    }


def bind_tasks(manifest: Manifest, size_px: int) -> Any:
    """The recipes with a run's options."""
    return partial(
        make_sample,
        seed=0,
        options=TaskOptions(resolution_px=size_px),
        vocabulary=list_classes({NAME: manifest}).names,
        augment=True,
    )


def make_dataset(manifest: Manifest, make: Any) -> StreamDataset:
    mixes = {task: {NAME: 1.0} for task in JOINT_RATIOS}
    return StreamDataset({NAME: manifest}, Plan({NAME: manifest.sizes}, JOINT_RATIOS, mixes), make)


def drain(samples: Iterator[Any]) -> None:
    for _ in samples:
        pass


def list_keys(manifest: Manifest) -> list[str]:
    reader = ShardReader({NAME: manifest})
    places = [(k, j) for k, count in enumerate(manifest.sizes) for j in range(count)]
    return [reader.read(NAME, *place).key for place in places]


def mix_tasks(records: Iterator[Annotated], make: Any) -> Iterator[Any]:
    """The same tasks in the same proportion as the stream's."""
    tasks = Mix(JOINT_RATIOS)
    for index, record in enumerate(records):
        with contextlib.suppress(UnigsError):
            yield make(record, tasks.pick(index), index)


def iterate_stock(tars: list[str]) -> Iterator[Annotated]:
    for found in webdataset.WebDataset(tars, shardshuffle=False):
        meta = json.loads(found["json"])
        yield Annotated(
            found["__key__"],
            found["jpg"],
            decode_labels(found["labels.png"]),
            tuple(Entity(**entity) for entity in meta["entities"]),
            meta["unlabelled"],
            meta["source"],
        )


class CocoFolder:
    """The usual map-style data set: one index in memory, masks decoded per picture."""

    def __init__(self, coco: Path) -> None:
        self.index = COCO(str(coco / "annotations" / "instances_train2017.json"))
        self.images = coco / "train2017"
        self.ids = sorted(self.index.getImgIds())

    def __getitem__(self, i: int) -> Annotated:
        picture = self.index.loadImgs(self.ids[i])[0]
        annotations = self.index.loadAnns(self.index.getAnnIds(self.ids[i]))
        annotations.sort(key=lambda a: (not a["iscrowd"], -a["area"]))
        labels = np.zeros((picture["height"], picture["width"]), np.uint16)
        entities = []
        for k, annotation in enumerate(annotations, 1):
            labels[self.index.annToMask(annotation) > 0] = k
            row = self.index.cats[annotation["category_id"]]
            about = (row["name"], str(row["id"]), str(annotation["id"]))
            entities.append(Entity(k, *about, True, bool(annotation["iscrowd"])))
        data = (self.images / picture["file_name"]).read_bytes()
        name = Path(picture["file_name"]).stem
        return Annotated(name, data, labels, tuple(entities), "unannotated", "coco-instances")


def decode_bare(file: Path, size_px: int) -> np.ndarray:
    """Read, decode (draft mode as ours) and resize the centre square."""
    with Image.open(file) as image:
        width, height = image.size
        shrink = size_px / min(width, height)
        image.draft(None, (round(width * shrink), round(height * shrink)))
        crop = center_crop(image.height, image.width)
        box = (crop.left_px, crop.top_px, crop.left_px + crop.side_px, crop.top_px + crop.side_px)
        square = image.convert("RGB").resize(
            (size_px, size_px), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0
        )
    return np.asarray(square)


def show_stages(manifest: Manifest, size_px: int) -> None:
    """Where a stream's time goes, stage by stage."""
    make = bind_tasks(manifest, size_px)
    dataset = make_dataset(manifest, make)
    spent = dict.fromkeys(("plan", "read + CRC-32", "tar, json, labels", *JOINT_RATIOS), 0.0)
    counts = dict.fromkeys(spent, 0)
    for index in range(4 * len(manifest)):
        marks = [time.process_time()]
        draw = dataset.plan.draw(index)
        marks.append(time.process_time())
        span = dataset.reader.read_span(NAME, draw.shard, draw.member)
        marks.append(time.process_time())
        record = decode_sample(span, "")
        marks.append(time.process_time())
        with contextlib.suppress(UnigsError):
            make(record, draw.task, index)
        marks.append(time.process_time())
        names = ("plan", "read + CRC-32", "tar, json, labels", draw.task)
        for name, start, end in zip(names, marks, marks[1:], strict=False):
            spent[name] += end - start
            counts[name] += 1
    for name, seconds in spent.items():
        print(f"  stage {name:20} {1e3 * seconds / counts[name]:7.3f} ms")


def race_writers(source: Source, out: Path) -> dict[str, Contender]:
    """Shards, and what they cannot be had without."""

    def write() -> None:
        shutil.rmtree(out, ignore_errors=True)
        write_source(source, out, 64, 1, max_skip_fraction=1.0)

    def encode_bare() -> None:
        for i in range(len(source)):
            sample = source.load(i, Skips())
            if sample is not None:
                encode_labels(sample.labels)

    name = f"{source.name}: "
    return {f"{name}sharding": write, f"{name}bare read + masks + PNG": encode_bare}


STARTER = textwrap.dedent("""
    import sys, time
    from unigs.plan import Plan
    from unigs.shards import read_manifests
    from unigs.streams import StreamDataset, StreamLoader

    start = time.monotonic()
    manifests = read_manifests(sys.argv[1])
    sizes = {name: manifest.sizes for name, manifest in manifests.items()}
    plan = Plan(sizes, {"inpainting": 0.3, "entity": 0.7}, dict.fromkeys(
        ("inpainting", "entity"), dict.fromkeys(sizes, 1)))
    make = lambda record, task, index: record.key
    dataset = StreamDataset(manifests, plan, make)
    loader = StreamLoader(dataset, list, 64, 1000, num_workers=int(sys.argv[3]))
    if int(sys.argv[2]):
        loader.load_state_dict({**loader.state_dict(), "next_index": int(sys.argv[2])})
    batch = next(iter(loader))
    print(time.monotonic() - start, flush=True)
""")


def show_start(work: Path) -> None:
    """Time to the first batch of 1.8 million samples, in new processes, with two workers."""
    out = write_big(work / "big")
    for where, index in (("start", 0), ("middle of pass 2", 2_700_000)):
        inside, whole = [], []
        for _ in range(5):
            start = time.monotonic()
            command = [sys.executable, "-c", STARTER, str(out), str(index), "2"]
            told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            whole.append(time.monotonic() - start)
            inside.append(float(told))
        print(
            f"first batch of {BIG_SHARDS * BIG_SAMPLES:,} samples, {where:17} "
            f"{statistics.median(inside):5.2f} s after imports, "
            f"{statistics.median(whole):5.2f} s with interpreter and imports"
        )


class Tiled(Source):
    """One small picture as often as asked; enough to make a manifest of true size."""

    name, split, licence = "tiled", "train", "drawn"
    categories = ()
    skips = Skips()

    def __init__(self, sample: Annotated) -> None:
        self.sample = sample

    @property
    def keys(self) -> list[str]:
        return [f"{i:06d}" for i in range(BIG_SAMPLES)]

    def read(self, i: int, skips: Skips) -> Annotated:
        one = self.sample
        return Annotated(
            self.keys[i], one.image, one.labels, one.entities, one.unlabelled, one.source
        )


def write_big(out: Path) -> Path:
    """One real shard under 1800 names, and the manifest and index of all."""
    shutil.rmtree(out, ignore_errors=True)
    image = np.zeros((32, 32, 3), np.uint8)
    labels = np.ones((32, 32), np.uint16)
    entities = (Entity(1, "thing", "1", "1"),)
    small = Annotated("small", encode_image(image), labels, entities, "void", "tiled")
    write_source(Tiled(small), out, BIG_SAMPLES, 1)
    merge_shards(str(out))
    folder = out / "tiled-train"
    content = json.loads((folder / "manifest.json").read_text())
    shard = content["shards"][0]
    names = [f"tiled-train-{k:06d}.tar" for k in range(BIG_SHARDS)]
    for name in names[1:]:
        os.link(folder / names[0], folder / name)
    rows = np.tile(np.load(folder / "index.npy"), BIG_SHARDS)
    np.save(folder / "index.npy", rows)
    content["index_sha256"] = hashlib.sha256((folder / "index.npy").read_bytes()).hexdigest()
    content["samples"] = len(rows)
    content["shards"] = [{**shard, "name": name} for name in names]
    content["digest"] = digest_manifest(content)
    (folder / "manifest.json").write_text(json.dumps(content))
    return out


if __name__ == "__main__":
    auto_cli(benchmark_stream)
