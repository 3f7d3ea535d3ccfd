"""Plan + shards -> batches, the same on every topology, resumable at any batch (shards -> tasks).

Sample ``i`` is a pure function of (manifest, seed, i), so a loader is only a list of indices: step
s takes indices s*G .. (s+1)*G - 1 (G is the global batch) and rank r the r-th equal slice of them.
A stock ``DataLoader`` reads them by random access in any number of workers. The state is the next
index, equal on all ranks; it counts batches *handed out*, not those prefetched.

A sample that cannot be read or made is counted by reason and replaced by another of the same task
and source, chosen by (seed, index, attempt): ranks never fall out of step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, Dataset, Sampler

from unigs.loaders import LOADER_TIMEOUT_S, GuardedLoader, Tally
from unigs.plan import Draw, Plan
from unigs.records import Annotated, Skips, TooManySkips, UnigsError
from unigs.remote import RemoteError
from unigs.seeds import derive_seed
from unigs.shards import Manifest, ShardReader
from unigs.shards.files import ShardError

MAX_ATTEMPTS = 16
"""Samples tried for one index before the run stops."""

MakeSample = Callable[[Annotated, str, int], Any]


class StateMismatch(UnigsError):
    """A saved position that belongs to another stream."""


class SampleFailed(UnigsError):
    """A sample raised something that no bad input explains; the message names it."""


class LoaderStuck(UnigsError):
    """The loader processes deliver nothing."""


class Made(NamedTuple):
    """A sample and what was skipped to get it, on the way from a worker to the trainer."""

    sample: Any
    skips: Skips


class Loaded(NamedTuple):
    """A batch, and per sample what was skipped to get it."""

    batch: Any
    skips: list[Skips]


class StreamDataset(Dataset):
    """Index -> sample, for any index, in any order and process; picklable.

    Args:
        manifests: by name, at least the plan's sources.
        plan: where each index lies.
        make_sample: (record, task, index) -> sample; pure. An ``UnigsError`` means that this
            record cannot be used and is counted under its ``reason``, or its class's name.
    """

    def __init__(
        self, manifests: Mapping[str, Manifest], plan: Plan, make_sample: MakeSample
    ) -> None:
        self.manifests = {name: manifests[name] for name in plan.sources}
        self.plan = plan
        self.make_sample = make_sample
        self.reader = ShardReader(self.manifests)
        self._remote = any(manifest.cache for manifest in self.manifests.values())

    def __getitem__(self, index: int) -> Made:
        """The sample of one index, or of its replacement.

        Raises:
            TooManySkips: none of ``MAX_ATTEMPTS`` records could be used.
            SampleFailed: an error that is no bad input.
        """
        if self._remote:
            self.reader.prefetch(self.plan.list_windows(index))
        skips = Skips()
        first = self.plan.draw(index)
        for attempt in range(MAX_ATTEMPTS):
            draw = first if attempt == 0 else self._draw_other(first, attempt)
            where = self.reader.describe(draw.source, draw.shard, draw.member)
            try:
                record = self.reader.read(draw.source, draw.shard, draw.member)
                return Made(self.make(record, draw), skips)
            except (ShardError, RemoteError, TooManySkips):
                raise
            except UnigsError as error:
                skips.add(getattr(error, "reason", type(error).__name__), f"{error} ({where})")
            except (MemoryError, RecursionError) as error:  # a bomb that no door caught
                skips.add(f"sample took too much ({type(error).__name__})", where)
            except Exception as error:
                raise SampleFailed(
                    f"expected a sample for {draw.task}, got {type(error).__name__}: {error}, "
                    f"of index {index}, {where}"
                ) from error
        raise TooManySkips(
            f"expected a usable sample in {MAX_ATTEMPTS} attempts for {first}, got: {skips}"
        )

    def make(self, record: Annotated, draw: Draw) -> Any:
        """The sample of a record that was drawn."""
        return self.make_sample(record, draw.task, draw.index)

    def _draw_other(self, first: Draw, attempt: int) -> Draw:
        """The replacement: any sample of the same source, for the same task and index."""
        position = derive_seed(self.plan.seed, first.index, f"replacement {attempt}")
        place = self.plan.locate(first.source, position % self.plan.count_samples(first.source))
        return Draw(first.index, first.task, first.source, *place)


class RankSlices(Sampler):
    """Endless lists of indices: this rank's slice of every global batch.

    Args:
        start: the first index of the first global batch.
        global_batch_size: indices per step over all ranks.
        rank, world_size: which slice, of how many.
    """

    def __init__(self, start: int, global_batch_size: int, rank: int, world_size: int) -> None:
        self.start, self.step = start, global_batch_size
        self.local = global_batch_size // world_size
        self.offset = rank * self.local

    def __iter__(self) -> Iterator[list[int]]:
        first = self.start + self.offset
        while True:
            yield list(range(first, first + self.local))
            first += self.step


class StreamLoader:
    """The resumable loader of one rank.

    An iteration gives ``steps_per_epoch`` batches; the next one goes on where it ended, in the same
    worker processes. So it is after ``load_state_dict`` too: whoever resumes in the middle of an
    epoch takes as many batches as are left of it (Lightning counts them itself, and only it knows
    its ``limit_train_batches``).

    Args:
        dataset: index -> sample.
        collate: list of samples -> batch.
        global_batch_size: samples per step over all ranks.
        steps_per_epoch: batches that one iteration gives, on every rank.
        rank, world_size: of this process.
        num_workers: loader processes; they change nothing but the speed.
        prefetch: batches each worker prepares ahead.
        pin_memory: copy batches to page-locked memory, for a GPU.
        max_skip_fraction: stop if more than this share of this rank's samples had to be replaced.
        timeout_s: stop if loader processes deliver no batch for so long, seconds.

    Attributes:
        tally: what this rank replaced, by reason.
    """

    def __init__(
        self,
        dataset: StreamDataset,
        collate: Callable[[list[Any]], Any],
        global_batch_size: int,
        steps_per_epoch: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        max_skip_fraction: float = 0.01,
        timeout_s: float = LOADER_TIMEOUT_S,
    ) -> None:
        check_topology(global_batch_size, steps_per_epoch, rank, world_size)
        self.dataset = dataset
        self.collate = collate
        self.global_batch_size, self.steps_per_epoch = global_batch_size, steps_per_epoch
        self.rank, self.world_size = rank, world_size
        self.num_workers, self.prefetch, self.pin_memory = num_workers, prefetch, pin_memory
        self.timeout_s = timeout_s
        self.tally = Tally(rank, max_skip_fraction)
        self._next_index = 0
        # Lightning shuts down and clears an attribute of this name at the end of a run.
        self._iterator: Iterator[Any] | None = None

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.steps_per_epoch):
            yield self._take()

    def state_dict(self) -> dict[str, Any]:
        """The position, an integer, and what it counts in; equal on all ranks."""
        plan = self.dataset.plan
        return {
            "next_index": self._next_index,
            "seed": plan.seed,
            "mix": plan.describe(),
            "manifests": {name: m.digest for name, m in sorted(self.dataset.manifests.items())},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken, on any topology.

        Raises:
            StateMismatch: it was taken from other shards, another seed or another mixture.
        """
        for what, expected in self.state_dict().items():
            if what not in state:
                raise StateMismatch(f"expected {what!r} in a loader's state, got {sorted(state)}")
            if what in ("seed", "mix", "manifests") and state[what] != expected:
                raise StateMismatch(describe_mismatch(what, state[what], expected))
        self._next_index = int(state["next_index"])
        self.close()

    def close(self) -> None:
        """End the worker processes; iterating starts new ones at the next batch."""
        iterator, self._iterator = self._iterator, None
        if shut_down := getattr(iterator, "_shutdown_workers", None):
            shut_down()

    def _take(self) -> Any:
        """The next batch, and the position after it."""
        if self._iterator is None:
            self._iterator = self._start()
        started = time.monotonic()
        try:
            loaded: Loaded = next(self._iterator)
        except BaseException as error:
            self.close()
            if isinstance(error, RuntimeError) and time.monotonic() - started > self.timeout_s:
                raise LoaderStuck(
                    f"expected a batch within {self.timeout_s:.0f} s, got none from "
                    f"{self.num_workers} loader processes on rank {self.rank}; look for a stuck "
                    "disk, or for too little shared memory (df -h /dev/shm; docker --shm-size=8g)"
                ) from error
            raise
        self._next_index += self.global_batch_size
        self.tally.add(loaded.skips)
        return loaded.batch

    def _start(self) -> Iterator[Any]:
        """A stock loader over the indices from here on, without end."""
        place = (self.global_batch_size, self.rank, self.world_size)
        loader = GuardedLoader(
            self.dataset,
            self.num_workers,
            self.timeout_s,
            batch_sampler=RankSlices(self._next_index, *place),
            collate_fn=CollateMade(self.collate),
            pin_memory=self.pin_memory,
            prefetch_factor=self.prefetch if self.num_workers else None,
        )
        return iter(loader)


class CollateMade:
    """list of :class:`Made` -> :class:`Loaded`; picklable.

    Args:
        collate: list of samples -> batch.
    """

    def __init__(self, collate: Callable[[list[Any]], Any]) -> None:
        self.collate = collate

    def __call__(self, made: Sequence[Made]) -> Loaded:
        return Loaded(self.collate([one.sample for one in made]), [one.skips for one in made])


class CountedLoader:
    """Batches of a fixed set; what was replaced is counted anew in each iteration.

    Args:
        loader: of ``Loaded`` batches.
        rank: of this process.
    """

    def __init__(self, loader: DataLoader, rank: int) -> None:
        self.loader, self.rank = loader, rank

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        """The batches.

        Raises:
            TooManySkips: more samples were replaced than a set may lack.
        """
        tally = Tally(self.rank)
        for loaded in self.loader:
            tally.add(loaded.skips)
            yield loaded.batch


def check_topology(
    global_batch_size: int, steps_per_epoch: int, rank: int, world_size: int
) -> None:
    """Refuse sizes that give no equal slices.

    Raises:
        UnigsError: with the sizes.
    """
    if global_batch_size < 1 or global_batch_size % world_size:
        raise UnigsError(
            f"expected a global batch size that {world_size} ranks divide, got {global_batch_size}"
        )
    if not 0 <= rank < world_size or steps_per_epoch < 1:
        raise UnigsError(
            f"expected a rank below {world_size} and at least 1 step per epoch, got rank {rank} "
            f"and {steps_per_epoch} steps"
        )


def describe_mismatch(what: str, came: Any, expected: Any) -> str:
    """Which shards, seed or mixture a saved position belongs to, in words."""
    if what != "manifests":
        return f"expected to resume a stream of {what} {expected!r}, got a state of {came!r}"
    names = sorted(name for name in {*came, *expected} if came.get(name) != expected.get(name))
    rows = [f"{n}: {expected.get(n, 'none')} here, {came.get(n, 'none')} saved" for n in names]
    return f"expected to resume on the shards it was saved with, got others ({'; '.join(rows)})"
