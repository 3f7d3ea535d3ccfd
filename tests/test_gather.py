"""Laws of what a user names: each picture once, by the name that was typed, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from unigs.records import UnigsError
from unigs.verbs.frames import open_clip
from unigs.verbs.gather import gather_pictures


def draw_files(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(name, "PNG")


def list_files(*given: str, mask: str | None = None) -> list[str]:
    found = gather_pictures(given, Path("out"), "IMAGE", Path(mask) if mask else None)[1]
    return [picture.file_name for picture in found]


@pytest.mark.parametrize("given", ["p", "p/**/*.png", "p/*"])
def test_answers_and_masks_are_no_pictures_unless_they_are_named(
    given, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    draw_files("p/a.png", "p/masks/a.png", "p/run/images/a.png", "p/training/a.png")
    Path("p/run/records").mkdir()
    for name in ("run", "training"):
        Path("p", name, "run.json").write_text("{}")  # a training's folder holds pictures
    assert list_files(given, mask="p/masks") == ["a.png", "training/a.png"]
    assert "2 files or folders hold answers or masks" in capsys.readouterr().out
    assert list_files("p/run/images") == ["a.png"]
    with pytest.raises(UnigsError, match="found none in p/run"):
        list_files("p/run")


@pytest.mark.parametrize("given", ["snap", "snap/*", "snap/cat.png"])
def test_a_link_names_its_picture(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_files("blobs/00ab")
    Path("snap").mkdir()
    Path("snap/cat.png").symlink_to("../blobs/00ab")
    root, (picture,) = gather_pictures([given], Path("out"), "IMAGE")
    assert (root, picture.key, picture.file_name) == (tmp_path / "snap", "cat", "cat.png")


def test_linked_folders_are_searched_once_and_what_is_left_out_is_told(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    draw_files("p/a.png", "other/z.png")
    links = {"p/link": "../other", "p/loop": "..", "p/again.png": "a.png", "p/gone.png": "nothing"}
    for name, goal in links.items():
        Path(name).symlink_to(goal)
    assert list_files("p") == ["a.png", "link/z.png"]
    said = capsys.readouterr().out
    assert "links lead to pictures of this run, e.g. again.png" in said
    assert "1 names lead to no file, e.g. gone.png" in said
    assert "1 linked folders are searched already, e.g. loop" in said


def test_a_link_to_a_frame_is_a_frame(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw_files("c/1.png", "c/3.png")
    Path("c/2.png").symlink_to("1.png")
    frames = open_clip(["c"], Path("out")).frames
    assert [frame.path.name for frame in frames] == ["1.png", "2.png", "3.png"]
