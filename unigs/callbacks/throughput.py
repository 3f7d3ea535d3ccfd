"""How fast a run is, how close to what its device could do, and how long it waits for its data."""

from __future__ import annotations

import resource
import time
from contextlib import ExitStack
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unigs.records import Batch

PEAK_TFLOPS = {
    "B200": 2250, "H200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312,
    "L40S": 362, "L40": 181, "L4": 121, "A6000": 155, "A10G": 70, "A10": 125,
    "RTX 4090": 165, "RTX 3090": 71,
}  # fmt: skip
"""Dense bfloat16 products by the makers' data sheets; by part of a name, the first counts."""


class FlopCount:
    """Floating point operations of one batch: what is frozen once, the network three times.

    The backward pass of a network costs two forward ones. What gradient checkpointing computes
    again is no progress and does not count.

    Args:
        network: what is trained.
    """

    def __init__(self, network: nn.Module) -> None:
        self._open = ExitStack()
        self._open.enter_context(torch.compiler.set_stance("force_eager"))  # a graph hides its own
        self._counter = self._open.enter_context(FlopCounterMode(display=False))
        self._trained = 0
        for hook in (
            network.register_forward_pre_hook(lambda *_: self._add(-1)),
            network.register_forward_hook(lambda *_: self._add(1)),
        ):
            self._open.callback(hook.remove)

    def _add(self, sign: int) -> None:
        self._trained += sign * self._counter.get_total_flops()

    def close(self) -> int:
        """The operations, when the loss is there and the backward pass is still to come."""
        self._open.close()
        return self._counter.get_total_flops() + 2 * self._trained


def find_peak(device: torch.device) -> float | None:
    """Operations a second that a device could do in bfloat16; None of a CPU or an unknown one."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((1e12 * peak for part, peak in PEAK_TFLOPS.items() if part in name), None)


def measure_peak_gib(device: torch.device) -> float:
    """The most memory that tensors took on a GPU, or the process on a CPU, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Throughput(Callback):
    """Logs speed, use of the device, memory and waiting, of the time of training.

    ``perf/samples_per_s`` is of all ranks, ``perf/samples_per_s_device`` of one;
    ``perf/data_wait`` is the loader's share of the time and ``perf/wait_s`` its seconds since the
    last entry; ``perf/mfu`` is the share of the device's bfloat16 peak that forward and backward
    passes use (on known GPUs, counted on the first batch of a process); ``perf/peak_memory_gib``
    is the most so far. The time of a validation is logged by itself, as ``perf/validation_s``.

    Args:
        every_n_steps: batches between two log entries.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._count: FlopCount | None = None
        self._flops: float | None = None

    def on_train_start(self, trainer, pl_module) -> None:
        self._peak = find_peak(pl_module.device)
        self._flops = None
        self._start = self._mark = time.perf_counter()
        self._waited_s, self._samples = 0.0, 0

    def on_train_batch_start(self, trainer, pl_module, batch: Batch, batch_idx) -> None:
        self._waited_s += time.perf_counter() - self._mark
        if self._peak and self._flops is None:
            self._count = FlopCount(pl_module.network)

    def on_before_backward(self, trainer, pl_module, loss) -> None:
        if self._count is not None:
            self._flops, self._count = self._count.close(), None

    def on_exception(self, trainer, pl_module, exception) -> None:
        if self._count is not None:
            self._count.close()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch: Batch, batch_idx) -> None:
        self._mark = now = time.perf_counter()
        self._samples += len(batch)
        if (batch_idx + 1) % self.every_n_steps == 0:
            for name, value in self._measure(trainer, pl_module.device, len(batch), now).items():
                pl_module.log(f"perf/{name}", value, batch_size=1)
            self._start, self._waited_s, self._samples = now, 0.0, 0

    def _measure(self, trainer, device: torch.device, size: int, now: float) -> dict[str, Any]:
        seconds = now - self._start
        rate = self._samples / seconds
        measured = {
            "samples_per_s": rate * trainer.world_size,
            "samples_per_s_device": rate,
            "data_wait": self._waited_s / seconds,
            "wait_s": self._waited_s,
            "peak_memory_gib": measure_peak_gib(device),
        }
        if self._peak and self._flops:
            measured["mfu"] = rate * self._flops / size / self._peak
        return measured

    def on_validation_start(self, trainer, pl_module) -> None:
        self._began = time.perf_counter()

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        seconds = time.perf_counter() - self._began
        pl_module.log("perf/validation_s", seconds, rank_zero_only=True)

    def on_validation_end(self, trainer, pl_module) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            now = time.perf_counter()
            self._start += now - self._began
            self._mark = now
