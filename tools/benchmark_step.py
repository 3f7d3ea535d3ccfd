"""Our training step beside a plain loop over the same network, as diffusers' examples write it.

The loop encodes three pictures a sample, draws its noise on the device, and steps AdamW and
diffusers' EMA. Ours runs under Lightning with the callbacks of every run. The two take turns, step
by step, on one batch in memory, so that no data is waited for and both see the same machine.

    python tools/benchmark_step.py                                    # tiny network, CPU, a minute
    python tools/benchmark_step.py --device cuda --preset sd15 --side 512 --batch 16
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from copy import deepcopy
from pathlib import Path
from statistics import median
from typing import get_args

import lightning as L
import torch
from diffusers.training_utils import EMAModel
from lightning.pytorch.callbacks import Callback

from unigs.callbacks import EMA
from unigs.callbacks.throughput import FlopCount, find_peak, measure_peak_gib
from unigs.codec import encode_colormap
from unigs.data import UniGSData, stack_samples
from unigs.recipes.bases import make_base
from unigs.records import Batch
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


class TakeTurns(Callback):
    """After each of our steps one of the plain loop; seconds of both, warm-up left out."""

    def __init__(self, batch: Batch, autocast: bool, warmup: int) -> None:
        self.batch, self.autocast, self.warmup = batch, autocast, warmup
        self.ours_s: list[float] = []
        self.plain_s: list[float] = []

    def now(self, device: torch.device) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def on_train_start(self, trainer, pl_module) -> None:
        batch = self.batch.to(pl_module.device)
        count = FlopCount(pl_module.network)
        pl_module.losses(batch)
        self.flops = count.close() / len(batch)
        self.plain = PlainLoop(pl_module, batch, self.autocast)
        self.start = self.now(pl_module.device)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        ended = self.now(pl_module.device)
        self.peak_gib = measure_peak_gib(pl_module.device)
        self.plain.step()
        after = self.now(pl_module.device)
        if batch_idx >= self.warmup:
            self.ours_s.append(ended - self.start)
            self.plain_s.append(after - ended)
        self.start = self.now(pl_module.device)


def make_batch(root: Path, side: int, size: int) -> Batch:
    """Samples of all tasks from drawn scenes."""
    write_datasets(root / "data", images=6, val_images=2, size_px=side)
    sets = {name: str(root / "data" / name) for name in ("coco", "openimages", "entityseg")}
    write_shards(out=str(root / "shards"), workers=1, **sets)  # type: ignore[arg-type]
    data = UniGSData([str(root / "shards")], TaskOptions(side))
    dataset = data.make_dataset("train", augment=True, ratios=data.task_ratios)
    return stack_samples([dataset[index].sample for index in range(size)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--preset", choices=("tiny", "small", "sd15"), default="tiny")
    parser.add_argument("--side", type=int, default=64, help="of the pictures, px")
    parser.add_argument("--batch", type=int, default=8, help="samples a step")
    parser.add_argument("--steps", type=int, default=10, help="measured, after 3 of warm-up")
    parser.add_argument("--compile", choices=get_args(Compile), default="none", help="our UNet")
    parser.add_argument("--checkpointing", action="store_true", help="of gradients, in both")
    told = parser.parse_args()
    warnings.filterwarnings("ignore")
    on_gpu = told.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        batch = make_batch(Path(folder), told.side, told.batch)
        make_base(f"{folder}/base", preset=told.preset)
        compute = Compute(
            gradient_checkpointing=told.checkpointing, compile=told.compile, channels_last=True,
            towers_dtype="bfloat16" if on_gpu else "float32", encode_chunk=16 if on_gpu else None,
        )  # fmt: skip
        turns = TakeTurns(batch, on_gpu, warmup=3)
        trainer = L.Trainer(
            accelerator="gpu" if on_gpu else "cpu", devices=1, logger=False,
            precision="bf16-mixed" if on_gpu else "32-true", gradient_clip_val=1.0,
            max_steps=told.steps + 3, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[EMA(), turns], default_root_dir=folder,
        )  # fmt: skip
        loader = torch.utils.data.DataLoader([batch] * (told.steps + 3), batch_size=None)
        trainer.fit(UniGS(f"{folder}/base", compute=compute), loader)
    ratio = median(plain / ours for ours, plain in zip(turns.ours_s, turns.plain_s))
    rate = told.batch / median(turns.ours_s)
    peak = find_peak(trainer.strategy.root_device)
    print(f"ours {rate:.2f} samples/s, plain {told.batch / median(turns.plain_s):.2f} samples/s")
    print(f"ours / plain {ratio:.3f} (median of {told.steps} pairs)")
    print(f"{turns.flops / 1e9:.1f} GFLOP a sample; MFU", f"{rate * turns.flops / peak:.3f}" if peak
          else "-: no peak is known of this device")  # fmt: skip
    print(f"peak memory {turns.peak_gib:.2f} GiB, the plain loop's weights and state included")


if __name__ == "__main__":
    main()
