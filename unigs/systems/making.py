"""What a checkpoint tells of how it came to be, beside its options: hardware and pictures.

In: a trainer in the middle of ``fit``. Out: plain values, which no resume compares; the model's
card reads them.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

MADE = "unigs_made"
"""Their key in a checkpoint."""


def describe_making(trainer: L.Trainer) -> dict[str, Any]:
    """The devices, and pictures and licence of each source that is trained on."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()
    dataset = getattr(trainer.train_dataloader, "dataset", None)
    manifests = getattr(dataset, "manifests", {})
    return {
        "hardware": f"{trainer.world_size} x {name}",
        "sources": {
            source: {"pictures": len(manifest), "licence": manifest.licence}
            for source, manifest in manifests.items()
        },
    }
