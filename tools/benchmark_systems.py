"""The three systems on the benchmark's scenes: one table, and the siblings' ablations.

    evaluate          all models that are there, on the test scenes, beside floor and ceilings
    shift             the models that name classes, on the same scenes with all hues turned
    stages            learn the first stages of GSS (FT, TF, TT); what each loses, without a prior
    train [ROW ...]   one short run per row: scale of the bits, loss, small instances, ids, levels,
                      hidden pixels, variants; --seed N trains it from another seed, into a folder
                      of its own; the variants want ``stages`` first
    sample            steps and asymmetric time intervals of the trained Pix2Seq-D
    tables            write all of these that are there into docs/systems.md and systems-gss.md

After `make siblings`. Every choice is made on validation scenes; ``evaluate`` alone reads the test
scenes. What is done is kept under runs/ and not done again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from benchmark_codes import draw_truth, list_stages
from benchmark_joint import (
    FIXED,
    TEST,
    as_words,
    judge,
    replace_table,
    row_folder,
    run,
    tell_seeds,
    train_short,
)

from unigs.files import write_json
from unigs.report import tell_half
from unigs.systems.load import load_predictor
from unigs.systems.pix2seq_d.predictor import BitPredictor, read_folder
from unigs.verbs.evaluate import name_model
from unigs.weights import locate_shipped, read_tensors

WORK = Path("runs/siblings")
PAGE, GSS_PAGE = Path("docs/systems.md"), Path("docs/systems-gss.md")
SHIFTED = Path("runs/benchmark/shifted")
DEGREES = 90
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
STEPS, BATCH = {PIX2SEQ_D: 300, GSS: 200}, 8
STAGES = {name: Path("runs/maskige") / name.lower() for name in ("FT", "TF", "TT")}
RANDOM = Path("runs/vq/random")
"""The posterior of FF-R, trained on random colours."""
HIDDEN = "--data.init_args.tasks.unlabelled_share=0.15"

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
    "GSS-FF, multi-level features": (GSS, ()),
    "GSS-FF: last level alone": (GSS, (f"{OPTIONS}.prior.multi_level=false",)),
    "GSS-FF: 15 % of pixels unlabelled": (GSS, (HIDDEN,)),
    "GSS-FF: the same without the auxiliary head": (
        GSS, (HIDDEN, f"{OPTIONS}.prior.auxiliary=false"),
    ),
    "GSS-FF-R": (GSS, (f"{OPTIONS}.variant=FF-R", f"{OPTIONS}.posterior={RANDOM}")),
    **{
        f"GSS-{name}": (
            GSS, (f"{OPTIONS}.variant={name}", f"{OPTIONS}.start_from={folder}"),
        )
        for name, folder in STAGES.items()
    },
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


def evaluate_shifted() -> None:
    """Score the models that name classes on the test scenes with all hues turned."""
    if not (SHIFTED / "shards").exists():
        like = {"images": 1, "val_images": 1000, "held_out": "test", "colour_shift": DEGREES}
        drawn = {"size_px": 80, "max_things": 4, "max_stuff": 2, "min_radius": 0.08}
        run("synthetic", *as_words({"out": SHIFTED / "data", **like, **drawn}))
        layouts = ("coco", "openimages", "entityseg")
        sets = {name: SHIFTED / "data" / name for name in layouts}
        run("shards", *as_words({**sets, "out": SHIFTED / "shards"}))
    names = ("UperNet judge", "Pix2Seq-D", "GSS-FF", "GSS-FT-W")
    models = [MODELS[name] for name in names]
    scenes = {**FIXED, "scenes.samples_per_task": 250, "scenes.tasks": ["entity"]}
    where = {"shards": [SHIFTED / "shards"], "out": WORK / "shifted"}
    run("evaluate", *as_words({"models": models, **where, **scenes}))


def learn_stages() -> None:
    """Learn the first stages that are not there, and measure what each loses."""
    if not RANDOM.exists():
        options = {
            "config": "configs/vq.yaml", "model.colours": "random", "model.out": RANDOM,
            "trainer.logger.init_args.name": "vq/random-train",
        }  # fmt: skip
        run("fit", *as_words(options))
    for name, folder in STAGES.items():
        if not folder.exists():
            options = {
                "config": "configs/maskige.yaml", "model.variant": name, "model.out": folder,
                "trainer.logger.init_args.name": f"maskige/{name.lower()}-train",
            }  # fmt: skip
            run("fit", *as_words(options))
    folders = {**STAGES, "FT-W": Path(MODELS["GSS-FT-W"])}
    there = {name: str(folder) for name, folder in folders.items() if folder.exists()}
    truth = draw_truth(200)
    rates = [rate for _, rate in list_stages(*truth, "vq", [*there.values()], enlarge=2)]
    found = dict(zip(("FF", "FF-R", *there), rates))
    found["FF-R"] = dict(list_stages(*truth, str(RANDOM), [], enlarge=2))[f"FF-R through {RANDOM}"]
    WORK.mkdir(parents=True, exist_ok=True)
    write_json(WORK / "stages.json", found)


def train_rows(names: list[str], seed: int) -> None:
    """Train, export and score rows that are not done yet."""
    for name in names or list(ROWS):
        folder = row_folder(WORK, name, seed)
        if not (folder / "score.json").exists():
            config, changes = ROWS[name]
            short = {
                "trainer.max_steps": STEPS[config],
                "model.init_args.optimizer.decay_steps": STEPS[config],
                "data.init_args.loading.global_batch_size": BATCH,
            }
            model = train_short(folder, seed, (config,), *changes, **short)
            found = judge(load_predictor(str(model)), folder / "rows", ["entity"])
            write_json(folder / "score.json", found)


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
        for system in ("Pix2Seq-D", "GSS"):
            replace_table(PAGE, f"short runs of {system}", render_rows(system))
    if (WORK / "shifted" / "report.md").exists():
        replace_table(PAGE, "shifted", render_shifted())
    if (path := WORK / "stages.json").exists():
        replace_table(GSS_PAGE, "stages", render_stages(json.loads(path.read_text())))
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
    lines = [["", *names, "s / picture", "M parameters"]]
    for name, model in MODELS.items():
        path = WORK / "evaluation" / name_model(model) / "results.json"
        if path.exists():
            results = json.loads(path.read_text())
            found, sure = (results[part]["entity"]["all"] for part in ("figures", "intervals"))
            if any(FIGURES[one] in found for one in names):
                cells = tell(found, sure, names)
                seconds = f"{found['seconds_per_picture']:.2f}"
                lines.append([name, *cells, seconds, count_parameters(model)])
    return lines


def count_parameters(model: str) -> str:
    """Millions of numbers in all weights of a model's folder; nothing for a floor or the truth."""
    files = locate_shipped(model.partition("=")[2] or model).rglob("*.safetensors")
    sizes = [prod(shape) for file in files for shape in read_tensors(file).values()]
    return f"{sum(sizes) / 1e6:.1f}" if sizes else "-"


def render_shifted() -> list[list[str]]:
    """Class mIoU on the test scenes, and on the same scenes with other colours."""
    lines = [["", "as trained on", f"hues turned by {DEGREES}°", "what is left"]]
    for name, model in MODELS.items():
        paths = [WORK / kind / name_model(model) for kind in ("evaluation", "shifted")]
        if all((path / "results.json").exists() for path in paths):
            results = [json.loads((path / "results.json").read_text()) for path in paths]
            found, sure = (
                [one[p]["entity"]["all"] for one in results] for p in ("figures", "intervals")
            )
            cells = [tell(one, half, ["class mIoU"])[0] for one, half in zip(found, sure)]
            lines.append([name, *cells, f"{found[1]['class_miou'] / found[0]['class_miou']:.2f}"])
    return lines


def render_stages(rates: Mapping[str, Sequence[float]]) -> list[list[str]]:
    """Table 1 of the paper: true class maps there and back, and what a short prior makes of it."""
    lines = [["", "there and back: class mIoU", "entity mIoU", "with a short prior: class mIoU"]]
    for name, (entity, semantic) in rates.items():
        row = next((row for row in ROWS if row.split(",")[0] == f"GSS-{name}"), None)
        short = tell_seeds([one["class_miou"] for one in read_rows(row)]) if row else "-"
        lines.append([name, f"{semantic:.3f}", f"{entity:.3f}", short])
    return lines


def read_rows(name: str) -> list[dict[str, float]]:
    """Figures of a short run, one per seed that is there."""
    paths = sorted(WORK.glob(f"seed-*/{row_folder(WORK, name, 0).name}/score.json"))
    return [json.loads(path.read_text())["entity"] for path in paths]


def render_rows(system: str) -> list[list[str]]:
    """The short runs of one system: mean over the seeds that are there, and half their range."""
    figures = ("entity mIoU", "PQ", "class mIoU", "class PQ")
    lines = [[system, *figures]]
    for name in (row for row in ROWS if row.startswith(system)):
        runs = read_rows(name)
        cells = [tell_seeds([one[FIGURES[figure]] for one in runs]) for figure in figures]
        lines += [[name.removeprefix("Pix2Seq-D: "), *cells]] if runs else []
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what", choices=("evaluate", "shift", "stages", "train", "sample", "tables")
    )
    parser.add_argument("rows", nargs="*", choices=[[], *ROWS], help="of train; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of train")
    told = parser.parse_args()
    steps = {
        "evaluate": evaluate_test,
        "shift": evaluate_shifted,
        "stages": learn_stages,
        "train": lambda: train_rows(told.rows, told.seed),
        "sample": compare_samplers,
        "tables": fill_tables,
    }
    steps[told.what]()


if __name__ == "__main__":
    main()
