"""The report: numbers where they belong, nothing outside of one file, opened in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from jsonargparse import auto_cli
from PIL import Image

from unigs.evaluation.options import Scenes
from unigs.evaluation.tables import PAPER
from unigs.records import UnigsError
from unigs.report import draw_svg, write_report
from unigs.verbs.evaluate import evaluate_models

SCENES = Scenes(samples_per_task=4, resolution_px=64, batch_size=4, num_workers=0)


@pytest.fixture(scope="module")
def report(shards, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    evaluate_models(["oracle", "floor-empty", "floor-random"], [shards], str(out), SCENES)
    return out


def test_numbers_stand_beside_the_papers(report):
    text = (report / "report.md").read_text()
    results = json.loads((report / "oracle" / "results.json").read_text())
    entity = results["figures"]["entity"]["all"]
    (line,) = [row for row in text.split("Table 6")[1].splitlines() if "**oracle**" in row]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    intervals = results["intervals"]["entity"]["all"]

    def tell(name):
        low, high = intervals[name]
        return f"{entity[name]:.3f} ± {(high - low) / 2:.3f}"

    assert cells[1:4] == [tell(name) for name in ("miou", "recall", "ap")]
    assert cells[-3:] == [tell(name) for name in ("class_miou", "class_macc", "class_pq")]
    (line,) = [row for row in text.split("Table 6")[1].splitlines() if "**floor-random**" in row]
    assert [cell.strip() for cell in line.strip("|").split("|")][-3:] == [""] * 3
    assert "pass --judges.inception_weights FILE" in text
    for table in PAPER:
        assert table.title in text
        assert all(len(values) <= len(table.columns) for _, values in table.rows)


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({}, False),  # drawings at 64 px
        ({"resolution_px": 512}, False),  # drawings
        ({"licences": {"coco-panoptic-val": "CC BY 4.0"}}, False),  # small
        ({"resolution_px": 512, "licences": {"coco-panoptic-val": "CC BY 4.0"}}, True),
    ],
)
def test_the_papers_rows_stand_only_beside_pictures_like_its_own(report, tmp_path, changes, shown):
    folder = tmp_path / "oracle"
    shutil.copytree(report / "oracle", folder)
    results = json.loads((folder / "results.json").read_text())
    assert results["data"]["resolution_px"] == 64
    results["data"] |= changes
    (folder / "results.json").write_text(json.dumps(results))
    text = write_report(tmp_path, [folder])
    assert ("| CropFormer (paper) | 0.664 | 0.727 | 0.449 |" in text) == shown
    page = (tmp_path / "report.html").read_text()
    assert ("CropFormer (paper)" in page) == shown
    assert ("The paper's rows are left out" in text) != shown


def test_models_are_compared_with_the_first(report):
    found = json.loads((report / "differences.json").read_text())
    assert found["from"] == "oracle"
    one = found["models"]["floor-empty"]["entity"]["all"]["miou"]
    low, high = one["interval"]
    assert one["differs"]
    assert low <= one["difference"] <= high < 0
    told = f"**{one['difference']:+.3f} ± {(high - low) / 2:.3f}**"
    table = (report / "report.md").read_text().split("Table 6")[1].split("Less oracle")[1]
    (line,) = [row for row in table.splitlines() if row.startswith("| floor-empty")]
    assert line.split(" | ")[1] == told
    assert told.strip("*") in (report / "report.html").read_text()
    assert "floor-random" in found["models"]
    assert "class_miou" not in found["models"]["floor-random"]["entity"]["all"]


def test_every_row_has_as_many_cells_as_its_table(report):
    for block in (report / "report.md").read_text().split("## ")[1:]:
        widths = {line.count("|") for line in block.splitlines() if line.startswith("|")}
        assert len(widths) == 1


def test_the_page_needs_nothing_outside_of_itself(report):
    page = (report / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert not re.search(r"https?://|@import|url\(", page)
    assert page.count("data:image/jpeg;base64,") >= 3 * 4
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()


def test_results_of_other_inputs_are_not_put_side_by_side(report, shards, tmp_path):
    evaluate_models(["oracle"], [shards], str(tmp_path), replace(SCENES, seed=1))
    with pytest.raises(UnigsError, match="same inputs"):
        write_report(tmp_path, [report / "oracle", tmp_path / "oracle"])
    with pytest.raises(UnigsError, match=r"results\.json"):
        write_report(tmp_path, [tmp_path])


def test_prompts_are_text_and_never_markup(report, tmp_path):
    folder = tmp_path / "oracle"
    shutil.copytree(report / "oracle", folder)
    results = json.loads((folder / "results.json").read_text())
    results["picks"]["entity"][0]["prompt"] = "<script>alert(1)</script>"
    (folder / "results.json").write_text(json.dumps(results))
    write_report(tmp_path, [folder])
    assert "<script" not in (tmp_path / "report.html").read_text()


def test_curves_end_where_their_values_are_and_axes_say_what_they_are():
    drawing = draw_svg("t<", "share", (0.5, 1.0), {"a": [0.0, 1.0], "b<": []})
    assert 'points="40.0,200.0 420.0,40.0"' in drawing
    assert "b&lt;" in drawing
    assert "t&lt;" in drawing
    root = ElementTree.fromstring(drawing)
    ticks = [node for node in root.iter("text") if node.get("class") == "tick"]
    told = lambda anchor: [node for node in ticks if node.get("text-anchor") == anchor]
    x = {float(node.text): float(node.get("x")) for node in told("middle")}
    y = {float(node.text): float(node.get("y")) - 4 for node in told("end")}
    assert x == pytest.approx({v: 40 + (v - 0.5) / 0.5 * 380 for v in (0.5, 0.6, 0.7, 0.8, 0.9, 1)})
    assert y == pytest.approx({v: 200 - v * 160 for v in (0, 0.2, 0.4, 0.6, 0.8, 1)})


def test_the_signature_is_the_command_line(shards, tmp_path):
    words = ["--models", '["floor-empty"]', "--shards", json.dumps([shards]), "--out"]
    words += [str(tmp_path), "--scenes.samples_per_task=2"]
    words += ["--scenes.resolution_px=64", "--scenes.num_workers=0"]
    auto_cli(evaluate_models, args=[*words, "--scenes.tasks", '["entity"]'], as_positional=False)
    assert "**floor-empty**" in (tmp_path / "report.md").read_text()
    with pytest.raises(UnigsError, match=r"model_index\.json"):
        auto_cli(evaluate_models, args=[*words, '--models=["nowhere"]'], as_positional=False)


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium on PATH")
def test_a_real_browser_opens_it_from_disk(report, tmp_path):
    probe = """<script>addEventListener("load", () => {
      const images = [...document.images], box = e => e.getBoundingClientRect();
      document.title = JSON.stringify({
        images: images.length, loaded: images.filter(i => i.naturalWidth > 9).length,
        curves: [...document.querySelectorAll("polyline")].filter(p => box(p).width > 9).length,
        rows: document.querySelectorAll("tr.ours").length,
        wide: document.documentElement.scrollWidth <= innerWidth})})</script>"""
    page = tmp_path / "report.html"
    page.write_text((report / "report.html").read_text().replace("</body>", probe + "</body>"))
    options = ["headless", "no-sandbox", "disable-gpu", "disable-background-networking"]
    options += ["disable-component-update", "disable-sync", "no-first-run", "window-size=1280,1600"]
    command = [
        "chromium",
        *(f"--{option}" for option in options),
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    done = subprocess.run(
        [*command, "--dump-dom", f"file://{page}"], capture_output=True, text=True, timeout=60
    )
    seen = json.loads(re.search(r"<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"'))
    assert seen["images"] == seen["loaded"] >= 3 * 4 * 3
    assert seen["rows"] == 3 * len(PAPER)
    assert seen["curves"] >= 3 * len(PAPER)
    assert seen["wide"]
    shot = tmp_path / "page.png"
    subprocess.run(
        [*command, f"--screenshot={shot}", f"file://{page}"], capture_output=True, timeout=60
    )
    assert np.asarray(Image.open(shot).convert("L")).std() > 5
