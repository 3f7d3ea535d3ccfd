"""Pages that mkdocs makes of the repository: the README, every config, every public name.

A hook of ``mkdocs.yml``. In: the working tree; no module of it is imported. Out: pages beside those
of docs/, and links that hold there.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "unigs/assets/pipeline/README.md": "card.md",
    "unigs/assets/autoencoder/README.md": "card-autoencoder.md",
}
"""Files of the repository that are pages too."""

ROOMS = (
    "records", "images", "annotations", "synthetic", "shards", "plan", "streams", "data",
    "transforms", "tasks", "codec", "systems", "systems/joint", "systems/pix2seq_d", "systems/gss",
    "metrics", "evaluation", "report", "callbacks", "promises", "recipes", "outputs",
)  # fmt: skip
"""Rooms of the package in the order of data, a page each."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is made."""
    made = {target: read_page(source) for source, target in PAGES.items()}
    made["configs.md"] = write_configs()
    made["api.md"] = write_list()
    made |= {name_page(room): write_room(room) for room in ROOMS}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Links of the repository as they are on the pages."""
    for source, target in PAGES.items():
        pattern = rf"\]\((?:\.\./)?{re.escape(source)}(#[\w-]+)?\)"
        markdown = re.sub(pattern, rf"]({target}\1)", markdown)
    return re.sub(r"\]\(docs/", "](", markdown)


def read_page(source: str) -> str:
    """A page of the repository without the front matter of a card."""
    text = (ROOT / source).read_text(encoding="utf-8")
    return re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)


def write_configs() -> str:
    """Every config, as it is."""
    parts = [
        "# Configs",
        "Each is a whole run, or an overlay that changes one: later files of a command line win. "
        "What an option means stands with its class: [UniGS](api-systems-joint.md), "
        "[data](api-data.md), [tasks](api-tasks.md), [callbacks](api-callbacks.md).",
    ]
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        parts += [f"## {path.name}", f"```yaml\n{path.read_text(encoding='utf-8').strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def write_list() -> str:
    """The rooms, each with the first line of its contract."""
    lines = [
        f"- [unigs.{room.replace('/', '.')}]({name_page(room)}): {read_line(room)}"
        for room in ROOMS
    ]
    return "# Modules\n\n" + "\n".join(lines) + "\n"


def write_room(room: str) -> str:
    """Every module of a room, for mkdocstrings."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in list_modules(room)
    ]
    parts = [f"::: {name.removesuffix('.__init__')}" for name in modules]
    return f"# unigs.{room.replace('/', '.')}\n\n" + "\n\n".join(parts) + "\n"


def list_modules(room: str) -> list[Path]:
    """A room's files, its own contract first."""
    folder = ROOT / "unigs" / room
    return sorted(folder.glob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]


def read_line(room: str) -> str:
    """The first line of a room's docstring."""
    return list_modules(room)[0].read_text(encoding="utf-8").split('"""')[1].splitlines()[0]


def name_page(room: str) -> str:
    """The page of a room."""
    return f"api-{room.replace('/', '-')}.md"
