"""The pages: narrow lines, links that lead somewhere, commands that exist, tables that agree."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from unigs.cli import TRAINING, find_verb, make_parser

ROOT = Path(__file__).parents[1]
README, BENCHMARK = ROOT / "README.md", ROOT / "docs" / "benchmark.md"
WIDTH = 120
PAGES = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("unigs/assets/*/README.md")]
)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))


def list_headings(page: Path) -> set[str]:
    """Anchors of a page's headings, as forges make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def read_table(page: Path, mark: str) -> dict[str, list[str]]:
    """The generated table after a mark: first cell of a line -> its other cells."""
    _, found, rest = page.read_text().partition(f"<!-- {mark} -->\n")
    assert found, f"no table {mark!r} in {page}"
    lines = rest.partition("<!-- end -->")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: cells for first, *cells in rows}


def list_commands(page: Path) -> list[list[str]]:
    """Words after ``unigs`` of every command line in the page's blocks, comments aside."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(), re.M | re.S)
    blocks += re.findall(r"((?:^ {4}\S.*\n(?: {6,}.*\n)*)+)", page.read_text(), re.M)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = (re.fullmatch(r"\s*(?:unigs|python -m unigs|lightning) (.*)", line) for line in lines)
    return [shlex.split(match[1], comments=True) for match in found if match]


@each_page
def test_no_line_is_wider_than_a_screen(page):
    wide = [line for line in page.read_text().splitlines() if len(line) > WIDTH]
    assert not wide


@each_page
def test_links_lead_somewhere(page):
    text = page.read_text()
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[\w+\]: (\S+)$", text, re.M)
    for target in targets:
        if target.startswith(("http://", "https://")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        assert not anchor or anchor in list_headings(there), target


@each_page
def test_files_and_make_targets_that_are_named_exist(page):
    text = page.read_text()
    for name in re.findall(r"(?<![\w/])(?:configs|tools|tests|docker)/[\w./-]+\.\w+", text):
        assert (ROOT / name).exists(), name
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
    for name in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M):
        assert name in targets, name


@each_page
def test_every_command_is_one_that_the_command_line_takes(page):
    for words in list_commands(page):
        if "..." not in words:
            take(words)


def take(words: list[str]) -> None:
    """Parse a verb and do not run it; of a training verb the configs must be there."""
    if words[0] in TRAINING:
        assert all((ROOT / word).exists() for word in words if word.startswith("configs/"))
        return
    verb = find_verb(words)
    assert verb, words
    make_parser(verb)[1].parse_args(words[len(verb.split()) :])


def test_every_command_of_the_makefile_is_one_that_the_command_line_takes():
    targets = ("quickstart", "benchmark", "ablations", "siblings", "shards")
    words = ["make", "-n", *targets, "OUT=x", "COCO=y"]
    told = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    lines = re.findall(r"bin/(?:unigs|lightning) ([^|;&\n]*)", told.replace("\\\n", " "))
    assert len(lines) > 20
    for line in lines:
        take(shlex.split(line))


def test_commands_are_found_on_pages():
    """So that the law above cannot pass by finding nothing."""
    assert ["sample", "--out", "tryout"] in list_commands(README)
    assert len([words for page in PAGES for words in list_commands(page)]) > 40


@pytest.fixture(scope="module")
def tool():
    """tools/benchmark_joint.py, which writes the tables."""
    path = ROOT / "tools" / "benchmark_joint.py"
    spec = importlib.util.spec_from_file_location("benchmark_joint", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_figure_on_two_pages_is_the_same():
    """README and docs/benchmark.md show one table, written by one command."""
    assert read_table(README, "results") == read_table(BENCHMARK, "results")
    assert len(read_table(README, "results")) > 5


def test_the_tables_have_the_lines_that_the_tool_writes(tool):
    results, training = read_table(README, "results"), read_table(BENCHMARK, "train")
    assert list(results)[2:] == [row.title for row in tool.RESULTS]
    assert results[""] == [*tool.MODELS, "target"]
    again = read_table(BENCHMARK, "again")
    masks = [row.title for row in tool.RESULTS if row.task in tool.MASKS]
    assert list(again)[2:] == masks
    assert [again[title][::2] for title in masks] == [results[title][1:3] for title in masks]
    assert set(list(training)[2:]) <= set(tool.ROWS)
    for name, heads in tool.ABLATIONS.items():
        assert len(read_table(BENCHMARK, name)[""]) == len(heads)


def test_a_table_replaces_its_own_and_no_other(tool, tmp_path):
    page = tmp_path / "page.md"
    page.write_text("a\n<!-- x -->\nold\n<!-- end -->\nb\n<!-- y -->\nother\n<!-- end -->\n")
    for _ in range(2):
        tool.replace_table(page, "x", [["", "n"], ["row", "1"]])
        assert read_table(page, "x") == {"": ["n"], "---": ["---"], "row": ["1"]}
        assert page.read_text().endswith("b\n<!-- y -->\nother\n<!-- end -->\n")
    with pytest.raises(SystemExit, match="<!-- z -->"):
        tool.replace_table(page, "z", [[""]])
