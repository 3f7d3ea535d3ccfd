"""Which inputs: decided by (manifests, options, seed, index), told in a small JSON.

Two results compare only if they saw the same pictures, masks, words and noise. The header decides
all of them; a digest per item proves it. A protocol written by one evaluation and given to another
turns any difference into an error.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from unigs.batches import stack_samples
from unigs.data import JOINT_SOURCES, HeldOut, Loading, UniGSData, list_batches
from unigs.evaluation.options import Scenes
from unigs.files import write_text
from unigs.loaders import GuardedLoader
from unigs.plan import Plan
from unigs.records import Batch, UnigsError
from unigs.streams import CollateMade, StreamDataset
from unigs.tasks import TaskOptions

VERSION = 1


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Which inputs a model is evaluated on.

    Attributes:
        data: shards, mixture, geometry and seed.
        held_out: split, pictures of each task (paper: 1000), and how many a batch.
        protocol: file of an earlier evaluation, to insist on the same.
    """

    data: UniGSData
    held_out: HeldOut
    protocol: str | Path | None = None


def open_inputs(scenes: Scenes, shards: list[str], protocol: str | Path | None = None) -> Inputs:
    """The inputs that were asked for, of folders that ``unigs shards`` wrote."""
    data = UniGSData(
        shards,
        TaskOptions(scenes.resolution_px, min_area=scenes.min_area, max_painted=scenes.max_painted),
        task_ratios={task: 1.0 for task in scenes.tasks},
        source_weights=scenes.source_weights or JOINT_SOURCES,
        loading=Loading(num_workers=scenes.num_workers),
        seed=scenes.seed,
    )
    held_out = HeldOut(scenes.split, scenes.samples_per_task, scenes.batch_size)
    return Inputs(data, held_out, protocol)


def describe_inputs(inputs: Inputs) -> dict[str, Any]:
    """Everything the inputs depend on, as JSON.

    Raises:
        UnigsError: no shards, or nothing to evaluate.
    """
    data, held_out = inputs.data, inputs.held_out
    manifests, weights = data.select_sources(held_out.split)
    samples_per_task = held_out.samples_per_task
    if samples_per_task < 1 or not sum(len(m) for m in manifests.values()):
        raise UnigsError(
            f"expected pictures to evaluate on; got {samples_per_task} per task of "
            f"{ {name: len(m) for name, m in manifests.items()} }; in {data.shards} "
            f"(split {held_out.split!r})"
        )
    return {
        "version": VERSION,
        "seed": data.seed,
        "samples_per_task": samples_per_task,
        "weights": weights,
        "manifests": {name: manifest.digest for name, manifest in manifests.items()},
        "options": _describe_options(data),
    }


def _describe_options(data: UniGSData) -> dict[str, Any]:
    """How samples are made; a square number of painted entities by its root, as protocols do."""
    options = asdict(data.tasks.for_evaluation())
    most, root = data.max_painted, math.isqrt(data.max_painted)
    for name in ("max_painted", "unlabelled_share", "windows"):  # of training, but for the first
        del options[name]
    return options | ({"palette_cells": root} if root**2 == most else {"max_painted": most})


def digest_header(header: dict[str, Any]) -> str:
    """SHA-256 of a header, in hexadecimal."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()


def digest_item(batch: Batch, place: int) -> str:
    """A short digest of everything a predictor sees of one sample, and of its truth."""
    digest = hashlib.sha256(batch.prompts[place].encode())
    for part in (batch.image, batch.labels, batch.ignored, batch.coarse_mask):
        digest.update(part[place].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_protocol(path: Path, header: dict[str, Any], items: Iterable[dict[str, Any]]) -> None:
    """Write header and, per item, index, task, key, prompt and digest."""
    fields = ("index", "task", "key", "prompt", "digest")
    rows = [{name: item[name] for name in fields} for item in items]
    lines = ",\n  ".join(json.dumps(row) for row in sorted(rows, key=lambda row: row["index"]))
    head = json.dumps(header)
    write_text(path, f'{{"header": {head},\n "items": [\n  {lines}\n ]}}\n')


def read_protocol(path: Path, header: dict[str, Any]) -> dict[int, str]:
    """Digests by index of a protocol that must have this header.

    Raises:
        UnigsError: no such file, not a protocol, or one of other inputs.
    """
    try:
        found = json.loads(path.read_text())
        items, known = {row["index"]: row["digest"] for row in found["items"]}, {**found["header"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnigsError(f"expected a protocol; got {error!r}; in {path}") from error
    for name, wanted in json.loads(json.dumps(header)).items():
        if known.get(name) != wanted:
            raise UnigsError(
                f"expected {name} {known.get(name)} as in the protocol; "
                f"got {wanted}; {path} is of other inputs"
            )
    return items


class InputLoader:
    """``Loaded`` batches of one task each.

    Args:
        inputs: which they are.
        tasks: leave out the others.
        skip: indices that are done.
        rank, world_size: batches are dealt in turn.

    Attributes:
        indices: of all inputs of these tasks, those of other ranks and those done included.
    """

    def __init__(
        self,
        inputs: Inputs,
        tasks: Iterable[str],
        skip: Iterable[int] = (),
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.dataset: StreamDataset = inputs.data.make_held_out(inputs.held_out)
        plan = self.dataset.plan
        batches = _keep(list_batches(plan, inputs.held_out), plan, tasks)
        self.indices = [index for batch in batches for index in batch]
        done = set(skip)
        left = [[i for i in batch if i not in done] for batch in batches]
        self.batches = [batch for batch in left[rank::world_size] if batch]
        self.workers = min(1, inputs.data.loading.num_workers)

    def __iter__(self):
        return iter(
            GuardedLoader(
                self.dataset,
                self.workers,
                batch_sampler=self.batches,
                collate_fn=CollateMade(stack_samples),
                pin_memory=torch.cuda.is_available(),
            )
        )

    def __len__(self) -> int:
        return len(self.batches)


def _keep(batches: list[list[int]], plan: Plan, tasks: Iterable[str]) -> list[list[int]]:
    wanted = set(tasks)
    return [batch for batch in batches if plan.draw(batch[0]).task in wanted]
