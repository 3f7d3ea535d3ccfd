"""Sources in memory for the tests of shards, plan and streams: small, seeded, without a reader."""

from __future__ import annotations

import numpy as np

from unigs.annotations import Source
from unigs.images import encode_image
from unigs.records import Annotated, Entity, Skips
from unigs.seeds import rng


class DrawnSource:
    """Noise pictures with striped entities; what a reader gives, as far as shards care."""

    require_pictures, tell_losses, remarks = Source.require_pictures, Source.tell_losses, ()
    licence = "drawn for tests"

    def __init__(
        self, name: str, count: int, size_px: int = 16, skip_every: int = 0, split: str = "train"
    ) -> None:
        self.name, self.split, self.count = name, split, count
        self.size_px, self.skip_every = size_px, skip_every
        self.keys = [f"{name}-{i:05d}" for i in range(count)]
        self.categories = ({"id": "7", "name": "stripe", "is_thing": False},)
        self.skips = Skips()

    def __len__(self) -> int:
        return self.count

    def files(self) -> list:
        return []

    def inputs(self, i: int) -> list:
        return []

    def load(self, i: int, skips: Skips) -> Annotated | None:
        if self.skip_every and i % self.skip_every == 1:
            skips.add("drawn to be skipped", self.keys[i])
            return None
        generator = rng(1, i, self.name)
        height, width = self.size_px, self.size_px + i % 3
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        count = 1 + i % 4
        stripes = np.arange(width) * (count + 1) // width
        labels = np.broadcast_to(stripes, (height, width)).astype(np.uint16)
        entities = tuple(Entity(k, "stripe", "7", f"{i}/{k}", False) for k in range(1, count + 1))
        image = encode_image(pixels, "PNG" if i % 5 == 4 else "JPEG")
        return Annotated(self.keys[i], image, labels, entities, "background", self.name)
