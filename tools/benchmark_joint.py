"""The benchmark's ablations, on the data and the model that ``make benchmark`` leaves behind.

    train [ROW ...]   one short run per row: palette, target, timesteps, given stream, joint;
                      --seed N trains it from another seed, into a folder of its own
    decode            decoders, thresholds, colour spaces (Tables 8 and 9)
    sample            solvers, steps, guidance of the colormap
    guidance          of the pictures, by words and entities, judged by the benchmark's segmenter
    curves            learning curves, one picture for each of the five runs
    tables            all of these as Markdown
    average           the pipeline that ships: the mean of the fourth and the fifth run's weights

Every choice is made on validation scenes; nothing here reads the test set. Rows that are done are
kept in runs/benchmark/ablations and not run again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor
from tqdm import tqdm

from unigs.codec import Decoded, decode_dichotomy, decode_kmeans, decode_refined
from unigs.codec.colours import Features
from unigs.data import UniGSData
from unigs.evaluation.judging import Judges
from unigs.evaluation.predictors import PipelinePredictor, run_batch
from unigs.evaluation.run import evaluate
from unigs.export import save_pipeline
from unigs.metrics.segmentation import EntityQuality
from unigs.metrics.segmenter import load_segmenter
from unigs.pipeline import UniGSPipeline
from unigs.records import TASKS
from unigs.tasks import TaskOptions

WORK = Path("runs/benchmark")
OUT = WORK / "ablations"
ALONE = "--data.init_args.task_ratios"
MODEL = "--model.init_args"

JOINT = "{inpainting: 0.2, synthesis: 0.2, referring: 0.25, entity: 0.35}"
PAPER = "{inpainting: 0.3, synthesis: 0.3, referring: 0.2, entity: 0.2}"
LONGER = ("--trainer.max_steps=1430", f"{MODEL}.decay_steps=1430")

ROWS: dict[str, tuple[str, ...]] = {
    "reference": (),
    "location, neighbours apart": (f"{MODEL}.palette=location",),
    "random colours": (f"{MODEL}.palette=random",),
    "location and size": (f"{MODEL}.palette=scaled",),
    "location and size, balanced": (f"{MODEL}.palette=scaled", f"{MODEL}.size_balance=0.5"),
    "epsilon": (f"{MODEL}.prediction_type=epsilon",),
    "v": (f"{MODEL}.prediction_type=v_prediction",),
    "uniform timesteps": (f"{MODEL}.mask_timestep_shift=1",),
    "shift 10": (f"{MODEL}.mask_timestep_shift=10",),
    "given stream denoised": (f"{MODEL}.given_stream=denoise", f"{MODEL}.given_weight=1"),
    "given stream learnt, clamped": (f"{MODEL}.given_weight=1",),
    "referring alone": (f"{ALONE}={{referring: 1.0}}",),
    "joint, benchmark ratios": (f"{ALONE}={JOINT}",),
    "joint, paper ratios": (f"{ALONE}={PAPER}",),
    "joint, as many entity samples": (f"{ALONE}={JOINT}", *LONGER),
}
"""What each row changes. The reference: sample, gradient, clamped, shift 3, entity alone."""

SAMPLES = 50


def row_folder(name: str, seed: int) -> Path:
    """Where a row's run lies."""
    return OUT / f"seed-{seed}" / name.replace(",", "").replace(" ", "-")


def train_rows(names: list[str], seed: int) -> None:
    """Train, export and score rows that are not done yet."""
    base = WORK / "base-tiny"
    if not base.exists():
        run("base", "--preset", "tiny", "--out", str(base))
    for name in names or list(ROWS):
        folder = row_folder(name, seed)
        if (folder / "score.json").exists():
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        # The callbacks' list cannot be changed in part, so a copy of the config names the folder.
        recipe = Path("configs/ablation.yaml").read_text()
        config = folder / "recipe.yaml"
        config.write_text(recipe.replace(str(OUT / "reference"), str(folder)))
        seeds = (f"--seed_everything={seed}", f"--data.init_args.seed={seed}")
        run("fit", "--config", str(config), *seeds, *ROWS[name])
        run("export", "--checkpoint", str(folder / "model.ckpt"), "--out", str(folder / "pipeline"))
        tasks = [task for task in ("referring", "entity") if task in " ".join(ROWS[name])]
        figures = {
            steps: score(
                folder / "pipeline", folder / f"rows-{steps}", tasks or ["entity"], steps=steps
            )
            for steps in (1, 20)
        }
        write_json(folder / "score.json", figures)


def run(*words: str) -> None:
    """One verb of ``unigs``, as a user would call it."""
    print("unigs", *words, flush=True)
    subprocess.run([sys.executable, "-m", "unigs", *words], check=True)


def read_data(tasks: list[str]) -> UniGSData:
    """The benchmark's validation scenes."""
    return UniGSData(
        [str(WORK / "shards")],
        TaskOptions(64, min_area=0.004, palette_cells=5),
        task_ratios=dict.fromkeys(tasks, 1.0),
        num_workers=0,
        val_batch_size=20,
    )


def score(
    pipeline: Path, out: Path, tasks: list[str], segmenter: str | None = None, **options: Any
) -> dict[str, Any]:
    """Figures of one model on ``SAMPLES`` validation scenes of each task, all subsets aside."""
    options = {"steps": 20, "solver": "unipc", **options}
    predictor = PipelinePredictor(UniGSPipeline.load(str(pipeline)), out.name, **options)
    judges = Judges(segmenter=load_segmenter(segmenter) if segmenter else None)
    results = evaluate(predictor, read_data(tasks), out, judges, samples_per_task=SAMPLES)
    assert results is not None  # one rank
    return {task: figures["all"] for task, figures in results["figures"].items()}


def compare_decoders() -> None:
    """Tables 8 and 9: one set of generated colormaps, decoded in many ways."""
    pipeline = UniGSPipeline.load(str(WORK / "pipeline"))
    data = read_data(["entity"])
    data.val_samples_per_task = SAMPLES
    maps, batches = [], list(data.val_dataloader())
    for batch in tqdm(batches, desc="sampling", unit="batch"):
        maps.append(run_batch(pipeline, batch).colormap)
    decoders: dict[str, Callable[[Tensor, Tensor], Decoded]] = {
        "K-means, K = 3": lambda colormap, _: decode_kmeans(colormap, 3),
        "K-means, K true": lambda colormap, labels: decode_kmeans(
            colormap, [len(one.unique()) for one in labels]
        ),
        "dichotomy": lambda colormap, _: decode_dichotomy(colormap),
        "dichotomy + refinement": lambda colormap, _: decode_refined(colormap, pipeline.palette),
    }
    for delta in (2, 5, 10, 20, 40):
        decoders[f"delta {delta}"] = lambda colormap, _, d=delta: decode_dichotomy(
            colormap, delta=d
        )
    for kind in get_args(Features):
        decoders[f"features {kind}"] = lambda colormap, _, f=kind: decode_dichotomy(
            colormap, features=f
        )
    figures = {}
    for name, decode in decoders.items():
        quality = EntityQuality()
        for batch, colormap in zip(batches, maps):
            quality.update(decode(colormap, batch.labels).labels, batch.labels, batch.ignored)
        figures[name] = {key: float(value) for key, value in quality.compute().items()}
        print(f"{name:24} {figures[name]}")
    write_json(OUT / "decode.json", figures)


def compare_guidance() -> None:
    """Guidance of the picture by words and by given entities, on the two tasks that draw."""
    figures = {}
    for words, entities in ((1.0, 1.0), (4.0, 1.0), (4.0, 2.0), (4.0, 4.0), (2.0, 2.0), (7.0, 2.0)):
        folder = OUT / "guidance" / f"words-{words}-entities-{entities}"
        tasks, judge = ["inpainting", "synthesis"], str(WORK / "judge")
        scales = {"guidance": words, "entity_guidance": entities}
        found = score(WORK / "pipeline", folder, tasks, judge, **scales)
        figures[f"words {words}, entities {entities}"] = found
    write_json(OUT / "guidance.json", figures)


def compare_samplers() -> None:
    """Steps, solvers and the colormap's guidance, on the two tasks that find masks."""
    rows: dict[str, dict[str, Any]] = {
        **{f"UniPC {steps}": {"steps": steps} for steps in (1, 2, 3, 5, 10, 20)},
        **{f"DDIM {steps}": {"steps": steps, "solver": "ddim"} for steps in (20, 200)},
        **{f"UniPC 20, colormap guidance {g}": {"colormap_guidance": g} for g in (1.5, 3.0)},
        "UniPC 2, colormap guidance 3.0": {"steps": 2, "colormap_guidance": 3.0},
        "UniPC 20, given stream denoised": {"given_stream": "denoise"},
    }
    figures = {}
    for name, options in rows.items():
        folder = OUT / "sample" / name.replace(",", "").replace(" ", "-")
        figures[name] = score(WORK / "pipeline", folder, ["referring", "entity"], **options)
    write_json(OUT / "sample.json", figures)


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1))


CURVES = {
    "train": "docs/benchmark-curves.svg",
    "train-continued": "docs/benchmark-curves-continued.svg",
    "train-scaled": "docs/benchmark-curves-scaled.svg",
    "train-words": "docs/benchmark-curves-words.svg",
    "train-drawing": "docs/benchmark-curves-drawing.svg",
}


def draw_all_curves() -> None:
    """One picture for each of the five runs that is there."""
    for run_name, path in CURVES.items():
        if (WORK / run_name).exists():
            draw_curves(WORK / run_name, path)


def draw_curves(folder: Path, path: str) -> None:
    """Loss by task and branch, and validation mIoU, from a run's event files."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    known = set(events.Tags()["scalars"])
    pyplot.rcParams.update({"svg.hashsalt": "unigs", "font.size": 8})
    figure, axes = pyplot.subplots(1, 3, figsize=(10, 3), layout="constrained")
    panels = (
        ("image loss", "train/{}/image", axes[0]),
        ("colormap loss", "train/{}/colormap", axes[1]),
        ("validation mIoU", "val/{}/miou", axes[2]),
    )
    for title, tag, axis in panels:
        for row, task in enumerate(TASKS):
            if tag.format(task) not in known:
                continue
            points = [(event.step, event.value) for event in events.Scalars(tag.format(task))]
            steps, values = (np.array(column) for column in zip(*points))
            if not values.any():
                continue  # a given stream, clamped: no loss
            width = max(1, len(values) // 12) if tag.startswith("train") else 1
            smooth = np.convolve(values, np.ones(width) / width, "valid")
            axis.plot(steps[width - 1 :], smooth, label=task, color=f"C{row}", linewidth=1)
        axis.set(title=title, xlabel="optimiser steps")
        axis.grid(alpha=0.3)
    axes[1].set_yscale("log")
    axes[2].set_ylim(0, 1)
    axes[2].legend()
    figure.savefig(path, metadata={"Date": None})


def average_runs() -> None:
    """Write the mean of two runs' weights (Wortsman et al. 2022): one finds, the other draws."""
    pipeline, other = (UniGSPipeline.load(str(WORK / name)) for name in ("fourth", "fifth"))
    theirs = other.unet.state_dict()
    mean = {name: mine.lerp(theirs[name], 0.5) for name, mine in pipeline.unet.state_dict().items()}
    pipeline.unet.load_state_dict(mean)
    save_pipeline(pipeline, str(WORK / "pipeline"), half=True)


def print_rows() -> None:
    """The short runs: mean over the seeds that are there, and half their range."""
    print(
        "| training row | task | seeds | mIoU, 1 step | recall | AP^e "
        "| mIoU, 20 steps | recall | AP^e |"
    )
    print("|---" * 9 + "|")
    for name in ROWS:
        paths = sorted(OUT.glob(f"seed-*/{row_folder(name, 0).name}/score.json"))
        runs = [json.loads(path.read_text()) for path in paths]
        for task in runs[0]["1"] if runs else ():
            cells = ""
            for steps in ("1", "20"):
                for column in ("miou", "recall", "ap"):
                    values = [one[steps][task][column] for one in runs]
                    spread = f" ± {np.ptp(values) / 2:.3f}" if len(values) > 1 else ""
                    cells += f" | {np.mean(values):.3f}{spread}"
            print(f"| {name} | {task} | {len(runs)}{cells} |")


def print_tables() -> None:
    """What is there, as Markdown."""
    print_rows()
    columns = ("miou", "recall", "ap", "synthesis_miou", "recognised")
    for kind in ("decode", "sample", "guidance"):
        if not (OUT / f"{kind}.json").exists():
            continue
        rows = json.loads((OUT / f"{kind}.json").read_text())
        by_row = {k: {"entity": v} if "miou" in v else v for k, v in rows.items()}
        heads = [
            (task, column)
            for task, figures in next(iter(by_row.values())).items()
            for column in columns
            if column in figures
        ]
        print("\n|" + "".join(f" | {task} {column}" for task, column in heads) + " |")
        print("|---" * (len(heads) + 1) + "|")
        for name, found in by_row.items():
            cells = "".join(f" | {found[task][column]:.3f}" for task, column in heads)
            print(f"| {name}{cells} |")


VERBS = {
    "train": train_rows,
    "decode": compare_decoders,
    "sample": compare_samplers,
    "guidance": compare_guidance,
    "curves": draw_all_curves,
    "tables": print_tables,
    "average": average_runs,
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
