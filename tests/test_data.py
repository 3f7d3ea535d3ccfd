"""The data module: exact ratios, the same samples on any workers, validation, errors."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch
from builders import build_data

from unigs.data import JOINT_RATIOS, UniGSData
from unigs.records import TASKS, Batch, TooManySkips, UnigsError
from unigs.tasks import TaskOptions


def make_data(shards, **changes) -> UniGSData:
    options = {"tasks": TaskOptions(32), "global_batch_size": 8, "steps_per_epoch": 6}
    return build_data(shards, **{**options, "num_workers": 0, **changes})


def assert_same(first: Batch, second: Batch) -> None:
    assert (first.keys, first.prompts, first.names) == (second.keys, second.prompts, second.names)
    assert first.largest == second.largest == int(first.labels.max())
    for name in ("index", "task", "image", "labels", "ignored", "coarse_mask"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name


def test_task_counts_are_within_one_of_the_ratios_at_every_prefix(shards):
    counts: Counter = Counter()
    rows = torch.cat([batch.task for batch in make_data(shards).train_dataloader()])
    for seen, row in enumerate(rows.tolist(), 1):
        counts[TASKS[row]] += 1
        for task, ratio in JOINT_RATIOS.items():
            assert abs(counts[task] - ratio * seen) < 1


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(shards, workers):
    alone = list(make_data(shards).train_dataloader())
    for first, second in zip(
        alone, make_data(shards, num_workers=workers).train_dataloader(), strict=True
    ):
        assert_same(first, second)


def test_an_epoch_is_about_one_pass_by_default(shards):
    loader = make_data(shards, steps_per_epoch=None).train_dataloader()
    pictures = sum(len(m) for m in loader.dataset.manifests.values())
    assert len(loader) == pictures // 8


def test_validation_is_fixed_and_of_one_task_per_batch(shards):
    data = make_data(shards, samples_per_task=3, batch_size=2)
    first, second = list(data.val_dataloader()), list(data.val_dataloader())
    for one, two in zip(first, second, strict=True):
        assert_same(one, two)
        assert len(set(one.task.tolist())) == 1
    counts = Counter(row for batch in first for row in batch.task.tolist())
    assert counts == dict.fromkeys(range(4), 3)
    limit = data.tasks.for_evaluation().max_entities
    assert all(len(names) <= limit for b in first if b.task[0] != 3 for names in b.names)


def test_a_source_may_be_named_with_its_split(shards):
    only = {"entity": {"openimages-val": 1.0}}
    data = make_data(shards, task_ratios={"entity": 1.0}, source_weights=only)
    assert set(data.train_dataloader().dataset.manifests) == {"openimages-val"}


def test_missing_shards_and_unknown_tasks_are_named(shards, tmp_path):
    lost = {task: {"nowhere": 1.0} for task in TASKS}
    with pytest.raises(UnigsError, match="nowhere-train"):
        make_data(shards, source_weights=lost).train_dataloader()
    with pytest.raises(UnigsError, match=str(tmp_path)):
        make_data(str(tmp_path)).train_dataloader()
    with pytest.raises(UnigsError, match="dance"):
        make_data(shards, task_ratios={"dance": 1.0})


def test_a_batch_moves_and_keeps_its_lists(shards):
    batch = next(iter(make_data(shards).train_dataloader()))
    moved = batch.to("meta")
    assert moved.image.device.type == "meta"
    assert moved.prompts == batch.prompts
    assert_same(batch, batch.to("cpu"))


def damage_val(shards: str, tmp_path) -> str:
    """A copy of the shards; of every held-out one the second half is zeros."""
    there = Path(shutil.copytree(shards, tmp_path / "damaged"))
    for path in there.glob("*-val/*.tar"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    return str(there)


def test_damage_in_validation_is_told_and_too_much_of_it_ends_the_run(
    shards, tmp_path, caplog, monkeypatch
):
    loader = make_data(damage_val(shards, tmp_path), samples_per_task=6).val_dataloader()
    for _ in range(2):  # counted anew in each validation
        caplog.clear()
        assert sum(len(batch.keys) for batch in loader) == 24
        assert "sample replaced: sample damaged in its shard" in caplog.text
    monkeypatch.setattr("unigs.loaders.FREE_SKIPS", 0)
    with pytest.raises(TooManySkips, match="sample damaged in its shard"):
        list(loader)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"global_batch_size": 0}, r"at least 1, got 0, at data\.loading\.global_batch_size"),
        ({"steps_per_epoch": 0}, r"at least 1, got 0, at data\.loading\.steps_per_epoch"),
        ({"num_workers": -1}, r"at least 0, got -1, at data\.loading\.num_workers"),
        ({"batch_size": 0}, r"at least 1, got 0, at data\.validation\.batch_size"),
        ({"source_weights": {"entity": {"coco-panoptic": 1.0}}}, "weights of sources, got None"),
        ({"source_weights": dict.fromkeys(TASKS)}, "weights of sources, got None, of task"),
    ],
)
def test_options_that_give_no_batches_are_refused(shards, changes, words):
    with pytest.raises(UnigsError, match=words):
        make_data(shards, **changes).train_dataloader()


@pytest.mark.parametrize(
    ("name", "value"),
    [("resolution_px", 0), ("max_entities", 0), ("windows", 0), ("text_dropout", 1.5),
     ("negative_probability", float("nan")), ("max_painted", 0)],
)  # fmt: skip
def test_options_of_tasks_that_make_no_sample_are_refused(name, value):
    with pytest.raises(UnigsError, match=rf"at data\.tasks\.{name}"):
        TaskOptions(**{name: value})
