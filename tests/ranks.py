"""A real system trained by forked ranks: losses, samples, exit codes, the last checkpoint."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

import lightning as L
import torch
from builders import build_data, build_unigs
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from unigs.callbacks import EMA, Preemption
from unigs.checkpoints import read_checkpoint
from unigs.codec import Palette
from unigs.promises import Preempted
from unigs.promises.reasons import find_reason
from unigs.records import UnigsError
from unigs.tasks import TaskOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from fault_harness import find_difference, pick_port  # noqa: F401


class Seen(Callback):
    """Losses and samples of every batch, written at the end of the process."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.words = ""
        self.losses: list[float] = []
        self.indices: list[list[int]] = []
        self.figures: list[float] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.indices.append(torch.as_tensor(batch.index).tolist())

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        self.losses.append(loss.item())

    def on_validation_end(self, trainer, pl_module) -> None:
        self.figures.append(trainer.callback_metrics["val/image"].item())

    def write(self) -> None:
        self.out.write_text(json.dumps([self.losses, self.indices, self.words, self.figures]))


class Strike(Callback):
    """SIGTERM to one rank in the backward pass of a batch."""

    def __init__(self, rank: int, batch: int) -> None:
        self.rank, self.batch = rank, batch

    def on_before_backward(self, trainer, *args) -> None:
        if trainer.global_rank == self.rank and trainer.fit_loop.total_batch_idx == self.batch:
            os.kill(os.getpid(), signal.SIGTERM)


def make_joint(base, shards, global_batch_size: int):
    """The joint model and its data."""
    model = build_unigs(base, learning_rate=1e-3, warmup_steps=1, palette=Palette(cells=7))
    data = build_data(
        shards, tasks=TaskOptions(32), num_workers=0, steps_per_epoch=100,
        global_batch_size=global_batch_size, samples_per_task=1, batch_size=1,
    )  # fmt: skip
    return model, data


def train(base, shards, folder: Path, rank: int, world: int, port: int, options: dict) -> None:
    """One rank; exits with 143 where it was preempted and with 7 where another left it."""
    if world > 1:
        os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    seen = Seen(folder / f"{options.pop('name')}-{rank}.json")
    make = options.pop("make", make_joint)
    model, data = make(base, shards, options.pop("global_batch_size", 8))
    extra, resume = options.pop("callbacks", []), options.pop("resume", None)
    told = {"strategy": "ddp" if world > 1 else "auto", "limit_val_batches": 0} | options
    trainer = L.Trainer(
        accelerator="cpu", devices=world, logger=False, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        num_sanity_val_steps=0,
        callbacks=[
            EMA(0.9), seen, Preemption(patience_s=60), *extra,
            ModelCheckpoint(folder, save_last=True, every_n_train_steps=1000),
        ],
        **told,
    )  # fmt: skip
    code = 0
    try:
        trainer.fit(model, data, ckpt_path=resume)
    except Preempted as ended:
        code = int(ended.code)  # type: ignore[arg-type]
    except UnigsError as error:
        code = 5
        seen.words = str(error)
    except RuntimeError as error:
        code = 7 if "gloo" in str(error) else 1
        seen.words = find_reason()
        traceback.print_exc()
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
        rank.join(1200)
    told = [json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in range(world)]
    losses = [sum(parts) / world for parts in zip(*(one[0] for one in told))]
    indices = [list(chain(*parts)) for parts in zip(*(one[1] for one in told))]
    return losses, indices, [rank.exitcode for rank in ranks]


def read_end(folder: Path) -> dict:
    content = read_checkpoint(folder / "last.ckpt")
    average, stream = content["callbacks"]["EMA"], content["UniGSData"]
    parts = {name: content[name] for name in ("global_step", "state_dict", "optimizer_states")}
    return parts | {"average": average, "stream": stream}
