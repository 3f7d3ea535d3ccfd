"""A cache of latents gives what a live run computes: alike in parts, on ranks, after a resume."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from types import MappingProxyType

import lightning as L
import pytest
import torch
import yaml
from builders import build_data, build_unigs

from unigs.codec import Palette
from unigs.latents import OtherLatents, decode_row, encode_row, open_cache, stack_latents
from unigs.locks import FolderBusy, lock_folder
from unigs.noise import draw_noise
from unigs.records import TASKS, Latents
from unigs.shards import DamagedSample, ShardError
from unigs.shards.samples import encode_member, split_members
from unigs.streams import StreamLoader
from unigs.systems.pix2seq_d.module import Pix2SeqD
from unigs.tasks import TaskOptions
from unigs.verbs import encoding as verb
from unigs.verbs.latents import write_latents

pytestmark = pytest.mark.filterwarnings("ignore")
SAMPLES, PER_SHARD = 24, 17  # two shards, and more than one batch of the encoder in a shard
NONE: MappingProxyType = MappingProxyType({})
MODEL = {"palette": Palette(cells=7), "size_balance": 0.5, "learning_rate": 1e-3, "encode_chunk": 1}


def make_run(
    base, shards, cached=None, data=MappingProxyType({}), model=MappingProxyType({}), **trainer
):
    """System, data and trainer of one small run, ready to hand out batches."""
    options = {"global_batch_size": 8, "steps_per_epoch": 4, "num_workers": 0}
    told = build_data(
        shards, **{**options, "tasks": TaskOptions(32), "latents": cached and str(cached), **data}
    )
    system = build_unigs(base, **{**MODEL, "warmup_steps": 1, "channels_last": True, **model})
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        limit_val_batches=0, use_distributed_sampler=False, enable_checkpointing=False, **trainer,
    )  # fmt: skip
    trainer.strategy.connect(system)
    system.trainer = told.trainer = trainer
    return system, told, trainer


@pytest.fixture(scope="module")
def config(base, shards, tmp_path_factory) -> str:
    """The file of the run that ``make_run`` builds."""
    model = {
        "base": base,
        "palette": {"cells": 7},
        "objective": {"size_balance": 0.5},
        "compute": {"channels_last": True, "encode_chunk": 1},
    }
    data = {
        "shards": [shards],
        "tasks": {"resolution_px": 32},
        "loading": {"global_batch_size": 8, "steps_per_epoch": 3, "num_workers": 0},
    }
    content = {
        "model": {"class_path": "unigs.systems.UniGS", "init_args": model},
        "data": {"class_path": "unigs.data.UniGSData", "init_args": data},
        "trainer": {"accelerator": "cpu", "logger": False, "enable_checkpointing": False},
    }
    path = tmp_path_factory.mktemp("config") / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)


def write(config, out, **options) -> Path:
    write_latents([config], str(out), dtype="float32", samples_per_shard=PER_SHARD, **options)
    return Path(out)


@pytest.fixture(scope="module")
def cached(config, tmp_path_factory) -> Path:
    """A whole cache in float32: by default one epoch, 3 batches of 8."""
    return write(config, tmp_path_factory.mktemp("cache") / "whole")


def list_files(out: Path) -> dict[str, bytes]:
    """Every file of a cache but the receipts, whose stamps name the host."""
    paths = [path for path in out.rglob("*") if path.is_file() and path.parent.name != "receipts"]
    return {str(path.relative_to(out)): path.read_bytes() for path in paths}


def assert_equal(one: Latents, other: Latents) -> None:
    for field in fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        same = torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
        assert same, field.name


def test_losses_are_those_of_a_live_run(base, shards, cached):
    """All tasks, in other batches than the encoder's: bit for bit where the VAE takes pictures one
    by one, and within its rounding where it takes them together."""
    system, live, _ = make_run(base, shards)
    _, fast, trainer = make_run(base, shards, cached)
    trainer.strategy.connect(system)
    system.configure_model()
    torch.nn.init.normal_(system.unet.conv_out.weight, std=0.1)
    seen = set()
    for batch, latents in zip(live.train_dataloader(), fast.train_dataloader(), strict=True):
        if int(batch.index[0]) == SAMPLES:
            break
        assert isinstance(latents, Latents)
        assert_equal(latents, system.encode(batch))
        expected, came = system.losses(batch), system.losses(latents)
        assert expected.keys() == came.keys()
        assert all(torch.equal(came[name], loss) for name, loss in expected.items())
        system.towers.encode_chunk = None
        for name, loss in system.losses(batch).items():
            torch.testing.assert_close(came[name], loss, rtol=1e-6, atol=1e-6)
        system.towers.encode_chunk = 1
        seen |= set(batch.task.tolist())
    assert seen == set(range(len(TASKS)))


@pytest.mark.parametrize("live", [True, False])
def test_the_loader_draws_the_noise_of_a_step(base, shards, cached, live, monkeypatch):
    """Bit for bit what a step would draw for itself, which then draws none."""
    system, data, _ = make_run(base, shards, None if live else cached)
    batch = next(iter(data.train_dataloader()))
    alone = replace(batch, noise=None)
    drawn = draw_noise(batch.seed, batch.index.tolist(), system.shape_noise(32), "noise")
    assert torch.equal(batch.noise, drawn)
    expected = system.losses(alone)
    monkeypatch.delattr("unigs.noise.draw_noise")
    came = system.losses(batch)
    assert all(torch.equal(came[name], loss) for name, loss in expected.items())
    with pytest.raises(NameError):
        system.losses(alone)


def test_a_later_pass_repeats_the_sample_and_draws_its_noise_anew(base, shards, cached):
    system, data, _ = make_run(base, shards, cached)
    system.configure_model()
    torch.nn.init.normal_(system.unet.conv_out.weight, std=0.1)
    dataset = data.train_dataloader().dataset
    first, second = dataset[3].sample, dataset[SAMPLES + 3].sample
    assert (int(first.index), int(second.index)) == (3, SAMPLES + 3)
    assert_equal(first, replace(second, index=first.index))
    assert float(system.losses(first)["image"]) != float(system.losses(second)["image"])


def test_bfloat16_keeps_every_number_within_its_rounding(base, shards, cached):
    """2^-8 of each number; the shares that are known and the coarse mask exactly."""
    _, data, _ = make_run(base, shards, cached)
    live = data.train_dataloader().dataset[0].sample
    where = "in this test"
    short = decode_row(encode_row(live, 0, torch.bfloat16)[1], live.seed, where)
    for name in ("clean", "context", "weight"):
        exact = getattr(live, name)
        assert ((getattr(short, name) - exact).abs() <= 2**-8 * exact.abs()).all()
        assert not torch.equal(getattr(short, name), exact)
    assert torch.equal(short.known, live.known)
    assert torch.equal(short.mask, live.mask)
    long = decode_row(encode_row(live, 0, torch.float32)[1], live.seed, where)
    assert_equal(long, live)


def test_parts_and_a_stopped_writer_give_the_same_bytes(config, cached, tmp_path, monkeypatch):
    """And what is finished is not encoded again."""
    out, encode, made = tmp_path / "parts", verb.encode_row, []

    def note(latents, row, dtype):
        made.append(int(latents.index[row]))
        return encode(latents, row, dtype)

    def strike(latents, row, dtype):
        if row == 3:
            raise KeyboardInterrupt
        return encode(latents, row, dtype)

    write(config, out, part="2/2")
    assert not list(out.rglob("manifest.json"))
    with pytest.raises(ShardError, match="unfinished"):
        open_cache(str(out))
    monkeypatch.setattr(verb, "encode_row", strike)
    with pytest.raises(KeyboardInterrupt, match="run the command again"):
        write(config, out)
    monkeypatch.setattr(verb, "encode_row", note)
    write(config, out, part="1/2")
    assert made == list(range(PER_SHARD))
    assert list_files(out) == list_files(cached)


def test_another_writer_and_another_run_are_refused_by_name(config, cached, tmp_path):
    out = tmp_path / "out"
    folder = out / "latents-train"
    lock = ".part-1-of-2.lock"
    with lock_folder(folder, "unigs latents", lock), pytest.raises(FolderBusy, match="to be alone"):
        write(config, out, part="1/2")
    before = list_files(cached)
    for options, name in (
        ({"samples": 23}, "samples 23"),
        ({"options": ["model.palette.cells=5"]}, "model.palette.cells 5"),
        ({"options": ["data.seed=3"]}, "data.seed 3"),
    ):
        with pytest.raises(OtherLatents, match=name):
            write(config, cached, **options)
    assert list_files(cached) == before


@pytest.mark.parametrize(
    ("data", "model", "name"),
    [
        ({"seed": 1}, {}, r"data\.seed 1"),
        ({"tasks": TaskOptions(64)}, {}, r"data\.tasks\.resolution_px 64"),
        ({"task_ratios": {"entity": 1.0}}, {}, r"data\.mixture"),
        ({}, {"palette": Palette(cells=5)}, r"model\.palette\.cells 5"),
        ({}, {"size_balance": 0.0}, r"model\.objective\.size_balance 0\.0"),
        ({}, {"towers_dtype": "bfloat16"}, r"model\.compute\.towers_dtype.*model\.vae"),
    ],
)
def test_latents_of_another_run_are_refused_by_name(base, shards, cached, data, model, name):
    _, run, _ = make_run(base, shards, cached, data, model)
    with pytest.raises(OtherLatents, match=name):
        run.train_dataloader()


def test_another_vae_precision_or_system_is_refused(base, shards, cached):
    system, data, trainer = make_run(base, shards, cached, precision="bf16-mixed")
    with pytest.raises(OtherLatents, match=r"trainer\.precision 'bf16-mixed'") as told:
        data.train_dataloader()
    assert "vae" not in str(told.value)
    with torch.no_grad():
        next(system.towers.vae.parameters()).add_(1)
    with pytest.raises(OtherLatents, match=r"model\.vae"):
        data.train_dataloader()
    trainer.strategy.connect(Pix2SeqD())
    with pytest.raises(Exception, match=r"expected a system with a frozen half.*Pix2SeqD"):
        data.train_dataloader()


def test_shards_of_pictures_are_no_cache(base, shards):
    _, data, _ = make_run(base, shards, shards)
    with pytest.raises(ShardError, match="expected a cache of latents, got shards of coco"):
        data.train_dataloader()


def test_a_damaged_shard_ends_in_words_and_is_written_anew(base, shards, config, tmp_path):
    out = write(config, tmp_path / "out", samples=20)
    before = list_files(out)
    path = out / "latents-train" / "latents-train-000001.tar"
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    _, run, _ = make_run(base, shards, out)
    dataset = run.train_dataloader().dataset
    assert len(dataset[16].sample) == 1
    with pytest.raises(ShardError, match=r"CRC-32.*latents-train-000001\.tar; unigs latents"):
        dataset[17]
    write(config, out, samples=20)
    assert list_files(out) == before


def test_members_that_lie_are_damage(base, shards, cached):
    _, data, _ = make_run(base, shards, cached)
    key, span = encode_row(data.train_dataloader().dataset[0].sample, 0, torch.float32)
    members = dict(split_members(span, ""))
    about = json.loads(members[f"{key}.json"])
    tensors = members[f"{key}.safetensors"]
    for change, payload in (
        ({"task": "flying"}, tensors),
        ({"task": None}, tensors),
        ({"prompt": 3}, tensors),
        ({}, tensors[:-4]),
        ({}, tensors.replace(b"weight", b"heavy_")),
        ({}, tensors.replace(b"[1,8,8]", b"[1,4,16]"[:7])),
        ({}, b""),
    ):
        lies = encode_member(f"{key}.json", json.dumps(about | change).encode())
        with pytest.raises(DamagedSample, match="expected latents of a sample"):
            decode_row(lies + encode_member(f"{key}.safetensors", payload), 0, "here")
    with pytest.raises(DamagedSample):
        decode_row(span[: len(span) // 2 // 512 * 512], 0, "here")


def test_ranks_and_workers_change_no_batch(base, shards, cached):
    _, data, _ = make_run(base, shards, cached)
    loader = data.train_dataloader()
    take = lambda **place: list(StreamLoader(loader.dataset, stack_latents, 8, 2, **place))
    alone = take()
    halves = [take(rank=rank, world_size=2, num_workers=rank) for rank in range(2)]
    for whole, *parts in zip(alone, *halves, strict=True):
        assert_equal(whole, stack_latents(parts))


def test_a_run_resumes_over_the_end_of_the_cache_bit_for_bit(base, shards, cached, tmp_path):
    """Four batches of 8 over 24 samples: stopped at 2 and resumed, and left alone."""
    ends = {}
    for name, stops in (("alone", [4]), ("resumed", [2, 4])):
        last = None
        for stop in stops:
            L.seed_everything(0)
            system, data, trainer = make_run(base, shards, cached, max_steps=stop)
            trainer.fit(system, data, ckpt_path=last)
            last = tmp_path / f"{name}-{stop}.ckpt"
            trainer.save_checkpoint(last)
        ends[name] = system.unet.state_dict(), data.state_dict()["next_index"]
    (alone, index), (resumed, again) = ends["alone"], ends["resumed"]
    assert index == again == 32
    assert all(torch.equal(alone[name], resumed[name]) for name in alone)


def test_a_live_run_and_a_cached_one_end_with_the_same_weights(base, shards, cached):
    ends = []
    for folder in (None, cached):
        system, data, trainer = make_run(base, shards, folder, max_steps=2)
        trainer.fit(system, data)
        ends.append(system.unet.state_dict())
    live, fast = ends
    assert all(torch.equal(live[name], fast[name]) for name in live)


def test_stacked_samples_are_moved_as_one(base, shards, cached):
    """What a live batch and latents share: a device for tensors, the host for the rest."""
    _, data, _ = make_run(base, shards, cached)
    loader = data.train_dataloader()
    moved = stack_latents([loader.dataset[i].sample for i in range(2)]).to("meta")
    on_host = {"index", "task"}
    for field in fields(moved):
        value = getattr(moved, field.name)
        if isinstance(value, torch.Tensor):
            assert (value.device.type == "cpu") == (field.name in on_host), field.name
