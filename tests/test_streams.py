"""Laws of the stream: the same samples on any topology, after any cut, around any damage."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from shard_fixtures import DrawnSource
from test_shards import write_all

from unigs.images import decode_image
from unigs.plan import Plan
from unigs.records import Annotated, TooManySkips, UnigsError
from unigs.seeds import derive_seed
from unigs.shards import read_manifests
from unigs.streams import SampleFailed, StateMismatch, StreamDataset, StreamLoader

GLOBAL_BATCH = 24
RATIOS = {"inpainting": 0.3, "synthesis": 0.3, "referring": 0.2, "entity": 0.2}
WEIGHTS = {"coco-train": 0.5, "openimages-train": 0.3, "entityseg-train": 0.2}
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    """Three sources; the last is smaller than a batch."""
    out = tmp_path_factory.mktemp("shards")
    counts = {"coco": 61, "openimages": 35, "entityseg": 7}
    write_all(out, [DrawnSource(name, n, skip_every=9) for name, n in counts.items()], 5)
    return out


def make_tensor(record: Annotated, task: str, index: int) -> dict:
    """Depends on every part of what a stream hands over."""
    pixels = torch.from_numpy(decode_image(record.image)[:16, :16].copy())
    noise = torch.Generator().manual_seed(derive_seed(0, index, "noise"))
    value = pixels.float() + torch.rand(16, 16, 3, generator=noise) + int(record.labels.sum())
    return {"id": (index, task, record.key), "value": value}


def stack(samples: list[dict]) -> tuple[list, torch.Tensor]:
    return [s["id"] for s in samples], torch.stack([s["value"] for s in samples])


def make_loader(shards: Path, make=make_tensor, seed: int = 3, **options) -> StreamLoader:
    manifests = read_manifests(shards)
    sizes = {name: manifest.sizes for name, manifest in manifests.items()}
    mixes = {task: {n: w for n, w in WEIGHTS.items() if n in sizes} for task in RATIOS}
    plan = Plan(sizes, RATIOS, mixes, seed, window_shards=2)
    options = {"global_batch_size": GLOBAL_BATCH, "steps_per_epoch": 5, **options}
    return StreamLoader(StreamDataset(manifests, plan, make), stack, **options)


def join(batches) -> tuple[list, torch.Tensor]:
    """Batches of one step from all ranks -> the global batch."""
    ids, values = zip(*batches, strict=True)
    return list(itertools.chain(*ids)), torch.cat(values)


def assert_equal(ours, theirs) -> None:
    assert [ids for ids, _ in ours] == [ids for ids, _ in theirs]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(ours, theirs, strict=True))


def run_world(shards: Path, world: int, workers: int, epochs: int = 2) -> list:
    """Global batches as ``world`` ranks see them, one rank after the other."""
    ranks = []
    for rank in range(world):
        loader = make_loader(shards, rank=rank, world_size=world, num_workers=workers)
        ranks.append([batch for _ in range(epochs) for batch in loader])
    assert len({len(batches) for batches in ranks}) == 1
    return [join(step) for step in zip(*ranks, strict=True)]


def check_topologies(shards: Path, workers: tuple[int, ...], worlds: tuple[int, ...]) -> None:
    expected = run_world(shards, 1, 0)
    assert [i for ids, _ in expected for i, _, _ in ids] == list(range(10 * GLOBAL_BATCH))
    for world, count in itertools.product(worlds, workers):
        assert_equal(run_world(shards, world, count), expected)


def test_global_batches_are_the_same_on_any_topology(shards):
    check_topologies(shards, (0,), (2, 3, 4, 8))
    check_topologies(shards, (2,), (1, 3))


@pytest.mark.slow
def test_global_batches_are_the_same_on_all_topologies(shards):
    check_topologies(shards, (0, 1, 2, 5), (1, 2, 3, 4, 8))


def take(loader: StreamLoader, count: int) -> list:
    return list(itertools.islice(iter(loader), count))


def test_every_cut_resumes_with_the_rest(shards):
    whole = make_loader(shards)
    expected = [batch for _ in range(3) for batch in whole]
    for cut in range(6):  # before the first batch, after each, after the last of an epoch
        before = make_loader(shards)
        assert_equal(take(before, cut), expected[:cut])
        after = make_loader(shards)
        after.load_state_dict(before.state_dict())
        assert after.state_dict() == before.state_dict()
        assert_equal([*after, *after], expected[cut : cut + 10])


def test_loading_a_state_after_starting_goes_on_there(shards):
    expected = [batch for _, batch in zip(range(2), make_loader(shards), strict=False)]
    loader = make_loader(shards, num_workers=1)
    state = loader.state_dict()
    running = iter(loader)
    next(running)
    loader.load_state_dict(state)
    assert_equal([next(running), next(running)], expected)


def test_two_cuts_in_one_epoch_with_another_topology_after_each(shards):
    expected = list(make_loader(shards))
    first = [make_loader(shards, rank=r, world_size=2, num_workers=1) for r in range(2)]
    assert_equal([join(s) for s in zip(*(take(r, 1) for r in first), strict=True)], expected[:1])
    state = first[0].state_dict()
    assert state == first[1].state_dict()
    second = [make_loader(shards, rank=r, world_size=3) for r in range(3)]
    for loader in second:
        loader.load_state_dict(state)
    assert_equal([join(s) for s in zip(*(take(r, 2) for r in second), strict=True)], expected[1:3])
    third = make_loader(shards, num_workers=2)
    third.load_state_dict(second[2].state_dict())
    assert_equal(take(third, 2), expected[3:])


def resume_elsewhere(shards: Path, state: dict, left: int, workers: int, pipe) -> None:
    loader = make_loader(shards, num_workers=workers)
    loader.load_state_dict(state)
    pipe.send([(ids, values.numpy()) for ids, values in take(loader, left)])


@pytest.mark.slow
def test_every_cut_resumes_in_a_new_process(shards):
    expected = list(make_loader(shards))
    context = multiprocessing.get_context("spawn")
    for cut, workers in itertools.product(range(5), (0, 2)):
        loader = make_loader(shards, num_workers=2)
        take(loader, cut)
        ours, theirs = context.Pipe()
        arguments = (shards, loader.state_dict(), 5 - cut, workers, theirs)
        process = context.Process(target=resume_elsewhere, args=arguments)
        process.start()
        rest = [(ids, torch.from_numpy(values)) for ids, values in ours.recv()]
        process.join()
        assert_equal(rest, expected[cut:])


def test_prefetched_batches_are_not_counted(shards):
    loader = make_loader(shards, num_workers=2, prefetch=4)
    take(loader, 2)
    assert loader.state_dict()["next_index"] == 2 * GLOBAL_BATCH


def test_starting_draws_nothing_from_the_models_randomness(shards):
    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    take(make_loader(shards, num_workers=1), 1)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("size", [1, 2, 7, 31, 100])
def test_any_shard_size_gives_every_rank_the_same_steps(tmp_path, size):
    write_all(tmp_path, [DrawnSource("coco", 100, size_px=4)], size)
    make = lambda record, task, index: {"id": record.key, "value": torch.zeros(1)}
    for world in (1, 3, 8):
        options = {"global_batch_size": world * 2, "steps_per_epoch": 7, "world_size": world}
        ranks = [make_loader(tmp_path, make, rank=r, **options) for r in range(world)]
        assert {len(list(loader)) for loader in ranks} == {7}


def refuse_some(record: Annotated, task: str, index: int) -> dict:
    if index % 7 == 2 and not record.key.endswith(("1", "3", "5", "7", "9")):
        raise UnigsError("expected an odd picture")
    return make_tensor(record, task, index)


def test_replacements_are_the_same_everywhere_and_counted(shards):
    relaxed = {"make": refuse_some, "max_skip_fraction": 1.0}
    alone = make_loader(shards, **relaxed)
    expected = list(alone)
    ids = [one for batch, _ in expected for one in batch]
    assert [i for i, _, _ in ids] == list(range(5 * GLOBAL_BATCH))
    plain = [one for batch, _ in make_loader(shards) for one in batch]
    replaced = [(a, b) for a, b in zip(ids, plain, strict=True) if a != b]
    assert replaced
    for (_, task, key), (_, plain_task, plain_key) in replaced:
        assert (task, key.split("-")[0]) == (plain_task, plain_key.split("-")[0])
    ranks = [make_loader(shards, rank=r, world_size=3, num_workers=r, **relaxed) for r in range(3)]
    assert_equal([join(step) for step in zip(*ranks, strict=True)], expected)
    assert sum(r.tally.skips.total for r in ranks) == alone.tally.skips.total >= len(replaced)
    assert set(alone.tally.skips.counts) == {"UnigsError"}
    assert "sample" in alone.tally.skips.examples["UnigsError"]


def test_damaged_samples_are_counted_and_replaced_in_step(shards, tmp_path):
    write_all(tmp_path, [DrawnSource("coco", 40), DrawnSource("entityseg", 7)], 5)
    expected = list(make_loader(tmp_path))
    path = tmp_path / "coco-train" / "coco-train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\0" * 512)
    ranks = [
        make_loader(tmp_path, rank=r, world_size=2, num_workers=r, max_skip_fraction=1.0)
        for r in range(2)
    ]
    damaged = [join(step) for step in zip(*ranks, strict=True)]
    skips = sum(r.tally.skips.counts["sample damaged in its shard"] for r in ranks)
    ours, theirs = ([one for ids, _ in batches for one in ids] for batches in (damaged, expected))
    hit = [a for a, b in zip(ours, theirs, strict=True) if a != b]
    assert 0 < len(hit) <= skips
    assert [a[:2] for a in ours] == [b[:2] for b in theirs]


def test_too_many_replacements_stop_the_run_with_the_tally(shards):
    loader = make_loader(shards, refuse_some, steps_per_epoch=100)
    with pytest.raises(TooManySkips, match=r"at most 1.0%.*UnigsError \(e.g. expected an odd"):
        list(loader)


def refuse_all(record: Annotated, task: str, index: int) -> dict:
    raise UnigsError("expected another picture")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_without_one_usable_sample_is_no_endless_search(shards, workers):
    with pytest.raises(TooManySkips, match="16 attempts"):
        list(make_loader(shards, refuse_all, num_workers=workers))


def take_too_much(record: Annotated, task: str, index: int) -> dict:
    if record.key.endswith("4"):
        raise {0: MemoryError, 1: RecursionError}[index % 2]
    return make_tensor(record, task, index)


def test_a_sample_that_takes_too_much_is_its_own_fault(shards):
    loader = make_loader(shards, take_too_much, max_skip_fraction=1.0)
    keys = [key for batch, _ in loader for _, _, key in batch]
    assert len(keys) == 5 * GLOBAL_BATCH
    assert not [key for key in keys if key.endswith("4")]
    reasons = set(loader.tally.skips.counts)
    assert reasons == {f"sample took too much ({n}Error)" for n in ("Memory", "Recursion")}


def fail_once(record: Annotated, task: str, index: int) -> dict:
    if index == 30:
        raise KeyError("no such word")
    return make_tensor(record, task, index)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_error_in_a_worker_names_its_sample(shards, workers):
    loader = make_loader(shards, fail_once, num_workers=workers)
    plain = [one for batch, _ in make_loader(shards) for one in batch][30]
    with pytest.raises(
        SampleFailed, match=r"no such word.*index 30, at sample \d+ of .*tar"
    ) as told:
        list(loader)
    assert plain[1] in str(told.value)
    assert loader.state_dict()["next_index"] == GLOBAL_BATCH


def test_a_state_of_another_stream_is_refused_by_name(shards, tmp_path):
    state = make_loader(shards).state_dict()
    for field, other, words in [
        ("seed", 4, "seed 3, got a state of 4"),
        ("mix", "all of it", "mix 'tasks: .*, got a state of 'all of it'"),
        ("manifests", {**state["manifests"], "coco-train": "0ff"}, "coco-train: .*0ff saved"),
        ("manifests", {"coco-train": state["manifests"]["coco-train"]}, "entityseg.*none saved"),
    ]:
        with pytest.raises(StateMismatch, match=words):
            make_loader(shards).load_state_dict({**state, field: other})
    with pytest.raises(StateMismatch, match="next_index"):
        make_loader(shards).load_state_dict({"seed": 3})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"world_size": 5}, "5 ranks divide, got 24"),
        ({"global_batch_size": 0}, "got 0"),
        ({"rank": 2, "world_size": 2}, "rank below 2"),
        ({"steps_per_epoch": 0}, "0 steps"),
    ],
)
def test_topologies_without_equal_slices_are_refused(shards, options, words):
    with pytest.raises(UnigsError, match=words):
        make_loader(shards, **options)


def report_worker(record: Annotated, task: str, index: int) -> dict:
    time.sleep(0.01)
    return {"id": os.getpid(), "value": torch.zeros(1)}


def test_workers_outlive_foreign_signals_and_epochs_but_not_the_trainer(shards):
    loader = make_loader(shards, report_worker, num_workers=2)
    first = {pid for ids, _ in loader for pid in ids}
    for pid in first:
        script = f"import os; os.kill({pid}, 15); os.kill({pid}, 2)"
        assert os.spawnlp(os.P_WAIT, "python3", "python3", "-c", script) == 0
    assert {pid for ids, _ in loader for pid in ids} == first
    for pid in first:
        os.kill(pid, signal.SIGTERM)  # from the trainer itself
    deadline = time.monotonic() + 10
    workers = {p.pid: p for p in multiprocessing.active_children()}
    for pid in first:
        if pid in workers:
            workers[pid].join(deadline - time.monotonic())
    assert not {p.pid for p in multiprocessing.active_children()} & first


def test_workers_outlive_them_with_threads_that_others_started(shards):
    """As libraries start some between the fork and our first line in a worker."""
    trainer, asked = os.getpid(), []

    def start_other() -> None:
        if asked and os.getppid() == trainer:
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()

    os.register_at_fork(after_in_child=start_other)
    asked.append(True)
    try:
        loader = make_loader(shards, report_worker, num_workers=1)
        first = {pid for ids, _ in loader for pid in ids}
        for pid in first:
            assert os.spawnlp(os.P_WAIT, "kill", "kill", "-TERM", str(pid)) == 0
        assert {pid for ids, _ in loader for pid in ids} == first
    finally:
        asked.clear()
        loader.close()


@pytest.mark.usefixtures("interrupted_at_birth")
def test_workers_outlive_an_interrupt_that_comes_before_their_first_line(shards):
    loader = make_loader(shards, report_worker, num_workers=2)
    assert len({pid for ids, _ in loader for pid in ids}) == 2
    loader.close()


def test_few_files_are_open_however_many_shards_there_are(tmp_path):
    write_all(tmp_path, [DrawnSource("coco", 90, size_px=4)], 1)
    make = lambda record, task, index: {"id": record.key, "value": torch.zeros(1)}
    loader = make_loader(tmp_path, make, steps_per_epoch=8)
    open_before = len(os.listdir("/proc/self/fd"))
    keys = {key for ids, _ in loader for key in ids}
    assert len(keys) == 90
    assert len(os.listdir("/proc/self/fd")) - open_before <= 64


def test_random_cuts_of_a_long_run_lose_and_repeat_nothing(shards):
    chance, seen = random.Random(0), []
    loader = make_loader(shards, global_batch_size=8)
    while len(seen) < 400:
        seen += [i for ids, _ in take(loader, chance.randrange(1, 6)) for i, _, _ in ids]
        state = loader.state_dict()
        loader = make_loader(shards, global_batch_size=8)
        loader.load_state_dict(state)
    assert seen == list(range(len(seen)))
