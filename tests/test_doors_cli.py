"""However a verb ends, the user gets words and an exit code; nothing half is left behind."""

from __future__ import annotations

import errno
import os
import warnings
from pathlib import Path

import pytest

from unigs import cli
from unigs.cli import main
from unigs.records import UnigsError, UnigsWarning
from unigs.systems import load
from unigs.systems.joint.predictor import JointPredictor

HEART = "\u2665"


CPU_FULL = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9 bytes"


def end_with(monkeypatch, error: BaseException) -> None:
    def fail(verb, words):
        raise error

    monkeypatch.setattr(cli, "run_verb", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UnigsError("expected a, got b, at c"), 1, "expected a, got b, at c"),
        (
            PermissionError(errno.EACCES, "Permission denied", "/a/b"),
            1,
            "Permission denied, at /a/b",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "No space left on device, at x"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, "b"), 1, "at a -> b"),
        (OSError("something else"), 1, "something else"),
        (MemoryError(), 1, "enough memory, got no more"),
        (RuntimeError(CPU_FULL), 1, "enough memory, got no more"),
        (RuntimeError("CUDA out of memory. Tried to allocate 1 GiB"), 1, "enough memory"),
        (RecursionError(), 1, "nested too deeply"),
        (KeyboardInterrupt(), 130, "finished files are kept"),
        (UnigsError("got \x1b[31m \u202e \ud800"), 1, r"got \x1b[31m \u202e \ud800"),
    ],
)
def test_every_end_has_words_and_a_code(monkeypatch, capsys, error, code, said):
    monkeypatch.delenv("UNIGS_TRACEBACK", raising=False)
    end_with(monkeypatch, error)
    assert main(["sample"]) == code
    printed = capsys.readouterr().err
    assert said in printed
    assert printed.startswith("unigs: ")
    assert "Traceback" not in printed
    monkeypatch.setenv("UNIGS_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["sample"])


@pytest.mark.parametrize("bug", [ZeroDivisionError(), RuntimeError("shapes differ")])
def test_a_bug_is_still_a_traceback(monkeypatch, bug):
    end_with(monkeypatch, bug)
    with pytest.raises(type(bug)):
        main(["sample"])


def test_our_warnings_are_one_line_and_others_as_they_were(monkeypatch, capsys):
    def warn(verb, words):
        warnings.warn("one\nline", UnigsWarning, stacklevel=1)
        warnings.warn("theirs", UserWarning, stacklevel=1)

    monkeypatch.setattr(cli, "run_verb", warn)
    before = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        monkeypatch.setattr(
            warnings, "showwarning", lambda *w, **k: print(warnings.formatwarning(*w[:4]))
        )
        assert main(["sample"]) == 0
    printed = capsys.readouterr().out
    assert "unigs: one\\nline\n" in printed
    assert "UserWarning: theirs" in printed
    assert warnings.formatwarning is before


def make_outs(root: Path) -> dict[str, Path]:
    """Places where nothing can be written, for root too."""
    (root / "file").write_text("mine")
    return {
        "in a file": root / "file" / "out",
        "long": root / ("x" * 300),
        "no room for anything": Path("/proc/unigs/out"),
    }


@pytest.mark.parametrize("kind", ["in a file", "long", "no room for anything"])
@pytest.mark.parametrize("verb", ["base", "export", "sheet", "sample"])
def test_an_out_that_cannot_be_written_is_named(
    tmp_path, monkeypatch, capsys, pipeline, shards, verb, kind
):
    out = str(make_outs(tmp_path)[kind])
    monkeypatch.setattr(load, "load_system", lambda *a: Holder(pipeline))
    monkeypatch.setattr("unigs.verbs.export.check_checkpoint", Path)
    monkeypatch.setattr("unigs.systems.joint.pipeline.UniGSPipeline.load", lambda folder: pipeline)
    options = {
        "base": [],
        "export": ["--checkpoint", "x"],
        "sheet": ["--pipeline", "tiny", "--shards", f"[{shards}]", "--scenes.resolution_px", "64",
                  "--scenes.tasks", "[entity]", "--sampling.num_inference_steps", "1"],
        "sample": ["--sampling.num_inference_steps", "1"],
    }[verb]  # fmt: skip
    assert main([verb, *options, "--out", out]) == 1
    said = capsys.readouterr().err
    assert str(Path(out).parent) in said
    assert (tmp_path / "file").read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]


class Holder:
    """Stands for a loaded checkpoint."""

    def __init__(self, pipeline) -> None:
        self.make_predictor = lambda: JointPredictor(pipeline)


def test_a_file_where_a_folder_belongs_is_kept(tmp_path, capsys, monkeypatch, pipeline):
    monkeypatch.setattr(load, "load_system", lambda *a: Holder(pipeline))
    monkeypatch.setattr("unigs.verbs.export.check_checkpoint", Path)
    file = tmp_path / "file"
    file.write_text("mine")
    for words in (["base"], ["export", "--checkpoint", "x"], ["sample"]):
        assert main([*words, "--out", str(file)]) == 1
        assert str(file) in capsys.readouterr().err
    assert file.read_text() == "mine"
    assert os.listdir(tmp_path) == ["file"]
