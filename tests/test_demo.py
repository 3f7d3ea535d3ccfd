"""Laws of the page: its answers are those of the verbs, its caps hold, requests do not mix."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageFilter
from test_gss import make_stages

from unigs.cli import main
from unigs.demo import desk as desks
from unigs.demo import serve, uploads
from unigs.demo.desk import FOLDERS, Ask, Desk, Stopped, Stops, read_abstract
from unigs.demo.strokes import BRUSHES, list_colours, read_mask, read_regions
from unigs.demo.uploads import (
    SCREEN_PX,
    check_upload,
    read_upload,
    show_labels,
    show_picture,
    show_upload,
)
from unigs.demo.values import list_legend, name_regions, split_words
from unigs.outputs import encode_grey16
from unigs.outputs.encode import encode_mask
from unigs.pictures import colour_labels
from unigs.records import UnigsError, UnigsWarning
from unigs.systems.gss.predictor import GSSPredictor, Settings
from unigs.systems.joint.pipeline import UniGSPipeline

# --- strokes -------------------------------------------------------------------------------------


def make_layer(mask: np.ndarray, colour=(255, 0, 200), alpha=255) -> np.ndarray:
    layer = np.zeros((*mask.shape, 4), np.uint8)
    layer[mask] = (*colour, alpha)
    return layer


def draw_blob(height: int, width: int, top: int, left: int) -> np.ndarray:
    blob = np.zeros((height, width), bool)
    blob[top : top + height // 4, left : left + width // 3] = True
    return blob


def test_a_mask_has_the_share_and_the_place_of_its_strokes():
    blob = draw_blob(480, 768, 96, 192)
    for size in ((768, 480), (3072, 1920), (96, 60)):
        mask = read_mask([make_layer(blob)], size)
        assert mask.shape == size[::-1]
        assert mask.mean() == pytest.approx(blob.mean(), rel=1e-9)
        rows, columns = np.nonzero(mask)
        assert rows.mean() / size[1] == pytest.approx(np.nonzero(blob)[0].mean() / 480, abs=0.01)
        assert columns.mean() / size[0] == pytest.approx(np.nonzero(blob)[1].mean() / 768, abs=0.01)


def test_paint_counts_from_half_of_its_strength_on_any_layer():
    one, other = draw_blob(64, 64, 0, 0), draw_blob(64, 64, 40, 30)
    layers = [make_layer(one, alpha=128), make_layer(other)]
    np.testing.assert_array_equal(read_mask(layers, (64, 64)), one | other)
    for layers in ([], [make_layer(one, alpha=127)], [make_layer(one, alpha=0)]):
        with pytest.raises(UnigsError, match="paint over what is to be filled, got none"):
            read_mask(layers, (64, 64))
        with pytest.raises(UnigsError, match="painted regions, got none"):
            read_regions(layers, list_colours())


def test_regions_are_those_of_the_brushes_however_soft_their_edges_are():
    truth = np.zeros((96, 96), np.int32)
    for k in range(1, BRUSHES + 1):  # touching stripes, so that edges mix two colours
        truth[20:70, 12 * k : 12 * k + 12] = k
    colours = np.concatenate([[[0, 0, 0]], list_colours()]).astype(np.uint8)
    sharp = np.concatenate([colours[truth], np.uint8(255) * (truth > 0)[..., None]], -1)
    soft = Image.fromarray(sharp).filter(ImageFilter.BoxBlur(2))
    inner = np.s_[26:64, 16:80]
    np.testing.assert_array_equal(
        read_regions([np.asarray(soft)], list_colours())[inner], truth[inner]
    )
    above = make_layer(truth == 2, colours[5])
    np.testing.assert_array_equal(read_regions([sharp, above], list_colours())[truth == 2], 5)
    with pytest.raises(UnigsError, match="in the colours of the page's brushes"):
        read_regions([make_layer(truth > 0, (90, 90, 90))], list_colours())


def test_brushes_are_as_far_apart_as_edges_are_allowed_to_be():
    colours = list_colours().astype(int)
    apart = np.abs(colours[:, None] - colours).max(-1)[~np.eye(BRUSHES, dtype=bool)]
    assert apart.min() > 50


# --- uploads -------------------------------------------------------------------------------------


def test_uploads_beyond_the_caps_and_other_files_are_refused_in_words(tmp_path, monkeypatch):
    picture = tmp_path / "photo.png"
    Image.new("RGB", (300, 200), "red").save(picture)
    assert check_upload(picture) == (300, 200)
    assert read_upload(str(picture)) == ("photo.png", picture.read_bytes())
    monkeypatch.setattr(uploads, "MAX_PIXELS", 300 * 200 - 1)
    for look in (check_upload, show_upload, show_labels, read_upload):
        with pytest.raises(UnigsError, match=r"megapixels, got 300 x 200 px, at photo.png"):
            look(picture)
    assert max(show_picture(picture).size) == SCREEN_PX  # what we drew may be larger
    monkeypatch.setattr(uploads, "MAX_BYTES", 99)
    show_picture(picture)
    with pytest.raises(UnigsError, match=r"a file of at most 0 MB, got 0.0, at photo.png"):
        check_upload(picture)
    monkeypatch.undo()
    picture.write_text("no picture")
    with pytest.raises(UnigsError, match="a readable picture"):
        check_upload(picture)
    with pytest.raises(UnigsError, match="expected a picture, got none"):
        read_upload(None)


@pytest.mark.parametrize("size", [(3000, 1000), (40, 60)])
def test_the_screen_gets_an_upright_picture_of_one_size(tmp_path, size):
    turned = Image.new("RGB", size, "blue")
    turned.paste("red", (0, 0, size[0] // 2, size[1]))
    exif = turned.getexif()
    exif[ExifTags.Base.Orientation] = 6
    turned.save(tmp_path / "a.jpg", exif=exif, quality=95)
    shown = show_picture(tmp_path / "a.jpg")
    assert max(shown.size) == SCREEN_PX
    assert shown.width / shown.height == pytest.approx(size[1] / size[0], rel=0.01)
    assert check_upload(tmp_path / "a.jpg") == size[::-1]
    top, bottom = (np.asarray(shown)[row].mean(0) for row in (10, -10))
    assert top[0] > 200 > 50 > bottom[0]  # the left half is above


def test_a_label_map_is_shown_in_the_colours_of_its_labels(tmp_path):
    labels = np.zeros((40, 40), np.int32)
    labels[:20], labels[20:, 20:] = 1, 2
    (tmp_path / "a.png").write_bytes(encode_grey16(labels * 300))
    shown = np.asarray(show_labels(tmp_path / "a.png"))
    step = SCREEN_PX // 40
    np.testing.assert_array_equal(
        shown[step // 2 :: step, step // 2 :: step][:40, :40],
        colour_labels(labels).transpose(1, 2, 0),
    )


# --- words and legend ----------------------------------------------------------------------------


def test_the_legend_names_the_masks_of_a_score_in_their_colours():
    segments = [
        {"label": 1, "category": "star", "score": 0.91},
        {"label": 3, "category": "entity", "score": 0.5},
    ]
    legend = list_legend(segments, 0.0)
    assert [line for line, _ in legend.values()] == ["1 star 0.91", "3 entity 0.50"]
    for label, (_, colour) in legend.items():
        shown = bytes(colour_labels(np.full((1, 1), label))[:, 0, 0].tolist())
        assert bytes.fromhex(colour[1:]) == shown
    assert list(list_legend(segments, 0.5)) == [1, 3]
    assert list(list_legend(segments, 0.51)) == [1]
    assert not list_legend(segments, 0.92)


def test_names_belong_to_the_colours_that_were_used():
    labels = np.array([[0, 2], [5, 2]])
    assert name_regions(labels, ["a", " b ", "c", "d", "e", ""]) == ["b", "e"]
    with pytest.raises(UnigsError, match="a name for colour 5, which is painted"):
        name_regions(labels, ["a", "b", "c", "d", " ", ""])
    assert split_words(" traffic light, star,, ") == ["traffic light", "star"]
    with pytest.raises(UnigsError, match="such as heart, moon; got none"):
        split_words(" , ")


# --- the desk ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(pipeline, tmp_path_factory) -> Path:
    """A small joint pipeline that takes one step."""
    quick = {"all": {"num_inference_steps": 1}}
    made = UniGSPipeline(**pipeline.components, palette=pipeline.palette, sampling=quick)
    path = tmp_path_factory.mktemp("demo") / "pipeline"
    made.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def desk(model, tmp_path_factory) -> Desk:
    return Desk(model, "cpu", tmp_path_factory.mktemp("run"))


@pytest.fixture
def asked(tmp_path, monkeypatch) -> dict[str, Ask]:
    """A request for each verb, and their files for the command line."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((140, 90)).save("photo.jpg")
    labels = np.zeros((90, 140), np.int32)
    labels[5:60, 5:70], labels[50:80, 80:130] = 1, 2
    Path("map.png").write_bytes(encode_grey16(labels))
    Path("mask.png").write_bytes(encode_mask(labels == 1))
    photo = "photo.jpg", Path("photo.jpg").read_bytes()
    return {
        "segment": Ask(*photo),
        "find": Ask(*photo, ["star"]),
        "inpaint": Ask(*photo, ["star"], labels == 1),
        "paint": Ask("map.png", Path("map.png").read_bytes(), ["star", "sand"]),
    }


ORDERS = {
    "segment": ["segment", "photo.jpg"],
    "find": ["find", "photo.jpg", "--words", "star"],
    "inpaint": ["inpaint", "photo.jpg", "--words", "star", "--mask", "mask.png"],
    "paint": ["paint", "map.png", "--words", "star", "sand"],
}


@pytest.mark.parametrize("verb", ORDERS)
def test_an_answer_is_that_of_the_verb_byte_for_byte(desk, model, asked, verb):
    answer = desk.answer(verb, asked[verb])
    assert main([*ORDERS[verb], "--out", "out", "--model", str(model)]) == 0
    with zipfile.ZipFile(answer.archive) as archive:
        assert archive.testzip() is None
        archive.extractall("unpacked")
    mine, theirs = Path("unpacked", FOLDERS[verb]), Path("out")
    files = {path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file()}
    assert {path.relative_to(mine) for path in mine.rglob("*") if path.is_file()} == files
    for name in files - {Path("run.json")}:
        assert (mine / name).read_bytes() == (theirs / name).read_bytes(), name
    runs = [json.loads((folder / "run.json").read_text()) for folder in (mine, theirs)]
    for run in runs:
        del run["images"], run["root"]  # where it lay
    assert runs[0] == runs[1]
    key = "map" if verb == "paint" else "photo"
    labels = np.asarray(Image.open(theirs / "labels" / f"{key}.png"))
    assert answer.size == (140, 90)
    assert set(np.unique(answer.labels)) <= set(np.unique(labels))
    shown = Image.fromarray(labels).resize(answer.picture.size, Image.Resampling.NEAREST)
    np.testing.assert_array_equal(answer.labels, np.asarray(shown))
    assert not list(desk.room.iterdir())  # nothing of the request is left


def test_what_cannot_be_answered_is_told_in_words_without_the_folders_of_the_server(desk, asked):
    strip = io.BytesIO()
    Image.new("RGB", (10, 200)).save(strip, "PNG")
    wrong = {
        "at most 8 times as long as wide": ("segment", Ask("strip.png", strip.getvalue())),
        "a readable picture": ("segment", Ask("text.png", b"text")),
        "--words star sand, got none": ("find", Ask("photo.jpg", asked["segment"].data)),
        "only white": (
            "inpaint",
            Ask("photo.jpg", asked["segment"].data, ["star"], np.ones((90, 140), bool)),
        ),
    }
    for words, (verb, ask) in wrong.items():
        with pytest.raises(UnigsError, match=words) as caught:
            desk.answer(verb, ask)
        assert str(desk.room) not in str(caught.value)
    assert not list(desk.room.iterdir())


def test_a_request_that_is_stopped_ends_at_the_next_layer_and_leaves_nothing(desk, asked):
    stops, calls = Stops(), []
    with stops.wait("one", "segment") as one, stops.wait("other", "segment") as other:
        stops.stop("one", "find")
        assert not one.is_set()
        stops.stop("one", "segment")
        assert one.is_set()
        assert not other.is_set()
        stops.stop("other")
        assert other.is_set()
        network = desk.predictor.pipeline.unet
        handle = network.register_forward_hook(lambda *_: calls.append(1))
        with pytest.raises(Stopped):
            desk.answer("segment", asked["segment"], one)
        handle.remove()
    assert not calls
    assert not list(desk.room.iterdir())
    with stops.wait("one", "segment") as again:
        assert not again.is_set()
        desk.answer("segment", asked["segment"], again)


def test_a_stop_reaches_no_other_thread(desk, asked):
    stop = threading.Event()
    stop.set()
    with desks.stop_layers(stop):
        answers = []
        thread = threading.Thread(
            target=lambda: answers.append(desk.answer("segment", asked["segment"]))
        )
        thread.start()
        thread.join()
    assert len(answers) == 1


def test_the_banner_says_what_a_model_can_and_what_its_card_says_first(desk, tmp_path):
    assert "It can: segment, find, inpaint, paint." in desk.describe()
    assert f"of {desk.predictor.side_px} px" in desk.describe()
    assert read_abstract("# Title\n\nOne **two**\nthree.\n\nfour") == "One two three."
    assert read_abstract("") == ""
    named = Desk(Path("pix2seq-d"), "cpu", tmp_path)
    assert named.verbs == ["segment"]
    assert "Model pix2seq-d (Pix2SeqDPredictor), made for pictures of 64 px" in named.describe()
    assert named.describe().endswith("It has never seen a photograph.")
    assert named.read_card().startswith("# Pix2Seq-D")


# --- the verb ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("[::1]", True), ("127.1.2.3", True),
     ("0.0.0.0", False), ("::", False), ("192.168.0.7", False), ("example.org", False)],
)  # fmt: skip
def test_only_loopback_is_taken_for_loopback(host, inside):
    assert serve.is_loopback(host) == inside


def test_without_gradio_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    assert main(["demo"]) == 1
    assert "pip install 'unigs[demo]'" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["-1", "65536"])
def test_a_port_that_cannot_be_is_refused_before_a_model_is_loaded(monkeypatch, capsys, port):
    monkeypatch.setattr(serve, "open_page", lambda *_: pytest.fail("loaded"))
    assert main(["demo", "--port", port]) == 1
    assert f"expected a port of 0 to 65535, got {port}, at --port" in capsys.readouterr().err


def test_a_page_for_other_machines_without_a_password_is_warned_of(monkeypatch):
    monkeypatch.setattr(serve, "open_page", lambda *_: None)
    with pytest.warns(UnigsWarning, match=r"0\.0\.0\.0 is open to everybody"):
        serve.serve_page(host="0.0.0.0")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: pytest.fail("warned"))
        serve.serve_page(host="0.0.0.0", password="secret")
        serve.serve_page()


def test_the_verb_parses_without_torch_and_gradio():
    code = (
        "import sys, unigs.cli, unigs.demo.serve, unigs.demo.uploads, unigs.demo.strokes\n"
        "import unigs.demo.values\n"
        "print(sorted({'torch', 'gradio', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- the page ------------------------------------------------------------------------------------


def list_tabs(page) -> list[str]:
    return [block.label for block in page.blocks.values() if type(block).__name__ == "Tab"]


def test_the_page_has_the_tabs_of_what_a_system_can_do(desk, tmp_path, monkeypatch):
    gradio = pytest.importorskip("gradio")
    from unigs.demo.page import MOST_WAITING, build_page

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "served"))
    GSSPredictor(make_stages().eval(), Settings(32, 0.001)).save(str(tmp_path / "gss"))
    joint = build_page(desk)
    assert list_tabs(joint) == ["Segment", "Find", "Inpaint", "Paint", "By brush", "By a label map"]
    for name in ("pix2seq-d", str(tmp_path / "gss")):
        page = build_page(Desk(Path(name), "cpu", tmp_path / Path(name).name))
        assert list_tabs(page) == ["Segment"]
    assert not joint.analytics_enabled
    assert joint._queue.max_size == MOST_WAITING
    runs = [fn for fn in joint.fns.values() if fn.concurrency_id == "model"]
    assert [fn.concurrency_limit for fn in runs] == [1] * 5  # one request at a time
    assert {fn.api_visibility for fn in joint.fns.values() if fn.fn} <= {"private", "undocumented"}
    editors = [block for block in joint.blocks.values() if isinstance(block, gradio.ImageEditor)]
    assert len(editors) == 2
    assert not any(editor.sources for editor in editors)  # no photo goes into an editor


def test_the_environment_of_the_page_opens_nothing(tmp_path, monkeypatch):
    for name in serve.OPENING:
        monkeypatch.setenv(name, "/")
    for name in (*serve.SETTINGS, "GRADIO_TEMP_DIR", "NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "before")
    serve.set_environment(tmp_path)
    assert not set(serve.OPENING) & set(os.environ)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == "before,localhost,127.0.0.1,::1"
    assert Path(os.environ["GRADIO_TEMP_DIR"]).parent == tmp_path


def test_a_page_is_shared_with_nobody_and_asks_for_the_password():
    pytest.importorskip("gradio")
    from unigs.demo.page import launch_page

    class Recorder:
        def launch(self, **given):
            if given["server_port"] == 1:
                raise OSError("Cannot find empty port")
            self.given = given
            return None, "http://here/", None

    page = Recorder()
    assert launch_page(page, "127.0.0.1", 7860, "secret") == "http://here/"
    assert page.given["auth"] == ("unigs", "secret")
    assert page.given["server_name"] == "127.0.0.1"
    assert page.given["share"] is page.given["mcp_server"] is page.given["run_history"] is False
    assert page.given["max_file_size"] == uploads.MAX_BYTES
    assert "allowed_paths" not in page.given
    launch_page(page, "0.0.0.0", 7860, None)
    assert page.given["auth"] is None
    with pytest.raises(UnigsError, match="a free port, got 'Cannot find empty port', at h port 1"):
        launch_page(page, "h", 1, None)
