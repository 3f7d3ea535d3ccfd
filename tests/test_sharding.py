"""Sharded training is training: the losses, the files and the ends of DDP, on two ranks."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import gss_parts
import pytest
import torch
from builders import build_data
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import ModelParallelStrategy
from ranks import Strike, find_difference, make_joint, read_end, run_ranks
from torch import nn

from unigs.callbacks import SampledValidation
from unigs.checkpoints import read_checkpoint
from unigs.records import UnigsError
from unigs.sharding import FSDP2, list_blocks
from unigs.systems import Pix2SeqD
from unigs.systems.backbone import Backbone
from unigs.systems.joint.module import Compute
from unigs.systems.load import load_system
from unigs.systems.pix2seq_d.network import Network
from unigs.systems.sampling import Sampling
from unigs.systems.system import Optimizer
from unigs.tasks import TaskOptions
from unigs.verbs.fit import make_cli

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIONS = {"max_steps": 4, "gradient_clip_val": 0.5, "limit_val_batches": 1.0}
OPTIONS |= {"val_check_interval": 3}


def make_uneven(base, shards, global_batch_size: int):
    """Three batches to validate, which two ranks do not share evenly."""
    model, data = make_joint(base, shards, global_batch_size)
    data.task_ratios = {"inpainting": 1.0, "synthesis": 1.0, "entity": 1.0}
    return model, data


OPTIONS["make"] = make_uneven


def make_more(base, shards, global_batch_size: int):
    """Six batches to validate, which four ranks do not share evenly."""
    model, data = make_uneven(base, shards, global_batch_size)
    data.validation = replace(data.validation, samples_per_task=2)
    return model, data


@pytest.fixture(scope="module")
def runs(base, shards, tmp_path_factory):
    """Folder and losses of a run of DDP and of a sharded one."""
    folder, losses = tmp_path_factory.mktemp("runs"), {}
    for name, strategy in (("ddp", "ddp"), ("fsdp", FSDP2())):
        told = {"world": 2, "strategy": strategy, **OPTIONS}
        losses[name], _, codes = run_ranks(base, shards, folder / name, "x", **told)
        assert codes == [0, 0]
    return folder, losses


@pytest.fixture(scope="module")
def cut(base, shards, runs):
    """The checkpoint of a sharded run that a signal to one rank ended after 2 of 4 steps."""
    folder, losses = runs
    told = {"world": 2, "strategy": FSDP2(), "callbacks": [Strike(1, 1)], **OPTIONS}
    first, _, codes = run_ranks(base, shards, folder / "cut", "x", **told)
    assert codes == [143, 143]
    assert first == losses["fsdp"][:2]
    return folder / "cut" / "last.ckpt"


def test_losses_are_those_of_ddp(runs):
    _, losses = runs
    assert len(losses["ddp"]) == 4
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=1e-3)


def test_the_average_is_validated(runs):
    """Two ranks do not share the batches evenly; what they find, of the average, is DDP's."""
    ours, theirs = (
        json.loads((runs[0] / name / "x-0.json").read_text())[3] for name in ("fsdp", "ddp")
    )
    assert len(ours) == 1
    assert ours == pytest.approx(theirs, rel=1e-5)


def test_a_file_is_that_of_ddp(runs):
    """Names, shapes and order are equal, numbers but for rounding; whoever reads one reads both."""
    folder, _ = runs
    ddp, fsdp = read_end(folder / "ddp"), read_end(folder / "fsdp")
    assert list(ddp["average"]["weights"]) == list(fsdp["average"]["weights"])
    assert list(ddp["state_dict"]) == list(fsdp["state_dict"])
    (ours,), (theirs,) = fsdp["optimizer_states"], ddp["optimizer_states"]
    assert ours["param_groups"] == theirs["param_groups"]
    for mine, other in (
        (fsdp["average"]["weights"], ddp["average"]["weights"]),
        (fsdp["state_dict"], ddp["state_dict"]),
        *(
            ({n: state[name] for n, state in one["state"].items()} for one in (ours, theirs))
            for name in ("exp_avg", "exp_avg_sq")
        ),
    ):
        assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in other.items()}
        assert distance(mine, other) < 1e-3


def distance(mine: dict, other: dict) -> float:
    """Norm of the difference of all tensors over that of all tensors."""
    ours, theirs = (torch.cat([t.flatten() for t in one.values()]) for one in (mine, other))
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.slow
def test_a_preempted_run_goes_on_bit_for_bit(base, shards, runs, cut):
    folder, losses = runs
    rest, _, codes = run_ranks(
        base, shards, folder / "rest", "x", world=2, strategy=FSDP2(), resume=cut, **OPTIONS,
    )  # fmt: skip
    assert codes == [0, 0]
    assert rest == losses["fsdp"][2:]
    assert not find_difference(read_end(folder / "rest"), read_end(folder / "fsdp"))


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_any_topology_goes_on(base, shards, runs, cut, world):
    """One rank, and two of DDP, go on from shards; average and optimiser too."""
    folder, losses = runs
    end = folder / f"on-{world}"
    rest, _, codes = run_ranks(base, shards, end, "x", world=world, resume=cut, **OPTIONS)
    assert codes == [0] * world
    assert rest == pytest.approx(losses["ddp"][2:], rel=1e-3)
    again, _, codes = run_ranks(
        base, shards, folder / f"back-{world}", "x", world=2, strategy=FSDP2(),
        resume=end / "last.ckpt", **{**OPTIONS, "max_steps": 5},
    )  # fmt: skip
    assert codes == [0, 0]
    assert len(again) == 1


def test_exported_weights_are_those_of_ddp(base, runs):
    folder, _ = runs
    ours, theirs = (
        load_system(str(folder / name / "last.ckpt"), base=base).network.state_dict()
        for name in ("fsdp", "ddp")
    )
    assert list(ours) == list(theirs)
    assert distance(ours, theirs) < 1e-3


def make_bits(base, shards, global_batch_size: int):
    """Pix2Seq-D, whose network is entered by two methods; other random weights on each rank."""
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", 0)))
    network = Network(
        Backbone(width=8), divisor=4, features=8, tokens=32, encoder_layers=2, base=8,
        multipliers=(1, 2), decoder_layers=1,
    )  # fmt: skip
    data = build_data(
        shards, tasks=TaskOptions(32, max_painted=15), task_ratios={"entity": 1.0}, num_workers=0,
        global_batch_size=global_batch_size, steps_per_epoch=100,
    )  # fmt: skip
    return Pix2SeqD(network=network, optimizer=Optimizer(1e-3, 1)), data


def make_gss(folder, shards, global_batch_size: int):
    """GSS, whose auxiliary head has more classes than two ranks share evenly."""
    data = gss_parts.make_data(shards)
    data.loading = replace(data.loading, global_batch_size=global_batch_size, steps_per_epoch=100)
    return gss_parts.make_model(posterior=folder), data


@pytest.mark.slow
@pytest.mark.parametrize("make", [make_bits, make_gss])
def test_every_system_is_sharded(shards, tmp_path, make):
    gss_parts.make_vq().save_pretrained(str(tmp_path / "vq"))
    told = {"world": 2, "max_steps": 3, "make": make}
    ends, losses = [], []
    for name, more in (("ddp", {}), ("fsdp", {"strategy": FSDP2()})):
        mine, _, codes = run_ranks(
            str(tmp_path / "vq"), shards, tmp_path / name, "x", **told, **more
        )
        assert codes == [0, 0]
        losses.append(mine)
        ends.append(read_checkpoint(tmp_path / name / "last.ckpt")["state_dict"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    assert {k: v.shape for k, v in ends[1].items()} == {k: v.shape for k, v in ends[0].items()}


@pytest.mark.slow
def test_shards_within_replicas_have_the_losses_of_ddp(base, shards, runs, tmp_path):
    """HSDP: two groups of two ranks, which also sample in their validation."""
    told = {**OPTIONS, "make": make_more, "callbacks": [SampledValidation(Sampling(2))]}
    ours, _, codes = run_ranks(
        base, shards, tmp_path, "x", world=4, strategy=FSDP2(replicas=2), **told
    )
    assert codes == [0] * 4
    assert ours == pytest.approx(runs[1]["ddp"], rel=1e-3)


def make_compiled(base, shards, global_batch_size: int):
    model, data = make_uneven(base, shards, global_batch_size)
    model.compute = Compute(gradient_checkpointing=True, compile="blocks")
    return model, data


@pytest.mark.slow
def test_compiled_blocks_have_the_losses_of_ddp(base, shards, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    told = {**OPTIONS, "world": 2, "strategy": FSDP2(), "make": make_compiled}
    ours, _, codes = run_ranks(base, shards, tmp_path, "x", **told)
    assert codes == [0, 0]
    assert ours == pytest.approx(runs[1]["ddp"], rel=1e-3)


class Poison(Callback):
    """A loss of rank 1 that is not a number, in the second step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_rank == 1 and batch_idx == 1:
            pl_module.objective = replace(pl_module.objective, image_weight=float("nan"))


@pytest.mark.parametrize(
    "strategy", [pytest.param("ddp", marks=pytest.mark.slow), FSDP2()], ids=["ddp", "fsdp2"]
)
def test_a_loss_that_is_not_finite_ends_all_with_one_reason(base, shards, tmp_path, strategy):
    told = {"world": 2, "max_steps": 3, "strategy": strategy, "callbacks": [Poison()]}
    *_, codes = run_ranks(base, shards, tmp_path, "x", **told)
    assert codes == [5, 5]
    ours, theirs = (json.loads((tmp_path / f"x-{rank}.json").read_text())[2] for rank in range(2))
    assert ours == theirs
    assert "in step 2: rank 1: loss nan" in ours
    assert "rank 0" not in ours
    assert read_end(tmp_path)["global_step"] == 1


# --- refusals ---


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (ModelParallelStrategy(2, 1), "sharded weights, got none that ModelParallelStrategy"),
        pytest.param(ModelParallelStrategy(), "tensor_parallel_size 2", marks=pytest.mark.slow),
        pytest.param(FSDP2(replicas=3), "divides 2 ranks, got 3", marks=pytest.mark.slow),
    ],
)
def test_what_shards_nothing_is_refused(base, shards, tmp_path, strategy, words):
    *_, codes = run_ranks(base, shards, tmp_path, "x", world=2, max_steps=1, strategy=strategy)
    assert codes == [5, 5]
    assert words in json.loads((tmp_path / "x-0.json").read_text())[2]


@pytest.mark.parametrize("name", ["fsdp", "deepspeed_stage_2"])
def test_other_strategies_that_shard_are_refused_by_name(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    joint = Path(__file__).parents[1] / "configs" / "joint.yaml"
    words = ["fit", f"--config={joint}", f"--trainer.strategy={name}"]
    with pytest.raises(UnigsError, match=f"FSDP2.*got {name}, at trainer.strategy"):
        make_cli(words, run=False)


def test_blocks_are_members_of_the_outermost_lists():
    layers = nn.ModuleList(nn.ModuleList([nn.Linear(6, 6)]) for _ in range(2))
    network = nn.Sequential(nn.Linear(4, 4), nn.Module(), nn.ModuleList([nn.Linear(50, 50)]))
    network[1].inner = nn.ModuleList([nn.Linear(40, 40), nn.Linear(1, 1), nn.Sequential(layers)])
    inner = network[1].inner
    assert list(list_blocks(network)) == [inner[0], inner[2], network[2][0]]
