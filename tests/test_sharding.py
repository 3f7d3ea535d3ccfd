"""Sharded training is training: the losses, the files and the ends of DDP, on two ranks."""

from __future__ import annotations

import pytest
import torch
from ranks import Strike, find_difference, make_joint, read_end, run_ranks

from unigs.sharding import FSDP2, gather, list_blocks, place_as

pytestmark = pytest.mark.filterwarnings("ignore")

OPTIONS = {"max_steps": 4, "gradient_clip_val": 0.5, "limit_val_batches": 1.0}
OPTIONS |= {"val_check_interval": 3}


def make_uneven(base, shards, global_batch_size: int):
    """Three batches to validate, which two ranks do not share evenly."""
    model, data = make_joint(base, shards, global_batch_size)
    data.task_ratios = {"inpainting": 1.0, "synthesis": 1.0, "entity": 1.0}
    return model, data


OPTIONS["make"] = make_uneven


@pytest.fixture(scope="module")
def runs(base, shards, tmp_path_factory):
    """Folder, and losses, of a run of DDP and of a sharded one, left alone and cut after 2 steps."""
    return make_runs(base, shards, tmp_path_factory.mktemp("runs"))


def make_runs(base, shards, folder):
    told = {"world": 2, **OPTIONS}
    losses = {}
    for name, more in (("ddp", {}), ("fsdp", {"strategy": FSDP2()})):
        losses[name], _, codes = run_ranks(base, shards, folder / name, "x", **told, **more)
        assert codes == [0, 0]
    told["callbacks"] = [Strike(1, 1)]
    losses["cut"], _, codes = run_ranks(
        base, shards, folder / "cut", "x", **told, strategy=FSDP2()
    )
    assert codes == [143, 143]
    return folder, losses


def test_losses_are_those_of_ddp(runs):
    _, losses = runs
    assert len(losses["ddp"]) == 4
    assert losses["fsdp"] == pytest.approx(losses["ddp"], rel=1e-3)
    assert losses["cut"] == losses["fsdp"][:2]


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
        *((ours["state"][n], theirs["state"][n]) for n in theirs["state"]),
    ):
        for name, tensor in other.items():
            torch.testing.assert_close(mine[name], tensor, rtol=1e-3, atol=1e-4)
            assert mine[name].is_contiguous()


def test_a_preempted_run_goes_on_bit_for_bit(base, shards, runs):
    folder, losses = runs
    rest, _, codes = run_ranks(
        base, shards, folder / "rest", "x", world=2, strategy=FSDP2(),
        resume=folder / "cut" / "last.ckpt", **OPTIONS,
    )  # fmt: skip
    assert codes == [0, 0]
    assert rest == losses["fsdp"][2:]
    assert not find_difference(read_end(folder / "rest"), read_end(folder / "fsdp"))


@pytest.mark.parametrize("world", [1, 2])
def test_any_topology_goes_on(base, shards, runs, world):
    """One rank, and two of DDP, go on from shards; average and optimiser too."""
    folder, losses = runs
    end = folder / f"on-{world}"
    resume = folder / "cut" / "last.ckpt"
    rest, _, codes = run_ranks(base, shards, end, "x", world=world, resume=resume, **OPTIONS)
    assert codes == [0] * world
    assert rest == pytest.approx(losses["ddp"][2:], rel=1e-3)
    again, _, codes = run_ranks(
        base, shards, folder / f"back-{world}", "x", world=2, strategy=FSDP2(),
        resume=end / "last.ckpt", **{**OPTIONS, "max_steps": 5},
    )  # fmt: skip
    assert codes == [0, 0]
    assert len(again) == 1
