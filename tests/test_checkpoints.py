"""Checkpoint files: whole or as they were, checked to the last byte, never a program."""

from __future__ import annotations

import os
import pickle
import random
import resource
import signal
import time
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

from unigs.checkpoints import (
    BadCheckpoint,
    CheckedIO,
    NotFinite,
    check_finite,
    read_checkpoint,
)
from unigs.files import DiskFull
from unigs.weights import find_trouble

MIB = 1 << 20


def make_content(step: int, size: int = MIB // 4) -> dict:
    weights = {"unet.a": torch.full((size,), float(step)), "unet.b": torch.arange(10.0)}
    return {"state_dict": weights, "global_step": step, "callbacks": {}, "loops": {}}


@pytest.fixture
def saved(tmp_path) -> Path:
    path = tmp_path / "run" / "last.ckpt"
    CheckedIO().save_checkpoint(make_content(1), path)
    return path


def test_what_was_saved_is_read(saved):
    content = CheckedIO().load_checkpoint(saved)
    assert content["global_step"] == 1
    assert torch.equal(content["state_dict"]["unet.a"], torch.ones(MIB // 4))


def test_flipped_bytes_are_found_wherever_they_lie(saved):
    whole, chance = saved.read_bytes(), random.Random(0)
    expected, harmless = make_content(1)["state_dict"], 0
    for place in range(60):
        spot = chance.randrange(len(whole) - 4)
        flipped = bytes(byte ^ 0xA5 for byte in whole[spot : spot + 4])
        path = saved.with_name(f"{place}.ckpt")
        path.write_bytes(whole[:spot] + flipped + whole[spot + 4 :])
        if not find_trouble(path):  # it fell between two records
            harmless += 1
            found = read_checkpoint(path)["state_dict"]
            assert all(torch.equal(found[name], weight) for name, weight in expected.items())
    assert harmless < 15


class Runs:
    """A pickle that would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("cut", "cut"),
        ("empty", "empty"),
        ("pointer", "Git LFS"),
        ("foreign", "another file"),
        ("text", "no checkpoint"),
        ("folder", "folder"),
        ("missing", "nothing"),
        ("pickle", "no checkpoint"),
        ("torch pickle", "pickle of other things"),
        ("url", "URL"),
    ],
)
def test_what_is_no_whole_checkpoint_is_told_in_words(saved, tmp_path, kind, words):
    path, proof = tmp_path / "run" / "x.ckpt", tmp_path / "ran"
    if kind == "cut":
        path.write_bytes(saved.read_bytes()[: saved.stat().st_size // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    elif kind == "foreign":
        torch.save({"epoch": 1, "model": {}}, path)
    elif kind == "text":
        path.write_text("weights")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Runs(proof)))
    elif kind == "torch pickle":
        torch.save({**make_content(1), "extra": Runs(proof)}, path)
    given = "http://127.0.0.1:9/last.ckpt" if kind == "url" else path
    with pytest.raises(BadCheckpoint, match=words) as refused:
        CheckedIO().load_checkpoint(given, weights_only=False)
    assert str(given) in str(refused.value)
    assert not proof.exists()
    if kind in ("cut", "empty", "pointer", "text"):
        assert "whole ones beside it: last.ckpt" in str(refused.value)


@pytest.mark.parametrize("place", ["state_dict", "average"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_leave_the_older_file(saved, place, value):
    before, content = saved.read_bytes(), make_content(2)
    bad = {"unet.a": torch.ones(5), "unet.bad": torch.tensor([1.0, value, 2.0])}
    if place == "average":
        content["callbacks"] = {"EMA": {"weights": bad, "steps": 3}}
    else:
        content["state_dict"] = bad
    with pytest.raises(NotFinite, match=r"unet\.bad, at step 2"):
        CheckedIO().save_checkpoint(content, saved)
    assert saved.read_bytes() == before


def test_large_finite_weights_are_finite():
    content = make_content(1)
    content["state_dict"]["unet.a"] = torch.full((1000,), 3e38)
    content["state_dict"]["unet.half"] = torch.full((1000,), 60000.0, dtype=torch.float16)
    content["state_dict"]["unet.empty"] = torch.zeros(0)
    check_finite(content)


def _write_on_a_small_disk(path: Path, queue) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB // 2, MIB // 2))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        CheckedIO().save_checkpoint(make_content(2), path)
    except DiskFull as error:
        queue.put(str(error))
    except BaseException as error:
        queue.put(repr(error))


def test_no_room_is_told_and_leaves_the_older_file(saved):
    before = saved.read_bytes()
    context = get_context("fork")
    queue = context.Queue()
    writer = context.Process(target=_write_on_a_small_disk, args=(saved, queue))
    writer.start()
    assert "expected room for last.ckpt" in queue.get(timeout=60)
    writer.join()
    assert saved.read_bytes() == before
    assert [file.name for file in saved.parent.iterdir()] == ["last.ckpt"]


def test_nothing_is_written_elsewhere_on_the_way(saved, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/nowhere/at/all")
    CheckedIO().save_checkpoint(make_content(2), saved)
    assert read_checkpoint(saved)["global_step"] == 2


def _write_for_ever(path: Path) -> None:
    torch.set_num_threads(1)
    for step in range(2, 10_000):
        CheckedIO().save_checkpoint(make_content(step), path)


def test_a_writer_killed_at_any_moment_leaves_a_whole_checkpoint(saved):
    for delay_s in (0.2, 0.23, 0.29, 0.31):
        writer = get_context("fork").Process(target=_write_for_ever, args=(saved,))
        writer.start()
        time.sleep(delay_s)
        writer.kill()
        writer.join()
        content = read_checkpoint(saved)
        assert (content["state_dict"]["unet.a"] == content["global_step"]).all()
