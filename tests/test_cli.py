"""Verbs, errors in words, exit codes; doctor and sheet."""

from __future__ import annotations

import functools
from importlib import import_module

import numpy as np
import pytest
from PIL import Image

from unigs import __version__
from unigs.cli import TRAINING, VERBS, find_verb, main
from unigs.pictures import SHEET_TITLES, blend_labels, colour_labels, draw_sheet
from unigs.records import UnigsError
from unigs.verbs import doctor


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_every_verb_leads_to_a_documented_function(verb, capsys):
    module, function = VERBS[verb][0].split(":")
    assert getattr(import_module(module), function).__doc__
    with pytest.raises(SystemExit) as stop:
        main([*verb.split(), "--help"])
    assert stop.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_a_verb_of_a_run_gets_the_config_that_is_named(monkeypatch):
    """``--config`` is the parser's own name for a file of options, and this verb's for its run."""
    module = import_module("unigs.verbs.latents")
    came = {}

    @functools.wraps(module.write_latents)
    def keep(**options):
        came.update(options)

    monkeypatch.setattr(module, "write_latents", keep)
    assert not main(["latents", "--config", "a.yaml", "--config", "b.yaml", "--out", "x"])
    assert came["config"] == ["a.yaml", "b.yaml"]
    assert came["out"] == "x"


def test_the_longest_verb_wins():
    assert find_verb(["shards", "verify", "--out", "x"]) == "shards verify"
    assert find_verb(["shards", "--out", "x"]) == "shards"
    assert find_verb(["nothing"]) is None


def test_help_names_every_verb(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in (*VERBS, *TRAINING))
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_bad_input_ends_in_words_and_a_code(capsys, tmp_path):
    assert main(["shards", "--coco", str(tmp_path / "none"), "--out", str(tmp_path / "o")]) == 1
    assert str(tmp_path / "none") in capsys.readouterr().err
    assert main(["dance"]) == 2
    assert "dance" in capsys.readouterr().err


def test_a_misspelt_key_is_named_with_its_path(capsys):
    with pytest.raises(SystemExit) as stop:
        main(
            [
                "fit",
                "--model=unigs.systems.UniGS",
                "--model.base=x",
                "--model.optimizer.learning_rte=1",
            ]
        )
    assert stop.value.code == 2
    assert "learning_rte" in capsys.readouterr().err


def test_doctor_reports_a_stolen_command_and_broken_packages(monkeypatch):
    class Stranger:
        metadata = {"Name": "lightning-sdk"}  # noqa: RUF012
        entry_points = [type("E", (), {"group": "console_scripts", "name": "lightning"})]  # noqa: RUF012

    monkeypatch.setattr(doctor.metadata, "distributions", lambda: [Stranger])
    assert doctor.check_command()[0] == "trouble"
    assert "lightning-sdk" in doctor.check_command()[1]

    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "import_module", fail)
    assert doctor.check_torchvision()[0] == "trouble"
    assert "nms" in doctor.check_torchvision()[1]
    assert doctor.check_core()[0] == "trouble"


def test_doctor_names_the_versions_of_what_is_there(monkeypatch):
    def find(name):
        if name == "diffusers":
            raise doctor.metadata.PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(doctor.metadata, "version", find)
    level, words = doctor.check_versions()
    assert level == "ok"
    assert words.startswith(
        f"unigs {__version__}, torch 1.2.3, lightning 1.2.3, transformers 1.2.3"
    )


def test_doctor_fails_only_on_trouble(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "CHECKS", (lambda: ("ok", "a"), lambda: ("note", "b")))
    doctor.report_health()
    monkeypatch.setattr(doctor, "CHECKS", (lambda: ("trouble", "c"),))
    with pytest.raises(UnigsError, match="found 1"):
        doctor.report_health()
    assert "TROUBLE c" in capsys.readouterr().out


def test_an_unwritable_cache_is_trouble(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file" / "cache"))
    assert doctor.check_cache()[0] == "trouble"


def test_an_unwritable_folder_of_copies_is_noted(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNIGS_CACHE", str(tmp_path / "file" / "cache"))
    level, words = doctor.check_copies()
    assert level == "note"
    assert "UNIGS_CACHE" in words


def test_labels_get_distinct_colours_and_black():
    table = colour_labels(np.arange(60).reshape(1, 60))[:, 0].T
    assert len(np.unique(table, axis=0)) == 60
    assert not table[0].any()
    picture = np.full((3, 1, 60), 77, np.uint8)
    assert (blend_labels(picture, np.arange(60).reshape(1, 60))[:, 0, 0] == 77).all()


def test_a_sheet_shows_every_tile_where_it_belongs():
    tiles = [np.full((3, 8, 8), value, np.uint8) for value in (10, 200)]
    sheet = draw_sheet(("a", "b"), [("one", tiles), ("two", tiles[::-1])], tile_px=32)
    values, counts = np.unique(sheet[0], return_counts=True)
    for value in (10, 200):
        assert counts[values == value].sum() >= 2 * 32 * 32
    with pytest.raises(UnigsError, match="2 pictures"):
        draw_sheet(("a", "b"), [("one", tiles[:1])])


def test_sheet_renders_all_tasks_from_a_pipeline_and_shards(pipeline, shards, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipe")
    out = tmp_path / "sheet.png"
    words = ["--pipeline", str(tmp_path / "pipe"), "--shards", f"[{shards}]", "--out", str(out)]
    assert main(["sheet", *words, "--sampling.num_inference_steps", "1"]) == 0
    with Image.open(out) as sheet:
        assert sheet.width > len(SHEET_TITLES) * 128
        assert sheet.height > 4 * 128
        whole_px = sheet.height
    assert (
        main(["sheet", *words, "--scenes.resolution_px", "64", "--scenes.tasks", "[entity]"]) == 0
    )
    with Image.open(out) as sheet:
        assert 128 < sheet.height < whole_px / 3
