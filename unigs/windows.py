"""Image latents of K windows a picture: the smaller cache (shards -> data).

In: shards of pictures. Out: plain WebDataset tars with our manifest, one ``KEY.safetensors`` a
window, and the stream that adds them to its samples. With ``data.tasks.windows: K`` a sample takes
one of K windows of its picture, so the image's latents of all of them can be encoded once; colormap
and masked image stay live, and all else of a sample is drawn anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor
from torch.utils.data import Dataset

from unigs.latents import DAMAGE, RUN, Cached, name_key
from unigs.plan import Draw
from unigs.records import Annotated, Skips, TaskSample, UnigsError
from unigs.shards import DamagedSample, Manifest, ShardReader
from unigs.shards.files import ShardError
from unigs.shards.samples import encode_member, split_members
from unigs.streams import Made, StreamDataset
from unigs.tasks import crop_window
from unigs.transforms import crop_image

DEPENDS = (
    "data.seed", "data.manifests", "data.tasks.resolution_px", "data.tasks.windows", "model.vae",
    "model.compute.towers_dtype", "trainer.precision",
)  # fmt: skip
"""What such a cache depends on, of what one of whole samples does."""


class Place(NamedTuple):
    """A window: of the picture at ``member`` of ``shard`` of ``source``."""

    source: str
    shard: int
    member: int
    window: int


class Places:
    """All windows of all pictures by number: source by source, shard by shard.

    Args:
        manifests: of the sources, by name.
        windows: of a picture.
    """

    def __init__(self, manifests: Mapping[str, Manifest], windows: int) -> None:
        self.windows = windows
        self._shards = [(n, k) for n in sorted(manifests) for k in range(len(manifests[n].sizes))]
        sizes = (manifests[name].sizes[shard] for name, shard in self._shards)
        self._starts = list(accumulate(sizes, initial=0))
        self._order = {shard: k for k, shard in enumerate(self._shards)}

    def __len__(self) -> int:
        return self._starts[-1] * self.windows

    def number(self, place: Place) -> int:
        start = self._starts[self._order[place.source, place.shard]]
        return (start + place.member) * self.windows + place.window

    def locate(self, number: int) -> Place:
        picture, window = divmod(number, self.windows)
        k = bisect_right(self._starts, picture) - 1
        return Place(*self._shards[k], picture - self._starts[k], window)


class WindowPictures(Dataset):
    """Number of a window -> its number and pixels, to be encoded; picklable.

    Args:
        stream: whose samples will take these windows.
        resolution_px: of a window.
        windows: of a picture.
    """

    def __init__(self, stream: StreamDataset, resolution_px: int, windows: int) -> None:
        self.seed, self.resolution_px = stream.plan.seed, resolution_px
        self.places = Places(stream.manifests, windows)
        self.reader = ShardReader(stream.manifests)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, number: int) -> Made:
        """Number and uint8 [3, R, R]; nothing but zeros of a picture that the stream replaces."""
        source, shard, member, window = self.places.locate(number)
        skips = Skips()
        try:
            record = self.reader.read(source, shard, member)
            pixels = crop_image(record, crop_window(record, window, self.seed), self.resolution_px)
        except ShardError:
            raise
        except UnigsError as error:
            where = self.reader.describe(source, shard, member)
            skips.add(getattr(error, "reason", type(error).__name__), f"{error} ({where})")
            pixels = np.zeros((3, self.resolution_px, self.resolution_px), np.uint8)
        return Made((number, torch.from_numpy(pixels)), skips)


def encode_window(number: int, latents: Tensor, dtype: torch.dtype) -> tuple[str, bytes]:
    """Key and tar member of one window.

    Args:
        number: of it.
        latents: [4, h, w], on the host.
        dtype: of the numbers that are stored.

    Raises:
        UnigsError: a number is not finite.
    """
    key = name_key(number)
    if not latents.isfinite().all():
        raise UnigsError(
            f"expected finite latents, got others, of window {key}; a VAE in half precision may "
            "overflow: model.compute.towers_dtype"
        )
    return key, encode_member(f"{key}.safetensors", save({"image": latents.to(dtype).contiguous()}))


def decode_window(span: bytes, number: int, where: str) -> np.ndarray:
    """The inverse of :func:`encode_window`, float32 [4, h, w].

    Raises:
        DamagedSample: the member is not that of this window.
    """
    try:
        members = dict(split_members(span, where))
        latents = load(members[f"{name_key(number)}.safetensors"])["image"]
        if latents.dim() != 3 or len(latents) != 4:
            raise ValueError(f"expected 4 channels on a grid, got {list(latents.shape)}")
        return latents.float().numpy()
    except DAMAGE as error:
        raise DamagedSample(f"expected latents of a window, got {error!r:.300} {where}") from error


class WindowDataset(StreamDataset):
    """Index -> sample, with the latents of its window; picklable.

    Args:
        stream: the live one, whose samples these are.
        cache: of its windows.
    """

    def __init__(self, stream: StreamDataset, cache: Manifest) -> None:
        super().__init__(stream.manifests, stream.plan, stream.make_sample)
        self.places = Places(stream.manifests, cache.options[RUN]["data.tasks.windows"])
        self.cached = Cached(cache)

    def make(self, record: Annotated, draw: Draw) -> TaskSample:
        sample = super().make(record, draw)
        number = self.places.number(Place(draw.source, draw.shard, draw.member, sample.window))
        latents = self.cached.read(number, lambda span, where: decode_window(span, number, where))
        return replace(sample, image_latents=latents)
