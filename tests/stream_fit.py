"""A small model that learns from a stream under Lightning, and the command that trains it.

Run as a script it is ``lightning fit`` (LightningCLI) on a folder of shards; tests kill and resume
it. Noise is keyed by the index, as in training, so the weights depend on which samples came, in
which batches, and on nothing else.
"""

from __future__ import annotations

import sys

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI

from unigs.images import decode_image
from unigs.plan import Plan
from unigs.records import Annotated
from unigs.seeds import derive_seed
from unigs.shards import read_manifests
from unigs.streams import StreamDataset, StreamLoader


def make_vector(record: Annotated, task: str, index: int) -> dict:
    pixels = torch.from_numpy(decode_image(record.image)[:8, :8].copy()).float() / 255
    noise = torch.Generator().manual_seed(derive_seed(0, index, "noise"))
    return {"index": index, "x": pixels.flatten() + torch.rand(192, generator=noise)}


def stack(samples: list[dict]) -> dict:
    return {
        "index": torch.tensor([s["index"] for s in samples]),
        "x": torch.stack([s["x"] for s in samples]),
    }


class StreamData(L.LightningDataModule):
    def __init__(self, shards: str = "", steps_per_epoch: int = 6, num_workers: int = 0) -> None:
        super().__init__()
        self.shards, self.steps, self.num_workers = shards, steps_per_epoch, num_workers

    def make_loader(self, steps: int, global_batch_size: int, num_workers: int) -> StreamLoader:
        manifests = read_manifests(self.shards)
        sizes = {name: manifest.sizes for name, manifest in manifests.items()}
        plan = Plan(sizes, {"x": 0.7, "y": 0.3}, dict.fromkeys("xy", dict.fromkeys(sizes, 1)), 1)
        return StreamLoader(
            StreamDataset(manifests, plan, make_vector),
            stack,
            global_batch_size,
            steps,
            rank=self.trainer.global_rank,
            world_size=self.trainer.world_size,
            num_workers=num_workers,
        )

    def train_dataloader(self) -> StreamLoader:
        return self.make_loader(self.steps, 8, self.num_workers)

    def val_dataloader(self) -> StreamLoader:
        return self.make_loader(2, 4, 0)


class Tiny(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(192, 16), torch.nn.Tanh(), torch.nn.Linear(16, 192)
        )
        for weight in self.net.parameters():
            torch.nn.init.normal_(weight, std=0.1, generator=generator)
        self.seen: list[int] = []

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        self.seen += batch["index"].tolist()
        return ((self.net(batch["x"]) - batch["x"]) ** 2).mean()

    def validation_step(self, batch: dict, batch_idx: int) -> None:
        self.log("val_loss", self.net(batch["x"]).mean(), batch_size=4)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


if __name__ == "__main__":
    LightningCLI(Tiny, StreamData, save_config_callback=None, args=sys.argv[1:])
