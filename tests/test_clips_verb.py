"""``unigs segment --video``: frames in order, ids that stay, and runs that go on bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip_parts import PICTURES, build
from PIL import Image

from unigs.cli import main
from unigs.images import UnreadableImage, decode_frames
from unigs.records import UnigsError
from unigs.synthetic import write_clips
from unigs.systems.clips import ClipState
from unigs.systems.load import load_predictor
from unigs.systems.pixels import fit_size, resize_labels, resize_pixels
from unigs.verbs import frames as frames_of_verb
from unigs.verbs import running, video
from unigs.verbs.frames import open_clip

FRAMES = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("models") / "clips"
    build().make_predictor().save(str(path))
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def _load_once(folder):
    known = {folder: load_predictor(folder)}
    load = lambda path, **how: known.get(path) or load_predictor(path, **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "load_predictor", load)
        yield


@pytest.fixture
def frames(tmp_path, monkeypatch) -> Path:
    """Frames 8 to 11 of one size in a folder."""
    rng = np.random.default_rng(0)
    (tmp_path / "frames").mkdir()
    for k in range(FRAMES):
        pixels = rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels).resize((56, 40), Image.Resampling.NEAREST)
        picture.save(tmp_path / "frames" / f"{8 + k}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "frames"


def segment(folder: str, out: str, given: str = "frames") -> int:
    return main(["segment", "--video", given, "--model", folder, "--out", out])


def read_labels(out: str) -> list[np.ndarray]:
    """In the order of the numbers; ids, never colours."""
    paths = sorted(Path(out, "labels").iterdir(), key=lambda path: int(path.stem.split("-")[-1]))
    pictures = [Image.open(path) for path in paths]
    assert {picture.mode for picture in pictures} == {"P"}
    return [np.asarray(picture) for picture in pictures]


def follow(folder: str, images: list[np.ndarray], places=range(FRAMES)) -> list[np.ndarray]:
    """The labels by hand, one frame after the other, each at its place in the clip."""
    predictor, state, found = load_predictor(folder), ClipState(), []
    for place, image in zip(places, images, strict=True):
        state = replace(state, frame=place)
        whole = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
        size = fit_size(*image.shape[:2], predictor.side_px, predictor.multiple_px)
        prediction, state = predictor.follow(resize_pixels(whole, size), state)
        found.append(resize_labels(prediction.labels, image.shape[:2])[0].numpy())
    return found


def test_frames_are_followed_in_the_order_of_their_numbers(folder, frames):
    assert segment(folder, "out") == 0
    images = [np.asarray(Image.open(frames / f"{k}.png")) for k in range(8, 12)]
    for mine, expected in zip(read_labels("out"), follow(folder, images), strict=True):
        np.testing.assert_array_equal(mine, expected)
    for name in ("overlays/8.jpg", "records/11.json", "sheet.jpg", "panoptic.json"):
        assert Path("out", name).exists()
    assert Image.open("out/sheet.jpg").width > 4 * 256


def test_a_run_that_was_stopped_goes_on_bit_for_bit(folder, frames, monkeypatch, capsys):
    assert segment(folder, "whole") == 0
    whole = running.Runner.follow
    calls = []

    def stop(self, item, state):
        calls.append(item.picture.key)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, item, state)

    with monkeypatch.context() as patch:
        patch.setattr(running.Runner, "follow", stop)
        assert segment(folder, "cut") == 130
    assert calls == ["8", "9", "10"]
    assert segment(folder, "cut") == 0
    assert "2 of 4 frames are done already" in capsys.readouterr().out
    for name in ("labels", "records", "overlays"):
        for path in Path("whole", name).iterdir():
            assert path.read_bytes() == Path("cut", name, path.name).read_bytes()
    sizes = {Path(out, video.STATE).stat().st_size for out in ("whole", "cut")}
    (frames / "12.png").write_bytes((frames / "8.png").read_bytes())
    assert segment(folder, "cut") == 0
    assert "4 of 5 frames are done already" in capsys.readouterr().out
    assert {Path("cut", video.STATE).stat().st_size} == sizes  # whatever the length


def test_other_frames_in_the_same_folder_begin_again(folder, frames, capsys):
    assert segment(folder, "out") == 0
    first = read_labels("out")
    Image.open(frames / "11.png").save(frames / "8.png")
    assert segment(folder, "out") == 0
    assert "all begin again" in capsys.readouterr().out
    images = [np.asarray(Image.open(frames / f"{k}.png")) for k in range(8, 12)]
    for mine, expected in zip(read_labels("out"), follow(folder, images), strict=True):
        np.testing.assert_array_equal(mine, expected)
    assert any((one != other).any() for one, other in zip(first, read_labels("out")))


def test_a_clip_that_got_shorter_begins_again(folder, frames, capsys):
    assert segment(folder, "out") == 0
    (frames / "11.png").unlink()
    (frames / "10.png").unlink()
    assert segment(folder, "out") == 0
    said = capsys.readouterr().out
    assert "all begin again" in said
    assert "2 of 2 written" in said


def test_an_animation_goes_on_where_it_stopped_unless_it_is_another(
    folder, frames, monkeypatch, capsys
):
    first, *rest = [Image.open(frames / f"{k}.png") for k in range(8, 12)]
    first.save("clip.png", save_all=True, append_images=rest)
    assert segment(folder, "whole", "clip.png") == 0
    with monkeypatch.context() as patch:
        whole, calls = running.Runner.follow, []

        def stop(self, item, state):
            calls.append(item.picture.key)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return whole(self, item, state)

        patch.setattr(running.Runner, "follow", stop)
        assert segment(folder, "cut", "clip.png") == 130
    capsys.readouterr()
    assert segment(folder, "cut", "clip.png") == 0
    assert "2 of 4 frames are done already" in capsys.readouterr().out
    for mine, expected in zip(read_labels("cut"), read_labels("whole"), strict=True):
        np.testing.assert_array_equal(mine, expected)
    rest[2].save("clip.png", save_all=True, append_images=[first, *rest[:2]])
    assert segment(folder, "cut", "clip.png") == 0
    assert "all begin again" in capsys.readouterr().out


def test_a_sheet_shows_twelve_frames_at_most(tmp_path):
    frames = [SimpleNamespace(key=f"{k}") for k in range(30)]
    (tmp_path / "overlays").mkdir()
    for frame in frames:
        Image.new("RGB", (8, 8)).save(tmp_path / "overlays" / f"{frame.key}.jpg")
    sizes = []
    for count in (12, 30):
        video.write_sheet(tmp_path, SimpleNamespace(frames=frames[:count]))
        sizes.append(Image.open(tmp_path / video.SHEET).size)
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize(("suffix", "options"), [("gif", {}), ("webp", {"lossless": True}),
                                                 ("png", {}), ("tiff", {})])  # fmt: skip
def test_an_animation_is_its_frames(folder, frames, suffix, options):
    first, *rest = [Image.open(frames / f"{k}.png") for k in range(8, 12)]
    first.save(f"clip.{suffix}", save_all=True, append_images=rest, **options)
    images = list(decode_frames(Path(f"clip.{suffix}").read_bytes()))
    assert len(images) == FRAMES
    if suffix != "gif":  # 256 colours
        np.testing.assert_array_equal(images[2], np.asarray(rest[1]))
    assert segment(folder, "out", f"clip.{suffix}") == 0
    for mine, expected in zip(read_labels("out"), follow(folder, images), strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_a_bad_frame_is_told_and_the_others_are_followed(folder, frames, capsys):
    (frames / "9.png").write_bytes(b"none")
    Image.new("RGB", (40, 56)).save(frames / "10.png")
    assert segment(folder, "out") == 1
    said = "".join(capsys.readouterr())
    assert "expected a readable picture" in said
    assert "expected a frame of 56 x 40 px as the first, got 40 x 56 px" in said
    assert "expected 4 usable pictures, got 2" in said
    assert [path.stem for path in sorted(Path("out/labels").iterdir())] == ["11", "8"]
    assert json.loads(Path("out/run.json").read_text())["last_call"]["made"] == 2


def test_a_frame_that_failed_fails_again_and_stops_no_resume(folder, frames, capsys):
    """Nor does it change with which frame a run went on: the size is that of the first."""
    good = (frames / "9.png").read_bytes()
    (frames / "8.png").write_bytes(b"none")
    Image.new("RGB", (40, 56)).save(frames / "10.png")
    assert segment(folder, "out") == 1
    first = read_labels("out")
    made = {path: path.stat().st_mtime_ns for path in Path("out/records").iterdir()}
    Image.new("RGB", (40, 56)).save(frames / "12.png")
    (frames / "13.png").write_bytes(good)
    capsys.readouterr()
    assert segment(folder, "out") == 1
    said = "".join(capsys.readouterr())
    assert "2 of 6 frames are done already" in said
    assert "expected 4 usable pictures, got 3 that are not" in said  # one made, three failed
    assert all(path.stat().st_mtime_ns == time for path, time in made.items())
    images = [np.asarray(Image.open(frames / f"{k}.png")) for k in (9, 11, 13)]
    expected = follow(folder, images, [1, 3, 5])
    for mine, wanted in zip([*first, read_labels("out")[-1]], expected, strict=True):
        np.testing.assert_array_equal(mine, wanted)
    (frames / "8.png").write_bytes(good)
    assert segment(folder, "out") == 1
    assert "all begin again" in capsys.readouterr().out
    assert "8" in [path.stem for path in Path("out/labels").iterdir()]


def test_a_damaged_animation_gives_the_frames_before_the_damage(
    folder, frames, monkeypatch, capsys
):
    first, *rest = [Image.open(frames / f"{k}.png") for k in range(8, 12)]
    first.save("clip.png", save_all=True, append_images=rest)

    def decode(data, start=0):
        yield from list(decode_frames(data))[start:2]
        raise UnreadableImage("picture unreadable", "cut")

    monkeypatch.setattr(frames_of_verb, "decode_frames", decode)
    assert segment(folder, "out", "clip.png") == 1
    assert "expected 4 usable pictures, got 2 that are not" in capsys.readouterr().err
    assert len(read_labels("out")) == 2


def test_a_video_file_is_refused_with_the_way_to_cut_it(folder, frames, capsys):
    Path("clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + bytes(64))
    assert segment(folder, "out", "clip.mp4") == 1
    said = capsys.readouterr().err
    assert "expected a folder of pictures, or an animated GIF" in said
    assert "ffmpeg -i clip.mp4 frames/%05d.png" in said


def test_a_model_of_pictures_is_refused(tmp_path, frames, capsys):
    build(network=PICTURES).make_predictor().save(str(tmp_path / "pictures"))
    assert segment(str(tmp_path / "pictures"), "out") == 1
    assert "expected a model that looks back" in capsys.readouterr().err


def test_a_folder_of_pictures_takes_no_clip(folder, frames, capsys):
    assert main(["segment", "frames", "--model", folder, "--out", "out"]) == 0
    assert segment(folder, "out") == 1
    assert "whose verb is segment" in capsys.readouterr().err


# --- which files are frames ---


def make_files(names: str, root: Path = Path()) -> None:
    for name in names.split():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path, "PNG")


def list_names(*given: str) -> list[str]:
    return [frame.path.name for frame in open_clip(given, Path("out")).frames]


@pytest.mark.parametrize(
    ("files", "given", "frames_"),
    [
        ("c/10.png c/2.png c/1.png", "c", "1.png 2.png 10.png"),
        ("c/10.PNG c/2.jpg c/1.jpeg", "c", "1.jpeg 2.jpg 10.PNG"),
        ("c/s2_10.png c/s2_9.png", "c", "s2_9.png s2_10.png"),
        ("c/b.png c/a.png", "c", "a.png b.png"),
        ("c/1.png c/.0.png c/._1.png c/.old/2.png", "c", "1.png"),
        ("c/1.png c/2.png c/masks/1.png c/a/b/2.png", "c", "1.png 2.png"),
        ("c/1.png c/2.png c/1_mask.png", "c/?.png", "1.png 2.png"),
        ("c/1.png c/2.png c/01.jpg", "c/*.png", "1.png 2.png"),
        (
            "d/JPEGImages/1.png d/JPEGImages/0.png d/Annotations/1.png",
            "d/JPEGImages",
            "0.png 1.png",
        ),
    ],
)
def test_the_frames_of_a_folder_are_the_pictures_directly_in_it(
    files, given, frames_, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    make_files(files)
    assert list_names(given) == frames_.split()


@pytest.mark.parametrize(
    ("files", "given", "words"),
    [
        ("d/Annotations/0.png d/JPEGImages/0.png", "d",
         "pictures in 2 folders below, at d; name one of them, such as d/JPEGImages"),
        ("d/a/0.png d/b/0.png", "d", "2 folders below, at d; name one of them, such as d/a"),
        ("d/a/0.png d/b/1.png", "d/a d/b", "2 folders below, at .*; name one of them, such as d/a"),
        ("d/a/0.png d/b/1.png", "d/*", "2 folders below"),
        ("d/0.png d/b/1.png", "d/0.png d/b/1.png", "2 folders below"),
        ("d/Annotations/0.png", "d", "1 folders below, at d; .* such as d/Annotations"),
        ("c/000.jpg c/000.png c/001.jpg c/001.png", "c",
         r"one picture a frame, got 000.jpg and 000.png, at .*c; name the frames alone"),
        ("c/000.jpg c/001.jpg c/000_1.png", "c", "got 000.jpg and 000_1.png"),
        ("c/000.jpg c/001.jpg c/mask_001.jpg", "c", "got 001.jpg and mask_001.jpg"),
        ("c/a.jpg c/b.jpg c/b.png", "c", "got b.jpg and b.png"),
        ("c/8.png c/08.png", "c", "got 08.png and 8.png"),
    ],
)  # fmt: skip
def test_annotations_are_no_frames(files, given, words, tmp_path, monkeypatch):
    """Neither those of a data set's root nor those beside their pictures."""
    monkeypatch.chdir(tmp_path)
    make_files(files)
    with pytest.raises(UnigsError, match=words):
        list_names(*given.split())


def test_a_data_set_is_refused_with_a_clip_of_it(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_clips(Path("davis"), clips=1, val_clips=1, frames=2, size_px=32)
    assert segment(folder, "out", "davis") == 1
    said = capsys.readouterr().err.strip()
    assert "expected the frames of one clip directly in one folder, got pictures in 4" in said
    example = said.rpartition(" ")[2]
    assert Path(example).parts[:2] == ("davis", "JPEGImages")
    assert segment(folder, "out", example) == 0
    assert len(read_labels("out")) == 2


def test_a_folder_that_holds_a_film_alone_is_refused_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("c").mkdir()
    Path("c/film.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(UnigsError, match=r"expected pictures .*found none in c"):
        list_names("c")
    assert "film.mp4" in capsys.readouterr().out
