"""The published recipe at its true size, with random weights: minutes, and 16 GB of memory."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from unigs.recipes.bases import make_base
from unigs.shards import write_shards
from unigs.synthetic import write_datasets
from unigs.verbs.fit import make_cli

JOINT = Path(__file__).parents[1] / "configs" / "joint.yaml"


@pytest.mark.slow
def test_one_optimiser_step_of_the_full_joint_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_datasets(tmp_path / "data", images=2, val_images=1, size_px=512)
    sets = {name: str(tmp_path / "data" / name) for name in ("coco", "openimages", "entityseg")}
    write_shards(out=str(tmp_path / "shards"), workers=1, **sets)
    make_base(str(tmp_path / "base"), preset="sd15")
    changes = {
        "model.base": tmp_path / "base",
        "model.compute.gradient_checkpointing": "true",
        "data.shards": f"[{tmp_path / 'shards'}]",
        "data.loading.global_batch_size": 1,
        "data.loading.num_workers": 0,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.precision": "32-true",
        "trainer.max_steps": 1,
        "trainer.limit_val_batches": 0,
        "trainer.num_sanity_val_steps": 0,
        "trainer.log_every_n_steps": 1,
        "trainer.logger": "false",
        "trainer.callbacks": "[]",
        "trainer.enable_checkpointing": "false",
        "ckpt_path": "null",
    }
    words = [f"--{name}={value}" for name, value in changes.items()]
    cli = make_cli(["fit", "--config", str(JOINT), *words])
    loss = float(cli.trainer.logged_metrics["train/loss"])
    assert cli.trainer.global_step == 1
    assert 0 < loss < 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"loss {loss:.3f}, peak memory {peak:.1f} GiB")
