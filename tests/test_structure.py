"""The shape of the house: import order, module length, quick start, no heavy imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "unigs"
MODULES = sorted(path for path in ROOT.rglob("*.py"))

# Left to right, as drawn in the README; a module imports only from groups at or before its own.
ORDER = [
    ["seeds", "records"],
    ["noise"],
    ["files", "locks", "runs", "signals"],
    ["images", "weights"],
    ["inputs"],
    ["annotations", "synthetic"],
    ["shards", "remote", "download"],
    ["plan", "loaders"],
    ["streams"],
    ["pictures"],
    ["outputs"],
    ["transforms"],
    ["codec"],
    ["tasks"],
    ["latents", "windows", "batches"],
    ["data"],
    ["checkpoints", "sharding"],
    ["promises"],
    ["systems"],
    ["metrics"],
    ["evaluation", "report"],
    ["callbacks"],
    ["recipes"],
    ["verbs"],
    ["demo"],
    ["cli", "__main__"],
]
RANK = {name: rank for rank, group in enumerate(ORDER) for name in group}


@cache
def read_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """First-level modules of this package that a file imports, at its top or inside."""
    found = set()
    for node in ast.walk(read_tree(path)):
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


def test_trainer_and_evaluation_know_systems_and_none_of_their_kinds():
    """The loaders and the task verb of the joint model aside, only its own room names it."""
    know = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if "unigs.systems.joint" in path.read_text() and path.parent != ROOT / "systems" / "joint"
    }
    assert know == {
        "systems/__init__.py", "systems/load.py", "verbs/tryout.py",
        "evaluation/baselines/diffusion.py",  # stock Stable Diffusion
        "evaluation/predictors.py",  # the VAE of an oracle
        "recipes/autoencoder.py", "recipes/bases.py",
    }  # fmt: skip

    know = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if "unigs.systems.gss" in path.read_text() and path.parent != ROOT / "systems" / "gss"
    }
    makers = {"recipes/maskige.py", "recipes/vq.py"}
    assert know == {"systems/__init__.py", "systems/load.py", *makers}


def test_only_the_loaders_know_the_room_of_pix2seq_d():
    room = ROOT / "systems" / "pix2seq_d"
    know = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if "unigs.systems.pix2seq_d" in path.read_text() and path.parent != room
    }
    assert know == {"systems/__init__.py", "systems/load.py"}


def test_a_room_of_a_system_knows_no_other():
    rooms = [path for path in (ROOT / "systems").iterdir() if (path / "module.py").exists()]
    for room in rooms:
        for path in room.rglob("*.py"):
            for other in rooms:
                named = f"unigs.systems.{other.name}" in path.read_text()
                assert other == room or not named, f"{path} names {other.name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_function_takes_more_arguments_than_a_reader_can_hold(path):
    for node in ast.walk(read_tree(path)):
        if isinstance(node, ast.FunctionDef):
            names = [arg.arg for arg in [*node.args.posonlyargs, *node.args.args]]
            count = len([n for n in names if n not in ("self", "cls")]) + len(node.args.kwonlyargs)
            assert count <= 11, f"{node.name} takes {count}: a record is missing"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_stay_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{lines} lines: is there a second subject inside?"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_modules_open_with_their_contract(path):
    if path.read_text().strip():
        assert ast.get_docstring(read_tree(path))


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


HIDE = """
import sys
from importlib.machinery import PathFinder

ABSENT = ("torchvision", "open_clip", "cleanfid", "clean_fid", "clean-fid", "timm")
find_spec, find_distributions = PathFinder.find_spec, PathFinder.find_distributions

def find_other(name, path=None, target=None):
    return None if name.partition(".")[0] in ABSENT else find_spec(name, path, target)

def find_others(*context):
    for found in find_distributions(*context):
        if not found.metadata["Name"].lower().startswith(ABSENT):
            yield found

PathFinder.find_spec, PathFinder.find_distributions = find_other, find_others
"""


def test_the_core_needs_nothing_of_the_eval_extra():
    """In a Python that finds neither torchvision, open_clip, clean-fid nor timm."""
    code = """
from importlib.metadata import PackageNotFoundError, version
from importlib import util
assert not any(map(util.find_spec, ("torchvision", "open_clip", "cleanfid", "timm")))
for name in ("torchvision", "open_clip_torch", "clean-fid", "timm"):
    try:
        sys.exit(f"{name} {version(name)} is there")
    except PackageNotFoundError:
        pass
import unigs.callbacks, unigs.data, unigs.metrics, unigs.systems.load
import unigs.verbs.export, unigs.verbs.fit
print("fine")
"""
    done = subprocess.run([sys.executable, "-c", HIDE + code], capture_output=True, text=True)
    assert "fine" in done.stdout, done.stderr[-2000:]


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_loader_processes_are_guarded(path):
    """Those of a stock loader end with any signal to the process group, and the run with them."""
    calls = [node for node in ast.walk(read_tree(path)) if isinstance(node, ast.Call)]
    assert not [node for node in calls if ast.unparse(node.func).endswith("DataLoader")]


# Their caller gave a new or a temp folder, or the data set gets a marker once it is whole.
WRITERS = {
    "demo/examples.py:_draw_example",
    "recipes/autoencoder.py:save_parts",
    "recipes/judge.py:save_parts",
    "recipes/vq.py:save_parts",
    "synthetic/folder.py:save_bytes",
    "synthetic/layouts.py:write_datasets",
    "systems/joint/presets.py:write_configs",
}


def list_writers(path: Path) -> set[str]:
    """Functions that write a file or a folder outside of a ``with new_file`` or ``new_folder``."""
    found = set()
    for function in ast.walk(read_tree(path)):
        if not isinstance(function, ast.FunctionDef):
            continue
        calls = [node for node in ast.walk(function) if isinstance(node, ast.Call)]
        names = {ast.unparse(call.func).rpartition(".")[2] for call in calls}
        writes = {"write_text", "write_bytes", "save_pretrained"} & {
            call.func.attr for call in calls if isinstance(call.func, ast.Attribute)
        }
        if writes and not names & {"new_file", "new_folder", "TemporaryDirectory"}:
            found.add(f"{path.relative_to(ROOT)}:{function.name}")
    return found


def test_what_is_written_is_whole_or_not_at_all():
    assert set().union(*map(list_writers, MODULES)) - WRITERS == set()
