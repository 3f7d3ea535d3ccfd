"""The benchmark's figures, of the model that ships and of the run of ``make benchmark``.

    evaluate          both on the test scenes, beside floors and ceilings; their masks on scenes of
                      another seed as well; two sheets of what ships
    train [ROW ...]   one short run per row: palette, target, timesteps, given stream, all tasks;
                      --seed N trains it from another seed, into a folder of its own
    decode            decoders, thresholds, colour spaces (Tables 8 and 9), of what ships
    sample            solvers, steps, noises, guidance of its colormap
    guidance          of its pictures, by words and entities, judged by the benchmark's segmenter
    tables            write all of these that are there into README.md and docs/benchmark.md

Every choice is made on validation scenes; ``evaluate`` alone reads the test scenes. What is done is
kept under runs/benchmark and not done again.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from unigs.codec import decode_dichotomy, decode_kmeans, decode_refined
from unigs.evaluation.judging import Judges
from unigs.evaluation.options import Scenes
from unigs.evaluation.protocol import InputLoader, Inputs, open_inputs
from unigs.evaluation.run import evaluate
from unigs.files import write_json
from unigs.metrics.segmentation import EntityQuality
from unigs.metrics.segmenter import load_segmenter
from unigs.report import tell_half
from unigs.systems.load import load_predictor
from unigs.systems.predictor import Predictor
from unigs.systems.sampling import Sampling

WORK = Path("runs/benchmark")
OUT = WORK / "ablations"
CONFIGS = ("configs/benchmark.yaml", "configs/ablation.yaml")
MODEL = "--model.init_args"
ALL_TASKS = "{inpainting: 0.25, synthesis: 0.25, referring: 0.25, entity: 0.25}"

ROWS: dict[str, tuple[str, ...]] = {
    "reference": (),
    "palette: place alone (gradient)": (f"{MODEL}.palette.kind=gradient",),
    "palette: place, neighbours apart": (f"{MODEL}.palette.kind=location",),
    "palette: random colours (Table 7)": (f"{MODEL}.palette.kind=random",),
    "entities weigh by their area": (f"{MODEL}.objective.size_balance=0",),
    "target: epsilon": (f"{MODEL}.objective.prediction_type=epsilon",),
    "target: v": (f"{MODEL}.objective.prediction_type=v_prediction",),
    "timesteps: uniform": (f"{MODEL}.objective.mask_timestep_shift=1",),
    "error weighs alike at all noise": (f"{MODEL}.objective.snr_floor=5",),
    "given stream: learnt": (f"{MODEL}.objective.given_weight=1",),
    "all four tasks, as many samples": (f"--data.init_args.task_ratios={ALL_TASKS}",),
}
"""What each row changes of ``CONFIGS``."""

SAMPLES = 50


def row_folder(work: Path, name: str, seed: int) -> Path:
    """Where a row's run lies."""
    return work / f"seed-{seed}" / re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def train_short(
    folder: Path, seed: int, configs: Sequence[str], *changes: str, **options: Any
) -> Path:
    """One short run in a folder of its own, which goes on if it was stopped; its exported model."""
    options = {
        **options, "seed_everything": seed, "data.init_args.seed": seed,
        "trainer.limit_val_batches": 0, "trainer.logger.init_args.save_dir": folder.parent,
        "trainer.logger.init_args.name": folder.name,
    }  # fmt: skip
    files = [word for config in configs for word in ("--config", config)]
    run("fit", *files, *as_words(options), *changes)
    model = folder / "model"
    run("export", *as_words({"checkpoint": folder / "checkpoints/last.ckpt", "out": model}))
    return model


def train_rows(names: list[str], seed: int) -> None:
    """Train, export and score rows that are not done yet."""
    base = WORK / "base-tiny"
    if not base.exists():
        run("base", "--preset", "tiny", "--out", str(base))
    for name in names or list(ROWS):
        folder = row_folder(OUT, name, seed)
        if (folder / "score.json").exists():
            continue
        model = train_short(folder, seed, CONFIGS, *ROWS[name])
        write_json(folder / "score.json", score(str(model), folder / "rows", ["entity"]))


def run(*words: str) -> None:
    """One verb of ``unigs``, as a user would call it."""
    print("unigs", *words, flush=True)
    subprocess.run([sys.executable, "-m", "unigs", *words], check=True)


SHIPPED = "tiny"
ONE_RUN = WORK / "pipeline"
WITH_BOUNDS = [SHIPPED, ONE_RUN, "oracle", f"oracle-vae={ONE_RUN}", "floor-random"]
MASKS = ["referring", "entity"]
PICTURES = ["inpainting", "synthesis"]

EVALUATIONS: dict[str, dict[str, Any]] = {
    "masks": {"scenes.tasks": MASKS, "scenes.samples_per_task": 1000},
    "masks-again": {
        "scenes.tasks": MASKS, "scenes.samples_per_task": 1000,
        "shards": [WORK / "test-again-shards"], "models": [SHIPPED, ONE_RUN],
    },
    "pictures": {
        "scenes.tasks": PICTURES, "scenes.samples_per_task": 250,
        "judges.segmenter": WORK / "judge",
    },
}  # fmt: skip
"""Folder under runs/benchmark -> options of ``unigs evaluate``; the rest is the same for all. What
is not said is as the model remembers. A picture of 20 steps takes a second."""

TEST = {"shards": [WORK / "test-shards"]}
FIXED = {
    "scenes.resolution_px": 64, "scenes.max_painted": 25, "scenes.min_area": 0.004,
    "scenes.batch_size": 20,
}  # fmt: skip


def evaluate_test() -> None:
    """Score both models on the test scenes, and draw the sheets that docs/ shows."""
    for name, options in EVALUATIONS.items():
        usual = {"models": WITH_BOUNDS, "out": WORK / f"evaluation-{name}", **TEST, **FIXED}
        run("evaluate", *as_words({**usual, **options}))
    sheet = {"pipeline": SHIPPED, **TEST, "per_task": 4}
    for name, tasks in (("masks", MASKS), ("pictures", PICTURES)):
        one = {"scenes.resolution_px": 64, "scenes.tasks": tasks, "out": WORK / f"sheet-{name}.png"}
        run("sheet", *as_words({**sheet, **one}))


def as_words(options: dict[str, Any]) -> list[str]:
    """Options as words of a command line; a list as ``[a, b]``."""
    words = []
    for name, value in options.items():
        text = f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
        words += [f"--{name}", text]
    return words


def choose_inputs(tasks: list[str]) -> Inputs:
    """Validation scenes of the benchmark."""
    scenes = Scenes(
        tuple(tasks), SAMPLES, resolution_px=64, min_area=0.004, max_painted=25, batch_size=20,
        num_workers=0,
    )  # fmt: skip
    return open_inputs(scenes, [str(WORK / "shards")])


def score(
    pipeline: str, out: Path, tasks: list[str], segmenter: str | None = None, **options: Any
) -> dict[str, Any]:
    """Figures of one pipeline on ``SAMPLES`` validation scenes of each task, all subsets aside."""
    predictor = load_predictor(pipeline, out.name, sampling=Sampling(**options))
    return judge(predictor, out, tasks, segmenter)


def judge(
    predictor: Predictor, out: Path, tasks: list[str], segmenter: str | None = None
) -> dict[str, Any]:
    """The same of any model."""
    judges = Judges(segmenter=load_segmenter(segmenter) if segmenter else None)
    results = evaluate(predictor, choose_inputs(tasks), out, judges)
    return {task: figures["all"] for task, figures in results["figures"].items()}


def compare_decoders() -> None:
    """Tables 8 and 9: one set of generated colormaps, decoded in many ways."""
    predictor = load_predictor(SHIPPED, sampling=Sampling(num_inference_steps=20, ensemble_size=1))
    loader = InputLoader(choose_inputs(["entity"]), predictor.tasks)
    batches = [batch for batch, _ in loader]
    maps = [predictor(batch).colormap for batch in tqdm(batches, desc="sampling", unit="batch")]
    decoders: dict[str, Callable[[Any, Any], Any]] = {
        "K-means, K = 3": lambda colormap, _: decode_kmeans(colormap, 3),
        "K-means, K true": lambda colormap, labels: decode_kmeans(
            colormap, [len(one.unique()) for one in labels]
        ),
        "dichotomy (delta 10, rgb+lab)": lambda colormap, _: decode_dichotomy(colormap),
        "dichotomy + refinement": lambda colormap, _: decode_refined(
            colormap, predictor.pipeline.palette
        ),
        **{
            f"dichotomy, delta {delta}": partial(_decode_plainly, delta=delta)
            for delta in (2, 5, 20, 40)
        },
        **{
            f"dichotomy, features {kind}": partial(_decode_plainly, features=kind)
            for kind in ("rgb", "lab")
        },
    }
    figures = {}
    for name, decode in decoders.items():
        quality = EntityQuality()
        for batch, colormap in zip(batches, maps):
            quality.update(decode(colormap, batch.labels).labels, batch.labels, batch.ignored)
        figures[name] = {key: float(value) for key, value in quality.compute().items()}
        print(f"{name:24} {figures[name]}")
    OUT.mkdir(parents=True, exist_ok=True)
    write_json(OUT / "decode.json", figures)


def _decode_plainly(colormap: Any, labels: Any, **options: Any) -> Any:
    return decode_dichotomy(colormap, **options)


def compare_guidance() -> None:
    """Guidance of the picture by words and by given entities, on the two tasks that draw."""
    figures = {}
    for words, entities in ((1.0, 1.0), (4.0, 1.0), (4.0, 2.0), (4.0, 4.0), (2.0, 2.0), (7.0, 2.0)):
        folder = OUT / "guidance" / f"words-{words}-entities-{entities}"
        scales = {"guidance_scale": words, "entity_guidance_scale": entities}
        found = score(SHIPPED, folder, PICTURES, str(WORK / "judge"), **scales)
        figures[f"words {words:g}, entities {entities:g}"] = found
    write_json(OUT / "guidance.json", figures)


def compare_samplers() -> None:
    """Steps, solvers, noises, decoders and guidance, on the two tasks that find masks."""
    rows: dict[str, dict[str, Any]] = {
        "UniPC 1, 3 noises": {"num_inference_steps": 1, "ensemble_size": 3},
        "UniPC 1, 3 noises, dichotomy": {
            "num_inference_steps": 1, "ensemble_size": 3, "decoder": "dichotomy",
        },
        "UniPC 1, no guided filter": {"num_inference_steps": 1, "guided_filter": False},
        **{f"UniPC {steps}": {"num_inference_steps": steps} for steps in (1, 2, 20)},
        "DDIM 200": {"num_inference_steps": 200, "solver": "ddim"},
        "UniPC 20, colormap guidance 3": {"colormap_guidance_scale": 3.0},
        "UniPC 2, colormap guidance 3": {"num_inference_steps": 2, "colormap_guidance_scale": 3.0},
        "UniPC 20, given stream denoised": {"given_stream": "denoise"},
    }  # fmt: skip
    figures = {}
    for name, options in rows.items():
        folder = OUT / "sample" / name.replace(",", "").replace(" ", "-")
        options = {"num_inference_steps": 20, "ensemble_size": 1, **options}
        figures[name] = score(SHIPPED, folder, MASKS, **options)
    write_json(OUT / "sample.json", figures)


class Row(NamedTuple):
    """A line of the table of results: title, task, figure, the paper's value on COCO."""

    title: str
    task: str
    figure: str
    target: str = "-"


RESULTS = (
    Row("referring: mIoU", "referring", "miou", "0.80"),
    Row("referring: recall", "referring", "recall", "0.87"),
    Row("referring: no target, nothing painted", "referring", "no_target_accuracy", "0.90"),
    Row("referring: cIoU", "referring", "ciou"),
    Row("referring: gIoU", "referring", "giou"),
    Row("entity: mIoU", "entity", "miou", "0.70"),
    Row("entity: recall", "entity", "recall"),
    Row("entity: AP^e", "entity", "ap", "0.45"),
    Row("entity: PQ", "entity", "pq", "reported"),
    Row("synthesis: judge mIoU", "synthesis", "synthesis_miou", "0.75"),
    Row("synthesis: recognised", "synthesis", "recognised"),
    Row("inpainting: recognised", "inpainting", "recognised", "0.80"),
    Row("inpainting: known region, mean error of 255", "inpainting", "known_error", "0"),
    Row("inpainting: own colormap, mIoU", "inpainting", "miou"),
)
MODELS = {
    "floor (random)": "floor-random",
    "**shipped**": SHIPPED,
    "one run": WORK.name,
    "truth through the VAE": "oracle-vae",
    "truth": "oracle",
}
ABLATIONS: dict[str, tuple[tuple[str, str], ...]] = {
    "decode": (("entity", "miou"), ("entity", "recall")),
    "guidance": (
        ("inpainting", "recognised"), ("synthesis", "synthesis_miou"), ("synthesis", "recognised"),
    ),
    "sample": tuple(
        (task, figure) for task in ("entity", "referring") for figure in ("miou", "recall", "ap")
    ),
}  # fmt: skip
"""The tables of the ablations, and the figures that they show."""

TITLES = {"miou": "mIoU", "ap": "AP^e", "synthesis_miou": "judge mIoU"}


def fill_tables() -> None:
    """Write every table whose figures are there between its marks on the pages."""
    page = Path("docs/benchmark.md")
    evaluations = [WORK / f"evaluation-{name}" / "report.md" for name in EVALUATIONS]
    if all(path.exists() for path in evaluations):
        for place in (Path("README.md"), page):
            replace_table(place, "results", render_results())
        replace_table(page, "again", render_again())
    if list(OUT.glob("seed-*/*/score.json")):
        replace_table(page, "train", render_training())
    for name, heads in ABLATIONS.items():
        path = OUT / f"{name}.json"
        if path.exists():
            replace_table(page, name, render_ablation(json.loads(path.read_text()), heads))


def replace_table(path: Path, mark: str, lines: list[list[str]]) -> None:
    """Put a table in the place of the one between ``<!-- mark -->`` and ``<!-- end -->``."""
    head, *rows = ("| " + " | ".join(line).strip() + " |" for line in lines)
    table = "\n".join([head, "|---" * len(lines[0]) + "|", *rows, ""])
    before, found, rest = path.read_text().partition(f"<!-- {mark} -->\n")
    if not found:
        raise SystemExit(f"expected the mark <!-- {mark} -->, got none, in {path}")
    _, end, after = rest.partition("<!-- end -->")
    path.write_text(before + found + table + end + after)
    print(f"{path}: {mark}")


def read_figure(evaluation: str, model: str, row: Row) -> str:
    """One cell of the table of results, with half the width of its 95 % interval."""
    folder = WORK / f"evaluation-{evaluation}" / model
    results = json.loads((folder / "results.json").read_text())
    value = results["figures"][row.task]["all"].get(row.figure)
    if value is None:
        return "-"
    interval = results.get("intervals", {}).get(row.task, {}).get("all", {}).get(row.figure)
    told = f"**{value:.3f}**" if model == SHIPPED else f"{value:.3f}"
    half = "" if interval is None else tell_half(interval)
    return f"{told} ± {half}" if float(half or 0) else told


def render_results() -> list[list[str]]:
    """Both models as they are best used, between floor and ceiling."""
    lines = [["", *MODELS, "target"]]
    for row in RESULTS:
        name = "masks" if row.task in MASKS else "pictures"
        cells = [read_figure(name, model, row) for model in MODELS.values()]
        lines.append([row.title, *cells, row.target])
    return lines


def render_again() -> list[list[str]]:
    """The masks of both models on scenes of two seeds."""
    models = {title: MODELS[title] for title in ("**shipped**", "one run")}
    evaluations = {"": "masks", ", another seed": "masks-again"}
    lines = [["", *(f"{title}{seed}" for title in models for seed in evaluations)]]
    for row in RESULTS:
        if row.task in MASKS:
            cells = [
                read_figure(name, one, row)
                for one in models.values()
                for name in evaluations.values()
            ]
            lines.append([row.title, *cells])
    return lines


def render_training() -> list[list[str]]:
    """The short runs: mean over the seeds that are there, and half their range."""
    lines = [["training row", "entity mIoU", "recall", "AP^e", "PQ"]]
    for name in ROWS:
        paths = sorted(OUT.glob(f"seed-*/{row_folder(OUT, name, 0).name}/score.json"))
        runs = [json.loads(path.read_text()) for path in paths]
        cells = [
            tell_seeds([one["entity"][figure] for one in runs])
            for figure in ("miou", "recall", "ap", "pq")
        ]
        lines += [[name, *cells]] if runs else []
    return lines


def tell_seeds(values: Sequence[float]) -> str:
    """Mean, and half the range if there are several."""
    spread = f" ± {np.ptp(values) / 2:.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}" if values else "-"


def render_ablation(
    rows: dict[str, dict[str, Any]], heads: Sequence[tuple[str, str]]
) -> list[list[str]]:
    """One line per row of a comparison."""
    titles = [f"{task} {TITLES.get(figure, figure)}" for task, figure in heads]
    lines = [["", *titles]]
    for name, found in rows.items():
        by_task = {"entity": found} if "miou" in found else found
        cells = [f"{by_task[task][figure]:.3f}" for task, figure in heads]
        lines.append([name, *cells])
    return lines


VERBS = {
    "evaluate": evaluate_test,
    "train": train_rows,
    "decode": compare_decoders,
    "sample": compare_samplers,
    "guidance": compare_guidance,
    "tables": fill_tables,
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in VERBS:
        sys.exit(__doc__)
    if sys.argv[1] == "train":
        parser = argparse.ArgumentParser()
        parser.add_argument("names", nargs="*", metavar="ROW", choices=[*ROWS, []])
        parser.add_argument("--seed", type=int, default=0)
        train_rows(**vars(parser.parse_args(sys.argv[2:])))
    else:
        VERBS[sys.argv[1]]()  # type: ignore[operator]
