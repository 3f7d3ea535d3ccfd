"""The page in a real browser: strokes, uploads, two users, stopping, downloads, no outside request.

Marked ``browser``: Debian's chromium with playwright (``make test-browser``).
"""

from __future__ import annotations

import re
import shutil
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from unigs.demo.uploads import MAX_BYTES, SCREEN_PX
from unigs.records import Batch, Prediction

sync_api = pytest.importorskip("playwright.sync_api")
pytest.importorskip("gradio")

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE_MS = 120_000
SETTLE_MS = 3000
"""An editor draws itself anew after its picture came; nothing tells when it has."""

SIDE_PX = 64


class Tracer:
    """Answers with what it was asked: the mask is the hole, or what is brighter than half.

    ``layers`` are gone through first, as those of a network would be.
    """

    name, tasks, options = "tracer", ("inpainting", "synthesis", "referring", "entity"), {}
    decoders, side_px, multiple_px = ("own",), SIDE_PX, 8

    def __init__(self) -> None:
        self.layer = torch.nn.Identity()
        self.layers, self.begun = 1, 0

    def __call__(self, batch: Batch) -> Prediction:
        self.begun += 1
        for _ in range(self.layers):
            self.layer(batch.image)
            time.sleep(0.02 if self.layers > 1 else 0)
        task = self.tasks[int(batch.task[0])]
        labels = (batch.image.float().mean(1) > 127).int()
        if task == "inpainting":
            labels = batch.coarse_mask[:, 0].int()
        elif task == "synthesis":
            labels = batch.labels
        image = torch.where(labels[:, None] > 0, 255 - batch.image, batch.image)
        scores = [[1 - k / 10 for k in range(int(one.max()))] for one in labels]
        return Prediction(image=image, colormap=image, labels=labels, scores=scores)


@pytest.fixture(scope="module")
def tracer() -> Tracer:
    return Tracer()


@pytest.fixture(scope="module")
def address(tracer, tmp_path_factory):
    from unigs.demo.serve import set_environment

    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", "")
        set_environment(folder)
        from unigs.demo import desk, page

        patch.setattr(desk, "load_predictor", lambda *_, **__: tracer)
        served = page.build_page(desk.Desk(None, "cpu", folder))
        yield page.launch_page(served, "127.0.0.1", 7899, None)
        served.close()


@pytest.fixture(scope="module")
def browser():
    path = next(filter(None, map(shutil.which, NAMES)), None)
    with sync_api.sync_playwright() as playwright:
        try:
            made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"no chromium: {error}")
        yield made
        made.close()


@pytest.fixture
def visit(browser, address):
    """Open the page at a tab, as a user of one's own; what each asked for is in ``asked``."""
    contexts = []

    def open_tab(tab: str):
        context = browser.new_context(viewport={"width": 1280, "height": 1100})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(address)
        page.get_by_role("tab", name=tab, exact=True).click()
        return page

    yield open_tab
    for context in contexts:
        context.close()


def upload(page, key: str, path: Path) -> None:
    page.locator(f"#{key}-upload input[type=file]").set_input_files(path)


def read_status(page, key: str) -> str:
    return page.locator(f"#{key}-status textarea").input_value()


def wait_status(page, key: str, words: str) -> str:
    sync_api.expect(page.locator(f"#{key}-status textarea")).to_have_value(
        re.compile(words), timeout=PATIENCE_MS
    )
    return read_status(page, key)


def fetch_files(page, key: str, folder: Path) -> Path:
    with page.expect_download() as waiting:
        page.locator(f"#{key}-download").click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        archive.extractall(folder)
    return path.with_suffix("")


def draw_square(path: Path, side: int, size=(96, 64)) -> Path:
    """A white square of ``side`` on black."""
    pixels = np.zeros((*size[::-1], 3), np.uint8)
    pixels[8 : 8 + side, 8 : 8 + side] = 255
    Image.fromarray(pixels).save(path)
    return path


def drag(page, key: str, start, end) -> float:
    """A stroke between two places, shares of the editor's sides; its length on the screen."""
    canvas = page.locator(f"#{key}-editor canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in (start, end)]
    page.mouse.move(*places[0])
    page.mouse.down()
    page.mouse.move(*places[1], steps=12)
    page.mouse.up()
    return float(np.hypot(*np.subtract(*places)))


def test_the_page_asks_nobody_else_for_anything(visit, address):
    page = visit("Segment")
    page.locator("#banner").wait_for()
    page.wait_for_timeout(SETTLE_MS)  # a line to its server stays open: no network is ever idle
    outside = [url for url in page.asked if not url.startswith((address, "data:", "blob:"))]
    assert page.asked
    assert not outside
    assert "It can: segment, find, inpaint, paint." in page.locator("#banner").inner_text()
    for path in ("/etc/passwd", str(Path(__file__).resolve()), "README.md"):
        assert page.request.get(f"{address}gradio_api/file={path}").status in (403, 404)


def test_masks_legend_and_files_are_those_of_the_picture(visit, tmp_path):
    page = visit("Segment")
    upload(page, "segment", draw_square(tmp_path / "square.png", 40))
    page.locator("#segment-preview img").wait_for()
    page.locator("#segment-run").click()
    wait_status(page, "segment", "masks: 1, of 96 x 64 px")
    legend = page.locator("#segment-masks").get_by_text("1 entity 1.00")
    legend.wait_for()
    folder = fetch_files(page, "segment", tmp_path / "files")
    labels = np.asarray(Image.open(folder / "labels" / "square.png"))
    white = np.asarray(Image.open(tmp_path / "square.png").convert("L")) > 127
    np.testing.assert_array_equal(labels, white)


def test_a_stroke_of_the_brush_gives_its_share_and_none_asks_to_paint(visit, tmp_path):
    page = visit("Inpaint")
    upload(page, "inpaint", draw_square(tmp_path / "photo.png", 20, (1200, 800)))
    page.locator("#inpaint-words").locator("input, textarea").fill("star")
    page.locator("#inpaint-editor canvas").first.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    page.locator("#inpaint-run").click()
    wait_status(page, "inpaint", "expected paint over what is to be filled, got none")
    percent = page.locator("#inpaint-editor").get_by_text(re.compile(r"^\s*\d+%")).inner_text()
    css_px = drag(page, "inpaint", (0.35, 0.5), (0.65, 0.5))
    page.locator("#inpaint-run").click()
    wait_status(page, "inpaint", "of 1200 x 800 px")
    folder = fetch_files(page, "inpaint", tmp_path / "files")
    drawn = np.asarray(Image.open(folder / "images" / "photo.png"))
    hole = (drawn != np.asarray(Image.open(tmp_path / "photo.png"))).any(-1)
    (top, left), (bottom, right) = np.argwhere(hole).min(0), np.argwhere(hole).max(0) + 1
    thick, length = bottom - top, css_px * 100 / int(percent[:-1]) * 1200 / SCREEN_PX
    assert right - left - thick == pytest.approx(length, rel=0.06)
    assert hole.sum() == pytest.approx(length * thick + np.pi / 4 * thick**2, rel=0.06)
    assert (top + bottom) / 2 == pytest.approx(400, abs=40)
    assert (left + right) / 2 == pytest.approx(600, abs=40)
    found = np.asarray(Image.open(folder / "labels" / "photo.png")) > 0
    assert (hole & found).sum() / (hole | found).sum() > 0.95


def test_regions_in_colours_need_names_and_become_the_label_map(visit, tmp_path):
    page = visit("Paint")
    page.locator("#paint-editor canvas").first.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    drag(page, "paint", (0.4, 0.5), (0.6, 0.5))
    page.locator("#paint-run").click()
    wait_status(page, "paint", "expected a name for colour 1, which is painted, got none")
    page.locator("#word-1").locator("input, textarea").fill("star")
    page.locator("#paint-run").click()
    wait_status(page, "paint", f"masks: 1, of {SIDE_PX} x {SIDE_PX} px")
    folder = fetch_files(page, "paint", tmp_path / "files")
    labels = np.asarray(Image.open(folder / "labels" / "regions.png"))
    assert set(np.unique(labels)) == {0, 1}
    assert labels[SIDE_PX // 2, SIDE_PX // 2] == 1
    assert labels[:8].max() == 0


def test_an_upload_beyond_the_caps_is_refused_in_words(visit, tmp_path):
    page = visit("Segment")
    heavy = tmp_path / "heavy.png"
    heavy.write_bytes(b"\0" * (MAX_BYTES + 1))
    upload(page, "segment", heavy)
    page.get_by_text("exceed the maximum allowed size").wait_for()
    page.reload()
    large = tmp_path / "large.png"
    Image.new("1", (6000, 5000)).save(large)
    upload(page, "segment", large)
    wait_status(page, "segment", "at most 25 megapixels, got 6000 x 5000 px, at large.png")
    page.locator("#segment-run").click()
    wait_status(page, "segment", "at most 25 megapixels")
    (tmp_path / "text.png").write_text("no picture")
    page.reload()
    upload(page, "segment", tmp_path / "text.png")
    wait_status(page, "segment", "expected a readable picture")


def test_two_users_get_their_own_answers(visit, tracer, tmp_path, monkeypatch):
    monkeypatch.setattr(tracer, "layers", 50)  # a second, so that both wait at once
    sides = {"one": 16, "other": 48}
    pages = {name: visit("Segment") for name in sides}
    for name, page in pages.items():
        upload(page, "segment", draw_square(tmp_path / f"{name}.png", sides[name]))
        page.locator("#segment-preview img").wait_for()
    for page in pages.values():
        page.locator("#segment-run").click()
    for name, page in pages.items():
        wait_status(page, "segment", "masks: 1, of 96 x 64 px")
        folder = fetch_files(page, "segment", tmp_path / f"files-{name}")
        assert [path.stem for path in (folder / "labels").iterdir()] == [name]
        labels = np.asarray(Image.open(folder / "labels" / f"{name}.png"))
        assert labels.sum() == sides[name] ** 2


def test_stop_ends_the_work_and_leaves_the_queue(visit, tracer, tmp_path, monkeypatch):
    monkeypatch.setattr(tracer, "layers", 10**6)  # hours
    runs, waits = visit("Segment"), visit("Segment")
    for page in (runs, waits):
        upload(page, "segment", draw_square(tmp_path / "square.png", 20))
        page.locator("#segment-preview img").wait_for()
    before = tracer.begun
    runs.locator("#segment-run").click()
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while tracer.begun == before and time.monotonic() < deadline:
        time.sleep(0.05)
    waits.locator("#segment-run").click()
    waits.wait_for_timeout(SETTLE_MS)
    waits.locator("#segment-stop").click()
    wait_status(waits, "segment", "Stopped.")
    runs.locator("#segment-stop").click()
    wait_status(runs, "segment", "Stopped.")
    monkeypatch.setattr(tracer, "layers", 1)
    runs.locator("#segment-run").click()
    wait_status(runs, "segment", "masks: 1, of 96 x 64 px")
    assert tracer.begun == before + 2  # the one that waited was never begun


def test_the_slider_hides_masks_below_a_score(visit, tmp_path):
    page = visit("Paint")
    page.get_by_role("tab", name="By a label map", exact=True).click()
    labels = np.zeros((64, 64), np.uint8)
    labels[4:30, 4:30], labels[34:60, 34:60] = 1, 2
    Image.fromarray(labels).save(tmp_path / "map.png")
    upload(page, "map", tmp_path / "map.png")
    page.locator("#map-words").locator("input, textarea").fill("star, sand")
    page.locator("#map-run").click()
    wait_status(page, "map", "masks: 2, of 64 x 64 px")
    low = page.locator("#map-masks").get_by_text("2 entity 0.90")
    low.wait_for()
    page.locator("#map-score input[type=number]").fill("0.95")
    low.wait_for(state="detached")
    assert page.locator("#map-masks").get_by_text("1 entity 1.00").is_visible()


def test_a_photograph_of_twelve_megapixels_can_be_painted_on_and_keeps_its_size(visit, tmp_path):
    page = visit("Inpaint")
    noise = np.random.default_rng(0).integers(0, 256, (75, 100, 3), dtype=np.uint8)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(noise).resize((4000, 3000)).save(photo, quality=92)
    upload(page, "inpaint", photo)
    page.locator("#inpaint-editor canvas").first.wait_for()
    page.wait_for_timeout(SETTLE_MS)
    drag(page, "inpaint", (0.4, 0.5), (0.6, 0.5))
    page.locator("#inpaint-words").locator("input, textarea").fill("star")
    page.locator("#inpaint-run").click()
    wait_status(page, "inpaint", "of 4000 x 3000 px")
    folder = fetch_files(page, "inpaint", tmp_path / "files")
    assert Image.open(next((folder / "images").iterdir())).size == (4000, 3000)


def test_a_page_with_a_password_shows_nothing_before_it(browser, tracer, tmp_path, monkeypatch):
    from unigs.demo import desk, page

    monkeypatch.setattr(desk, "load_predictor", lambda *_, **__: tracer)
    served = page.build_page(desk.Desk(None, "cpu", tmp_path))
    address = page.launch_page(served, "127.0.0.1", 7898, "secret")
    context = browser.new_context()
    try:
        visitor = context.new_page()
        visitor.set_default_timeout(PATIENCE_MS)
        assert visitor.request.get(f"{address}config").status == 401
        visitor.goto(address)
        for password, seen in (("wrong", "Incorrect"), ("secret", "Segment")):
            visitor.get_by_label("username").fill("unigs")
            visitor.get_by_label("password").fill(password)
            visitor.get_by_role("button", name="Login").click()
            visitor.get_by_text(seen).first.wait_for()
    finally:
        context.close()
        served.close()
