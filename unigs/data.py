"""The ``LightningDataModule``: shards + plan + recipes -> ``Batch`` es.

In: folders of shards and the mixture. Out: the resumable training loader and validation batches of
one task each. Everything a batch holds is a pure function of (manifests, seed, index).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from typing import Any, ClassVar

import lightning as L
import torch

from unigs.batches import stack_samples, stack_training
from unigs.codec import Palette
from unigs.latents import NAME, RUN, WINDOWS, LatentDataset, open_cache, refuse_other, stack_latents
from unigs.loaders import GuardedLoader
from unigs.plan import Plan
from unigs.records import TASKS, UnigsError, check_bounds
from unigs.runs import Rule, flatten_options
from unigs.shards import Manifest, read_manifests
from unigs.streams import CollateMade, CountedLoader, StreamDataset, StreamLoader
from unigs.tasks import TaskOptions, list_classes, make_sample
from unigs.windows import DEPENDS, WindowDataset

JOINT_RATIOS = {"inpainting": 0.3, "synthesis": 0.3, "referring": 0.2, "entity": 0.2}
"""Task ratios of the joint model (supplement, "One-to-Many Joint Model")."""

JOINT_SOURCES = {
    "inpainting": {"coco-panoptic": 1.0, "openimages": 1.0},
    "synthesis": {"coco-panoptic": 1.0, "openimages": 1.0},
    "referring": {"coco-panoptic": 1.0, "openimages": 1.0},
    "entity": {"coco-panoptic": 1.0, "entityseg": 1.0},
}
"""Data sets of each task (supplement); the paper gives no weights, equal ones are ours."""


HELD_OUT_WINDOW = 8
"""Shards that are shuffled into each other in a held-out set, whatever the training's."""


@dataclass(frozen=True)  # no slots: the command line reads its fields
class Loading:
    """How the training stream is cut into batches and read.

    Args:
        global_batch_size: samples per step over all ranks, before gradient accumulation.
        steps_per_epoch: batches per epoch; None: about one pass over all sources in use.
        num_workers: loader processes per rank; they never change the samples.
        window_shards: shards shuffled into each other; more mix better and keep more files open.
    """

    global_batch_size: int = 32
    steps_per_epoch: int | None = None
    num_workers: int = 4
    window_shards: int = 8

    def __post_init__(self) -> None:
        some = (1, inf)
        check_bounds(
            self, "data.loading", global_batch_size=some, steps_per_epoch=some,
            num_workers=(0, inf), window_shards=some,
        )  # fmt: skip


@dataclass(frozen=True)  # no slots: the command line reads its fields
class HeldOut:
    """A fixed set to validate or test on.

    Args:
        split: of the sources.
        samples_per_task: pictures of each task.
        batch_size: pictures per batch, all of one task.
    """

    split: str = "val"
    samples_per_task: int = 16
    batch_size: int = 8

    def __post_init__(self) -> None:
        check_bounds(self, "data.validation", samples_per_task=(0, inf), batch_size=(1, inf))


class UniGSData(L.LightningDataModule):
    """Batches of mixed tasks from mixed data sets.

    Args:
        shards: folders that ``unigs shards`` wrote.
        tasks: how samples are made of pictures.
        task_ratios: share of each task, exact at every prefix of the stream.
        source_weights: per task the weights of its sources, by name: ``coco-panoptic`` means the
            split in use, ``openimages-test`` that folder of shards whatever the split.
        loading: batches and loader processes.
        train_split: split to train on.
        validation: the set to validate and test on.
        seed: of order, geometry, entities, masks, prompts, noise and timesteps.
        latents: a cache of ``unigs latents``, from which the training stream is then read; one of
            ``--windows`` holds latents of images alone.
    """

    def __init__(
        self,
        shards: list[str],
        tasks: TaskOptions = TaskOptions(),  # noqa: B008 (frozen)
        task_ratios: dict[str, float] = JOINT_RATIOS,
        source_weights: dict[str, dict[str, float]] = JOINT_SOURCES,
        loading: Loading = Loading(),
        train_split: str = "train",
        validation: HeldOut = HeldOut(),
        seed: int = 0,
        latents: str | None = None,
    ) -> None:
        super().__init__()
        self.allow_zero_length_dataloader_with_multiple_devices = True  # of a rank, in a test
        for task in task_ratios:
            if task not in TASKS:
                raise UnigsError(f"expected task ratios of {TASKS}, got {task!r}")
        self.shards = shards
        self.tasks = tasks
        self.task_ratios = task_ratios
        self.source_weights = source_weights
        self.loading = loading
        self.train_split = train_split
        self.validation = validation
        self.seed = seed
        self.latents = latents
        self.open_test: Callable[[], Iterable] | None = None  # set by callbacks.Evaluation
        self._stream: StreamLoader | None = None
        self._position: dict[str, Any] | None = None

    ON_RESUME: ClassVar[dict[str, Rule]] = {
        "data.global_batch_size": "warned",
        "data.steps_per_epoch": "warned",
        "data.latents": "warned",
    }
    """What a change of an option does on resume; what is not named makes another run."""

    def describe(self) -> dict[str, Any]:
        """What the training stream depends on; a resumed run compares it, see ``runs``."""
        return {
            **self.describe_samples(),
            "global_batch_size": self.loading.global_batch_size,
            "steps_per_epoch": self.loading.steps_per_epoch,
            "latents": self.latents and open_cache(self.latents).digest[:16],
        }

    def describe_samples(self) -> dict[str, Any]:
        """What the sample of an index depends on."""
        manifests, plan = self.make_plan(
            self.train_split, self.task_ratios, self.loading.window_shards
        )
        return {
            "seed": self.seed,
            "tasks": self.tasks,
            "mixture": plan.describe(),
            "manifests": [f"{name} {manifest.digest[:16]}" for name, manifest in manifests.items()],
        }

    def describe_latents(self, kind: str = NAME) -> dict[str, Any]:
        """What a cache of latents of this run depends on, by dotted name.

        Args:
            kind: of the cache, as the source of its manifest.

        Raises:
            UnigsError: the system that is trained has no frozen half.
        """
        trainer: Any = self.trainer
        system = getattr(trainer, "lightning_module", None)
        frozen = getattr(system, "describe_frozen", lambda: None)()
        if frozen is None:
            raise UnigsError(
                f"expected a system with a frozen half, as UniGS, got {type(system).__name__}, at "
                "data.latents"
            )
        tasks = replace(self.tasks, max_painted=self.max_painted)
        every = {
            **flatten_options({**self.describe_samples(), "tasks": tasks}, "data"),
            **flatten_options(frozen, "model"),
            "trainer.precision": str(trainer.precision),
        }
        return {name: every[name] for name in DEPENDS} if kind == WINDOWS else every

    @property
    def max_painted(self) -> int:
        """Most entities of a picture that are painted: as many as the system can tell apart.

        Raises:
            UnigsError: more are asked for.
        """
        system = getattr(self.trainer, "lightning_module", None)
        limit = getattr(system, "max_painted", None)
        asked = self.tasks.max_painted
        if asked is not None and limit is not None and asked > limit:
            raise UnigsError(
                f"expected at most {limit} entities, as many as the palette of "
                f"{type(system).__name__} can paint, got {asked}, at data.tasks.max_painted"
            )
        return next(n for n in (asked, limit, Palette().capacity) if n is not None)

    def setup(self, stage: str) -> None:
        """A new fit begins a new stream, unless a checkpoint says where to go on."""
        self._stream = self._position = None

    def state_dict(self) -> dict[str, Any]:
        """The position of the training stream; empty before there is one."""
        return self._stream.state_dict() if self._stream else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Let the training stream begin where ``state_dict`` was taken."""
        self._position = state_dict or None

    def select_sources(self, split: str) -> tuple[dict[str, Manifest], dict]:
        """The manifests in use and the weights by manifest name.

        Raises:
            UnigsError: a source of the mixture has no shards of this split, or a task no sources.
        """
        found = read_manifests(*self.shards)
        weights = {}
        for task in (task for task, ratio in self.task_ratios.items() if ratio):
            told = self.source_weights.get(task)
            if not isinstance(told, Mapping):
                raise UnigsError(f"expected weights of sources, got {told}, of task {task!r}")
            names = {name: name if name in found else f"{name}-{split}" for name in told}
            weights[task] = {names[name]: weight for name, weight in told.items() if weight}
        used = {name for mix in weights.values() for name in mix}
        missing = sorted(used - found.keys())
        if missing:
            raise UnigsError(
                f"expected shards of {', '.join(missing)} for the mixture, found "
                f"{', '.join(sorted(found)) or 'none'} in {self.shards}; "
                "give data.source_weights for the sources you have"
            )
        return {name: found[name] for name in sorted(used)}, weights

    def make_plan(
        self, split: str, ratios: Mapping[str, float], window_shards: int
    ) -> tuple[dict[str, Manifest], Plan]:
        """The manifests in use and the order of their samples."""
        manifests, weights = self.select_sources(split)
        sizes = {name: manifest.sizes for name, manifest in manifests.items()}
        return manifests, Plan(sizes, ratios, weights, self.seed, window_shards)

    def make_dataset(self, split: str, augment: bool, ratios: Mapping[str, float]) -> StreamDataset:
        """Index -> sample for one split; without ``augment`` by the rules of evaluation."""
        window_shards = self.loading.window_shards if augment else HELD_OUT_WINDOW
        manifests, plan = self.make_plan(split, ratios, window_shards)
        options = replace(self.tasks, max_painted=self.max_painted)
        make = partial(
            make_sample,
            seed=self.seed,
            options=options if augment else options.for_evaluation(),
            vocabulary=list_classes(manifests).names,
            augment=augment,
        )
        return StreamDataset(manifests, plan, make)

    def train_dataloader(self) -> StreamLoader:
        """The exact stream of this rank, from its start or where it was left.

        It was left by a checkpoint, or by an earlier loader of the same fit (Lightning's
        ``reload_dataloaders_every_n_epochs``).

        Raises:
            StateMismatch: the checkpoint was saved with other shards, another seed or mixture.
            OtherLatents: ``latents`` are another run's.
        """
        dataset = self.make_dataset(self.train_split, augment=True, ratios=self.task_ratios)
        if self.latents:
            cache = open_cache(self.latents)
            refuse_other(cache.options[RUN], self.describe_latents(cache.source), self.latents)
            kind = LatentDataset if cache.source == NAME else WindowDataset
            dataset = kind(dataset, cache)
        stack = stack_latents if isinstance(dataset, LatentDataset) else stack_samples
        system = getattr(self.trainer, "lightning_module", None)
        shape_noise = getattr(system, "shape_noise", lambda side_px: None)
        shape = shape_noise(self.tasks.resolution_px)
        pictures, load = sum(map(len, dataset.manifests.values())), self.loading
        rank, world = self._place()
        if self._position is None and self.trainer is not None:
            self._position = self.state_dict() or None
        self._stream = StreamLoader(
            dataset,
            stack if shape is None else partial(stack_training, stack=stack, shape=shape),
            global_batch_size=load.global_batch_size,
            steps_per_epoch=load.steps_per_epoch or max(1, pictures // load.global_batch_size),
            rank=rank,
            world_size=world,
            num_workers=load.num_workers,
            pin_memory=torch.cuda.is_available(),
        )
        if self._position:
            self._stream.load_state_dict(self._position)
            self._position = None
        return self._stream

    def val_dataloader(self) -> CountedLoader:
        """A fixed set, the same in every run: batches of one task, dealt to the ranks in turn.

        Raises:
            UnigsError: fewer samples than ranks.
        """
        dataset = self.make_held_out(self.validation)
        rank, world = self._place()
        batches = list_batches(dataset.plan, self.validation, world)
        loader = GuardedLoader(
            dataset,
            min(1, self.loading.num_workers),
            batch_sampler=batches[rank::world],
            collate_fn=CollateMade(stack_samples),
        )
        return CountedLoader(loader, rank)

    def _place(self) -> tuple[int, int]:
        """Which part of the data is this process's, of how many: the strategy knows its mesh."""
        told = (self.trainer.distributed_sampler_kwargs if self.trainer else None) or {}
        return told.get("rank", 0), told.get("num_replicas", 1)

    def make_held_out(self, held_out: HeldOut) -> StreamDataset:
        """Index -> sample of a fixed set, its tasks in equal parts."""
        ratios = {task: 1.0 for task, ratio in self.task_ratios.items() if ratio}
        return self.make_dataset(held_out.split, augment=False, ratios=ratios)

    def test_dataloader(self) -> Iterable:
        """The fixed inputs of the protocol that ``callbacks.Evaluation`` has not scored yet.

        Raises:
            UnigsError: the config lists no such callback.
        """
        if self.open_test is None:
            raise UnigsError(
                "expected unigs.callbacks.Evaluation among trainer.callbacks for a test, got none; "
                "unigs evaluate scores an exported folder without it"
            )
        return self.open_test()


def list_batches(plan: Plan, held_out: HeldOut, ranks: int = 1) -> list[list[int]]:
    """Indices of a fixed set, batch by batch, one task each; at least one batch a rank.

    Raises:
        UnigsError: fewer samples than ranks.
    """
    total = held_out.samples_per_task * len(plan.tasks)
    by_task: dict[str, list[int]] = {task: [] for task in plan.tasks}
    for index in range(total):
        by_task[plan.draw(index).task].append(index)
    if total and total < ranks:
        raise UnigsError(
            f"expected a validation sample for each of {ranks} ranks, got {total}; raise "
            "data.validation.samples_per_task"
        )
    batches: list[list[int]] = []
    for size in range(held_out.batch_size, 0, -1):  # smaller ones where ranks would go without
        batches = [
            group[i : i + size] for group in by_task.values() for i in range(0, len(group), size)
        ]
        if len(batches) >= ranks:
            break
    return batches
