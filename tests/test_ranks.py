"""The real ``UniGS`` and its callbacks on two ranks: the losses of one, one end for all."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import lightning as L
import pytest
import torch
from builders import build_data, build_unigs
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from unigs.callbacks import EMA, Preemption
from unigs.checkpoints import read_checkpoint
from unigs.codec import Palette
from unigs.promises import Preempted
from unigs.records import UnigsError
from unigs.tasks import TaskOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from fault_harness import find_difference, pick_port

pytestmark = pytest.mark.filterwarnings("ignore")


class Seen(Callback):
    """Losses and samples of every batch, written at the end of the process."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.losses: list[float] = []
        self.indices: list[list[int]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.indices.append(torch.as_tensor(batch.index).tolist())

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        self.losses.append(loss.item())

    def write(self) -> None:
        self.out.write_text(json.dumps([self.losses, self.indices]))


class Strike(Callback):
    """SIGTERM to one rank in the backward pass of a batch."""

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.batch = rank, batch

    def on_before_backward(self, trainer, *args) -> None:
        if trainer.global_rank == self.rank and trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


class Fail(Callback):
    """An error of ours on one rank, at a batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_rank == 1 and batch_idx == 2:
            raise UnigsError("expected a sample, got none, in this test")


def train(base, shards, folder: Path, rank: int, world: int, port: int, options: dict) -> None:
    """One rank; exits with 143 where it was preempted and with 7 where another left it."""
    if world > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    seen = Seen(folder / f"{options.pop('name')}-{rank}.json")
    data = build_data(
        shards, tasks=TaskOptions(32), num_workers=0, steps_per_epoch=100,
        global_batch_size=options.pop("global_batch_size", 8),
    )  # fmt: skip
    model = build_unigs(base, learning_rate=1e-3, warmup_steps=1, palette=Palette(cells=7))
    extra, resume = options.pop("callbacks", []), options.pop("resume", None)
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0, limit_val_batches=0, default_root_dir=folder,
        callbacks=[
            EMA(0.9), seen, Preemption(patience_s=60), *extra,
            ModelCheckpoint(folder, save_last=True, every_n_train_steps=1000),
        ],
        **options,
    )  # fmt: skip
    code = 0
    try:
        trainer.fit(model, data, ckpt_path=resume)
    except Preempted as ended:
        code = int(ended.code)  # type: ignore[arg-type]
    except UnigsError:
        code = 5
    except RuntimeError as error:
        code = 7 if "gloo" in str(error) else 1
    seen.write()
    os._exit(code)


def run_ranks(base, shards, folder: Path, name: str, world: int = 1, **options):
    """Mean loss and samples of every batch over all ranks, and the ranks' exit codes."""
    port = pick_port()
    options["name"] = name
    ranks = [
        get_context("fork").Process(
            target=train, args=(base, shards, folder, rank, world, port, dict(options))
        )
        for rank in range(world)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    told = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(world)]
    losses = [sum(parts) / world for parts in zip(*(one[0] for one in told))]
    indices = [list(chain(*parts)) for parts in zip(*(one[1] for one in told))]
    return losses, indices, [rank.exitcode for rank in ranks]


def read_end(folder: Path) -> dict:
    content = read_checkpoint(folder / "last.ckpt")
    average, stream = content["callbacks"]["EMA"], content["UniGSData"]
    parts = {name: content[name] for name in ("global_step", "state_dict", "optimizer_states")}
    return parts | {"average": average, "stream": stream}


def test_two_ranks_have_the_losses_of_one(base, shards, tmp_path):
    """One rank of 8, two of 4, and windows of two batches of 4."""
    options = {"max_steps": 2}
    alone, indices, _ = run_ranks(base, shards, tmp_path / "a", "alone", **options)
    assert list(chain(*indices)) == list(range(16))
    together, seen, codes = run_ranks(base, shards, tmp_path / "b", "both", world=2, **options)
    assert codes == [0, 0]
    assert seen == indices
    assert together == pytest.approx(alone, rel=1e-6)
    options |= {"global_batch_size": 4, "accumulate_grad_batches": 2}
    windows, seen, _ = run_ranks(base, shards, tmp_path / "c", "windows", **options)
    assert list(chain(*seen)) == list(range(16))
    # Lightning divides the loss of a batch by their number in a window.
    pairs = [sum(pair) for pair in zip(windows[::2], windows[1::2])]
    assert pairs == pytest.approx(alone, rel=1e-6)


@pytest.mark.parametrize("world", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_signal_inside_a_window_ends_the_run_behind_it(base, shards, tmp_path, world):
    """It comes in the second batch of four of the first step, to the last rank alone."""
    options = {"world": world, "max_steps": 2, "accumulate_grad_batches": 4, "global_batch_size": 2}
    whole, indices, _ = run_ranks(base, shards, tmp_path / "whole", "whole", **options)
    cut = tmp_path / "cut"
    first, seen, codes = run_ranks(
        base, shards, cut, "first", callbacks=[Strike(world - 1, 1)], **options
    )
    assert codes == [143] * world
    assert seen == indices[:4]
    rest, seen, codes = run_ranks(base, shards, cut, "rest", resume=cut / "last.ckpt", **options)
    assert codes == [0] * world
    assert seen == indices[4:]
    assert first + rest == whole
    assert not find_difference(read_end(cut), read_end(tmp_path / "whole"))


def test_a_rank_that_stops_stops_all(base, shards, tmp_path):
    started = time.monotonic()
    *_, codes = run_ranks(base, shards, tmp_path, "x", world=2, max_steps=5, callbacks=[Fail()])
    assert codes == [7, 5]
    assert time.monotonic() - started < 60
