"""Compiled training: whole graphs, none after the first step, the losses and names of eager."""

from __future__ import annotations

from functools import partialmethod

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from ranks import make_joint
from torch import nn
from torch._dynamo.utils import counters

from unigs.callbacks import EMA, Throughput
from unigs.callbacks import throughput as throughput_module
from unigs.records import UnigsError
from unigs.systems.joint.module import Compute, upgrade_options

pytestmark = pytest.mark.filterwarnings("ignore")


class Graphs(Callback):
    """Losses, and the graphs that there were after each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.graphs: list[int] = []

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        self.losses.append(loss.item())

    def on_train_batch_end(self, *args) -> None:
        self.graphs.append(counters["stats"]["unique_graphs"])


def train(base, shards, compute: Compute, *more: Callback, steps: int = 4):
    """Steps with a validation between them; the module, and what was seen."""
    torch._dynamo.reset()
    counters.clear()
    model, data = make_joint(base, shards, 2)
    model.compute = compute
    seen = Graphs()
    L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[EMA(0.5), *more, seen],
        val_check_interval=2, num_sanity_val_steps=0, use_distributed_sampler=False,
    ).fit(model, data)  # fmt: skip
    return model, seen


def compile_by(backend: str, monkeypatch) -> None:
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))


@pytest.fixture(scope="module")
def eager(base, shards):
    return train(base, shards, Compute(gradient_checkpointing=True))


@pytest.mark.parametrize("kind", ["blocks", pytest.param("whole", marks=pytest.mark.slow)])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_graphs_are_made_once_and_whole(base, shards, eager, monkeypatch, kind, backend):
    compile_by(backend, monkeypatch)
    model, seen = train(base, shards, Compute(gradient_checkpointing=True, compile=kind))
    assert not counters["graph_break"]
    assert seen.graphs[0] > 0
    assert seen.graphs[-1] - seen.graphs[0] <= 2  # of a validation
    assert seen.graphs[1] == seen.graphs[0]
    assert seen.losses == pytest.approx(eager[1].losses, rel=1e-4)
    assert list(model.state_dict()) == list(eager[0].state_dict())


def test_operations_are_counted_before_the_graphs(base, shards, monkeypatch):
    compile_by("eager", monkeypatch)
    monkeypatch.setattr(throughput_module, "find_peak", lambda device: 1e12)
    counted = []
    for kind in ("none", "blocks", "whole"):
        speed = Throughput()
        train(base, shards, Compute(compile=kind), speed, steps=1)
        counted.append(speed._flops)
    assert counted[0] > 0
    assert counted == counted[:1] * 3


@pytest.mark.parametrize("old", [True, False])
def test_old_words_are_named_new_ones(old):
    with pytest.raises(UnigsError, match=r"none, blocks, whole.*model.compute.compile"):
        Compute(compile=old)
    stored = {"palette": {}, "compute": {"compile": old}}
    assert upgrade_options(stored)["compute"]["compile"] == ("whole" if old else "none")
