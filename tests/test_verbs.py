"""Laws of segment, find, inpaint and paint: any system, any size, any number of pictures."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_gss import make_stages

from unigs.cli import main
from unigs.records import UnigsError
from unigs.synthetic.scenes import STUFF_IDS, THING_IDS, draw_scene, scene_seed
from unigs.systems.gss.predictor import GSSPredictor, Settings
from unigs.systems.load import load_predictor
from unigs.systems.sampling import Sampling
from unigs.tasks import write_prompt
from unigs.verbs import running
from unigs.verbs.answer import pair_masks
from unigs.verbs.gather import Picture, gather_pictures

SIZES = {"a.png": (64, 64), "b.jpg": (150, 100), "c.png": (64, 64), "deep/d.png": (40, 130)}
FAST = ["--sampling.num_inference_steps", "1"]


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("verbs") / "pipeline"
    pipeline.save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module", autouse=True)
def _load_once():
    load = cache(lambda *a, **k: load_predictor(*a, **k))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "load_predictor", load)
        yield


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """A folder to stand in; ``photos`` holds pictures of several sizes."""
    rng = np.random.default_rng(0)
    for name, (height, width) in SIZES.items():
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read_labels(out: str) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in Path(out, "labels").iterdir()}


def read_json(*parts: str):
    return json.loads(Path(*parts).read_text())


def test_each_picture_is_answered_as_the_pipeline_answers_it_alone(folder, photos, pipeline):
    words = ["segment", "photos", "--model", folder, *FAST]
    assert main([*words, "--out", "alone", "--batch_size", "1"]) == 0
    assert main([*words, "--out", "batched", "--batch_size", "3"]) == 0
    alone, batched = read_labels("alone"), read_labels("batched")
    assert alone.keys() == batched.keys() == {"a", "b", "c", "deep-d"}
    how = Sampling(num_inference_steps=1, processing_resolution=pipeline.side_px)
    for name, size in SIZES.items():
        key = name.rsplit(".", 1)[0].replace("/", "-")
        pixels = np.asarray(Image.open(Path("photos", name)).convert("RGB"))
        image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
        truth = pipeline.predict("entity", image=image, sampling=how, indices=[0]).labels[0]
        assert alone[key].shape == size
        np.testing.assert_array_equal(alone[key], truth.numpy())
        np.testing.assert_array_equal(batched[key], alone[key])
    files = {row["file_name"] for row in read_json("alone", "panoptic.json")["images"]}
    assert files == set(SIZES)
    run = read_json("alone", "run.json")
    assert run["images"] == str(photos / "photos")
    assert run["sampling"] == {"num_inference_steps": 1}
    assert run["last_call"] == {"made": 4, "kept": 0, "failed": {}}
    assert len(run["model"]["sha256"]) == 64
    assert run["versions"].keys() > {"unigs", "torch", "diffusers"}


def test_what_is_done_is_kept_and_what_changed_is_made_again(folder, photos, capsys, monkeypatch):
    words = ["segment", "photos", "--out", "photos/out", "--model", folder, *FAST]
    assert main(words) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(running, "load_predictor", lambda *a, **k: pytest.fail("loaded"))
        assert main(words) == 0  # nor are the overlays in photos/out taken for photos
    assert "4 of 4 are done already and kept, at photos/out" in capsys.readouterr().out
    Image.new("RGB", (64, 64), "red").save("photos/a.png")
    before = Path("photos/out/records/c.json").stat().st_mtime_ns
    assert main(words) == 0
    assert "3 of 4 are done already" in capsys.readouterr().out
    assert Path("photos/out/records/c.json").stat().st_mtime_ns == before
    assert len(read_json("photos/out/panoptic.json")["images"]) == 4
    assert main([*words, "--sampling.seed", "1"]) == 1
    assert "sampling is" in capsys.readouterr().err


def test_a_bad_picture_is_named_and_the_others_are_made(folder, photos, capsys, monkeypatch):
    Path("photos/bad.png").write_text("no picture")
    Image.new("RGB", (10, 100)).save("photos/strip.png")
    assert main(["segment", "photos", "--out", "out", "--model", folder, *FAST]) == 1
    said = capsys.readouterr()
    assert "left out: expected a readable picture" in said.out
    assert "at photos/bad.png" in said.out
    assert "100 px, at photos/strip.png" in said.out
    assert "expected 6 usable pictures, got 2 that are not: 1 x picture unreadable" in said.err
    assert read_labels("out").keys() == {"a", "b", "c", "deep-d"}
    failed = read_json("out", "run.json")["last_call"]["failed"]
    assert failed == {"picture unreadable": 1, "picture that failed": 1}
    monkeypatch.setattr(running, "load_predictor", lambda *a, **k: pytest.fail("loaded"))
    assert main(["segment", "photos/bad.png", "--out", "none", "--model", folder]) == 1


def test_a_sibling_segments_names_its_masks_and_refuses_other_tasks(photos, capsys):
    GSSPredictor(make_stages().eval(), Settings(32, 0.001)).save("gss")
    assert main(["segment", "photos", "--out", "out", "--model", "gss"]) == 0
    for name, size in SIZES.items():
        labels = read_labels("out")[name.rsplit(".", 1)[0].replace("/", "-")]
        assert labels.shape == size
    names = {row["name"] for row in read_json("out", "panoptic.json")["categories"]}
    assert names <= {"ball", "cat", "sky"}
    assert main(["find", "photos", "--words", "star", "--out", "found", "--model", "gss"]) == 1
    assert "for referring, got a GSSPredictor, which knows entity" in capsys.readouterr().err
    assert main(["segment", "photos", "--out", "o", "--model", "gss", *FAST]) == 1
    assert "GSS does not sample" in capsys.readouterr().err


def test_found_masks_bear_the_word_that_was_asked_for(folder, photos):
    words = ["find", "photos/a.png", "--model", folder, *FAST]
    assert main([*words, "--words", "star", "--out", "one"]) == 0
    assert main([*words, "--words", "star", "sand", "--out", "two"]) == 0
    for out, name in (("one", "star"), ("two", "entity")):
        assert {row["name"] for row in read_json(out, "panoptic.json")["categories"]} <= {name}
    assert read_json("two", "records", "a.json")["prompt"] == write_prompt(
        "referring", ["star", "sand"]
    )


def test_inpainting_keeps_every_known_pixel_of_a_picture_of_any_size(folder, photos, capsys):
    Path("masks").mkdir()
    for name in ("b", "a"):
        height, width = SIZES["b.jpg" if name == "b" else "a.png"]
        hole = np.zeros((height, width), np.uint8)
        hole[10:40, 20:50] = 255
        Image.fromarray(hole).save(f"masks/{name}.png")
    words = ["inpaint", "photos/b.jpg", "photos/a.png", "--words", "star", "--model", folder, *FAST]
    assert main([*words, "--mask", "masks", "--out", "out"]) == 0
    for name in ("b.jpg", "a.png"):
        before = np.asarray(Image.open(f"photos/{name}").convert("RGB"))
        hole = np.asarray(Image.open(f"masks/{name[0]}.png")) > 0
        after = np.asarray(Image.open(f"out/images/{name[0]}.png"))
        np.testing.assert_array_equal(after[~hole], before[~hole])
        assert (after[hole] != before[hole]).mean() > 0.5
    run = read_json("out", "run.json")
    assert (run["images"], run["root"]) == (str(photos / "out" / "images"), str(photos / "photos"))
    assert main([*words, "--mask", "masks/a.png", "--out", "x"]) == 1
    assert "a folder of masks for 2 pictures, got a file" in capsys.readouterr().err
    os.remove("masks/a.png")
    assert main([*words, "--mask", "masks", "--out", "x"]) == 1
    assert "expected one mask named a for" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["inpaint", "paint"])
def test_a_picture_of_the_same_name_overwrites_no_answer(folder, photos, capsys, verb):
    """Neither one of another folder nor one with another suffix; the same one changed is told."""
    for place in ("one", "two"):
        Path(place).mkdir()
        labels = np.zeros((64, 64), np.uint8)
        labels[8:40, 8 : 40 + len(place)] = 255
        Image.fromarray(labels).save(f"{place}/x.png")
        Image.fromarray(labels).save(f"{place}/x.bmp")
    Image.fromarray(labels).save("mask.png")
    more = ["--mask", "mask.png"] if verb == "inpaint" else []
    words = [*more, "--words", "star", "--model", folder, *FAST, "--out", "out"]
    assert main([verb, "one/x.png", *words]) == 0
    before = Path("out/images/x.png").read_bytes()
    assert main([verb, "two/x.png", *words]) == 1
    assert f"whose root is {photos / 'one'} and not {photos / 'two'}" in capsys.readouterr().err
    assert main([verb, "one/x.bmp", *words]) == 1
    assert "an answer to x.bmp, got one to x.png" in capsys.readouterr().err
    assert Path("out/images/x.png").read_bytes() == before
    Path("one/x.png").write_bytes(Path("one/x.bmp").read_bytes() + b"changed")
    assert main([verb, "one/x.png", *words]) == 0
    assert "1 pictures changed and are made again, at out" in capsys.readouterr().out


def test_a_list_gives_each_picture_its_own_mask_and_words(folder, photos, monkeypatch):
    """Each answer is that of a run for it alone; a changed line is made again, no other."""
    Path("lists").mkdir()
    for name, left in (("a", 8), ("c", 24)):
        hole = np.zeros((64, 64), np.uint8)
        hole[8:40, left : left + 24] = 255
        Image.fromarray(hole).save(f"lists/{name}.png")
    rows = [
        {"picture": "../photos/a.png", "mask": "a.png", "words": "star"},
        {"picture": "../photos/c.png", "mask": "c.png", "words": ["sand", "red heart"]},
    ]
    Path("lists/holes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = "picture,mask,words\n../photos/a.png,a.png,star\n../photos/c.png,c.png,sand;red heart\n"
    Path("lists/holes.csv").write_text(lines)
    words = ["inpaint", "--model", folder, *FAST, "--out"]
    assert main([*words, "csv", "--manifest", "lists/holes.csv"]) == 0
    assert main([*words, "lines", "--manifest", "lists/holes.jsonl"]) == 0
    for name, asked in (("a", ["star"]), ("c", ["sand", "red heart"])):
        one = [f"photos/{name}.png", "--mask", f"lists/{name}.png", "--words", *asked]
        assert main([*words, f"alone-{name}", *one]) == 0
        alone = Path(f"alone-{name}", "images", f"{name}.png").read_bytes()
        assert Path("csv", "images", f"{name}.png").read_bytes() == alone
        assert Path("lines", "images", f"{name}.png").read_bytes() == alone
        assert read_json("csv", "records", f"{name}.json")["prompt"] == write_prompt(
            "inpainting", asked
        )
    before = {path: path.stat().st_mtime_ns for path in Path("csv", "records").iterdir()}
    Path("lists/holes.csv").write_text(lines.replace("star", "moon"))
    assert main([*words, "csv", "--manifest", "lists/holes.csv"]) == 0
    changed = {path.stem for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"a"}


def test_a_painted_picture_is_that_of_the_pipeline_at_full_size(folder, photos, pipeline):
    labels = np.zeros((100, 150), np.int32)
    labels[5:60, 5:70], labels[50:90, 80:140] = 1, 2
    Image.fromarray(labels.astype(np.uint8)).save("map.png")
    words = ["paint", "map.png", "--words", "star", "sand", "--model", folder, *FAST]
    assert main([*words, "--out", "out"]) == 0
    how = Sampling(num_inference_steps=1, processing_resolution=pipeline.side_px)
    prompt = write_prompt("synthesis", ["star", "sand"])
    given = torch.from_numpy(labels)[None]
    truth = pipeline.predict("synthesis", labels=given, prompt=prompt, sampling=how, indices=[0])
    drawn = np.asarray(Image.open("out/images/map.png"), int).transpose(2, 0, 1)
    assert np.abs(drawn - truth.image[0].numpy()).max() <= 1


def test_more_entities_than_colours_fail_that_map_alone(folder, photos, capsys, pipeline):
    count = pipeline.palette.capacity + 2
    many = np.repeat(np.repeat(np.arange(count, dtype=np.uint8)[None], 48, 0), 2, 1)
    few = np.minimum(many, 2)
    Path("maps").mkdir()
    Image.fromarray(many).save("maps/many.png")
    Image.fromarray(few).save("maps/few.png")
    assert main(["paint", "maps", "--words", "star", "--out", "out", "--model", folder, *FAST]) == 1
    assert "maps/many.png" in capsys.readouterr().out
    assert [path.name for path in Path("out/images").iterdir()] == ["few.png"]


@pytest.mark.slow  # a CPU without bfloat16 emulates it
def test_half_precision_runs_and_is_close(folder, photos):
    words = ["paint", "map.png", "--words", "star", "--model", folder, *FAST]
    labels = np.zeros((64, 64), np.uint8)
    labels[9:40, 9:40] = 1
    Image.fromarray(labels).save("map.png")
    assert main([*words, "--out", "full"]) == 0
    assert main([*words, "--out", "half", "--dtype", "bfloat16"]) == 0
    full, half = (np.asarray(Image.open(f"{out}/images/map.png"), int) for out in ("full", "half"))
    assert 0 < np.abs(full - half).mean() < 8


# --- what was typed ------------------------------------------------------------------------------

HEAD = "picture,mask,words\n"
FINE = '{"picture": "photos/a.png", "mask": "m.png", "words": ["x"]}\n'
LISTS = {
    "empty.jsonl": "\n",
    "short.csv": "picture,words\nphotos/a.png,x\n",
    "gap.csv": f"{HEAD}photos/a.png,m.png,x\nphotos/c.png,,x\n",
    "twice.csv": f"{HEAD}photos/a.png,m.png,x\nphotos/../photos/a.png,m.png,y\n",
    "cut.jsonl": f"{FINE}{FINE[:20]}\n",
    "mute.jsonl": FINE.replace('["x"]', "[]"),
    "folder.csv": f"{HEAD}photos,m.png,x\n",
    "wide.csv": f"{HEAD}photos/a.png,m.png,star,sand\n",
    "two.csv": "picture,mask,words,mask\nphotos/a.png,m.png,x,n.png\n",
    "nul.jsonl": FINE.replace("m.png", "\\u0000.png"),
    "half.jsonl": FINE.replace("m.png", "\\ud800.png"),
}

BAD = {
    "no file": (["segment", "nothing.png"], "nothing of this name: nothing.png"),
    "no glob": (["segment", "photos/*.gif"], "nothing of this form"),
    "an empty folder": (["segment", "empty"], "found none in empty"),
    "no picture at all": (["segment"], "images"),
    "no words": (["find", "photos", "--words"], "--words star sand, got none"),
    "an empty word": (["find", "photos", "--words", "star", " "], "a word in it, got ' '"),
    "no mask": (["inpaint", "photos/a.png", "--words", "x", "--mask", "m"], "this name: m"),
    "neither mask nor list": (
        ["inpaint", "photos/a.png", "--words", "x"],
        "--manifest FILE, got n",
    ),
    "mask and list": (["inpaint", "--mask", "m", "--manifest", "l.csv"], "or --mask, got both"),
    "no list": (["inpaint", "--manifest", "nothing.csv"], "nothing.csv"),
    "a list of nothing": (["inpaint", "--manifest", "empty.jsonl"], "got none, at empty.jsonl"),
    "a list without masks": (["inpaint", "--manifest", "short.csv"], "none called mask"),
    "a line without a file": (["inpaint", "--manifest", "gap.csv"], "gap.csv, line 3"),
    "a line twice": (["inpaint", "--manifest", "twice.csv"], "again, at twice.csv, line 3"),
    "a line of no JSON": (["inpaint", "--manifest", "cut.jsonl"], "cut.jsonl, line 2"),
    "a line of no words": (["inpaint", "--manifest", "mute.jsonl"], "expected words to draw"),
    "a cell too many": (["inpaint", "--manifest", "wide.csv"], "'sand'. beyond them, at wide.csv"),
    "a column twice": (["inpaint", "--manifest", "two.csv"], "each column once"),
    "a name with NUL": (["inpaint", "--manifest", "nul.jsonl"], "expected a name of a file"),
    "half a letter": (["inpaint", "--manifest", "half.jsonl"], "expected a name of a file"),
    "a folder in a list": (["inpaint", "--manifest", "folder.csv"], "found none at photos"),
    "no model": (["segment", "photos", "--model", "empty"], "got none, at empty"),
    "no such model": (["segment", "photos", "--model", "x"], "got nothing there, at x"),
    "a file for a model": (["segment", "photos", "--model", "text"], "got a file, at text"),
    "a file for out": (["segment", "photos", "--out", "text"], "got a file, at text"),
    "out in a file": (["segment", "photos", "--out", "text/out"], "Not a directory"),
    "a batch of none": (["segment", "photos", "--batch_size", "0"], "got 0, at --batch_size"),
    "no text": (["find", "photos", "--words", "\udcff"], "expected UTF-8"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_orders_are_refused_before_a_model_is_loaded(photos, capsys, monkeypatch, kind):
    monkeypatch.setattr(running, "load_predictor", lambda *a, **k: pytest.fail("loaded"))
    Path("empty").mkdir()
    Path("text").write_text("mine")
    for name, text in LISTS.items():
        Path(name).write_text(text)
    words, said = BAD[kind]
    words = words if "--out" in words else [*words[:1], *words[1:], "--out", "out"]
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    assert code in (1, 2)
    printed = capsys.readouterr().err
    with pytest.raises(UnigsError, match=said.replace("*", r"\*").replace("(", r"\(")):
        raise UnigsError(printed)
    assert not Path("out").exists()
    assert Path("text").read_text() == "mine"


def test_a_device_that_is_not_there_is_named(folder, photos, capsys):
    for name in ("gpu", "cuda:77"):
        assert main(["segment", "photos", "--out", "o", "--model", folder, "--device", name]) == 1
        assert f"a device of this machine, got {name}" in capsys.readouterr().err


def test_files_folders_and_globs_name_each_picture_once(photos, capsys):
    given = ["photos/a.png", "photos", "photos/*.png", "photos/../photos/b.jpg"]
    root, pictures = gather_pictures(given, Path("out"), "IMAGE")
    assert root == photos / "photos"
    assert sorted(picture.file_name for picture in pictures) == sorted(SIZES)
    root, pictures = gather_pictures(["photos/deep/d.png"], Path("out"), "IMAGE")
    assert (root, pictures[0].file_name) == (photos / "photos" / "deep", "d.png")
    Image.new("RGB", (9, 9)).save("photos/a.jpg")
    Path("photos/notes.txt").write_text("x")
    _, pictures = gather_pictures(["photos"], Path("out"), "IMAGE")
    assert len({picture.key for picture in pictures}) == 5
    assert "1 files are no pictures, e.g. notes.txt" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["pix2seq-d", "gss"])
def test_siblings_that_ship_name_what_they_find(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scene = draw_scene(scene_seed("test", 0), 64, max_things=2, max_stuff=2, min_radius=0.138)
    Image.fromarray(scene.image).save("scene.png")
    assert main(["segment", "scene.png", "--model", model, "--out", "out"]) == 0
    found = json.loads(Path("out/panoptic.json").read_text())
    names = {one["id"]: one["name"] for one in found["categories"]}
    segments = found["annotations"][0]["segments_info"]
    assert {names[one["category_id"]] for one in segments} <= {*THING_IDS, *STUFF_IDS}
    assert sum(one["area"] for one in segments) > 64 * 64 / 2


def place(*names: str) -> list[Picture]:
    return [Picture(Path("p", name), name.replace("/", "_"), name) for name in names]


def lay(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_masks_are_paired_by_their_place_and_else_by_a_name_that_is_alone(tmp_path):
    masks = lay(tmp_path / "m", "a/x.png", "b/x.png", "y.jpg", "deep/z.png")
    found = pair_masks(masks, place("a/x.png", "b/x.jpg", "c/y.png", "z.png"))
    names = {key: path.relative_to(masks).as_posix() for key, path in found.items()}
    wanted = ("a/x.png", "b/x.png", "y.jpg", "deep/z.png")
    assert names == dict(zip(("a_x.png", "b_x.jpg", "c_y.png", "z.png"), wanted))


@pytest.mark.parametrize(
    ("masks", "pictures", "words"),
    [
        (["x.png"], ["a/x.png", "b/x.png"], "expected one mask named a/x for p/a/x.png, got none"),
        (["x.png", "x.jpg"], ["x.png"], r"named x for p/x.png, got .*x.jpg and .*x.png, in"),
        (["x.png"], ["x.png", "x.jpg"], "a mask for each picture, got one for p/x.png and p/x.jpg"),
        (["a/x.png", "b/x.png"], ["x.png"], "got .*a/x.png and .*b/x.png, in"),
    ],
)
def test_masks_that_could_be_anothers_are_refused(tmp_path, masks, pictures, words):
    with pytest.raises(UnigsError, match=words):
        pair_masks(lay(tmp_path, *masks), place(*pictures))
