"""Random damage to models, masks and checkpoints ends in words; ``UNIGS_FUZZ_S`` seconds of it.

Every mutant is a function of its number, so a failure names the one to run again.
"""

from __future__ import annotations

import io
import json
import os
import random
import resource
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unigs.images import open_image
from unigs.inputs import understand_mask
from unigs.records import UnigsError
from unigs.systems.joint.base import load_components
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.load import load_system

pytestmark = pytest.mark.slow

LIMIT_S, LIMIT_BYTES = 60.0, 4 << 30
ODD = (None, True, -1, 0, 1, 7, 1e308, float("nan"), 10**40, "", "x", "../x", [], {}, [[]], [None],
       {"a": {}}, "\ud800", [1] * 50, "unet", 2**31, 0.5)  # fmt: skip


def mutate_bytes(data: bytes, rng: random.Random, head: int | None = None) -> bytes:
    """Flip, cut, repeat, insert or drop bytes, most often near the start."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 3, 20))):
        end = min(len(out), head or len(out)) if rng.random() < 0.8 else len(out)
        at = rng.randrange(end) if end else 0
        match rng.randrange(6):
            case 0 if out:
                out[at] ^= 1 << rng.randrange(8)
            case 1 if out:
                out[at] = rng.choice((0, 9, 32, 34, 44, 91, 123, 125, 255))
            case 2:
                del out[at:]
            case 3:
                del out[at : at + rng.randrange(1, 40)]
            case 4:
                out[at:at] = rng.randbytes(rng.randrange(1, 40))
            case _:
                out[at:at] = out[at : at + rng.randrange(1, 400)]
    return bytes(out)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Put an odd value, drop or double a key somewhere; or damage the bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(data, rng)
    content = json.loads(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        place = content
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = rng.choice(keys)
            inner = place[key]
            if isinstance(inner, dict | list) and inner and rng.random() < 0.7:
                place = inner
                continue
            if rng.random() < 0.15:
                del place[key]
            elif isinstance(place, dict) and rng.random() < 0.1:
                place[rng.choice(("x", "_x", "config", "auto_map"))] = inner
            else:
                place[key] = deepcopy(rng.choice(ODD))
            break
    return json.dumps(content).encode("utf-8", "replace")


def try_mutants(make: Callable[[random.Random, int], str], name: str) -> None:
    """Run mutants until the time is over; anything but words is a failure.

    Args:
        make: damages an input by a generator, tries it, and says what was damaged.
        name: for the count that is printed.
    """
    ends: Counter[str] = Counter()
    stop, number = time.monotonic() + float(os.environ.get("UNIGS_FUZZ_S", "60")) / 3, 0
    while time.monotonic() < stop:
        started = time.monotonic()
        try:
            make(random.Random(f"{name} {number}"), number)
            ends["read"] += 1
        except UnigsError:
            ends["refused in words"] += 1
        except BaseException as error:
            raise AssertionError(f"{name} mutant {number}: {error!r}") from error
        assert time.monotonic() - started < LIMIT_S, f"{name} mutant {number} took too long"
        number += 1
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\n{name}: {number} mutants, {dict(ends)}, peak {peak / 2**20:.0f} MiB")
    assert peak < LIMIT_BYTES
    assert ends["refused in words"] > number / 20


def test_damaged_folders_are_refused_in_words(base, pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "whole")
    sources = {"pipeline": tmp_path / "whole", "base": Path(base)}

    def attempt(rng: random.Random, number: int) -> None:
        kind = rng.choice(list(sources))
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sources[kind], copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file())
        if rng.random() < 0.9:
            (copy / "digests.json").unlink(missing_ok=True)
            files = [path for path in files if path.exists()]
        path = rng.choice(files)
        data = path.read_bytes()
        if path.suffix == ".json":
            data = mutate_json(data, rng)
        else:
            head = 8 + int.from_bytes(data[:8], "little") if path.suffix == ".safetensors" else None
            data = mutate_bytes(data, rng, head)
        path.write_bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (UniGSPipeline.load if kind == "pipeline" else load_components)(str(copy))

    try_mutants(attempt, "folders")


def test_damaged_masks_are_refused_in_words():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (24, 31), dtype=np.uint8)
    layers = rng.integers(0, 256, (24, 31, 4), dtype=np.uint8)
    pictures = [
        (Image.fromarray(grey), "PNG"), (Image.fromarray(layers), "PNG"),
        (Image.fromarray(grey.astype(np.uint16) * 200), "PNG"), (Image.fromarray(grey), "JPEG"),
        (Image.fromarray(layers).convert("RGB").quantize(9), "PNG"),
        (Image.fromarray(grey), "TIFF"),
        (Image.fromarray(layers), "WEBP"), (Image.fromarray(grey).convert("1"), "PNG"),
    ]  # fmt: skip
    files = []
    for picture, format in pictures:
        buffer = io.BytesIO()
        picture.save(buffer, format)
        files.append(buffer.getvalue())

    def attempt(rng: random.Random, number: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_image(mutate_bytes(rng.choice(files), rng)) as image:
                image.load()
                mask, words = understand_mask(image)
        assert mask.dtype == bool
        assert mask.ndim == 2
        assert words

    try_mutants(attempt, "masks")


def test_damaged_checkpoints_are_refused_in_words(base, pipeline, tmp_path):
    state = {f"unet.{name}": weight for name, weight in pipeline.unet.state_dict().items()}
    whole = tmp_path / "whole.ckpt"
    torch.save({"hyper_parameters": {"base": base, "seed": 1}, "state_dict": state}, whole)
    data, path = whole.read_bytes(), tmp_path / "mutant.ckpt"

    def attempt(rng: random.Random, number: int) -> None:
        path.write_bytes(mutate_bytes(data, rng, head=rng.choice((2000, 40_000))))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_system(str(path))

    try_mutants(attempt, "checkpoints")
