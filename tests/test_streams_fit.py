"""Law 3: a stream under Lightning, cut at any step and resumed, trains the same weights."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from shard_fixtures import DrawnSource
from stream_fit import StreamData, Tiny
from test_shards import write_all

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("shards")
    write_all(out, [DrawnSource("coco", 30), DrawnSource("entityseg", 5)], 5)
    return out


def fit(shards: Path, folder: Path, resume: Path | None = None, steps=6, **options) -> Tiny:
    model = Tiny()
    saver = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[saver],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    data = StreamData(str(shards), steps)
    trainer.fit(model, datamodule=data, ckpt_path=resume, weights_only=True)
    return model


@pytest.mark.parametrize(
    ("steps", "options"),
    [
        (6, {}),
        (6, {"accumulate_grad_batches": 2, "val_check_interval": 3}),
        (5, {"limit_train_batches": 4, "val_check_interval": 2}),
        (7, {"accumulate_grad_batches": 3, "check_val_every_n_epoch": 2}),
    ],
)
def test_any_checkpoint_resumes_to_the_same_weights(shards, tmp_path, steps, options):
    whole = fit(shards, tmp_path / "whole", None, steps, **options)
    batches = 3 * min(steps, options.get("limit_train_batches", steps))
    assert whole.seen == list(range(8 * batches))
    cuts = sorted((tmp_path / "whole").glob("step=*.ckpt"), key=os.path.getmtime)[:-1]
    assert len(cuts) > 4
    for cut in cuts:
        resumed = fit(shards, tmp_path / cut.stem, cut, steps, **options)
        assert resumed.seen == whole.seen[len(whole.seen) - len(resumed.seen) :], cut
        for ours, theirs in zip(resumed.parameters(), whole.parameters(), strict=True):
            assert torch.equal(ours, theirs), cut


def start_fit(shards: Path, folder: Path, resume: Path | None) -> subprocess.Popen:
    """``lightning fit`` on two gloo ranks with loader workers, in a process group of its own."""
    saver = '{"class_path": "ModelCheckpoint", "init_args": {"dirpath": "%s", "filename": "{step}"'
    saver = f'{saver % folder}, "save_top_k": -1, "every_n_train_steps": 1}}}}'
    command = [sys.executable, str(Path(__file__).parent / "stream_fit.py"), "fit"]
    options = {
        "data.shards": shards,
        "data.steps_per_epoch": 10,
        "data.num_workers": 2,
        "trainer.max_epochs": 3,
        "trainer.accelerator": "cpu",
        "trainer.devices": 2,
        "trainer.strategy": "ddp",
        "trainer.logger": "false",
        "trainer.enable_progress_bar": "false",
        "trainer.val_check_interval": 4,
        "trainer.callbacks": saver,
    }
    command += [f"--{name}={value}" for name, value in options.items()]
    command += [f"--ckpt_path={resume}"] if resume else []
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    log = open(folder.with_suffix(".log"), "ab")  # noqa: SIM115
    return subprocess.Popen(command, env=env, start_new_session=True, stdout=log, stderr=log)


def list_checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("step=*.ckpt"), key=lambda path: int(path.stem.split("=")[1]))


def kill_at(run: subprocess.Popen, folder: Path, step: int) -> None:
    """SIGKILL every process of a run once it has saved a step, or let it end before."""
    while run.poll() is None:
        if any(f"step={step}" == path.stem for path in list_checkpoints(folder)):
            os.killpg(run.pid, signal.SIGKILL)
        time.sleep(0.005)
    run.wait()


@pytest.mark.slow
def test_two_killed_ranks_resume_to_the_same_weights(shards, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start_fit(shards, whole, None).wait(120) == 0, (tmp_path / "whole.log").read_text()
    expected = torch.load(list_checkpoints(whole)[-1], weights_only=True)
    chance, resume = random.Random(os.getpid()), None
    for _ in range(3):  # killed three times, each time later
        reached = int(resume.stem.split("=")[1]) if resume else 0
        run = start_fit(shards, killed, resume)
        kill_at(run, killed, reached + chance.randrange(2, 8))
        assert run.returncode == -signal.SIGKILL, (tmp_path / "killed.log").read_text()
        resume = list_checkpoints(killed)[-1]
    assert start_fit(shards, killed, resume).wait(120) == 0, (tmp_path / "killed.log").read_text()
    final = torch.load(list_checkpoints(killed)[-1], weights_only=True)
    assert final["global_step"] == expected["global_step"] == 30
    for name, weight in expected["state_dict"].items():
        assert torch.equal(weight, final["state_dict"][name]), name
