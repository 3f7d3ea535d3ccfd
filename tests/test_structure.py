"""The shape of the house: import order, module length, quick start, no heavy imports."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1] / "unigs"
MODULES = sorted(path for path in ROOT.rglob("*.py"))

# Left to right, as drawn in the README; a module imports only from groups at or before its own.
ORDER = [
    ["seeds", "records"],
    ["files", "locks", "runs"],
    ["images", "weights"],
    ["annotations", "synthetic"],
    ["shards", "remote", "download"],
    ["plan"],
    ["streams"],
    ["pictures"],
    ["transforms"],
    ["codec"],
    ["tasks"],
    ["data"],
    ["checkpoints"],
    ["promises"],
    ["systems"],
    ["metrics"],
    ["evaluation", "report"],
    ["callbacks"],
    ["recipes"],
    ["verbs"],
    ["cli", "__main__"],
]
RANK = {name: rank for rank, group in enumerate(ORDER) for name in group}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """First-level modules of this package that a file imports, at its top or inside."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            parts = name.split(".")
            if parts[0] == "unigs" and len(parts) > 1:
                found.add(parts[1])
    return found - {"__version__"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_from_right_to_left_only(path):
    if path == ROOT / "__init__.py":
        assert not imported(path)
        return
    mine = name_of(path)
    for other in imported(path):
        assert RANK[other] <= RANK[mine], f"{mine} imports {other}, which lies to its right"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{lines} lines: is there a second subject inside?"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_open_with_their_contract(path):
    if path.read_text().strip():
        assert ast.get_docstring(ast.parse(path.read_text()))


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_readers_and_help_start_without_torch():
    code = """
import sys
import unigs, unigs.cli, unigs.records, unigs.annotations, unigs.synthetic, unigs.shards, unigs.plan
unigs.cli.main(["--help"])
print("heavy:", sorted({"torch", "diffusers", "lightning"} & set(sys.modules)))
"""
    assert "heavy: []" in run_python(code)


def test_the_core_needs_nothing_of_the_eval_extra(tmp_path):
    """In a Python whose site-packages lack torchvision, open_clip, clean-fid and timm."""
    absent = ("torchvision", "open_clip", "cleanfid", "clean_fid", "timm")
    for entry in Path(np.__file__).parents[1].iterdir():
        if not entry.name.startswith(absent):
            (tmp_path / entry.name).symlink_to(entry)
    code = """
import unigs.callbacks, unigs.data, unigs.metrics, unigs.systems.load
import unigs.verbs.export, unigs.verbs.fit
print("fine")
"""
    paths = os.pathsep.join([str(tmp_path), str(ROOT.parent)])
    done = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert "fine" in done.stdout, done.stderr[-2000:]
