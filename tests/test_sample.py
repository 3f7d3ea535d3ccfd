"""Laws of ``unigs sample``: files fit each other and their input; what came in is what is kept."""

from __future__ import annotations

import configparser
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from unigs.cli import main
from unigs.outputs import encode_grey16
from unigs.records import TASKS, UnigsError
from unigs.synthetic.scenes import THING_IDS
from unigs.systems.joint.pipeline import UniGSPipeline
from unigs.systems.sampling import Sampling
from unigs.tasks import RECIPES, write_prompt
from unigs.verbs import model, tryout
from unigs.verbs.request import number_entities, read_pixels, read_request, read_values

LOAD = UniGSPipeline.load
ROOT = Path(__file__).parents[1]
HEIGHT, WIDTH = 48, 70
STEPS = "--sampling.num_inference_steps"
NAMES = ["--words", "[star, zebra crossing]"]  # the small tokenizer knows no zebra
OPTIONS = {
    "inpainting": ["--image", "photo.png", "--mask", "mask.png", *NAMES],
    "synthesis": ["--labels", "labels.png", *NAMES],
    "referring": ["--image", "photo.png", "--prompt", "referring: find star."],
    "entity": ["--image", "photo.png"],
}


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("sample") / "pipeline"
    pipeline.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def _load_once():
    """One load serves all runs: nothing of a run stays in a pipeline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(UniGSPipeline, "load", cache(LOAD))
        yield


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    """A folder to stand in, with a photo, a mask and a label map of three entities."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    hole = np.zeros((HEIGHT, WIDTH), np.uint8)
    hole[10:30, 20:50] = 200
    Image.fromarray(hole).save(tmp_path / "mask.png")
    Image.fromarray(draw_labels().astype(np.uint16)).save(tmp_path / "labels.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw_labels() -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[5:20, 5:40], labels[25:40, 30:60], labels[2:9, 60:68] = 1, 2, 3
    return labels


def run(folder: str, task: str, out: str, *more: str) -> int:
    words = ["sample", "--task", task, "--out", out, "--pipeline", folder, STEPS, "1"]
    return main([*words, *OPTIONS[task], *more])


@pytest.mark.parametrize("task", TASKS)
def test_what_is_written_fits_the_input_and_each_other(folder, files, task):
    assert run(folder, task, "out") == 0
    for name in ("image.png", "colormap.png"):
        with Image.open(files / "out" / name) as picture:
            assert (picture.mode, picture.size) == ("RGB", (WIDTH, HEIGHT))
    with Image.open(files / "out" / "labels.png") as picture:
        assert (picture.mode, picture.size) == ("I;16", (WIDTH, HEIGHT))
        labels = np.asarray(picture)
    about = json.loads((files / "out" / "masks.json").read_text())
    assert (about["task"], about["width_px"], about["height_px"]) == (task, WIDTH, HEIGHT)
    assert [mask["label"] for mask in about["masks"]] == sorted({*labels.ravel().tolist()} - {0})
    for mask in about["masks"]:
        left, top, right, bottom = mask["box_px"]
        inside = np.zeros(labels.shape, bool)
        inside[top:bottom, left:right] = True
        mine = labels == mask["label"]
        assert mine.sum() == mask["area_px"]
        assert not (mine & ~inside).any()
        assert mine[top].any()
        assert mine[bottom - 1].any()
        assert mine[:, left].any()
        assert mine[:, right - 1].any()
        assert 0 <= mask["score"] <= 1
    if task == "entity":
        assert (labels > 0).all()
    assert {path.name for path in (files / "out").iterdir()} == {
        "image.png", "colormap.png", "labels.png", "masks.json", "sheet.png",
    }  # fmt: skip


def test_inpainting_changes_the_hole_alone_and_segmenting_nothing(folder, files):
    before = np.asarray(Image.open("photo.png"))
    assert run(folder, "inpainting", "out") == 0
    after = np.asarray(Image.open("out/image.png"))
    hole = np.asarray(Image.open("mask.png")) > 0
    np.testing.assert_array_equal(after[~hole], before[~hole])
    assert (after[hole] != before[hole]).mean() > 0.9
    assert run(folder, "entity", "out") == 0
    np.testing.assert_array_equal(np.asarray(Image.open("out/image.png")), before)


def test_a_seed_decides_every_byte(folder, files):
    for out, seed in (("one", "3"), ("two", "3"), ("other", "4")):
        assert run(folder, "synthesis", out, "--sampling.seed", seed) == 0
    read = lambda out: {path.name: path.read_bytes() for path in (files / out).iterdir()}
    assert read("one") == read("two")
    assert read("one")["image.png"] != read("other")["image.png"]


def test_written_labels_read_back_as_the_entities_they_are(files):
    labels = draw_labels()
    Path("grey16.png").write_bytes(encode_grey16(labels))
    Path("wide.png").write_bytes(encode_grey16(labels.astype(int) * 20_001))
    colours = np.array([[0, 0, 0], [0, 0, 9], [0, 9, 0], [9, 0, 0]], np.uint8)
    Image.fromarray(labels).save("grey8.png")
    Image.fromarray(colours[labels]).save("colours.png")
    Image.fromarray(colours[labels]).quantize(4).save("palette.png")
    layer = np.dstack([colours[labels], np.where(labels > 0, 255, 0).astype(np.uint8)])
    layer[labels == 0, :3] = 77  # an erased pixel keeps its colour
    Image.fromarray(layer).save("layer.png")
    for name in ("grey16", "wide", "grey8", "colours", "palette", "layer"):
        read = number_entities(read_values(Path(f"{name}.png")))
        np.testing.assert_array_equal(read, labels, err_msg=name)
    full = number_entities(np.array([[7, 9]]))
    np.testing.assert_array_equal(full, [[1, 2]])


def test_a_photo_is_taken_as_a_viewer_shows_it(files):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # hold it by its right side
    with Image.open("photo.png") as photo:
        stored = np.asarray(photo)
        photo.save("turned.png", exif=exif)
    upright = np.rot90(stored, -1)
    np.testing.assert_array_equal(read_pixels(Path("turned.png")), upright.transpose(2, 0, 1))
    half = np.zeros(upright.shape[:2], np.uint8)
    half[:9] = 255
    Image.fromarray(half).save("half.png")
    read_request("inpainting", Path("turned.png"), Path("half.png"), None, ["star"], None)


def test_an_entity_without_a_pixel_is_not_listed():
    listed = tryout.list_masks(np.array([[0, 1, 3]]), [0.1, 0.2, 0.3])
    assert [(mask["label"], mask["score"]) for mask in listed] == [(1, 0.1), (3, 0.3)]


def test_a_long_photo_keeps_its_size_and_gets_a_small_sheet(folder, files, monkeypatch):
    draw = tryout.draw_sheet
    tiles: list[np.ndarray] = []
    keep = lambda titles, rows, px: tiles.extend(rows[0][1]) or draw(titles, rows, px)
    monkeypatch.setattr(tryout, "draw_sheet", keep)
    Image.new("RGB", (900, 300), "teal").save("photo.png")
    assert run(folder, "referring", "out", "--sampling.processing_resolution", "16") == 0
    assert Image.open("out/labels.png").size == (900, 300)
    assert {tile.shape for tile in tiles} == {(3, 43, 128)}


BAD = {
    "image": ("entity", ["--image", "none.png"], "none.png"),
    "folder": ("entity", ["--image", "."], "picture file"),
    "text": ("entity", ["--image", "text.png"], "readable picture.*text.png"),
    "strip": ("entity", ["--image", "strip.png"], "8 times"),
    "mask size": ("inpainting", ["--mask", "small.png"], "70 x 48 px, got 48 x 70 px.*small.png"),
    "mask empty": ("inpainting", ["--mask", "black.png"], "only black.*black.png"),
    "labels empty": ("synthesis", ["--labels", "black.png"], "only black.*black.png"),
    "too many": ("synthesis", ["--labels", "photo.png"], "at most 25 values.*photo.png"),
    "ignored": ("entity", ["--mask", "mask.png"], "no --mask for entity"),
    "both": ("inpainting", ["--prompt", "x"], "got both"),
    "steps": ("entity", [STEPS, "1001"], "1 to 1000 steps, got 1001"),
    "task": ("entity", ["--task", "dance"], "dance"),
    "pipeline": ("entity", ["--pipeline", "."], "model_index.json"),
    "out": ("entity", ["--out", "text.png", "--pipeline", "."], "folder.*got a file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_requests_are_refused_in_words(folder, files, capsys, kind):
    Path("text.png").write_text("no picture")
    Image.new("L", (HEIGHT, WIDTH), 255).save("small.png")
    Image.new("L", (WIDTH, HEIGHT)).save("black.png")
    Image.new("L", (90, 10)).save("strip.png")
    task, more, words = BAD[kind]
    assert run(folder, task, "out", *more) == 1
    said = capsys.readouterr().err
    with pytest.raises(UnigsError, match=words):
        raise UnigsError(said)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--task", "entity"], "--image FILE for entity"),
        (["--task", "inpainting", "--image", "photo.png"], "--mask FILE for inpainting"),
        (["--task", "synthesis", *NAMES], "--labels FILE for synthesis"),
        (["--task", "referring", "--image", "photo.png"], "--words star sand or --prompt"),
        (["--image", "photo.png"], "--task with --image"),
        ([], "none at nowhere"),
    ],
)
def test_what_is_missing_is_named(files, capsys, monkeypatch, words, said):
    monkeypatch.setattr(model, "DEFAULT", "nowhere")
    assert main(["sample", "--out", "out", *words]) == 1
    assert said in capsys.readouterr().err


def test_without_a_task_a_scene_is_drawn_that_can_be_gone_on_with(folder, files):
    assert main(["sample", "--out", "out", "--pipeline", folder, STEPS, "1"]) == 0
    with Image.open("out/sheet.png") as sheet:
        assert sheet.width > 5 * 128
        assert sheet.height > 4 * 128
    drawn = tryout.draw_samples(64, 25, 0)
    for task in ("inpainting", "synthesis"):
        truth = drawn[task]
        image, mask, labels = (Path(f"out/scene{end}.png") for end in ("", "_mask", "_labels"))
        given = (None, None, labels) if task == "synthesis" else (image, mask, None)
        again = read_request(task, *given, list(truth.names), None)
        assert again.prompt == truth.prompt == write_prompt(task, truth.names)
        assert again.index == truth.index
        if task == "synthesis":
            np.testing.assert_array_equal(again.labels, truth.labels)
        else:
            np.testing.assert_array_equal(again.image, truth.image)
            np.testing.assert_array_equal(again.coarse_mask, truth.coarse_mask)


@pytest.mark.parametrize("seed", range(6))
def test_the_tasks_share_a_scene_and_holes_are_around_things(seed):
    drawn = tryout.draw_samples(64, 25, seed)
    for task in TASKS:
        np.testing.assert_array_equal(drawn[task].image, drawn["entity"].image)
        if RECIPES[task].local:
            assert set(drawn[task].names) <= set(THING_IDS)


@pytest.mark.skipif(torch.cuda.is_available(), reason="half precision is kept there")
def test_half_weights_run_in_full_on_a_cpu(folder, tmp_path):
    half = LOAD(folder)
    for part in (half.unet, half.vae, half.text_encoder):
        part.half()
    half.save_pretrained(tmp_path)
    loaded = tryout.open_predictor(tmp_path, Sampling()).pipeline
    dtypes = {
        p.dtype for m in (loaded.unet, loaded.vae, loaded.text_encoder) for p in m.parameters()
    }
    assert dtypes == {torch.float32}


def test_another_system_is_refused_with_the_verb_that_works(tmp_path, capsys, monkeypatch):
    (tmp_path / "model_index.json").write_text('{"_class_name": "GSSPredictor"}')
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "--out", "out", "--pipeline", "."]) == 1
    assert "got a GSSPredictor, at .; it works with unigs segment" in capsys.readouterr().err
    assert main(["predict", "--config", "x.yaml"]) == 2
    assert "did you mean segment?" in capsys.readouterr().err


def test_help_shows_a_command_per_task_unbroken(capsys):
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    lines = capsys.readouterr().out.splitlines()
    for task in TASKS:
        assert any(f"--task {task} " in line and " --out " in line for line in lines)


def test_the_package_holds_every_file_of_its_assets():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["unigs"].split()
    held = {path for pattern in patterns for path in (ROOT / "unigs").glob(pattern)}
    there = {path for path in (ROOT / "unigs" / "assets").rglob("*") if path.is_file()}
    assert there <= held
    nested = Path("assets/pipeline/unet/config.json")  # as a pipeline folder lies
    assert any(nested.match(p) and p.count("/") == 3 for p in patterns)
