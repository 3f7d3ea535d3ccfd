"""Results of one or more models -> Markdown and one HTML file, beside the paper's numbers.

In: folders with a ``results.json`` and the pictures it picks. Out: ``report.md``, and
``report.html``, which holds everything it shows and opens from disk. An empty cell was not
measured; what to pass for it is said below the tables. ``0.804 ± 0.012`` is a figure and half the
width of its 95 % interval. Of several models, a second table and ``differences.json`` say how each
differs from the first on the same pictures.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unigs.evaluation.intervals import compare_results
from unigs.evaluation.tables import TABLES, Column, Table
from unigs.files import read_inside, write_json, write_text
from unigs.records import UnigsError, show

NOTES = (
    "Rows marked (paper) are the paper's, which names neither backbone nor scale of its CLIP score "
    "and defines neither mIoU nor recall; compare our rows with each other first.",
    "Oracles know the truth and lose what palette, decoder and VAE lose; floors know nothing. "
    "A model is read between the two.",
    "Figures of classes are of models that name their masks.",
    "± is half the width of the 95 % bootstrap interval over pictures; FID has none. A difference "
    "in bold has an interval that leaves out 0, as one in twenty does by chance. Neither covers "
    "another training run or another seed of the inputs.",
)
DIFFERENCES = "differences.json"
STYLE = """
body{font:15px/1.45 system-ui,sans-serif;color:#222}
body{margin:2rem auto;max-width:1100px;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0 1.5rem;font-variant-numeric:tabular-nums}
td{white-space:nowrap}
th,td{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}
th:first-child,td:first-child{text-align:left}
tr.paper{color:#777} tr.ours{font-weight:600}
.wide{overflow-x:auto} figure{margin:0 0 1rem} figcaption{color:#555;font-size:13px}
figure img{max-width:100%;height:auto;image-rendering:pixelated}
.curves{display:flex;flex-wrap:wrap} svg{max-width:48%;height:auto}
"""
INK = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#17becf", "#7f7f7f")


MAX_PICTURE_BYTES = 64 << 20
_MARKS = re.compile(r"([\\`|<>*\[\]])")


def escape_markdown(text: object) -> str:
    """Text from data as itself in a cell or a line of Markdown."""
    return _MARKS.sub(r"\\\1", show(text))


def escape_html(text: object) -> str:
    """Text from data as itself in HTML."""
    return html.escape(show(text))


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
    for name, values in table.rows:
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
    facts = [*NOTES]
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
        parts.append(f"## {table.title}\n\n{_join_markdown(rows)}")
        if differences := fill_differences(table, models):
            bold = [
                [escape_markdown(name), *(f"**{t}**" if differs else t for t, differs in cells)]
                for name, cells in differences
            ]
            first = escape_markdown(models[0]["model"])
            parts.append(f"Less {first}, on the same pictures:")
            parts.append(_join_markdown([*rows[:2], *bold]))
    parts.append("\n".join(f"- {escape_markdown(fact)}" for fact in list_facts(models)))
    return "\n\n".join(parts) + "\n"


def render_html(models: Sequence[dict[str, Any]]) -> str:
    """One page: tables, curves, pictures; nothing outside of it is needed."""
    inputs = escape_html(models[0]["inputs"][:16])
    parts = [f"<h1>UniGS evaluation</h1><p>Inputs <code>{inputs}</code>.</p>"]
    for table in _tables_of(models):
        parts.append(f"<h2>{escape_html(table.title)}</h2>")
        titles = "".join(f"<th>{escape_html(column.title)}</th>" for column in table.columns)
        lines = "".join(
            f'<tr class="{kind}"><td>{escape_html(name)}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
            for kind, name, cells in fill_table(table, models)
        )
        head = f"<tr><th>model</th>{titles}</tr>"
        parts.append(f'<div class="wide"><table>{head}{lines}</table></div>')
        if differences := fill_differences(table, models):
            rows = "".join(_render_difference(name, cells) for name, cells in differences)
            first = escape_html(models[0]["model"])
            parts.append(f"<p>Less {first}, on the same pictures:</p>")
            parts.append(f'<div class="wide"><table>{head}{rows}</table></div>')
        parts.append(_render_curves(table.task, models))
        parts += [_render_pictures(table, model) for model in models]
    facts = "".join(f"<li>{escape_html(fact)}</li>" for fact in list_facts(models))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>UniGS evaluation</title><style>{STYLE}</style></head><body>"
        + "".join(parts)
        + f"<h2>Notes</h2><ul>{facts}</ul></body></html>\n"
    )


def draw_svg(title: str, x: tuple[float, float], curves: dict[str, list[float]]) -> str:
    """Curves over an even x axis as inline SVG.

    Args:
        title: above the plot.
        x: first and last value of the axis.
        curves: by name, values at even places.
    """
    width, height, edge = 460, 240, 40
    top = max([1.0, *(value for curve in curves.values() for value in curve)])
    lines = []
    for place, (name, curve) in enumerate(curves.items()):
        ink = INK[place % len(INK)]
        step = (width - 2 * edge) / max(1, len(curve) - 1)
        points = " ".join(
            f"{edge + i * step:.1f},{height - edge - v / top * (height - 2 * edge):.1f}"
            for i, v in enumerate(curve)
        )
        lines.append(f'<polyline fill="none" stroke="{ink}" stroke-width="2" points="{points}"/>')
        lines.append(
            f'<text x="{width - edge + 6}" y="{edge + 16 * place}" fill="{ink}" font-size="12">'
            f"{escape_html(name)}</text>"
        )
    axis = (
        f'<path d="M{edge} {edge}V{height - edge}H{width - edge}" fill="none" stroke="#999"/>'
        f'<text x="{edge}" y="{height - edge + 16}" font-size="12">{x[0]:g}</text>'
        f'<text x="{width - edge}" y="{height - edge + 16}" font-size="12" text-anchor="end">'
        f"{x[1]:g}</text>"
        f'<text x="{edge - 6}" y="{edge + 4}" font-size="12" text-anchor="end">{top:.3g}</text>'
        f'<text x="{edge - 6}" y="{height - edge}" font-size="12" text-anchor="end">0</text>'
        f'<text x="{edge}" y="20" font-size="13">{escape_html(title)}</text>'
    )
    full = width + 120
    return (
        f'<svg viewBox="0 0 {full} {height}" width="{full}" role="img">{axis}{"".join(lines)}</svg>'
    )


def _join_markdown(rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _render_difference(name: str, cells: Sequence[tuple[str, bool]]) -> str:
    told = "".join(f"<td>{f'<b>{text}</b>' if bold else text}</td>" for text, bold in cells)
    return f'<tr class="difference"><td>{escape_html(name)}</td>{told}</tr>'


def _render_curves(task: str, models: Sequence[dict[str, Any]]) -> str:
    mine = {m["model"]: m["curves"][task] for m in models if task in m["curves"]}
    if not mine:
        return ""
    recall = {name: curves["recall"] for name, curves in mine.items() if curves["recall"]}
    ratings = {name: curves["ratings"] for name, curves in mine.items()}
    return (
        '<div class="curves">'
        + draw_svg("recall over IoU threshold", (0.5, 0.95), recall)
        + draw_svg("score per picture, worst to best, in % of pictures", (0, 100), ratings)
        + "</div>"
    )


def _render_pictures(table: Table, model: dict[str, Any]) -> str:
    picks = model["picks"].get(table.task, [])
    if not picks:
        return ""
    figures = []
    for pick in picks:
        bytes_ = read_inside(model["folder"], pick["picture"], MAX_PICTURE_BYTES)
        caption = f"{pick['part']} {pick['rating']:.3f}: {pick['prompt']} ({pick['key']})"
        figures.append(
            f'<figure><img alt="{escape_html(caption)}" '
            f'src="data:image/jpeg;base64,{base64.b64encode(bytes_).decode()}">'
            f"<figcaption>{escape_html(caption)}</figcaption></figure>"
        )
    title = f"{model['model']}: {table.shown}"
    return f"<h3>{escape_html(title)}</h3>" + "".join(figures)


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
