"""Files are whole or not at all, and a name from data stays inside of its folder."""

from __future__ import annotations

import multiprocessing
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from unigs import files
from unigs.files import (
    DiskFull,
    FileRefused,
    new_file,
    new_folder,
    read_inside,
    write_bytes,
    write_text,
)
from unigs.locks import FolderBusy, lock_folder

KIB = 1024


@pytest.fixture
def inside(tmp_path) -> Path:
    folder = tmp_path / "data"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a.bin").write_bytes(b"a" * KIB)
    (tmp_path / "secret").write_bytes(b"secret")
    return folder


def test_names_below_the_folder_are_read_also_through_a_link_to_it(inside, tmp_path):
    assert read_inside(inside, "sub/a.bin", KIB) == b"a" * KIB
    (tmp_path / "linked").symlink_to(inside)
    assert read_inside(tmp_path / "linked", "./sub/a.bin", KIB) == b"a" * KIB
    (inside / "b.bin").symlink_to("sub/a.bin")
    assert read_inside(inside, "b.bin", KIB) == b"a" * KIB


LEAVING = ["../secret", "sub/../../secret", "{root}/secret", "out", "outer/secret", "/dev/zero"]
NO_FILE = ["loop", "fifo", "sub", "", "\0", "a\0b", "x" * 300, "\ud800", "sub/large.bin", None, 7]


@pytest.mark.parametrize("name", LEAVING + NO_FILE)
def test_other_names_are_refused_in_words_and_at_once(inside, tmp_path, name):
    os.mkfifo(inside / "fifo")
    (inside / "out").symlink_to(tmp_path / "secret")
    (inside / "outer").symlink_to(tmp_path)
    (inside / "loop").symlink_to("loop")
    (inside / "sub" / "large.bin").write_bytes(b"a" * (KIB + 1))
    asked = name.format(root=tmp_path) if isinstance(name, str) else name
    started = time.monotonic()
    with pytest.raises((FileRefused, FileNotFoundError)) as refused:
        read_inside(inside, asked, KIB)
    assert time.monotonic() - started < 1
    assert (name in LEAVING) == ("leaves its folder" in str(refused.value))


def test_a_missing_file_is_missing_and_not_refused(inside):
    for name in ("sub/b.bin", "sub/a.bin/c.bin", "none/b.bin"):
        with pytest.raises(FileNotFoundError):
            read_inside(inside, name, KIB)


def test_modes_follow_the_umask(tmp_path):
    old = os.umask(0o027)
    try:
        write_bytes(tmp_path / "file", b"x")
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o750


def test_a_text_is_utf8_and_a_lone_surrogate_its_escape(tmp_path):
    write_text(tmp_path / "text", "Straße \ud83d")
    assert (tmp_path / "text").read_bytes() == "Straße ".encode() + rb"\ud83d"


@pytest.mark.parametrize("exchanges", [True, False])
def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch, exchanges):
    if not exchanges:
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    target = tmp_path / "model"
    for content in ("old", "new"):
        with new_folder(target) as folder:
            (folder / content).write_text(content)
    assert [file.name for file in target.iterdir()] == ["new"]
    with pytest.raises(ValueError, match="embedded"), new_folder(target) as folder:
        (folder / "half").with_name("a\0b").write_text("half")
    assert [file.name for file in target.iterdir()] == ["new"]
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_a_folder_killed_between_two_renames_is_found_again(tmp_path):
    target = tmp_path / "model"
    with new_folder(target) as folder:
        (folder / "old").write_text("old")
    target.rename(tmp_path / "model.previous")
    with pytest.raises(ZeroDivisionError), new_folder(target):
        raise ZeroDivisionError
    assert (target / "old").read_text() == "old"


def test_no_room_is_told_and_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fill_up(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fill_up)
    with pytest.raises(DiskFull, match="room for file"):
        write_bytes(path, b"new")
    with pytest.raises(DiskFull, match="room for folder"), new_folder(tmp_path / "folder"):
        pass
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def _rewrite(path: Path) -> None:
    for letter in b"abcdefgh" * 10_000:
        with new_file(path) as temp:
            temp.write_bytes(bytes([letter]) * 100 * KIB)


def _replace(path: Path) -> None:
    for letter in "abcdefgh" * 10_000:
        with new_folder(path) as folder:
            for part in "xyz":
                (folder / part).write_text(letter)


@pytest.mark.parametrize("write", [_rewrite, _replace])
def test_a_writer_killed_at_any_moment_leaves_a_whole_thing(tmp_path, write):
    path = tmp_path / "thing"
    for delay_s in (0.3, 0.31, 0.33, 0.37):
        writer = multiprocessing.get_context("fork").Process(target=write, args=(path,))
        writer.start()
        time.sleep(delay_s)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        parts = sorted(path.iterdir()) if path.is_dir() else [path]
        assert len(parts) in (1, 3)
        assert len(set(b"".join(part.read_bytes() for part in parts))) == 1
        assert path.is_dir() or path.stat().st_size == 100 * KIB


def _hold(folder: Path, event) -> None:
    with lock_folder(folder, "training"):
        if os.fork() == 0:  # a loader worker, which outlives its trainer by seconds
            time.sleep(5)
            os._exit(0)
        event.set()
        time.sleep(60)


def test_a_folder_has_one_worker_and_is_free_when_that_is_killed(tmp_path):
    context = multiprocessing.get_context("fork")
    event = context.Event()
    holder = context.Process(target=_hold, args=(tmp_path, event))
    holder.start()
    assert event.wait(10)
    with (
        pytest.raises(FolderBusy, match=f"training .process {holder.pid} on"),
        lock_folder(tmp_path, "training"),
    ):
        pass
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    with lock_folder(tmp_path, "training"):
        pass


def test_names_of_any_allowed_length_are_written(tmp_path):
    for name in ("x" * 255, "日" * 85):
        write_bytes(tmp_path / name, b"x")
        assert (tmp_path / name).read_bytes() == b"x"
    with new_folder(tmp_path / ("y" * 240)) as folder:
        (folder / "a").write_text("a")
    assert (tmp_path / ("y" * 240) / "a").exists()


def test_a_folder_never_takes_the_place_of_a_file_and_goes_through_a_link(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError), new_folder(tmp_path / "file"):
        pass
    assert (tmp_path / "file").read_text() == "mine"
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with new_folder(tmp_path / "link") as folder:
        (folder / "new").write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "new").read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 3
