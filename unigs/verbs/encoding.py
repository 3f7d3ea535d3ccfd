"""The frozen half of a run's steps, encoded ahead into shards: the work of ``unigs latents``.

In: the config of ``unigs fit``. Out: a cache that ``data.latents`` reads. The writer of shards does
the work: a part has one writer, what is finished is kept, and a shard is a pure function of its
indices, because it is encoded in batches that begin at its first sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from unigs.batches import stack_samples
from unigs.data import UniGSData
from unigs.latents import NAME, RUN, WINDOWS, Precision, encode_row, name_key, refuse_other
from unigs.loaders import GuardedLoader
from unigs.locks import FolderBusy
from unigs.records import Batch, Skips, UnigsError
from unigs.shards import DamagedSample
from unigs.shards.files import ShardError, read_json, tell_in_words
from unigs.shards.manifest import count_shards, name_folder, name_shard
from unigs.shards.merge import SOURCE_NAME, merge_folders
from unigs.shards.write import find_receipt, write_source
from unigs.streams import CollateMade
from unigs.systems.system import System
from unigs.verbs.fit import make_cli
from unigs.windows import WindowPictures, encode_window

ENCODED = 16
"""Samples that are encoded at a time."""


@dataclass(frozen=True)
class EncodedStream:
    """What a frozen network makes of a data set, as a source of shards.

    Args:
        name: of the source.
        stream: index -> ``Made``, in any process.
        collate: samples -> batch.
        encode_batch: batch -> key and tar members of each of its samples.
        samples: how many.
        workers: loader processes.
        licence: of the pictures.
    """

    name: str
    stream: Dataset
    collate: Callable[[list[Any]], Any]
    encode_batch: Callable[[Any], Iterator[tuple[str, bytes]]]
    samples: int
    workers: int
    licence: str
    split: str = "train"
    categories: tuple[str, ...] = ()
    skips: Skips = field(default_factory=Skips)

    @cached_property
    def keys(self) -> list[str]:
        return [name_key(index) for index in range(self.samples)]

    def __len__(self) -> int:
        return self.samples

    def files(self) -> list[Path]:
        """None: the manifests of the pictures are among the options."""
        return []

    def inputs(self, i: int) -> list[Path]:
        """None likewise."""
        return []

    def encode(self, wanted: range, skips: Skips) -> Iterator[tuple[str, bytes]]:
        """Key and tar members of each sample; those that were replaced are counted.

        Raises:
            ShardError: one was replaced for damage, which may be healed later.
        """
        loader = GuardedLoader(
            self.stream,
            self.workers,
            batch_sampler=[
                list(wanted[at : at + ENCODED]) for at in range(0, len(wanted), ENCODED)
            ],
            collate_fn=CollateMade(self.collate),
        )
        for batch, replaced in loader:
            for one in replaced:
                if where := one.examples.get(DamagedSample.reason):
                    raise ShardError(
                        f"expected whole shards to encode, got {where}; a healed shard would have "
                        "other latents: unigs shards verify names what is damaged"
                    )
                skips.update(one)
            yield from self.encode_batch(batch)


@dataclass(frozen=True)
class Ahead:
    """What is encoded ahead; see ``verbs.latents``."""

    out: str
    samples: int | None
    part: tuple[int, int]
    dtype: Precision
    samples_per_shard: int
    windows: int | None = None

    @property
    def kind(self) -> str:
        """The name of the cache's source."""
        return NAME if self.windows is None else WINDOWS


def encode_samples(system: System, dtype: torch.dtype, batch: Batch) -> Iterator[tuple[str, bytes]]:
    """Whole samples, as a step of training encodes them."""
    with torch.no_grad(), system.trainer.precision_plugin.train_step_context():
        latents = system.encode(batch.to(system.device)).to("cpu")
    for row in range(len(latents)):
        yield encode_row(latents, row, dtype)


def encode_pictures(
    system: System, dtype: torch.dtype, windows: list[tuple[int, torch.Tensor]]
) -> Iterator[tuple[str, bytes]]:
    """Numbers and pixels of windows, likewise."""
    numbers, pictures = zip(*windows, strict=True)
    with torch.no_grad(), system.trainer.precision_plugin.train_step_context():
        latents = system.encode_images(torch.stack(pictures).to(system.device)).cpu()
    for number, one in zip(numbers, latents, strict=True):
        yield encode_window(number, one, dtype)


def open_source(system: System, data: UniGSData, ahead: Ahead) -> EncodedStream:
    """What is to be encoded, in order."""
    loader, dtype = data.train_dataloader(), getattr(torch, ahead.dtype)
    stream = loader.dataset
    licence = "; ".join(sorted({m.licence for m in stream.manifests.values()}))
    open_ = partial(EncodedStream, workers=data.loading.num_workers, licence=licence)
    if ahead.windows is None:
        count = ahead.samples or len(loader) * loader.global_batch_size
        return open_(NAME, stream, stack_samples, partial(encode_samples, system, dtype), count)
    pictures = WindowPictures(stream, data.tasks.resolution_px, ahead.windows)
    encode = partial(encode_pictures, system, dtype)
    return open_(WINDOWS, pictures, list, encode, len(pictures))


def encode_ahead(system: System, data: UniGSData, ahead: Ahead) -> None:
    """Write one part of a cache, and finish the cache behind the last one.

    Args:
        system, data: of the run, see :func:`open_run`.
        ahead: what to encode, and where to.

    Raises:
        UnigsError: the cache of another run in the folder.
        FolderBusy: another process writes the same part there.
    """
    out, size = ahead.out, ahead.samples_per_shard
    if ahead.windows is not None:
        data.tasks = replace(data.tasks, windows=ahead.windows)
    run = data.describe_latents(ahead.kind)
    source: Any = open_source(system, data, ahead)
    folder = Path(out) / name_folder(source.name, source.split)
    sizes = {"samples": len(source), "samples_per_shard": size, "dtype": ahead.dtype}
    refuse_mixture(folder, sizes | run)
    with tell_in_words("write latents", out, "finished shards are kept: run the command again"):
        skips = write_source(
            source, out, size, 1, ahead.part, encode=EncodedStream.encode,
            options={RUN: run, "dtype": ahead.dtype},
        )  # fmt: skip
    if skips.total:
        print(f"not usable, and replaced by other samples in training: {skips}")
    shards = range(count_shards(len(source), size))
    left = [k for k in shards if find_receipt(folder, name_shard(folder.name, k)) is None]
    if left:
        mine, of = ahead.part
        print(f"part {mine}/{of} is written, at {out}; {len(left)} shards are left to other parts")
        return
    with suppress(FolderBusy):  # another part ended as well, and finishes the cache
        merge_folders(out)
    windows = f" --data.tasks.windows {ahead.windows}" if ahead.windows else ""
    words = f"--data.latents {out}{windows}"
    print(f"the cache is whole, at {out}; next: the command of the run with {words}")


def open_run(config: list[str], options: list[str]) -> tuple[System, UniGSData]:
    """System and data of a run, on its first device, without a step of it.

    Raises:
        UnigsError: they are of other classes.
    """
    words = [word for path in config for word in ("--config", path)]
    words += [f"--{option}" for option in options]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*args parameter is intended to run from within Python")
        cli = make_cli(["fit", *words], run=False)
    system, data, trainer = cli.model, cli.datamodule, cli.trainer
    if not isinstance(system, System) or not isinstance(data, UniGSData):
        came = f"{type(system).__name__} and {type(data).__name__}"
        raise UnigsError(f"expected a system of ours with UniGSData, got {came}, at {config}")
    data.latents = None  # the live stream is wanted, whatever the config will read
    trainer.strategy.connect(system)
    system.trainer = data.trainer = trainer
    system.configure_model()
    return system.to(trainer.strategy.root_device), data


def refuse_mixture(folder: Path, wanted: dict[str, Any]) -> None:
    """Refuse to write beside the latents of another run, before anything is encoded.

    Raises:
        OtherLatents: names what differs.
    """
    if not (folder / SOURCE_NAME).exists():
        return
    there = read_json(folder / SOURCE_NAME)
    options = {**there.get("options", {}), "samples": there.get("pictures")}
    refuse_other(options | options.pop(RUN, {}), wanted, str(folder))
