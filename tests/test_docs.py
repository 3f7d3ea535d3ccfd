"""The citation, the notebook, and the built reference."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from unigs import __version__

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "notebooks" / "quickstart.ipynb"


def test_the_citation_is_one():
    """The fields that the format requires, and those by which people cite."""
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert found["cff-version"] == "1.2.0"
    assert found["version"] == __version__
    assert found["type"] == "software"
    assert found["license"] == "Apache-2.0"
    for work in (found, found["preferred-citation"]):
        assert {"title", "authors"} <= work.keys()
        for author in work["authors"]:
            assert author.keys() in ({"name"}, {"family-names", "given-names"})
    assert found["message"]
    assert found["preferred-citation"]["type"] == "conference-paper"
    assert found["preferred-citation"]["year"] == 2024


def test_the_first_lines_of_the_readme_run():
    code = (ROOT / "README.md").read_text().split("```python\n")[1].split("```")[0]
    assert len(code.splitlines()) == 3
    found: dict = {}
    exec(code, found)
    assert found["masks"].shape == (64, 64)
    assert found["masks"].max() >= 1


def test_the_notebook_is_stored_without_answers():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 5
    told = "".join(output.get("text", "") for output in outputs)
    assert "masks for" in told
    assert "%" in told


@pytest.mark.slow
def test_the_reference_is_built_strictly_and_fetches_nothing(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {path.name: path.read_text() for path in tmp_path.glob("*.html")}
    assert {"index.html", "faq.html", "configs.html", "api.html", "api-data.html"} <= pages.keys()
    assert "joint.yaml" in pages["configs.html"]
    assert 'id="unigs.data.UniGSData"' in pages["api-data.html"]
    fetched = re.compile(r"""<(?:script|img|iframe|source)[^>]*\ssrc=["'](?:https?:)?//""")
    linked = re.compile(r"""<link[^>]*\shref=["'](?:https?:)?//(?![^>]*rel="canonical")""")
    for name, page in pages.items():
        assert not fetched.search(page), name
        assert not linked.search(page), name
    for sheet in tmp_path.rglob("*.css"):
        assert not re.search(r"@import\s+url\(.?https?:|url\(.?(?:https?:)?//", sheet.read_text())
