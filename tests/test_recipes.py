"""Makers of parts: exact resume, one result on all ranks, a folder whole or not at all."""

from __future__ import annotations

import os
import sys
from multiprocessing import get_context
from pathlib import Path

import lightning as L
import pytest
import torch
from gss_parts import make_data
from lightning.pytorch.callbacks import ModelCheckpoint

from unigs.recipes.autoencoder import Autoencoder
from unigs.recipes.judge import Judge
from unigs.recipes.maskige import Maskige
from unigs.recipes.vq import VQ
from unigs.records import UnigsError

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from fault_harness import pick_port

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS = 3


def make_model(kind: str, folder: Path, vq_folder: str):
    torch.manual_seed(0)
    steps, out = {"total_steps": 8}, {"out": str(folder / "part")}
    if kind == "vq":
        return VQ(**steps, enlarge=1, crop_px=16, quantize_after=0, revive_every=2, **out)
    if kind == "autoencoder":
        return Autoencoder(**steps, latent_noise=0.2, **out)
    if kind == "maskige":
        return Maskige(vq_folder, "TT", 0.1, enlarge=1, **steps, **out)
    return Judge(**steps, width=8, **out)


def train(model, shards: str, folder: Path, resume: Path | None = None, **options):
    """To step ``STEPS``; a callback saves after each."""
    saver = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, save_last=True)
    trainer = L.Trainer(
        max_steps=STEPS, accelerator="cpu", logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, limit_val_batches=0,
        use_distributed_sampler=False, default_root_dir=folder, callbacks=[saver], **options,
    )  # fmt: skip
    trainer.fit(model, make_data(shards), ckpt_path=resume)
    return model.state_dict()


@pytest.mark.parametrize("kind", ["vq", "autoencoder", "maskige", "judge"])
def test_a_run_cut_at_a_step_ends_like_one_left_alone_and_its_folder_is_written(
    kind, shards, vq_folder, tmp_path
):
    """From what a callback saved; and a run without a step left still writes its folder."""
    whole = train(make_model(kind, tmp_path / "a", vq_folder), shards, tmp_path / "a")
    second = make_model(kind, tmp_path / "b", vq_folder)
    torch.manual_seed(9)
    resumed = train(second, shards, tmp_path / "b", tmp_path / "a" / "step=1.ckpt")
    assert whole.keys() == resumed.keys()
    for name, weight in whole.items():
        assert torch.equal(resumed[name], weight), name
    done = make_model(kind, tmp_path / "c", vq_folder)
    train(done, shards, tmp_path / "c", tmp_path / "a" / "last.ckpt")
    parts = [{p.name: p.read_bytes() for p in (tmp_path / k / "part").iterdir()} for k in "abc"]
    assert parts[0]
    assert parts[0] == parts[1] == parts[2]


@pytest.mark.parametrize("kind", ["vq", "judge", "maskige"])
def test_other_files_are_refused_before_a_step_and_stay(kind, shards, vq_folder, tmp_path):
    model = make_model(kind, tmp_path, vq_folder)
    (tmp_path / "part").mkdir()
    (tmp_path / "part" / "notes.txt").write_text("mine")
    with pytest.raises(UnigsError, match=r"expected .*part"):
        train(model, shards, tmp_path)
    assert not list(tmp_path.glob("*.ckpt"))
    assert [path.name for path in (tmp_path / "part").iterdir()] == ["notes.txt"]


def test_the_vq_refuses_half_precision(shards, tmp_path):
    with pytest.raises(UnigsError, match="bf16-true"):
        train(make_model("vq", tmp_path, ""), shards, tmp_path, precision="bf16-true")


def train_rank(shards: str, folder: Path, rank: int, port: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    model = make_model("vq", folder, "")
    torch.manual_seed(rank)
    torch.save(train(model, shards, folder, strategy="ddp", devices=2), folder / f"{rank}.pt")
    os._exit(0)


def test_two_ranks_end_with_one_codebook(shards, tmp_path):
    context, port = get_context("fork"), pick_port()
    ranks = [
        context.Process(target=train_rank, args=(shards, tmp_path, rank, port)) for rank in (0, 1)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(1200)
    assert [rank.exitcode for rank in ranks] == [0, 0]
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert bool(one["used"].any())
    for name, weight in one.items():
        assert torch.equal(other[name], weight), name
