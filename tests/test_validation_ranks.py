"""Sampled validation and the test loop give the same figures on any number of ranks."""

from __future__ import annotations

import json
import os
import sys
from multiprocessing import get_context
from pathlib import Path

import lightning as L
import pytest
import torch
from builders import build_data

from unigs.callbacks import Evaluation, SampledValidation
from unigs.data import list_batches
from unigs.records import TASKS, Prediction, UnigsError
from unigs.tasks import TaskOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from fault_harness import Tiny, pick_port


class Guess:
    """Masks that are right, but for a band whose height depends on the picture."""

    name = "guess"
    tasks = TASKS
    decoders = ("own", "other")

    def __call__(self, batch) -> Prediction:
        return self.cut(batch, 5)

    def decode_again(self, batch, prediction, decoder) -> Prediction:
        return self.cut(batch, 3)

    def cut(self, batch, step_px: int) -> Prediction:
        labels = batch.labels.clone()
        for place, index in enumerate(batch.index.tolist()):
            labels[place, : 2 + step_px * (index % 5)] = 0
        scores = [[0.5] * int(one.max()) for one in batch.labels]
        return Prediction(batch.image, batch.image, labels, scores)


class Module(Tiny):
    def make_predictor(self, sampling=None) -> Guess:
        return Guess()

    def test_step(self, batch, batch_idx: int) -> None:
        """As of every system; the callback does the work."""


def drop_times(figures: dict) -> dict:
    """Figures by task, but for what the clock says."""
    return {
        task: {k: v for k, v in groups["all"].items() if k != "seconds_per_picture"}
        for task, groups in figures.items()
    }


def validate(shards: str, out: Path, rank: int, world: int, port: int, size: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    held_out = {"samples_per_task": 3, "batch_size": size}
    data = build_data(shards, tasks=TaskOptions(32, max_painted=9), num_workers=0, **held_out)
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        default_root_dir=out.parent,
        callbacks=[
            SampledValidation(pictures=0),
            Evaluation(str(out.parent / out.stem), "guess", samples_per_task=3),
        ],
    )  # fmt: skip
    (figures,) = trainer.validate(Module(), data, verbose=False)
    trainer.test(Module(), data, verbose=False)
    if rank == 0:
        results = json.loads((out.parent / out.stem / "guess" / "results.json").read_text())
        out.write_text(json.dumps([figures, drop_times(results["figures"])]))


def run_ranks(shards: str, out: Path, world: int, size: int) -> list[dict]:
    """Figures of the sampled validation, and of the evaluation in the test loop."""
    port = pick_port()
    ranks = [
        get_context("fork").Process(target=validate, args=(shards, out, rank, world, port, size))
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    assert [rank.exitcode for rank in ranks] == [0] * world
    return json.loads(out.read_text())


@pytest.fixture(scope="module")
def alone(shards, tmp_path_factory) -> list[dict]:
    """Figures of one rank."""
    validation, tested = run_ranks(shards, tmp_path_factory.mktemp("alone") / "alone.json", 1, 4)
    for task in TASKS:
        assert validation[f"val/{task}/miou"] < validation[f"val/{task}/miou_other"]
        assert tested[task]["pictures"] == 3
    assert len(set(validation.values())) > 4
    return [validation, tested]


@pytest.mark.parametrize(("world", "size"), [(2, 1), (2, 2), (3, 4), (4, 2), (5, 4)])
def test_figures_are_those_of_one_rank(shards, tmp_path, alone, world, size):
    assert run_ranks(shards, tmp_path / "together.json", world, size) == alone


def test_fewer_samples_than_ranks_are_refused(shards):
    data = build_data(shards, tasks=TaskOptions(32, max_painted=9), samples_per_task=1)
    _, plan = data.make_plan("val", data.task_ratios, 8)
    with pytest.raises(UnigsError, match="each of 5 ranks, got 4"):
        list_batches(plan, data.validation, 5)
