"""A model's card: ``README.md`` of its folder, in the hub's format.

In: a checkpoint, the predictor made of it, and evaluations that lie in the run's folder. Out: the
page. It says what the checkpoint knows, and that something is unknown where it does not.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from unigs.checkpoints import RUN
from unigs.evaluation.fingerprint import fingerprint
from unigs.evaluation.tables import PAPER, Table
from unigs.files import write_text
from unigs.report import escape_markdown, fill_table, join_rows, read_results
from unigs.systems.making import MADE
from unigs.systems.predictor import SystemPredictor
from unigs.systems.system import System

TEMPLATE = Path(str(files("unigs") / "assets" / "templates" / "card.md"))
UNKNOWN = "not recorded"

TAGS = ["unigs", "diffusion", "image-segmentation", "inpainting", "layout-to-image"]

LICENCES = {
    "stable-diffusion-v1-5/": "creativeml-openrail-m",
    "CompVis/": "creativeml-openrail-m",
    "stabilityai/stable-diffusion-2": "openrail++",
}
"""Of bases on the hub, by the beginning of their ids; other bases say theirs in their card."""


def write_card(
    folder: Path,
    checkpoint: Mapping[str, Any],
    system: System,
    predictor: SystemPredictor,
    evaluations: Path,
) -> None:
    """Write the card of a model's folder.

    Args:
        folder: that ``predictor.save`` wrote.
        checkpoint: it was made of.
        system, predictor: the network, and what was saved.
        evaluations: folder under which results of this very network are looked for.
    """
    options, made = checkpoint.get(RUN, {}), checkpoint.get(MADE, {})
    base = str(options.get("model.base", "none"))
    licence = find_licence(base)
    steps = checkpoint.get("global_step", 0)
    batch = options.get("data.global_batch_size")
    windows = options.get("trainer.accumulate_grad_batches", 1)
    card = ModelCard.from_template(
        ModelCardData(library_name="unigs", tags=TAGS, license=licence),
        template_path=str(TEMPLATE),
        title=escape_markdown(folder.resolve().name),
        system=type(system).__name__,
        tasks=", ".join(predictor.tasks),
        sources=list_sources(made),
        steps=f"{steps:,}",
        samples=f"{steps * batch * windows:,}" if batch else UNKNOWN,
        side_px=predictor.side_px,
        hardware=escape_markdown(made.get("hardware", UNKNOWN)),
        base=escape_markdown(name_base(base)),
        weights=f"{sum(p.numel() for p in system.network.parameters()):,} parameters trained",
        sampling=tell_sampling(predictor),
        figures=tell_figures(evaluations, fingerprint(system.network)),
        licence=tell_licence(licence, made),
        recipe=tell_recipe(options),
    )
    write_text(folder / "README.md", str(card))


def name_base(base: str) -> str:
    """A base by its hub id, or its folder's own name: where it lay is nobody's business."""
    return base if base.count("/") == 1 and not Path(base).exists() else Path(base).name


def find_licence(base: str) -> str | None:
    """The licence of a base, of its own card or by its id; None: unknown."""
    card = Path(base) / "README.md"
    if card.is_file():
        try:
            return ModelCard.load(card).data.license
        except (ValueError, OSError, yaml.YAMLError):
            return None
    known = (
        told for start, told in LICENCES.items() if base.removeprefix("hub:").startswith(start)
    )
    return None if Path(base).exists() else next(known, None)


def list_sources(made: Mapping[str, Any]) -> str:
    """Each data set and its pictures."""
    told = [
        f"{escape_markdown(name)} ({one['pictures']:,} pictures)"
        for name, one in made.get("sources", {}).items()
    ]
    return ", ".join(told) or UNKNOWN


def tell_licence(licence: str | None, made: Mapping[str, Any]) -> str:
    """Licences of base and data; what follows for the model is for its owner to say."""
    lines = [f"- base: {licence or 'unknown'}"]
    for name, one in made.get("sources", {}).items():
        lines.append(f"- {escape_markdown(name)}: {escape_markdown(one['licence'])}")
    return "\n".join(lines)


def tell_sampling(predictor: SystemPredictor) -> str:
    """How each task is sampled if nobody says otherwise, as a table."""
    rows = [
        [task, ", ".join(f"{k} {v}" for k, v in how.items() if v is not None and k != "seed")]
        for task, how in predictor.options.items()
        if isinstance(how, Mapping)
    ]
    if not rows:
        rows = [[name, escape_markdown(how)] for name, how in predictor.options.items()]
    return join_rows([["task", "sampling"], ["---", "---"], *rows])


def tell_figures(evaluations: Path, network: str) -> str:
    """Tables of every evaluation of a network, found by the digest of its weights."""
    parts = []
    for path in sorted(evaluations.rglob("rows-00000.jsonl")):
        with path.open(encoding="utf-8") as file:
            header = json.loads(file.readline() or "{}").get("header", {})
        if network not in header.get("parts", {}).values():
            continue
        if not (path.parent / "results.json").exists():
            continue  # it is not finished
        results = read_results(path.parent)
        for table in PAPER:
            parts += tell_table(table, results)
    if not parts:
        return (
            "None yet: `unigs evaluate` measures them, and `unigs export --evaluation FOLDER` puts "
            "them here."
        )
    parts.append("± is half the width of the 95 % bootstrap interval over pictures.")
    return "\n\n".join(parts)


def tell_table(table: Table, results: dict[str, Any]) -> list[str]:
    """A task's figures that were measured, under a line that says on what."""
    (cells,) = [cells for kind, _, cells in fill_table(table, [results]) if kind == "ours"] or [[]]
    kept = [(column.title, cell) for column, cell in zip(table.columns, cells) if cell]
    if not kept:
        return []
    pictures = int(results["figures"][table.task]["all"]["pictures"])
    titles, figures = zip(*kept)
    told = f"{table.task}, {pictures:,} pictures, inputs `{results['inputs'][:16]}`:"
    return [told, join_rows([titles, ["---:"] * len(kept), figures])]


def tell_recipe(options: Mapping[str, Any]) -> str:
    """The run's options by dotted name, as YAML; bases and folders by their names."""
    shown = {
        k: name_base(v) if k.startswith("model.") and isinstance(v, str) else v
        for k, v in options.items()
        if k != "data.manifests"
    }
    return yaml.safe_dump(shown, sort_keys=True, width=110).strip().replace("```", "'''")
