"""The frozen half of a run, done once: a cache of ``Latents`` by index (shards -> data).

In: the latents of samples 0..N-1 of a stream. Out: plain WebDataset tars with our manifest
(``KEY.json`` and ``KEY.safetensors``), and the stream that is read from them. Sample i is a pure
function of (manifests, seed, i), so index i of a cache is what a live run makes of index i. Index i
from N on is sample i % N again: its picture, window, entities and words repeat, and noise and
timestep, which are keyed by i itself, are drawn anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from unigs.records import TASKS, Latents, Skips, UnigsError
from unigs.shards import DamagedSample, Manifest, ShardError, ShardReader, read_manifests
from unigs.shards.samples import encode_member, split_members
from unigs.streams import Made, StreamDataset
from unigs.tasks import RECIPES

NAME, WINDOWS = "latents", "windows"
"""Of the source in the manifest of a cache: of whole samples; of pictures' windows."""

RUN = "run"
"""Among a manifest's options: what the cache depends on, by dotted name."""

T = TypeVar("T")
Precision = Literal["float32", "bfloat16"]
CHANNELS = {"clean": 8, "context": 4, "mask": 1, "known": 1, "weight": 1}
DAMAGE = (ValueError, KeyError, TypeError, RecursionError, MemoryError, SafetensorError)


class OtherLatents(UnigsError):
    """A cache of another run's samples, model or options."""


# --- one sample ----------------------------------------------------------------------------------


def name_key(index: int) -> str:
    """The WebDataset key of a sample."""
    return f"{index:09d}"


def encode_row(latents: Latents, row: int, dtype: torch.dtype) -> tuple[str, bytes]:
    """Key and tar members of one sample.

    A context that is one of the clean streams is not stored twice; the coarse mask takes a byte a
    cell.

    Args:
        latents: on the host.
        row: which of them.
        dtype: of the numbers that are stored.

    Raises:
        UnigsError: a number is not finite.
    """
    task, key = TASKS[int(latents.task[row])], name_key(int(latents.index[row]))
    tensors = {name: getattr(latents, name)[row] for name in CHANNELS}
    if not all(tensor.isfinite().all() for tensor in tensors.values()):
        raise UnigsError(
            f"expected finite latents, got others, of {latents.keys[row]}, sample {key}; a VAE in "
            "half precision may overflow: model.compute.towers_dtype"
        )
    if RECIPES[task].context != "masked image":
        del tensors["context"]
    tensors = {
        name: tensor.to(torch.bool if name == "mask" else dtype).contiguous()
        for name, tensor in tensors.items()
    }
    about = {"key": latents.keys[row], "task": task, "prompt": latents.prompts[row]}
    members = encode_member(f"{key}.json", json.dumps(about).encode())
    return key, members + encode_member(f"{key}.safetensors", save(tensors))


def decode_row(span: bytes, seed: int, where: str) -> Latents:
    """The inverse of :func:`encode_row`, of one sample in float32.

    Args:
        span: the members' bytes, checked by the caller against their checksum.
        seed: of the stream.
        where: the shard and place, for errors.

    Raises:
        DamagedSample: the members are not those of one sample.
    """
    members = dict(split_members(span, where))
    try:
        (key,) = {name.partition(".")[0] for name in members}
        about, tensors = json.loads(members[f"{key}.json"]), load(members[f"{key}.safetensors"])
        context = RECIPES[about["task"]].context
        if not isinstance(about["key"], str) or not isinstance(about["prompt"], str):
            raise TypeError("expected texts as key and prompt")
        clean = tensors["clean"]
        if context != "masked image":
            tensors["context"] = clean[:4] if context == "image" else clean[4:]
        for name, channels in CHANNELS.items():
            if tensors[name].shape != (channels, *clean.shape[1:]) or clean.dim() != 3:
                raise ValueError(f"expected {name} of {channels} channels on one grid")
        return Latents(
            keys=[about["key"]],
            prompts=[about["prompt"]],
            seed=seed,
            index=torch.tensor([int(key)]),
            task=torch.tensor([TASKS.index(about["task"])]),
            **{name: tensors[name][None].float() for name in CHANNELS},
        )
    except DAMAGE as error:
        raise DamagedSample(f"expected latents of a sample, got {error!r:.300} {where}") from error


def stack_latents(samples: Sequence[Latents]) -> Latents:
    """Latents one after the other.

    Raises:
        UnigsError: of grids that differ.
    """
    sizes = {tuple(one.clean.shape[-2:]) for one in samples}
    if len(sizes) > 1:
        raise UnigsError(f"expected latents of one size, got {sorted(sizes)}")
    join = lambda name: torch.cat([getattr(one, name) for one in samples])
    return Latents(
        keys=[key for one in samples for key in one.keys],
        prompts=[prompt for one in samples for prompt in one.prompts],
        seed=samples[0].seed,
        **{name: join(name) for name in ("index", "task", *CHANNELS)},
    )


# --- a cache -------------------------------------------------------------------------------------


class Cached:
    """Random access to the members of a cache; picklable."""

    def __init__(self, cache: Manifest) -> None:
        self.cache = cache
        self._reader = ShardReader({cache.name: cache})

    def read(self, place: int, decode: Callable[[bytes, str], T]) -> T:
        """What ``decode`` makes of the bytes of one member, and of the words for where it lies.

        Raises:
            ShardError: it is not there, or not what was written.
        """
        shard, member = divmod(place, self.cache.options["samples_per_shard"])
        self._reader.prefetch({self.cache.name: [shard, (shard + 1) % len(self.cache.shards)]})
        where = self._reader.describe(self.cache.name, shard, member)
        try:
            return decode(self._reader.read_span(self.cache.name, shard, member), where)
        except DamagedSample as error:
            again = "unigs latents with the options of this cache writes the shard anew"
            raise ShardError(f"{error}; {again}") from error


class LatentDataset(StreamDataset):
    """Index -> ``Latents``, from a cache of what ``stream`` gives; picklable.

    Args:
        stream: the live one, to which positions that are saved belong.
        cache: as :func:`open_cache` gives it.
    """

    def __init__(self, stream: StreamDataset, cache: Manifest) -> None:
        super().__init__(stream.manifests, stream.plan, stream.make_sample)
        self.size, self.cached = len(cache), Cached(cache)

    def __getitem__(self, index: int) -> Made:
        """The sample of one index.

        Raises:
            ShardError: it is not there, or not what was written.
        """
        place = index % self.size
        sample = self.cached.read(place, lambda span, where: self._decode(span, place, where))
        return Made(replace(sample, index=torch.tensor([index])), Skips())

    def _decode(self, span: bytes, place: int, where: str) -> Latents:
        sample = decode_row(span, self.plan.seed, where)
        if int(sample.index) != place:
            raise DamagedSample(f"expected sample {place}, got {int(sample.index)} {where}")
        return sample


def open_cache(folder: str) -> Manifest:
    """The manifest of a cache, local or remote.

    Raises:
        ShardError: none, an unfinished one, or shards of something else.
    """
    manifests = list(read_manifests(folder).values())
    cache = manifests[0]
    ours = cache.source in (NAME, WINDOWS) and isinstance(cache.options.get(RUN), dict)
    if len(manifests) != 1 or not ours:
        names = ", ".join(manifest.name for manifest in manifests)
        raise ShardError(
            f"expected a cache of latents, got shards of {names}, at {folder}; "
            "unigs latents writes one"
        )
    size = cache.options["samples_per_shard"]
    full = {count for count in cache.sizes[:-1]} <= {size}
    if not full or not 0 < cache.sizes[-1] <= size:
        raise ShardError(f"expected {size} samples a shard, got {cache.sizes[:8]}, at {folder}")
    return cache


def refuse_other(cached: Mapping[str, Any], run: Mapping[str, Any], where: str) -> None:
    """Refuse the latents of another run.

    Args:
        cached, run: what each depends on, by dotted name.
        where: the cache, for the message.

    Raises:
        OtherLatents: names every option that differs.
    """
    changed = [
        f"{name} {_shorten(run.get(name))} (cached with {_shorten(cached.get(name))})"
        for name in sorted({*cached, *run})
        if cached.get(name) != run.get(name)
    ]
    if changed:
        raise OtherLatents(
            f"expected latents of this run, got another's: {'; '.join(changed)}, at {where}; "
            "unigs latents writes this run's to another --out"
        )


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
