"""The three systems on the benchmark's scenes: one table, and the siblings' ablations.

    evaluate          all models that are there, on the test scenes, beside floor and ceilings
    train [ROW ...]   one short run per row: scale of the bits, loss, small instances, ids, levels;
                      --seed N trains it from another seed, into a folder of its own
    sample            steps and asymmetric time intervals of the trained Pix2Seq-D
    tables            write all of these that are there into docs/systems.md

After `make siblings`. Every choice is made on validation scenes; ``evaluate`` alone reads the test
scenes. What is done is kept under runs/ and not done again.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmark_joint import (
    FIXED,
    TEST,
    as_words,
    judge,
    replace_table,
    run,
    tell_seeds,
    write_json,
)

from unigs.report import tell_half
from unigs.systems.load import load_predictor
from unigs.systems.pix2seq_d.predictor import BitPredictor, read_folder
from unigs.verbs.evaluate import name_model
from unigs.weights import locate_shipped

WORK = Path("runs/siblings")
PAGE = Path("docs/systems.md")
MODELS = {
    "floor (random)": "floor-random",
    "truth": "oracle",
    "UperNet judge": "segmenter=runs/benchmark/judge",
    "UniGS, four tasks (ships)": "tiny",
    "UniGS, entities alone": "runs/entity-benchmark/model",
    "Pix2Seq-D": "runs/pix2seq-d-benchmark/model",
    "GSS-FF": "runs/gss-benchmark/model",
    "GSS-FT-W": "runs/gss-ft-w/model",
}
"""Row of the table -> model of ``unigs evaluate``."""
PIX2SEQ_D, GSS = "configs/pix2seq-d-benchmark.yaml", "configs/gss-benchmark.yaml"
OPTIONS = "--model.init_args"
STEPS = 600

ROWS: dict[str, tuple[str, tuple[str, ...]]] = {
    "Pix2Seq-D: b = 0.3, cross-entropy, p = 0.2, shuffled ids": (PIX2SEQ_D, ()),
    **{
        f"Pix2Seq-D: b = {scale}": (PIX2SEQ_D, (f"{OPTIONS}.code.scale={scale}",))
        for scale in (1, 0.1, 0.03)
    },
    "Pix2Seq-D: squared error": (PIX2SEQ_D, (f"{OPTIONS}.objective.loss=l2",)),
    **{
        f"Pix2Seq-D: p = {power}": (PIX2SEQ_D, (f"{OPTIONS}.objective.instance_power={power}",))
        for power in (0, 0.5)
    },
    **{
        f"Pix2Seq-D: {kind} ids": (PIX2SEQ_D, (f"{OPTIONS}.objective.ids={kind}",))
        for kind in ("random", "place")
    },
    "Pix2Seq-D: noisy bits as they are": (
        PIX2SEQ_D, (f"{OPTIONS}.network.normalize_noisy=false",),
    ),
    "GSS: multi-level features": (GSS, ()),
    "GSS: last level alone": (GSS, (f"{OPTIONS}.prior.multi_level=false",)),
}  # fmt: skip
"""What each short run changes; its config -> its options."""

FIGURES = {
    "entity mIoU": "miou", "recall": "recall", "AP^e": "ap", "PQ": "pq",
    "class mIoU": "class_miou", "mAcc": "class_macc", "class PQ": "class_pq",
}  # fmt: skip


def evaluate_test() -> None:
    """Score all models that are there on the test scenes."""
    paths = {
        name: locate_shipped(model.partition("=")[2] or model) for name, model in MODELS.items()
    }
    there = [
        MODELS[name]
        for name, path in paths.items()
        if path.exists() or MODELS[name] in ("floor-random", "oracle")
    ]
    scenes = {**FIXED, "scenes.samples_per_task": 1000, "scenes.tasks": ["entity"]}
    run("evaluate", *as_words({"models": there, **TEST, **scenes, "out": WORK / "evaluation"}))


def row_folder(name: str, seed: int) -> Path:
    """Where a row's run lies."""
    slug = re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")
    return WORK / f"seed-{seed}" / slug


def train_rows(names: list[str], seed: int) -> None:
    """Train, export and score rows that are not done yet."""
    for name in names or list(ROWS):
        folder = row_folder(name, seed)
        if (folder / "score.json").exists():
            continue
        config, changes = ROWS[name]
        options = {
            "config": config, "seed_everything": seed, "data.init_args.seed": seed,
            "trainer.max_steps": STEPS, "trainer.limit_val_batches": 0,
            "model.init_args.optimizer.decay_steps": STEPS,
            "trainer.logger.init_args.save_dir": folder.parent,
            "trainer.logger.init_args.name": folder.name,
        }  # fmt: skip
        run("fit", *as_words(options), *changes)
        run(
            "export",
            *as_words({"checkpoint": folder / "checkpoints/last.ckpt", "out": folder / "model"}),
        )
        predictor = load_predictor(str(folder / "model"))
        write_json(folder / "score.json", judge(predictor, folder / "rows", ["entity"]))


def compare_samplers() -> None:
    """Steps and asymmetric time intervals of the trained Pix2Seq-D; no training."""
    trained, own = read_folder(Path(MODELS["Pix2Seq-D"]))
    found = {}
    for steps in (1, 2, 5, 10, 20):
        for td in (0.0, 1.0, 2.0):
            name = f"{steps} step{'s' * (steps > 1)}, td = {td:g}"
            predictor = BitPredictor(trained, replace(own, steps=steps, td=td))
            found[name] = judge(predictor, WORK / "sample" / name.replace(" ", "-"), ["entity"])
    write_json(WORK / "sample.json", found)


def fill_tables() -> None:
    """Write every table whose figures are there between its marks on the page."""
    if (WORK / "evaluation" / "report.md").exists():
        names = list(FIGURES)
        replace_table(PAGE, "systems", render_systems(names[:4]))
        replace_table(PAGE, "systems with classes", render_systems(names[4:]))
    if list(WORK.glob("seed-*/*/score.json")):
        replace_table(PAGE, "ablations", render_rows())
    if (path := WORK / "sample.json").exists():
        figures = json.loads(path.read_text())
        lines = [[name, *tell(found["entity"])] for name, found in figures.items()]
        replace_table(PAGE, "sampling", [["sampling", *FIGURES], *lines])


def tell(
    found: dict[str, float | None],
    intervals: Mapping[str, Sequence[float]] | None = None,
    names: Sequence[str] = tuple(FIGURES),
) -> list[str]:
    """Cells of one model; with intervals, half their width beside each."""
    cells = []
    for figure in map(FIGURES.__getitem__, names):
        value, interval = found.get(figure), (intervals or {}).get(figure)
        half = "" if interval is None else f" ± {tell_half(interval)}"
        cells.append("-" if value is None else f"{value:.3f}{half}")
    return cells


def render_systems(names: Sequence[str]) -> list[list[str]]:
    """All systems that have one of these figures, on the same scenes."""
    lines = [["", *names, "s / picture"]]
    for name, model in MODELS.items():
        path = WORK / "evaluation" / name_model(model) / "results.json"
        if path.exists():
            results = json.loads(path.read_text())
            found, sure = (results[part]["entity"]["all"] for part in ("figures", "intervals"))
            if any(FIGURES[one] in found for one in names):
                cells = tell(found, sure, names)
                lines.append([name, *cells, f"{found['seconds_per_picture']:.2f}"])
    return lines


def render_rows() -> list[list[str]]:
    """The short runs: mean over the seeds that are there, and half their range."""
    lines = [["", *FIGURES]]
    for name in ROWS:
        paths = sorted(WORK.glob(f"seed-*/{row_folder(name, 0).name}/score.json"))
        runs = [json.loads(path.read_text())["entity"] for path in paths]
        cells = [tell_seeds([one[figure] for one in runs]) for figure in FIGURES.values()]
        lines += [[name, *cells]] if runs else []
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("evaluate", "train", "sample", "tables"))
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="of train; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of train")
    told = parser.parse_args()
    steps = {
        "evaluate": evaluate_test,
        "train": lambda: train_rows(told.rows, told.seed),
        "sample": compare_samplers,
        "tables": fill_tables,
    }
    steps[told.what]()


if __name__ == "__main__":
    main()
