"""A step of the real ``UniGS`` waits for its device once: counted on a GPU that is made up.

Under ``FakeTensorMode`` tensors of a GPU have shapes and no values, so a machine without one can
follow every call to it. What needs a value, or a copy that is not asynchronous, is a wait.
"""

from __future__ import annotations

import traceback
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from builders import build_data, build_unigs
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from unigs.batches import stack_samples
from unigs.callbacks import EMA
from unigs.codec import Palette, palette
from unigs.noise import training_noise
from unigs.promises import FiniteSteps
from unigs.records import TASKS, Batch
from unigs.systems.joint import objective
from unigs.tasks import TaskOptions

GPU = torch.device("cuda:0")
aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Notes where the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[str] = []

    def note(self, what: str) -> None:
        mine = [f for f in traceback.extract_stack() if "/unigs/" in f.filename]
        where = f"{mine[-1].filename.rpartition('/')[2]}:{mine[-1].lineno}" if mine else "a library"
        self.places.append(f"{what} in {where}")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = [a for a in args if isinstance(a, torch.Tensor) and a.device.type == "cuda"]
        if func is aten._local_scalar_dense.default and there:
            self.note("value")
            return 1.0
        if func in (aten.nonzero.default, aten.masked_select.default) and there:
            self.note("nonzero")
            return torch.zeros((1, args[0].dim()), dtype=torch.long, device=GPU)
        if func is aten.index.Tensor and there:
            if any(i is not None and i.dtype == torch.bool for i in args[1]):
                self.note("mask")
                return args[0][:1]
            if any(i is not None and i.device.type == "cpu" and i.dim() for i in args[1]):
                self.note("index from the host")
        if func is aten._pin_memory.default:
            assert not there, "expected a tensor of the host to pin, as torch does"
            return args[0]
        if func is aten._to_copy.default:
            target = torch.device(kwargs.get("device") or args[0].device)
            waits = there or not kwargs.get("non_blocking")
            if waits and target.type != args[0].device.type:
                self.note(f"copy to {target}")
        return func(*args, **kwargs)


def move(module: nn.Module, mode: FakeTensorMode) -> None:
    """Let parameters and buffers of a module lie on the GPU that is made up."""
    for part in module.modules():
        for name, value in part._parameters.items():
            if value is not None:
                fake = mode.from_tensor(value.detach()).to(GPU)
                part._parameters[name] = nn.Parameter(fake, requires_grad=value.requires_grad)
        for name, value in part._buffers.items():
            if value is not None:
                part._buffers[name] = mode.from_tensor(value).to(GPU)


@pytest.fixture
def batches(shards) -> list[Batch]:
    data = build_data(shards, tasks=TaskOptions(64), num_workers=0)
    dataset = data.make_dataset("train", True, dict.fromkeys(TASKS, 1.0))
    return [stack_samples([dataset[i + 4 * n].sample for i in range(4)]) for n in range(2)]


@pytest.mark.parametrize(
    ("kind", "drawn"), [("location", True), ("scaled", True), ("scaled", False)]
)
def test_a_step_waits_once(base, batches, monkeypatch, kind, drawn):
    """Whether the loader drew the noise or the step does."""
    model = build_unigs(base, palette=Palette(kind, 5), size_balance=0.5, min_snr_gamma=5.0)
    model.configure_model()
    if drawn:
        shape = model.shape_noise(64)
        batches = [replace(batch, noise=training_noise(batch, shape)) for batch in batches]
    monkeypatch.setattr(type(model), "log", lambda self, name, value, **more: None)
    caches = (palette._number_colours, palette._place_homes, palette.legal_colours)
    caches = (*caches, objective._list_given)
    average, guard = EMA(), FiniteSteps()
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        move(model, mode)
        model.scheduler.alphas_cumprod = mode.from_tensor(model.scheduler.alphas_cumprod).to(GPU)
        optimizer = model.configure_optimizers()["optimizer"]
        trainer = SimpleNamespace(
            precision_plugin=None, global_step=0,
            strategy=SimpleNamespace(reduce=lambda value, reduce_op: value),
        )  # fmt: skip
        average.on_fit_start(trainer, model)
        average.on_train_start(trainer, model)
        try:
            for batch in batches:  # the first step also makes what is kept
                with Waits() as waits:
                    monkeypatch.setattr(
                        FakeTensor, "tolist", lambda values: waits.note("values") or [1]
                    )
                    step(model, batch, trainer, guard, optimizer, average)
        finally:
            for cache in caches:
                cache.cache_clear()
    assert waits.places == [p for p in waits.places if "finite.py" in p], waits.places
    assert len(waits.places) == 1


def step(model, batch, trainer, guard, optimizer, average) -> None:
    """What the trainer does, on a batch of the loader."""
    moved = batch.to(GPU)
    guard.on_train_batch_start(trainer, model, moved, 0)
    loss = model.training_step(moved, 0)
    guard.on_before_backward(trainer, model, loss)
    for weight in model.network.parameters():  # autograd itself needs a GPU that is there
        weight.grad = torch.zeros_like(weight)
    guard.on_before_optimizer_step(trainer, model, optimizer)
    optimizer.step()
    optimizer.zero_grad()
    trainer.global_step += 1
    average.on_train_batch_end(trainer, model, None, moved, 0)
