"""Kill training runs at random moments until they are done, and compare with runs left alone.

A trial is a random run (ranks, workers, epochs, accumulation, validation, what saves and when,
order of callbacks) over real shards with a tiny network. It is killed (SIGKILL) or preempted
(SIGTERM), all ranks or one, again and again at random moments, resumed by ``ckpt_path: last``, and
must end with the weights, the average, the optimiser and the stream's position of a run that nobody
touched, bit for bit. A preempted run must exit with 143, and none may hang.

    python tools/fault_harness.py --minutes 60
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

os.environ.setdefault("TQDM_DISABLE", "1")

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from unigs import runs
from unigs.callbacks import EMA
from unigs.checkpoints import find_last, read_checkpoint
from unigs.data import HeldOut, Loading, UniGSData
from unigs.promises import Preempted, Preemption
from unigs.promises.resume import describe_run
from unigs.records import Batch, UnigsError
from unigs.seeds import derive_seed
from unigs.shards import write_shards
from unigs.synthetic import write_datasets
from unigs.systems.system import Learner
from unigs.tasks import TaskOptions

MAX_RESTARTS = 60
AGENT_S = 15
"""Ranks that another left are sent SIGTERM after this time, as torchrun does, and must end."""
HANG_S = 240
SLOWNESS_S = 0.004
"""A step sleeps so long, so that random moments fall into every part of a run."""


class Tiny(Learner):
    """A small network whose weights depend on which samples came, in which batches, and no more."""

    def __init__(self) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = torch.nn.Sequential(
            torch.nn.Linear(48, 24), torch.nn.Tanh(), torch.nn.Linear(24, 48)
        )
        generator = torch.Generator().manual_seed(0)
        for weight in self.network.parameters():
            torch.nn.init.normal_(weight, std=0.1, generator=generator)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        time.sleep(SLOWNESS_S)
        pixels = torch.nn.functional.adaptive_avg_pool2d(batch.image.float() / 255, 4).flatten(1)
        rows = []
        for index in batch.index.tolist():
            generator = torch.Generator().manual_seed(derive_seed(0, index, "noise"))
            rows.append(torch.randn(48, generator=generator))
        noisy = pixels + torch.stack(rows)
        return ((self.network(noisy) - pixels) ** 2).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        time.sleep(SLOWNESS_S)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 / (1 + n / 10))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Run:
    """One run's options; drawn at random."""

    ranks: int
    workers: int
    steps_per_epoch: int
    accumulate: int
    ends_by: str
    total: int
    saver: tuple[tuple[str, Any], ...]
    saves_last: Any
    validation: tuple[tuple[str, Any], ...]
    preemption_first: bool
    sanity: int


def draw_run(chance: random.Random) -> Run:
    """A random run."""
    savers: list[dict[str, Any]] = [
        {"every_n_train_steps": chance.randint(1, 5)},
        {"every_n_epochs": 1},
        {"every_n_epochs": 1, "save_on_train_epoch_end": True},
        {"every_n_epochs": 2},
        {"train_time_interval": timedelta(milliseconds=chance.choice([10, 100]))},
        {},
        {"every_n_train_steps": 1000},
    ]
    steps = chance.randint(2, 9)
    validations: list[dict[str, Any]] = [
        {"limit_val_batches": 0},
        {},
        {"check_val_every_n_epoch": 2},
        {"val_check_interval": chance.randint(1, steps)},
        {"val_check_interval": chance.randint(1, 9), "check_val_every_n_epoch": None},
    ]
    by_epochs = chance.random() < 0.5
    return Run(
        ranks=2 if chance.random() < 0.3 else 1,
        workers=chance.choice([0, 0, 1, 2]),
        steps_per_epoch=steps,
        accumulate=chance.choice([1, 1, 1, 2, 3]),
        ends_by="max_epochs" if by_epochs else "max_steps",
        total=chance.randint(2, 4) if by_epochs else chance.randint(6, 25),
        saver=tuple(chance.choice(savers).items()),
        saves_last=chance.choice([True, False, None, "link"]),
        validation=tuple(chance.choice(validations).items()),
        preemption_first=chance.random() < 0.5,
        sanity=chance.choice([0, 0, 2]),
    )


def fit(run: Run, shards: Path, folder: Path, rank: int) -> int:
    """Train one rank of a run from its last checkpoint to its end; the exit code."""
    callbacks: list[Any] = [EMA(0.9)]
    callbacks.insert(0 if run.preemption_first else 1, Preemption(patience_s=1.0))
    callbacks.append(ModelCheckpoint(folder, save_last=run.saves_last, **dict(run.saver)))
    callbacks[-1].CHECKPOINT_EQUALS_CHAR = "-"
    trainer = L.Trainer(
        accelerator="cpu",
        devices=run.ranks,
        strategy="ddp" if run.ranks > 1 else "auto",
        callbacks=callbacks,
        accumulate_grad_batches=run.accumulate,
        num_sanity_val_steps=run.sanity,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **{run.ends_by: run.total, **dict(run.validation)},
    )
    data = UniGSData(
        [str(shards)],
        TaskOptions(32, max_painted=9),
        loading=Loading(4, run.steps_per_epoch, run.workers),
        validation=HeldOut("val", 2, 1),
    )
    model = Tiny()
    found, _ = find_last([folder], describe_run(trainer, model, data))
    try:
        trainer.fit(model, data, ckpt_path=found)
    except Preempted as error:
        return int(error.code)  # type: ignore[arg-type]
    except (UnigsError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "gloo" not in str(error):
            raise
        print(f"rank {rank}: {error}", flush=True)
        return 1
    return 143 if any(isinstance(c, Preemption) and c.preempted for c in trainer.callbacks) else 0


def start_rank(run: Run, shards: Path, folder: Path, rank: int, port: int, log: Path) -> int:
    """Fork a process that trains one rank; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        faulthandler.register(signal.SIGUSR2, all_threads=True)
        os.setpgid(0, 0)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if run.ranks > 1:
            os.environ |= {
                "LOCAL_RANK": str(rank),
                "NODE_RANK": "0",
                "WORLD_SIZE": str(run.ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        code = fit(run, shards, folder, rank)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def pick_port() -> int:
    """A free port of the loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def attempt(
    run: Run, shards: Path, folder: Path, chance: random.Random | None, log: Path, longest_s: float
) -> tuple[list[int], str]:
    """Start all ranks and, with ``chance``, strike them once; exit codes and what was done."""
    port = pick_port()
    pids = [start_rank(run, shards, folder, rank, port, log) for rank in range(run.ranks)]
    done = "nothing"
    if chance is not None:
        time.sleep(chance.uniform(0, longest_s))
        done = chance.choice(["kill", "term all", "term one", "kill one"])
        struck = pids if done in ("kill", "term all") else [chance.choice(pids)]
        number = signal.SIGKILL if done.startswith("kill") else signal.SIGTERM
        for pid in struck:
            os.kill(pid, number)  # children are ours and not reaped yet: never another's process
        if done == "kill one":  # an agent ends the rest, as torchrun does
            time.sleep(0.2)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
    return wait_for_all(pids, log), done


def wait_for_all(pids: list[int], log: Path) -> list[int]:
    """Exit codes of all ranks. Those that one of them left are ended as an agent would.

    Raises:
        RuntimeError: a rank hangs.
    """
    codes: dict[int, int] = {}
    left_at, started = 0.0, time.monotonic()
    while len(codes) < len(pids):
        for pid in set(pids) - codes.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                codes[pid] = os.waitstatus_to_exitcode(status)
        now = time.monotonic()
        if not left_at and any(codes.values()):
            left_at = now
        for pid in set(pids) - codes.keys():
            if left_at and now - left_at > AGENT_S:
                os.kill(pid, signal.SIGTERM)
            if now - started > HANG_S or (left_at and now - left_at > 3 * AGENT_S):
                os.kill(pid, signal.SIGUSR2)  # its stack, into the log
                time.sleep(1)
                for other in pids:
                    if other not in codes:
                        os.kill(other, signal.SIGKILL)
                        os.waitpid(other, 0)
                raise RuntimeError("hung")
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def read_final(run: Run, folder: Path) -> dict[str, Any]:
    """What finished runs must agree in, of the newest checkpoint."""
    newest, _ = find_last([folder], runs.Run())
    assert newest is not None, "no checkpoint at the end"
    content = read_checkpoint(newest)
    return {
        "step": content["global_step"],
        "weights": content["state_dict"],
        "average": content["callbacks"]["EMA"],
        "optimiser": content["optimizer_states"],
        "stream": content["UniGSData"],
    }


def find_difference(ours: Any, theirs: Any, where: str = "") -> str:
    """The first place in which two nested states differ; empty if they do not."""
    if isinstance(ours, torch.Tensor):
        return "" if torch.equal(ours, theirs) else where
    if isinstance(ours, dict):
        if ours.keys() != theirs.keys():
            return f"{where}: keys {ours.keys() ^ theirs.keys()}"
        parts = (find_difference(ours[k], theirs[k], f"{where}/{k}") for k in ours)
    elif isinstance(ours, (list, tuple)):
        if len(ours) != len(theirs):
            return f"{where}: length"
        parts = (
            find_difference(a, b, f"{where}/{i}") for i, (a, b) in enumerate(zip(ours, theirs))
        )
    else:
        return "" if ours == theirs else f"{where}: {ours!r} and {theirs!r}"
    return next((part for part in parts if part), "")


def list_allowed(run: Run, done: str) -> set[int]:
    """Exit codes that a strike may end in; -15 is SIGTERM before our handler stands."""
    if done == "nothing":
        return {0}
    if done == "kill":
        return {0, -9}
    left = {1} if run.ranks > 1 else set()  # a rank that the other one left
    return {0, 143, -15, *left} if done.startswith("term") else {0, -9, *left}


def try_run(seed: int, shards: Path, scratch: Path, told: Counter[str]) -> str:
    """One trial; what went wrong, empty if nothing did."""
    chance = random.Random(seed)
    run = draw_run(chance)
    whole, struck, log = scratch / "whole", scratch / "struck", scratch / "log"
    started = time.monotonic()
    codes, _ = attempt(run, shards, whole, None, log, 0)
    longest_s = 1.1 * (time.monotonic() - started)
    told["runs left alone"] += 1
    if any(codes):
        return f"left alone it ended with {codes}"
    for _ in range(MAX_RESTARTS):
        strikes = chance if chance.random() < 0.85 else None
        codes, done = attempt(run, shards, struck, strikes, log, longest_s)
        told[f"{done}: {'/'.join(map(str, sorted(set(codes))))}"] += 1
        if not set(codes) <= list_allowed(run, done):
            return f"{done} ended with {codes}"
        if set(codes) == {0}:
            break
    else:
        return f"not finished after {MAX_RESTARTS} attempts"
    return find_difference(read_final(run, whole), read_final(run, struck))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5, help="how long to go on")
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--only", type=int, help="repeat the trial of this seed, keep its files")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    told: Counter[str] = Counter()
    failed: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_datasets(root / "data", images=12, val_images=6, size_px=48)
        sets = {name: str(root / "data" / name) for name in ("coco", "openimages", "entityseg")}
        write_shards(out=str(root / "shards"), samples_per_shard=5, workers=1, **sets)  # type: ignore[arg-type]
        until, seed = time.monotonic() + 60 * options.minutes, options.seed
        seeds = [options.only] if options.only is not None else iter(lambda: -1, 0)
        trials = 0
        for given in seeds:
            if time.monotonic() > until:
                break
            seed = given if given >= 0 else options.seed + trials
            scratch = root / str(seed)
            scratch.mkdir()
            try:
                wrong = try_run(seed, root / "shards", scratch, told)
            except (RuntimeError, AssertionError, UnigsError) as error:
                wrong = str(error)
            trials += 1
            if wrong:
                run = asdict(draw_run(random.Random(seed)))
                failed.append(f"seed {seed}: {wrong}; {run}")
                print(f"FAILED {failed[-1]}\n{(scratch / 'log').read_text()[-3000:]}", flush=True)
            shutil.rmtree(scratch)
        attempts = sum(told.values())
        for what, count in sorted(told.items()):
            print(f"{count:6} {what}")
        print(f"{trials} trials, {attempts} attempts, {len(failed)} failed", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
