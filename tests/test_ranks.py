"""The real ``UniGS`` and its callbacks on two ranks: the losses of one, one end for all."""

from __future__ import annotations

import json
import time
from itertools import chain

import pytest
from lightning.pytorch.callbacks import Callback
from ranks import Strike, find_difference, read_end, run_ranks

from unigs.records import UnigsError

pytestmark = pytest.mark.filterwarnings("ignore")


class Fail(Callback):
    """An error of ours on one rank, at a batch."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_rank == 1 and batch_idx == 2:
            raise UnigsError("expected a sample, got none, in this test")


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
    words = json.loads((tmp_path / "x-0.json").read_text())[2]
    assert words == "rank 1: expected a sample, got none, in this test"
    assert time.monotonic() - started < 60
