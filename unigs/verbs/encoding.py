"""The frozen half of a run's steps, encoded ahead into shards: the work of ``unigs latents``.

In: the config of ``unigs fit``. Out: a cache that ``data.latents`` reads. The writer of shards does
the work: a part has one writer, what is finished is kept, and a shard is a pure function of its
indices, because it is encoded in batches that begin at its first sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from unigs.data import UniGSData, stack_samples
from unigs.latents import NAME, RUN, Precision, encode_row, name_key, refuse_other
from unigs.locks import FolderBusy
from unigs.records import Skips, UnigsError
from unigs.shards.files import read_json, tell_in_words
from unigs.shards.manifest import count_shards, name_folder, name_shard
from unigs.shards.merge import SOURCE_NAME, merge_folders
from unigs.shards.write import find_receipt, write_source
from unigs.streams import LOADER_TIMEOUT_S, CollateMade, StreamDataset, start_worker
from unigs.systems.system import System
from unigs.verbs.fit import make_cli

ENCODED = 16
"""Samples that are encoded at a time."""


class EncodedStream:
    """The first samples of a training stream as a source of shards.

    Args:
        system: on its device.
        stream: index -> sample.
        samples: how many.
        workers: loader processes.
        dtype: of the numbers that are stored.
    """

    name, split, categories = NAME, "train", ()

    def __init__(
        self, system: System, stream: StreamDataset, samples: int, workers: int, dtype: torch.dtype
    ) -> None:
        self.system, self.stream, self.workers, self.dtype = system, stream, workers, dtype
        self.keys = [name_key(index) for index in range(samples)]
        self.licence = "; ".join(sorted({m.licence for m in stream.manifests.values()}))
        self.skips = Skips()

    def __len__(self) -> int:
        return len(self.keys)

    def files(self) -> list[Path]:
        """None: the manifests of the pictures are among the options."""
        return []

    def inputs(self, i: int) -> list[Path]:
        """None likewise."""
        return []

    def encode(self, wanted: range, skips: Skips) -> Iterator[tuple[str, bytes]]:
        """Key and tar members of each sample; those that were replaced are counted."""
        precision = self.system.trainer.precision_plugin
        loader = DataLoader(
            self.stream,
            batch_sampler=[
                list(wanted[at : at + ENCODED]) for at in range(0, len(wanted), ENCODED)
            ],
            num_workers=self.workers,
            collate_fn=CollateMade(stack_samples),
            worker_init_fn=start_worker,
            timeout=LOADER_TIMEOUT_S if self.workers else 0,
            generator=torch.Generator(),
        )
        for batch, replaced in loader:
            for one in replaced:
                skips.update(one)
            with torch.no_grad(), precision.train_step_context():  # rounds as a step does
                latents = self.system.encode(batch.to(self.system.device)).to("cpu")
            for row in range(len(latents)):
                yield encode_row(latents, row, self.dtype)


@dataclass(frozen=True)
class Ahead:
    """What is encoded ahead; see ``verbs.latents``."""

    out: str
    samples: int | None
    part: tuple[int, int]
    dtype: Precision
    samples_per_shard: int


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
    loader = data.train_dataloader()
    count = ahead.samples or len(loader) * loader.global_batch_size
    run = data.describe_latents()
    folder = Path(out) / name_folder(NAME, EncodedStream.split)
    sizes = {"samples": count, "samples_per_shard": size, "dtype": ahead.dtype}
    refuse_mixture(folder, sizes | run)
    source: Any = EncodedStream(
        system, loader.dataset, count, data.loading.num_workers, getattr(torch, ahead.dtype)
    )
    with tell_in_words("write latents", out, "finished shards are kept: run the command again"):
        skips = write_source(
            source, out, size, 1, ahead.part, encode=EncodedStream.encode,
            options={RUN: run, "dtype": ahead.dtype},
        )  # fmt: skip
    if skips.total:
        print(f"replaced by other samples, as in training: {skips}")
    shards = range(count_shards(count, size))
    left = [k for k in shards if find_receipt(folder, name_shard(folder.name, k)) is None]
    if left:
        mine, of = ahead.part
        print(f"part {mine}/{of} is written, at {out}; {len(left)} shards are left to other parts")
        return
    with suppress(FolderBusy):  # another part ended as well, and finishes the cache
        merge_folders(out)
    print(f"the cache is whole, at {out}; next: the command of the run with --data.latents {out}")


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
