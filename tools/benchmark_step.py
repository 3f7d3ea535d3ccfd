"""Our training step beside a plain loop over the same network, as diffusers' examples write it.

The loop encodes three pictures a sample, draws its noise on the device, and steps AdamW and
diffusers' EMA. Ours runs under Lightning with the callbacks of every run. The two take turns, step
by step, on one batch in memory, so that no data is waited for and both see the same machine.
``tools/gpu_kit.py`` measures many such steps.

    python tools/benchmark_step.py                                    # tiny network, CPU, a minute
    python tools/benchmark_step.py --device cuda --preset sd15 --side 512 --batch 16
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal, get_args

import lightning as L
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import Callback
from torch.utils.data import DataLoader

from unigs.batches import stack_samples
from unigs.callbacks import EMA
from unigs.callbacks.throughput import FlopCount, find_peak, measure_peak_gib
from unigs.codec import encode_colormap
from unigs.data import UniGSData
from unigs.recipes.bases import make_base
from unigs.records import Batch, Latents
from unigs.shards import write_shards
from unigs.synthetic import write_datasets
from unigs.systems import UniGS
from unigs.systems.joint.module import Compile, Compute
from unigs.tasks import TaskOptions


class PlainLoop:
    """A step without a framework.

    Args:
        model: whose network is copied, and whose frozen parts are shared.
        batch: on the device.
        autocast: whether to compute in bfloat16.
    """

    def __init__(self, model: UniGS, batch: Batch, autocast: bool) -> None:
        self.unet, self.towers, self.scheduler = deepcopy(model.unet), model.towers, model.scheduler
        self.batch, self.autocast = batch, autocast
        self.colormap = encode_colormap(batch.labels, model.palette)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=1e-5, fused=True)
        self.ema = EMAModel(list(self.unet.parameters()), foreach=True)

    @torch.no_grad()
    def encode(self) -> tuple[torch.Tensor, ...]:
        """Streams [B, 8, h, w], mask [B, 1, h, w], context [B, 4, h, w], text [B, L, D]."""
        vae, image = self.towers.vae, self.batch.image.float() / 127.5 - 1
        colormap = self.colormap.float() / 127.5 - 1
        pictures = torch.cat([image, colormap, image * ~self.batch.coarse_mask]).to(vae.dtype)
        latents = vae.encode(pictures).latent_dist.sample().float() * vae.config.scaling_factor
        first, second, context = latents.chunk(3)
        mask = torch.nn.functional.adaptive_max_pool2d(
            self.batch.coarse_mask.float(), context.shape[-2:]
        )
        text = self.towers.encode_text(self.batch.prompts)
        return torch.cat([first, second], 1), mask, context, text

    def step(self) -> None:
        """One optimiser step."""
        clean, mask, context, text = self.encode()
        device = clean.device
        noise = torch.randn_like(clean)
        steps = torch.randint(0, 1000, (len(clean),), device=device)
        noisy = self.scheduler.add_noise(clean, noise, steps)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.autocast):
            joined = torch.cat([noisy, mask, context], 1)
            task = self.batch.task.to(device)
            found = self.unet(joined, steps, encoder_hidden_states=text, class_labels=task).sample
        torch.nn.functional.mse_loss(found.float(), noise).backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.unet.parameters())


def reset_peak(device: torch.device) -> None:
    """Forget the most memory so far; a CPU cannot."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class TakeTurns(Callback):
    """Seconds of our steps, and of the plain loop's, one after each; warm-up left out.

    Args:
        warmup: steps that are left out.
        beside: the batch of the plain loop; None: ours run alone.
    """

    def __init__(self, warmup: int, beside: Batch | None) -> None:
        self.warmup, self.beside = warmup, beside
        self.ours_s: list[float] = []
        self.plain_s: list[float] = []

    def now(self, device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def on_train_start(self, trainer, pl_module) -> None:
        if self.beside is not None:
            autocast = trainer.precision != "32-true"
            self.plain = PlainLoop(pl_module, self.beside.to(pl_module.device), autocast)
        self.start = self.now(pl_module.device)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """Count the operations of a sample; the peak of memory is that of what follows."""
        if batch_idx:
            return
        count = FlopCount(pl_module.network)
        with torch.no_grad(), trainer.precision_plugin.train_step_context():
            pl_module.losses(batch)
        self.flops = count.close() / len(batch)
        reset_peak(pl_module.device)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        ended = self.now(pl_module.device)
        self.peak_gib = measure_peak_gib(pl_module.device)
        if self.beside is not None:
            self.plain.step()
        after = self.now(pl_module.device)
        if batch_idx >= self.warmup:
            self.ours_s.append(ended - self.start)
            self.plain_s.append(after - ended)
        reset_peak(pl_module.device)
        self.start = self.now(pl_module.device)


@dataclass(frozen=True)
class Setting:
    """How a step is computed.

    Args:
        cached: latents are given in place of pictures, as from a cache.
        checkpointing: of gradients, in both.
        compile: our UNet.
        channels_last: memory format, in both.
        beside_plain: whether the plain loop takes turns; its weights and state are in memory too.
    """

    cached: bool = False
    checkpointing: bool = False
    compile: Compile = "none"
    channels_last: bool = True
    beside_plain: bool = True


def make_batch(root: Path, side: int, size: int) -> Batch:
    """Samples of all tasks from drawn scenes."""
    write_datasets(root / "data", images=6, val_images=2, size_px=side)
    sets = {name: str(root / "data" / name) for name in ("coco", "openimages", "entityseg")}
    write_shards(out=str(root / "shards"), workers=1, **sets)  # type: ignore[arg-type]
    data = UniGSData([str(root / "shards")], TaskOptions(side))
    dataset = data.make_dataset("train", augment=True, ratios=data.task_ratios)
    return stack_samples([dataset[index].sample for index in range(size)])


def open_system(base: str, setting: Setting, device: torch.device) -> UniGS:
    """The joint model on its device, its frozen parts in bfloat16 on a GPU."""
    on_gpu = device.type == "cuda"
    compute = Compute(
        gradient_checkpointing=setting.checkpointing, compile=setting.compile,
        channels_last=setting.channels_last, towers_dtype="bfloat16" if on_gpu else "float32",
        encode_chunk=16 if on_gpu else None,
    )  # fmt: skip
    system = UniGS(base, compute=compute)
    system.configure_model()
    return system.to(device)


def measure_step(
    base: str, batch: Batch, setting: Setting, device: torch.device, steps: int, warmup: int = 3
) -> dict[str, float]:
    """Rates and memory of one setting.

    Args:
        base: folder of the model.
        batch: on the host.
        setting: how it is computed.
        device: to measure on.
        steps: to measure, after ``warmup`` others.

    Returns:
        ``images_per_s``, ``gflop`` a sample, ``peak_gib``; ``mfu`` where the device's peak is
        known; with the plain loop ``plain_images_per_s`` and ``ratio``, the median of pairs.
    """
    torch._dynamo.reset()
    on_gpu = device.type == "cuda"
    precision: Literal["bf16-mixed", "32-true"] = "bf16-mixed" if on_gpu else "32-true"
    system = open_system(base, setting, device)
    told: Batch | Latents = batch
    if setting.cached:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            told = system.encode(batch.to(device)).to("cpu")
    turns = TakeTurns(warmup, batch if setting.beside_plain else None)
    trainer = L.Trainer(
        accelerator="gpu" if on_gpu else "cpu", devices=1, logger=False, precision=precision,
        gradient_clip_val=1.0, max_steps=steps + warmup, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[EMA(), turns],
    )  # fmt: skip
    batches = [told] * (steps + warmup)
    trainer.fit(system, DataLoader(batches, batch_size=None, pin_memory=on_gpu))
    rate = len(batch) / median(turns.ours_s)
    found = {"images_per_s": rate, "gflop": turns.flops / 1e9, "peak_gib": turns.peak_gib}
    peak = find_peak(device)
    if peak:
        found["mfu"] = rate * turns.flops / peak
    if setting.beside_plain:
        found["plain_images_per_s"] = len(batch) / median(turns.plain_s)
        found["ratio"] = median(plain / ours for ours, plain in zip(turns.ours_s, turns.plain_s))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("tiny", "small", "sd15"), default="tiny")
    parser.add_argument("--side", type=int, default=64, help="of the pictures, px")
    parser.add_argument("--batch", type=int, default=8, help="samples a step")
    parser.add_argument("--steps", type=int, default=10, help="measured, after 3 of warm-up")
    parser.add_argument("--compile", choices=get_args(Compile), default="none", help="our UNet")
    parser.add_argument("--checkpointing", action="store_true", help="of gradients, in both")
    parser.add_argument("--cached", action="store_true", help="latents in place of pictures, ours")
    told = parser.parse_args()
    warnings.filterwarnings("ignore")
    setting = Setting(told.cached, told.checkpointing, told.compile)
    with tempfile.TemporaryDirectory() as folder:
        batch = make_batch(Path(folder), told.side, told.batch)
        make_base(f"{folder}/base", preset=told.preset)
        found = measure_step(
            f"{folder}/base", batch, setting, torch.device(told.device), told.steps
        )
    ours, plain = found["images_per_s"], found["plain_images_per_s"]
    print(f"ours {ours:.2f} samples/s, plain {plain:.2f} samples/s")
    print(f"ours / plain {found['ratio']:.3f} (median of {told.steps} pairs)")
    print(f"{found['gflop']:.1f} GFLOP a sample; MFU", f"{found['mfu']:.3f}" if "mfu" in found
          else "-: no peak is known of this device")  # fmt: skip
    print(f"peak memory {found['peak_gib']:.2f} GiB, the plain loop's weights and state included")


if __name__ == "__main__":
    main()
