"""Slow: annotation files and pictures mutated at random give words and counts, and nothing else.

``UNIGS_FUZZ_S`` is the seconds of each test; ``-s`` shows how many mutants ran.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from pathlib import Path

import pytest
from fuzz import fuzz_seconds, mutate_bytes, mutate_text, run_bounded

from unigs.annotations import find_sources
from unigs.records import Skips, UnigsError
from unigs.shards.samples import encode_sample
from unigs.synthetic import write_datasets
from unigs.verbs.inspect import format_tally, tally_source

pytestmark = pytest.mark.slow

MUTANT_S = 10
BATCH = 60
KINDS = {
    "coco": ("annotations/*_train2017.json",),
    "coco-pictures": ("train2017/*.jpg", "annotations/panoptic_train2017/*.png"),
    "entityseg": ("annotations/entity_segmentation/*train.json",),
    "openimages": ("*.csv",),
    "openimages-pictures": ("images/train/*.jpg", "masks/train/*.png"),
}


def read_all(root: Path, data_set: str) -> int:
    """Read, encode and tally a data set; returns how many pictures came through."""
    came = 0
    try:
        for source in find_sources(**{data_set: root}):
            skips = Skips()
            for sample in source.iterate(skips):
                encode_sample(sample).decode("latin-1")
                came += 1
            str(skips).encode()
            format_tally(source, tally_source(source, 1, 2)[0]).encode()
    except UnigsError as error:
        str(error).encode("utf-8", "surrogatepass")
    return came


def run_mutants(root: Path, data_set: str, patterns: tuple[str, ...], seed: int) -> tuple:
    dice = random.Random(seed)
    files = sorted(path for pattern in patterns for path in root.glob(pattern))
    came = 0
    for _ in range(BATCH):
        chosen = dice.sample(files, min(len(files), dice.choice((1, 2))))
        whole = {path: path.read_bytes() for path in chosen}
        for path, data in whole.items():
            is_json = path.suffix == ".json"
            mutant = mutate_text(json.loads(data), dice) if is_json else mutate_bytes(data, dice)
            path.write_bytes(mutant)
        (root.parent / "last").mkdir(exist_ok=True)
        for path in chosen:  # what to look at if the child dies
            shutil.copy(path, root.parent / "last" / path.name)
        started = time.monotonic()
        came += read_all(root, data_set)
        assert time.monotonic() - started < MUTANT_S, chosen
        for path, data in whole.items():
            path.write_bytes(data)
    return BATCH, came


@pytest.mark.parametrize("kind", KINDS)
def test_mutants_are_read_counted_or_refused(tmp_path, kind):
    data_set = kind.split("-")[0]
    write_datasets(tmp_path, images=3, val_images=1, size_px=64)
    run_mutants(tmp_path / data_set, data_set, KINDS[kind], -1)  # imports, outside of the bounds
    mutants, came, until = 0, 0, time.monotonic() + fuzz_seconds()
    seed = int(time.time())
    while time.monotonic() < until:
        seed += 1
        print(f"{kind}: seed {seed}")
        more, through = run_bounded(run_mutants, tmp_path / data_set, data_set, KINDS[kind], seed)
        mutants, came = mutants + more, came + through
    print(f"{kind}: {mutants} mutants, {came} pictures came through")
    assert came
