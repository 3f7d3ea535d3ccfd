"""Results of one or more models -> Markdown and one HTML file, beside the paper's numbers.

In: folders with a ``results.json`` and the pictures it picks. Out: ``report.md``, and
``report.html``, which holds everything it shows and opens from disk. An empty cell was not
measured; what to pass for it is said below the tables. ``0.804 ± 0.012`` is a figure and half the
width of its 95 % interval. Of several models, a second table and ``differences.json`` say how each
differs from the first on the same pictures.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from unigs.evaluation.intervals import compare_results
from unigs.evaluation.tables import TABLES, Column, Table, is_papers
from unigs.files import read_inside, write_json, write_text
from unigs.records import UnigsError, show

NOTES = (
    "Oracles know the truth and lose what palette, decoder and VAE lose; floors know nothing. "
    "A model is read between the two.",
    "Figures of classes are of models that name their masks.",
    "± is half the width of the 95 % bootstrap interval over pictures; FID has none. A difference "
    "in bold has an interval that leaves out 0, as one in twenty does by chance. Neither covers "
    "another training run or another seed of the inputs.",
)
PAPERS = (
    "Rows marked (paper) are the paper's, which names neither backbone nor scale of its CLIP score "
    "and defines neither mIoU nor recall; compare our rows with each other first."
)
OTHERS = (
    "The paper's rows are left out: they are of COCO, Open Images and EntitySeg at 512 px, and "
    "these pictures are not."
)
DIFFERENCES = "differences.json"
PAGES = Environment(
    loader=PackageLoader("unigs", "assets/templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: show(value) if type(value) is str else value,
)
"""Templates; text from data is shown as itself, whatever it holds."""

TICKS = 5
"""Steps of an axis."""

INK = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


MAX_PICTURE_BYTES = 64 << 20
_MARKS = re.compile(r"([\\`|<>*\[\]])")


def escape_markdown(text: object) -> str:
    """Text from data as itself in a cell or a line of Markdown."""
    return _MARKS.sub(r"\\\1", show(text))


def read_results(folder: Path) -> dict[str, Any]:
    """``results.json`` of one model.

    Raises:
        UnigsError: none there, or damaged.
    """
    try:
        text = (folder / "results.json").read_text(encoding="utf-8")
        return json.loads(text) | {"folder": folder}
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UnigsError(f"expected results.json; got {error!r}; in {folder}") from error


def write_report(out: Path, folders: Sequence[Path]) -> str:
    """Write ``report.md`` and ``report.html`` over the results of some models; of several also
    ``differences.json``, in which each is compared with the first.

    Args:
        out: folder of the report.
        folders: one per model.

    Returns:
        The Markdown.

    Raises:
        UnigsError: results missing, or of different inputs.
    """
    models = [read_results(folder) for folder in folders]
    inputs = {model["inputs"] for model in models}
    if len(inputs) != 1:
        told = ", ".join(f"{m['model']}: {m['inputs'][:12]}" for m in models)
        raise UnigsError(f"expected results of the same inputs; got {told}; in {out}")
    for model in models[1:]:
        model["differences"] = compare_results(models[0], model)
    text = render_markdown(models)
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "report.md", text)
    write_text(out / "report.html", render_html(models))
    if models[1:]:
        found = {model["model"]: model["differences"] for model in models[1:]}
        write_json(out / DIFFERENCES, {"from": models[0]["model"], "models": found})
    return text


def fill_table(table: Table, models: Sequence[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    """Lines of a table: ``paper`` or ``ours``, name, cells."""
    lines = []
    papers = table.rows if all(is_papers(model) for model in models) else ()
    for name, values in papers:
        padded = [*values, *[None] * (len(table.columns) - len(values))]
        cells = [_tell(value, column) for value, column in zip(padded, table.columns)]
        lines.append(("paper", f"{name} (paper)", cells))
    for model in models:
        figures = model["figures"].get(table.task)
        if figures:
            intervals = model.get("intervals", {}).get(table.task, {})
            cells = [_tell(_find(figures, c), c, _find(intervals, c)) for c in table.columns]
            lines.append(("ours", model["model"], cells))
    return lines


def fill_differences(
    table: Table, models: Sequence[dict[str, Any]]
) -> list[tuple[str, list[tuple[str, bool]]]]:
    """How each model but the first differs from it: name, and per cell text and whether it does."""
    lines = []
    for model in models[1:]:
        groups = model["differences"].get(table.task)
        if groups:
            found = [groups.get(c.group, {}).get(c.figure, {}) for c in table.columns]
            cells = [
                (
                    _tell(one.get("difference"), c, one.get("interval"), "+"),
                    one.get("differs", False),
                )
                for one, c in zip(found, table.columns)
            ]
            lines.append((model["model"], cells))
    return lines


def list_facts(models: Sequence[dict[str, Any]]) -> list[str]:
    """What a reader must know besides the numbers."""
    facts = [PAPERS if all(map(is_papers, models)) else OTHERS, *NOTES]
    for model in models:
        counts = {task: int(groups["all"]["pictures"]) for task, groups in model["figures"].items()}
        speeds = {
            task: f"{groups['all']['seconds_per_picture']:.3g}"
            for task, groups in model["figures"].items()
            if groups["all"].get("seconds_per_picture") is not None
        }
        facts.append(f"{model['model']}: pictures {counts}; seconds per picture {speeds}.")
        lone = [task for task, count in counts.items() if count == 1]
        if lone:
            facts.append(f"{model['model']}: of one picture, no interval says anything: {lone}.")
        if model["replaced"]:
            facts.append(f"{model['model']}: samples replaced by others: {model['replaced']}.")
    judges = {name: by for model in models for name, by in model["judges"].items() if by}
    facts += [f"{name} measured with {by}." for name, by in judges.items()]
    missing = {name: hint for model in models for name, hint in model["missing"].items()}
    facts += [f"{name} was not measured; pass {hint}." for name, hint in missing.items()]
    return facts


def render_markdown(models: Sequence[dict[str, Any]]) -> str:
    """All tables in which a model has a row, and the facts."""
    parts = ["# UniGS evaluation", f"Inputs `{escape_markdown(models[0]['inputs'][:16])}`."]
    for table in _tables_of(models):
        titles = ["model", *(column.title for column in table.columns)]
        rows = [titles, ["---", *["---:"] * len(table.columns)]]
        for kind, name, cells in fill_table(table, models):
            told = escape_markdown(name)
            rows.append([f"**{told}**" if kind == "ours" else told, *cells])
        parts.append(f"## {table.title}\n\n{join_rows(rows)}")
        if differences := fill_differences(table, models):
            bold = [
                [escape_markdown(name), *(f"**{t}**" if differs else t for t, differs in cells)]
                for name, cells in differences
            ]
            first = escape_markdown(models[0]["model"])
            parts.append(f"Less {first}, on the same pictures:")
            parts.append(join_rows([*rows[:2], *bold]))
    parts.append("\n".join(f"- {escape_markdown(fact)}" for fact in list_facts(models)))
    return "\n\n".join(parts) + "\n"


def render_html(models: Sequence[dict[str, Any]]) -> str:
    """One page: tables, curves, pictures; nothing outside of it is needed."""
    tables = [
        {
            "title": table.title,
            "shown": table.shown,
            "columns": [column.title for column in table.columns],
            "rows": fill_table(table, models),
            "differences": fill_differences(table, models),
            "plots": draw_curves(table.task, models),
            "pictures": [(m["model"], list(_read_pictures(table.task, m))) for m in models],
        }
        for table in _tables_of(models)
    ]
    return PAGES.get_template("report.html").render(
        inputs=models[0]["inputs"][:16],
        first=models[0]["model"],
        tables=tables,
        facts=list_facts(models),
    )


def draw_curves(task: str, models: Sequence[dict[str, Any]]) -> list[Markup]:
    """The plots of one task, with a curve for each model that has one."""
    mine = {m["model"]: m["curves"][task] for m in models if task in m["curves"]}
    if not mine:
        return []
    recall = {name: curves["recall"] for name, curves in mine.items() if curves["recall"]}
    ratings = {name: curves["ratings"] for name, curves in mine.items()}
    return [
        draw_svg("recall", "IoU threshold", (0.5, 0.95), recall),
        draw_svg("score of a picture", "% of pictures, worst to best", (0, 100), ratings),
    ]


def draw_svg(
    title: str, axis: str, x: tuple[float, float], curves: dict[str, list[float]]
) -> Markup:
    """Curves over an even x axis as inline SVG, with ticks and a legend.

    Args:
        title: above the plot: what the y axis is.
        axis: what the x axis is.
        x: first and last value of it.
        curves: by name, values at even places; the y axis goes from 0 to 1, or as far as they do.
    """
    width, height, edge = 460, 240, 40
    top = max([1.0, *(value for curve in curves.values() for value in curve)])
    across = lambda share: round(edge + share * (width - 2 * edge), 1)
    up = lambda share: round(height - edge - share * (height - 2 * edge), 1)
    shares = [k / TICKS for k in range(TICKS + 1)]
    lines = {
        name: [(across(k / max(1, len(curve) - 1)), up(v / top)) for k, v in enumerate(curve)]
        for name, curve in curves.items()
    }
    svg = PAGES.get_template("curves.svg").render(
        title=title,
        axis=axis,
        left=edge,
        right=width - edge,
        upper=edge,
        lower=height - edge,
        width=width + 120,
        height=height,
        across=[(across(s), f"{x[0] + s * (x[1] - x[0]):.3g}") for s in shares],
        up=[(up(s), f"{s * top:.3g}") for s in shares],
        lines=[(name, INK[k % len(INK)], points) for k, (name, points) in enumerate(lines.items())],
    )
    return Markup(svg)


def join_rows(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as a table in Markdown; the second holds its alignment."""
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _read_pictures(task: str, model: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Caption and JPEG in base64 of each picture that a model's results pick."""
    for pick in model["picks"].get(task, []):
        bytes_ = read_inside(model["folder"], pick["picture"], MAX_PICTURE_BYTES)
        caption = f"{pick['part']} {pick['rating']:.3f}: {pick['prompt']} ({pick['key']})"
        yield caption, base64.b64encode(bytes_).decode()


def _tables_of(models: Sequence[dict[str, Any]]) -> list[Table]:
    return [table for table in TABLES if any(table.task in model["figures"] for model in models)]


def _find(groups: dict[str, Any], column: Column) -> Any:
    return groups.get(column.group, {}).get(column.figure)


def _tell(
    value: float | None, column: Column, interval: Sequence[float] | None = None, sign: str = ""
) -> str:
    if value is None:
        return ""
    text = f"{value:{sign}.{column.digits}f}"
    return text if interval is None else f"{text} ± {tell_half(interval, column.digits)}"


def tell_half(interval: Sequence[float], digits: int = 3) -> str:
    """Half the width of an interval."""
    return f"{(interval[1] - interval[0]) / 2:.{digits}f}"
