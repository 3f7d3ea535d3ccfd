"""The GPU kit on a machine without one: every measurement is a row, whatever becomes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
sys.path.insert(0, str(TOOLS))
import gpu_kit  # noqa: E402
from gpu_kit import TINY, Failed, Size, Worker, list_measurements, write_results  # noqa: E402


def test_every_setting_is_measured_once_the_recipe_first():
    rows = list(list_measurements(Size()))
    kinds = [kind for kind, _ in rows]
    assert len({json.dumps(row, sort_keys=True) for row in rows}) == len(rows)
    alone = [about for kind, about in rows if not about.get("beside_plain", True)]
    assert len(alone) == 2 * 2 * 3 * 2 * 4
    beside = [about for _, about in rows if about.get("beside_plain")]
    assert len({(about["side_px"], about["batch"]) for about in beside}) == len(beside) == 4
    assert kinds[:5] == ["decode", "paint", "step, live", "step, cached", "tests"]
    whole = [about.get("compile") == "whole" for _, about in rows]
    assert whole == sorted(whole)


def test_goals_and_reasons_stand_in_the_table(tmp_path):
    about = {"side_px": 32, "batch": 2}
    rows = [
        ("decode", {}, {"images_per_s": 2500.0, "peak_gib": 4.5}, None),
        ("step, live", about, {"images_per_s": 9, "plain_images_per_s": 10, "ratio": 0.98}, None),
        ("step, cached", about, {"images_per_s": 20.0, "mfu": 0.3}, None),
        ("step, cached", {"side_px": 64, "batch": 2}, {}, "out of memory: a | b"),
    ]  # fmt: skip
    names = ("kind", "about", "found", "failed")
    write_results(tmp_path, {"device": "none"}, [dict(zip(names, row)) for row in rows])
    lines = (tmp_path / "gpu_kit.md").read_text().splitlines()[-4:]
    assert lines[0].endswith("images_per_s >= 2000: yes; peak_gib < 4: **no** |")
    assert lines[1].endswith("ratio 0.98 | ratio >= 0.97: yes |")
    assert "of_plain 2 |" in lines[2]
    assert lines[2].endswith("mfu >= 0.45: **no** |")
    assert "none: out of memory: a / b |" in lines[3]
    assert len(json.loads((tmp_path / "gpu_kit.json").read_text())["rows"]) == 4


def test_a_run_that_is_cut_leaves_what_it_had_and_goes_on_with_the_rest(tmp_path, monkeypatch):
    asked: list = []
    idle = SimpleNamespace(start=lambda: None, kill=lambda: None)
    context = SimpleNamespace(Process=lambda **_: idle)
    monkeypatch.setattr(gpu_kit.multiprocessing, "get_context", lambda _: context)
    monkeypatch.setattr(gpu_kit, "train", lambda *_: {"loss": 1.0})
    monkeypatch.setattr(gpu_kit, "run_tests", lambda *_: {"passed": 8.0})

    def ask(self, kind, about, limit_s):
        asked.append((kind, about))
        if len(asked) == 4:
            raise KeyboardInterrupt
        if len(asked) == 2:
            raise Failed("out of memory")
        return {"ms": 1.0}

    monkeypatch.setattr(Worker, "ask", ask)
    read = lambda: json.loads((tmp_path / "gpu_kit.json").read_text())["rows"]
    with pytest.raises(KeyboardInterrupt):
        gpu_kit.run_kit(tmp_path, TINY, 60)
    assert [row["failed"] for row in read()] == [None, "out of memory", None]
    first = asked[:3]
    gpu_kit.run_kit(tmp_path, TINY, 0)
    assert len(asked) == 4
    assert [row["failed"] for row in read()[2:-1]] == ["no time left"] * (len(read()) - 3)
    gpu_kit.run_kit(tmp_path, TINY, 60)
    assert asked[4] == first[1]
    assert first[0] not in asked[4:]
    assert first[2] not in asked[4:]
    assert len(read()) == len(list(list_measurements(TINY))) + 1
    assert not [row for row in read() if row["failed"]]


@pytest.mark.slow
def test_what_fails_or_hangs_is_told_and_the_next_one_is_measured(tmp_path):
    worker = Worker(TINY, tmp_path)
    try:
        with pytest.raises(Failed, match="not done within 0 s"):
            worker.ask("decode", {}, 0.1)
        with pytest.raises(Failed, match="UnigsError: expected a whole number of 1 or more"):
            worker.ask("sample", {"num_inference_steps": 0}, 900)
        assert worker.ask("paint", {}, 900)["ms"] > 0
    finally:
        worker.end()


@pytest.mark.slow
def test_the_kit_runs_to_its_end(tmp_path):
    """Every measurement at tiny shapes; a GPU's tests are skipped; training goes three steps."""
    words = [str(TOOLS / "gpu_kit.sh"), "run", str(tmp_path), str(tmp_path / "out")]
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", *words, "--tiny", "--minutes", "60"]
    subprocess.run(command, env=environment, check=True, timeout=3600)
    rows = json.loads((tmp_path / "out" / "gpu_kit.json").read_text())["rows"]
    assert [row["kind"] for row in rows] == [kind for kind, _ in list_measurements(TINY)] + [
        "train"
    ]
    assert not [row for row in rows if row["failed"]]
    assert "train/loss" in rows[-1]["found"]
    table = (tmp_path / "out" / "gpu_kit.md").read_text()
    assert len(table.splitlines()) == 4 + len(rows)
