"""A cache of image latents, K windows a picture: live losses, equal parts, refusals by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_latents import PER_SHARD, config, list_files, make_run, write  # noqa: F401

from unigs.latents import OtherLatents, open_cache
from unigs.records import TASKS, UnigsError
from unigs.shards import DamagedSample, ShardError, ShardReader
from unigs.tasks import TaskOptions
from unigs.verbs.latents import write_latents
from unigs.windows import Places, decode_window, encode_window

pytestmark = pytest.mark.filterwarnings("ignore")
K = 2
TASK_OPTIONS = {"tasks": TaskOptions(32, windows=K)}


@pytest.fixture(scope="module")
def cached(config, tmp_path_factory) -> Path:  # noqa: F811
    """All windows of all pictures of the run's sources, in float32."""
    return write(config, tmp_path_factory.mktemp("windows") / "whole", windows=K)


def test_losses_are_those_of_a_live_run_at_the_same_windows(base, shards, cached, monkeypatch):
    """All tasks, bit for bit where the VAE takes pictures one by one; no image is encoded."""
    system, live, _ = make_run(base, shards, data=TASK_OPTIONS)
    _, fast, trainer = make_run(base, shards, cached, data=TASK_OPTIONS)
    trainer.strategy.connect(system)
    system.configure_model()
    torch.nn.init.normal_(system.unet.conv_out.weight, std=0.1)
    encoded, encode = [], system.towers.encode_pixels
    monkeypatch.setattr(
        system.towers, "encode_pixels", lambda pixels: encoded.append(len(pixels)) or encode(pixels)
    )
    seen = set()
    for batch, told in zip(live.train_dataloader(), fast.train_dataloader(), strict=True):
        assert batch.keys == told.keys
        expected, came = system.losses(batch), system.losses(told)
        assert all(torch.equal(came[name], loss) for name, loss in expected.items())
        with_images, without = encoded[-2:]
        assert with_images == without + len(batch)
        seen |= set(batch.task.tolist())
    assert seen == set(range(len(TASKS)))


def test_a_picture_is_seen_through_its_windows_alone(base, shards):
    _, data, _ = make_run(base, shards, data=TASK_OPTIONS)
    dataset = data.train_dataloader().dataset
    by_window: dict = {}
    for index in range(200):
        sample = dataset[index].sample
        first = by_window.setdefault((sample.key, sample.window), sample.image)
        assert np.array_equal(first, sample.image)
    assert {window for _, window in by_window} == set(range(K))
    assert len(by_window) > len({key for key, _ in by_window})


def test_every_window_has_one_number(base, shards):
    _, data, _ = make_run(base, shards, data=TASK_OPTIONS)
    manifests = data.train_dataloader().dataset.manifests
    places = Places(manifests, K)
    assert len(places) == K * sum(map(len, manifests.values()))
    found = [places.locate(number) for number in range(len(places))]
    assert [places.number(place) for place in found] == list(range(len(places)))
    assert len(set(found)) == len(found)


def test_parts_give_the_same_bytes(config, cached, tmp_path):  # noqa: F811
    out = tmp_path / "parts"
    write(config, out, windows=K, part="2/2")
    with pytest.raises(ShardError, match="unfinished"):
        open_cache(str(out))
    write(config, out, windows=K, part="1/2")
    assert list_files(out) == list_files(cached)
    assert len(open_cache(str(out)).shards) > 1


@pytest.mark.parametrize(
    ("tasks", "data", "model", "name"),
    [
        ({"windows": K + 1}, {}, {}, r"data\.tasks\.windows 3"),
        ({"windows": None}, {}, {}, r"data\.tasks\.windows None"),
        ({"resolution_px": 64}, {}, {}, r"data\.tasks\.resolution_px 64"),
        ({}, {"seed": 1}, {}, r"data\.seed 1"),
        ({}, {}, {"towers_dtype": "bfloat16"}, r"model\.compute\.towers_dtype.*model\.vae"),
    ],
)
def test_windows_of_another_run_are_refused_by_name(base, shards, cached, tasks, data, model, name):
    data = data | {"tasks": replace(TASK_OPTIONS["tasks"], **tasks)}
    _, run, _ = make_run(base, shards, cached, data, model)
    with pytest.raises(OtherLatents, match=name):
        run.train_dataloader()


def test_all_but_the_windows_may_change(base, shards, cached):
    tasks = TaskOptions(32, windows=K, text_dropout=0.5, max_entities=2)
    data = {"tasks": tasks, "task_ratios": dict.fromkeys(TASKS, 1.0)}
    system, run, _ = make_run(base, shards, cached, data, {"size_balance": 0.0})
    system.configure_model()
    batch = next(iter(run.train_dataloader()))
    assert torch.equal(system.encode(batch).clean[:, :4], batch.image_latents)


def test_a_damaged_shard_ends_in_words(base, shards, config, tmp_path):  # noqa: F811
    out = write(config, tmp_path / "out", windows=1)
    path = out / "windows-train" / "windows-train-000000.tar"
    data = bytearray(path.read_bytes())
    for at in range(1500, len(data), 1500):
        data[at] ^= 1
    path.write_bytes(data)
    _, run, _ = make_run(base, shards, out, {"tasks": TaskOptions(32, windows=1)})
    dataset = run.train_dataloader().dataset
    with pytest.raises(ShardError, match=r"CRC-32.*windows-train-000000\.tar.*; unigs latents"):
        [dataset[index] for index in range(40)]


def test_members_that_lie_are_damage():
    _, span = encode_window(3, torch.ones(4, 2, 2), torch.float32)
    assert np.array_equal(decode_window(span, 3, "here"), np.ones((4, 2, 2)))
    _, flat = encode_window(3, torch.ones(4), torch.float32)
    for lies, number in ((span, 4), (span[:512], 3), (flat, 3)):
        with pytest.raises(DamagedSample, match=r"here"):
            decode_window(lies, number, "here")


def test_what_cannot_be_is_refused(config, tmp_path):  # noqa: F811
    with pytest.raises(UnigsError, match=r"expected --samples or --windows, got 5 and 2"):
        write_latents([config], str(tmp_path / "no"), samples=5, windows=2)
    with pytest.raises(UnigsError, match=r"at least 1, got 0, at data\.tasks\.windows"):
        write_latents([config], str(tmp_path / "no"), windows=0)


@pytest.mark.parametrize("options", [{"windows": 1}, {"samples": 20}], ids=["windows", "samples"])
def test_damage_that_may_be_healed_is_not_encoded(config, tmp_path, monkeypatch, options):  # noqa: F811
    read = ShardReader.read

    def read_damaged(self, source, shard, member):
        if member == 1:
            raise DamagedSample("expected a CRC-32, got another")
        return read(self, source, shard, member)

    monkeypatch.setattr(ShardReader, "read", read_damaged)
    with pytest.raises(ShardError, match="whole shards to encode, got expected a CRC-32"):
        write(config, tmp_path / "out", **options)
    monkeypatch.undo()
    write(config, tmp_path / "out", **options)
    write(config, tmp_path / "new", **options)
    assert list_files(tmp_path / "out") == list_files(tmp_path / "new")
