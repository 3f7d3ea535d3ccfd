"""A user's masks and words: understood, said, or refused; text from data stays text."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unigs.images import UnreadableImage
from unigs.inputs import count_colours, keep_values, understand_mask
from unigs.pictures import draw_sheet
from unigs.records import TASKS, UnigsError, UnigsWarning, show
from unigs.report import write_report
from unigs.systems.joint.tokens import find_cut
from unigs.systems.sampling import Sampling
from unigs.tasks import RECIPES, write_prompt
from unigs.verbs.request import check_request, read_mask, read_request

SIZE = (40, 56)
HOLE = np.zeros(SIZE, bool)
HOLE[8:24, 16:40] = True
FAST = {"sampling": Sampling(num_inference_steps=1)}


def paint(hole: float, rest: float, dtype: type = np.uint8) -> np.ndarray:
    return np.where(HOLE, hole, rest).astype(dtype)


def layer(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    rgb = colour if colour.ndim == 3 else np.repeat(colour[..., None], 3, -1)
    return Image.fromarray(np.dstack([rgb, alpha]).astype(np.uint8))


def palette(hole: tuple[int, ...], rest: tuple[int, ...], index: int) -> Image.Image:
    """A palette mask whose hole has the number ``index`` and the rest the other."""
    picture = Image.fromarray(paint(index, 1 - index))
    picture = picture.convert("P")
    picture.putpalette([*(rest if index else hole), *(hole if index else rest)])
    return picture


def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def jpeg(values: np.ndarray, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "JPEG", quality=quality)
    return Image.open(buffer)


MASKS = {
    "white on black": lambda: Image.fromarray(paint(255, 0)),
    "an almost black ground": lambda: Image.fromarray(paint(255, 1)),
    "video range": lambda: Image.fromarray(paint(235, 16)),
    "one bit": lambda: Image.fromarray(paint(255, 0)).convert("1"),
    "the number 1": lambda: Image.fromarray(paint(1, 0)),
    "16 bits": lambda: Image.fromarray(paint(65_535, 300, np.uint16)),
    "16 bits, 255": lambda: Image.fromarray(paint(255, 0, np.uint16)),
    "colours": lambda: Image.fromarray(paint(250, 3)).convert("RGB"),
    "palette, white is 0": lambda: palette((255, 255, 255), (0, 0, 0), 0),
    "palette, white is 1": lambda: palette((255, 250, 240), (9, 0, 0), 1),
    "white on nothing": lambda: layer(paint(255, 0), paint(255, 0)),
    "black and white, opaque": lambda: layer(paint(255, 0), paint(255, 255)),
    "white on almost nothing": lambda: layer(paint(255, 255), paint(255, 1)),
    "a photo with a hole": lambda: layer(photo(), paint(0, 255)),
    "one colour with a hole": lambda: layer(paint(0, 0), paint(0, 255)),
    "white with a hole": lambda: layer(paint(255, 255), paint(0, 255)),
    "alpha of 1 for opaque": lambda: layer(paint(0, 0), paint(0, 1)),
    "grey and alpha": lambda: layer(paint(255, 0), paint(255, 0)).convert("LA"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_every_way_to_draw_a_mask_chooses_the_same_pixels(tmp_path, capsys, kind):
    MASKS[kind]().save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", SIZE)
    np.testing.assert_array_equal(mask, HOLE)
    said = capsys.readouterr().out
    assert f"{HOLE.mean():.1%} of the picture" in said


@pytest.mark.parametrize("quality", [10, 30, 75])
def test_noise_of_jpeg_moves_the_border_by_a_pixel_at_most(tmp_path, quality):
    jpeg(paint(255, 0), quality).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", SIZE)
    inner, outer = np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    inner[9:23, 17:39], outer[7:25, 15:41] = True, True
    assert (mask >= inner).all()
    assert (mask <= outer).all()


def test_float_masks_are_read_by_their_range_and_refused_where_not_finite(tmp_path):
    for top in (1.0, 255.0):
        mask, _ = understand_mask(Image.fromarray(paint(top, 0.1, np.float32)))
        np.testing.assert_array_equal(mask, HOLE)
    Image.fromarray(paint(np.nan, 0, np.float32)).save(tmp_path / "mask.tiff")
    with pytest.raises(UnigsError, match=r"finite.*mask\.tiff"):
        read_mask(tmp_path / "mask.tiff", SIZE)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (Image.new("L", SIZE[::-1]), "only black"),
        (Image.new("L", SIZE[::-1], 100), "only black.*highest is 100"),
        (Image.new("L", SIZE[::-1], 255), "only white"),
        (Image.new("RGBA", SIZE[::-1]), "only white.*transparent"),
        (Image.new("L", SIZE, 255), "56 x 40 px, got 40 x 56 px"),
    ],
)
def test_nothing_everything_and_another_size_are_refused(tmp_path, mask, said):
    mask.save(tmp_path / "mask.png")
    with pytest.raises(UnigsError, match=said):
        read_mask(tmp_path / "mask.png", SIZE, may_fill=False)


def test_all_of_a_picture_may_be_searched_but_not_filled(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    Image.new("L", SIZE[::-1], 255).save(tmp_path / "mask.png")
    files = (tmp_path / "photo.png", tmp_path / "mask.png", None)
    assert read_request("referring", *files, ["star"], None).coarse_mask.all()
    with pytest.raises(UnigsError, match="only white"):
        read_request("inpainting", *files, ["star"], None)


# --- words ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [[""], ["star", " "], ["\t\n"], ["-"], ["\udcff"]])
def test_names_without_a_word_are_refused(tmp_path, names):
    Image.fromarray(photo()).save(tmp_path / "photo.png")
    with pytest.raises(UnigsError, match="--words"):
        read_request("referring", tmp_path / "photo.png", None, None, names, None)


@pytest.mark.parametrize("prompt", [" ", "\n", "a \udcff"])
def test_prompts_without_a_word_or_of_no_text_are_refused(prompt):
    with pytest.raises(UnigsError, match="--prompt"):
        check_request("referring", {"image": Path("x")}, None, prompt)


def test_what_a_text_encoder_does_not_read_is_told_once(pipeline):
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    many = [f"star {number}" for number in range(90)]
    long = write_prompt("referring", [*many, "zebra"])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            pipeline.predict("referring", image=image, prompt=long, **FAST)
        pipeline.predict("referring", image=image, prompt="referring: find star.", **FAST)
    told = [str(w.message) for w in caught if w.category is UnigsWarning]
    assert len(told) == 1
    assert "and zebra" in told[0]


@pytest.mark.parametrize("words", [0, 1, 30, 200])
def test_kept_and_cut_words_are_the_whole_prompt(pipeline, words):
    prompt = " ".join(["star"] * words)
    cut = find_cut(pipeline.tokenizer, [prompt], 77).get(prompt, "")
    kept = pipeline.tokenizer(prompt, truncation=True, max_length=77).input_ids[1:-1]
    whole = f"{pipeline.tokenizer.decode(kept)} {cut}".split()
    assert whole == ["star"] * words


HOSTILE = ("{names}", "{0}", "{", "%s %n", "\x1b[31mred\x07", "<b>|x|</b>", "\u202eevil", "\ud800")


@pytest.mark.parametrize("name", HOSTILE)
def test_any_category_name_is_only_text_to_every_task(pipeline, name):
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    labels = torch.ones(1, 32, 32, dtype=torch.int32)
    mask = torch.ones(1, 1, 32, 32, dtype=torch.bool)
    for task in TASKS:
        given = {"labels": labels} if RECIPES[task].context == "colormap" else {"image": image}
        prompt = write_prompt(task, [name])
        assert (name in prompt) == ("{names}" in RECIPES[task].prompt)
        pipeline.predict(task, prompt=prompt, coarse_mask=mask, **given, **FAST)


# --- text from data stays text -------------------------------------------------------------------


@pytest.mark.parametrize("name", [*HOSTILE, "two\nlines", "a\rb", "x\u2028y", "\x00"])
def test_shown_text_is_one_printable_line_and_plain_text_is_itself(name):
    shown = show(name)
    assert shown.isprintable()
    shown.encode("utf-8")
    assert show(shown) == shown
    for plain in ("star", "Straße 日本 é", "a|b <c> {d}"):
        assert show(plain) == plain


def test_a_caption_of_any_text_stays_on_its_line():
    tile = np.zeros((3, 8, 8), np.uint8)
    plain = draw_sheet(("a",), [("", [tile]), ("", [tile])], tile_px=32)
    for caption in (*HOSTILE, "a\nb\nc\nd\ne\nf", "x" * 100_000, "日本"):
        sheet = draw_sheet(("a",), [(caption, [tile]), ("", [tile])], tile_px=32)
        assert sheet.shape == plain.shape
        np.testing.assert_array_equal(sheet[:, 31:], plain[:, 31:])


def write_results(folder: Path, name: str, picture: str = "a.jpg") -> Path:
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "a.jpg")
    pick = {"picture": picture, "part": name, "rating": 0.5, "prompt": name, "key": name}
    figures = {"entity": {"all": {"pictures": 1, "miou": 0.5}}}
    content = {
        "model": name, "inputs": name, "figures": figures, "replaced": {name: 1},
        "judges": {name: name}, "missing": {name: name}, "picks": {"entity": [pick]},
        "curves": {"entity": {"recall": [0.5], "ratings": [0.5]}},
    }  # fmt: skip
    (folder / "results.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize("name", [*HOSTILE, "<script>x()</script>", '"><img src=x>', "a|b\n|c|d|"])
def test_a_report_shows_hostile_names_as_text(tmp_path, name):
    text = write_report(tmp_path / "out", [write_results(tmp_path / "m", name)])
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for tag in ("<script", "<img src=x", "<b>"):
        assert tag not in html
        assert tag not in text.replace("\\<", "")
    for page in (html, text):
        assert all(letter.isprintable() or letter == "\n" for letter in page)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    bars = {line.replace("\\|", "").count("|") for line in rows}
    assert len(bars) == 1


def test_a_report_reads_no_picture_from_elsewhere(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    for name in ("../secret.jpg", str(tmp_path / "secret.jpg")):
        folder = write_results(tmp_path / f"m{len(name)}", "model", name)
        with pytest.raises(UnigsError, match="leaves its folder"):
            write_report(tmp_path / "out", [folder])


@pytest.mark.parametrize(
    ("values", "mode", "words"),
    [([[-1, 0], [1, 2]], "I", "numbers below 0"), ([[0.5, 0], [1, 2]], "F", "not whole")],
)
def test_label_maps_of_other_numbers_are_refused(values, mode, words):
    with pytest.raises(UnreadableImage, match=words):
        keep_values(Image.fromarray(np.array(values, np.int32 if mode == "I" else np.float32)))


def test_numbers_above_255_stay_apart_in_every_mode():
    values = np.array([[0, 255], [256, 300]])
    for kind in (np.uint16, np.int32, np.float32):
        kept = keep_values(Image.fromarray(values.astype(kind)))
        np.testing.assert_array_equal(count_colours(np.asarray(kept)), values)
