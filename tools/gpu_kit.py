"""Everything that a GPU is to be asked, in order of worth and within a time limit.

Started by ``tools/gpu_kit.sh run``. After every measurement ``gpu_kit.json`` and ``gpu_kit.md`` are
written anew, whole, so a run that is cut leaves what it had; run again with the same ``--out``, it
goes on with what is missing. One process measures, apart from the one that keeps the time: what
fails, runs out of memory or hangs is a row with its reason.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import benchmark_codec
import torch
from benchmark_step import Setting, make_batch, measure_step, open_system
from torch import Tensor

from unigs.callbacks.throughput import find_peak
from unigs.codec import decode_refined, encode_colormap
from unigs.files import write_json, write_text
from unigs.recipes.bases import make_base
from unigs.shards import write_shards
from unigs.synthetic import write_datasets

ROOT = Path(__file__).parents[1]
TRAINED = 0.25
"""Share of the time that is kept for training."""

LIMIT_S = 300
"""For one measurement."""


@dataclass(frozen=True)
class Size:
    """How large the kit's work is.

    Args:
        device: that is measured.
        preset: of the measured model's base.
        sides_px: of the pictures of a step, the most wanted first.
        batches: samples of a step, likewise.
        steps: measured of each setting, after 3 of warm-up.
        compile: kinds of compilation.
        decoded, painted: colormaps at a time, of the first side.
        sampling_steps: of which the latency is measured.
        scenes: drawn per data set, to train on.
        scene_px, trained_px: sides of the scenes and of what is cut out of them.
        trained_steps: at most.
    """

    device: str = "cuda"
    preset: Any = "sd15"
    sides_px: tuple[int, ...] = (512, 256)
    batches: tuple[int, ...] = (32, 8)
    steps: int = 8
    compile: tuple[Any, ...] = ("none", "blocks", "whole")
    decoded: int = 64
    painted: int = 32
    sampling_steps: tuple[int, ...] = (1, 20, 200)
    scenes: int = 2000
    scene_px: int = 160
    trained_px: int = 128
    trained_steps: int = 20000


TINY = Size(
    device="cpu", preset="tiny", sides_px=(32,), batches=(2,), steps=1, compile=("none",),
    decoded=2, painted=2, sampling_steps=(1,), scenes=6, scene_px=64, trained_px=32,
    trained_steps=3,
)  # fmt: skip
"""For a machine without a GPU, to see that the kit works."""

GOALS = {
    "decode": [("images_per_s", ">=", 2000), ("peak_gib", "<", 4)],
    "step, live": [("ratio", ">=", 0.97)],
    "step, cached": [("mfu", ">=", 0.45)],
}
"""By kind of measurement: what is measured, and what it should be."""


# --- what is measured, in the process that measures ----------------------------------------------


def draw_scenes(folder: Path, count: int, side_px: int) -> None:
    """Drawn data sets and their shards, beside the measurements; once."""
    os.nice(10)
    looks = {"max_things": 4, "max_stuff": 2, "min_radius": 0.08}
    write_datasets(folder / "data", count, max(1, count // 20), side_px, **looks)  # type: ignore[arg-type]
    sets = {name: str(folder / "data" / name) for name in ("coco", "openimages", "entityseg")}
    write_shards(out=str(folder / "shards"), workers=1, **sets)  # type: ignore[arg-type]


def prepare_base(work: Path, preset: Any) -> str:
    """The folder of a base of random weights; made at the first call."""
    folder = work / f"base-{preset}"
    if not folder.exists():
        make_base(str(folder), preset=preset)
    return str(folder)


@cache
def draw_batch(work: Path, side_px: int, batch: int) -> Any:
    return make_batch(work / f"drawn-{side_px}-{batch}", side_px, batch)


def draw_colormap(size: Size) -> tuple[Tensor, Tensor]:
    """Labels [H, W] of twelve entities, and their colormap [3, H, W] with light corruption."""
    labels = benchmark_codec.draw_voronoi(12, 0, size.sides_px[0])
    painted = encode_colormap(labels)
    return labels, benchmark_codec.corrupt(painted, *benchmark_codec.LIGHT, 0)


def measure_decoding(size: Size, work: Path) -> dict[str, float]:
    maps = draw_colormap(size)[1].to(size.device).repeat(size.decoded, 1, 1, 1)
    call = partial(decode_refined, maps)
    seconds, peak_gib = benchmark_codec.time_call(call, maps.device, size.steps)
    return {"images_per_s": size.decoded / seconds, "peak_gib": peak_gib}


def measure_painting(size: Size, work: Path) -> dict[str, float]:
    labels = draw_colormap(size)[0].to(size.device).repeat(size.painted, 1, 1)
    call = partial(encode_colormap, labels)
    seconds, peak_gib = benchmark_codec.time_call(call, labels.device, size.steps)
    return {"ms": 1e3 * seconds, "peak_gib": peak_gib}


def measure_training_step(
    size: Size, work: Path, side_px: int, batch: int, **setting: Any
) -> dict[str, float]:
    told = draw_batch(work, side_px, batch)
    base, device = prepare_base(work, size.preset), torch.device(size.device)
    return measure_step(base, told, Setting(**setting), device, size.steps)


def measure_sampling(size: Size, work: Path, num_inference_steps: int) -> dict[str, float]:
    """Seconds from one picture to its masks."""
    device, side_px = torch.device(size.device), size.sides_px[0]
    pipe = open_system(prepare_base(work, size.preset), Setting(), device).make_pipeline()
    pipe.set_progress_bar_config(disable=True)
    picture = draw_batch(work, side_px, size.batches[-1]).image[0]
    options = {"num_inference_steps": num_inference_steps, "processing_resolution": side_px}
    with torch.autocast(size.device, torch.bfloat16, enabled=size.device == "cuda"):
        call = partial(pipe, "entity", picture, **options)
        seconds, peak_gib = benchmark_codec.time_call(call, device, 3)
    return {"s": seconds, "peak_gib": peak_gib}


MEASURES: dict[str, Callable[..., dict[str, float]]] = {
    "decode": measure_decoding,
    "paint": measure_painting,
    "step, live": partial(measure_training_step, cached=False),
    "step, cached": partial(measure_training_step, cached=True),
    "sample": measure_sampling,
}


def serve(pipe: Any, size: Size, work: Path) -> None:
    """Measure what is asked for, until something fails: that may have harmed the device's state."""
    warnings.filterwarnings("ignore")
    while True:
        kind, about = pipe.recv()
        try:
            pipe.send((MEASURES[kind](size, work, **about), None))
        except Exception as error:
            traceback.print_exc()
            pipe.send((None, f"{type(error).__name__}: {str(error)[:300]}"))
            return
        gc.collect()
        if size.device == "cuda":
            torch.cuda.empty_cache()


# --- the process that keeps the time -------------------------------------------------------------


class Failed(Exception):
    """A measurement that gave no numbers, in words."""


class Worker:
    """The process that measures; another takes its place when it ends or takes too long."""

    def __init__(self, size: Size, work: Path) -> None:
        self.told = size, work
        self.process: Any = None

    def ask(self, kind: str, about: dict[str, Any], limit_s: float) -> dict[str, float]:
        """The numbers of one measurement.

        Raises:
            Failed: with the reason.
        """
        if self.process is None or not self.process.is_alive():
            spawn = multiprocessing.get_context("spawn")
            self.pipe, theirs = spawn.Pipe()
            self.process = spawn.Process(target=serve, args=(theirs, *self.told), daemon=True)
            self.process.start()
            theirs.close()
        self.pipe.send((kind, about))
        if not self.pipe.poll(limit_s):
            self.end()
            raise Failed(f"not done within {limit_s:.0f} s")
        try:
            found, reason = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise Failed(f"the process ended with {self.process.exitcode}") from None
        if reason:
            self.end()
            raise Failed(reason)
        return found

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()


def run_words(words: list[str], log: Path, limit_s: float) -> None:
    """A command of its own, in the repository's root.

    Raises:
        Failed: it took too long, or ended with another code than 0.
    """
    with open(log, "wb") as file:
        try:
            command = [sys.executable, "-m", *words]
            ended = subprocess.run(
                command, stdout=file, stderr=file, timeout=limit_s, cwd=ROOT, check=False
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"not done within {limit_s:.0f} s; see {log.name}") from None
    if ended.returncode:
        last = log.read_text(errors="replace").strip().rpartition("\n")[2]
        raise Failed(f"ended with {ended.returncode}: {last[:200]}; see {log.name}")


def run_tests(out: Path, limit_s: float) -> dict[str, float]:
    """Counts of the tests that need a GPU; each failure stands in tests.log."""
    log = out / "tests.log"
    try:
        run_words(["pytest", "-m", "gpu", "-rfE", "tests/test_gpu.py"], log, limit_s)
    except Failed as failed:
        if not re.search(r"\d+ (passed|failed)", log.read_text(errors="replace")):
            raise failed
    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
    counts = re.findall(r"(\d+) (passed|failed|skipped|error)", last)
    return {name: float(count) for count, name in counts}


def train(size: Size, out: Path, drawing: Any, ends: float) -> dict[str, float]:
    """The benchmark's model, on larger pictures, until the time is up; its last figures."""
    drawing.join(max(1.0, ends - time.monotonic()))
    if drawing.exitcode != 0:
        raise Failed("the scenes to train on were not drawn in time")
    left_s = ends - time.monotonic()
    folder = out / "train"
    on_gpu = size.device == "cuda"
    options = {
        "model.base": prepare_base(out / "work", "small"),
        "model.optimizer.decay_steps": size.trained_steps,
        "data.loading.global_batch_size": 32 if on_gpu else 8,
        "data.shards": f"[{out / 'work' / 'shards'}]",
        "data.tasks.resolution_px": size.trained_px,
        "data.loading.num_workers": min(8, os.cpu_count() or 1),
        "trainer.accelerator": "gpu" if on_gpu else "cpu",
        "trainer.devices": 1,
        "trainer.strategy": "auto",
        "trainer.precision": "bf16-mixed" if on_gpu else "32-true",
        "trainer.max_time": json.dumps({"seconds": max(1, int(0.8 * left_s))}),
        "trainer.max_steps": size.trained_steps,
        "trainer.log_every_n_steps": min(10, size.trained_steps),
        "trainer.logger": "lightning.pytorch.loggers.CSVLogger",
        "trainer.logger.save_dir": folder,
        "trainer.logger.name": "",
        "trainer.logger.version": "",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    config = ROOT / "configs" / "benchmark.yaml"
    run_words(["unigs", "fit", "--config", str(config), *words], out / "train.log", left_s)
    found: dict[str, float] = {}
    for row in csv.DictReader((folder / "metrics.csv").open()):
        found |= {name: float(value) for name, value in row.items() if value}
    return found


# --- rows, in order of worth ---------------------------------------------------------------------


def list_measurements(size: Size) -> Iterator[tuple[str, dict[str, Any]]]:
    """Kind and options of everything, the most wanted first.

    A setting is wanted the less, the more of it differs from what ``joint.yaml`` says.
    """
    yield "decode", {}
    yield "paint", {}
    best = asdict(Setting(beside_plain=False))
    del best["cached"]
    shapes = [{"side_px": s, "batch": b} for s, b in product(size.sides_px, size.batches)]
    yield "step, live", {**shapes[0], **best, "beside_plain": True}
    yield "step, cached", {**shapes[0], **best}
    yield "tests", {}
    for steps in size.sampling_steps:
        yield "sample", {"num_inference_steps": steps}
    for shape in shapes[1:]:
        yield "step, live", {**shape, **best, "beside_plain": True}
    grid = []
    values = product((False, True), size.compile, (True, False), shapes)
    for checkpointing, compiled, channels_last, shape in values:
        chosen = {"checkpointing": checkpointing, "compile": compiled}
        setting = {**shape, **best, **chosen, "channels_last": channels_last}
        far = sum(setting[name] != one for name, one in {**best, **shapes[0]}.items())
        kinds = ("step, cached", "step, live")
        grid += [(compiled == "whole", far, kind, setting) for kind in kinds]
    for *_, kind, setting in sorted(grid, key=lambda one: one[:2]):
        if (kind, setting) != ("step, cached", {**shapes[0], **best}):
            yield kind, setting


def describe_machine(size: Size) -> dict[str, Any]:
    """What the numbers depend on."""
    on_gpu = size.device == "cuda"
    peak = find_peak(torch.device(size.device))
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "CPU",
        "memory_gib": torch.cuda.mem_get_info()[1] / 2**30 if on_gpu else None,
        "peak_tflops": peak / 1e12 if peak else None,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
    }


def add_ratios(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, with ``of_plain``: the rate of a step to that of the plain loop on the same batch.

    A row that ran beside the loop has their ``ratio`` in turns, which is exact.
    """
    shape = lambda row: (row["about"].get("side_px"), row["about"].get("batch"))
    plain = {
        shape(row): row["found"]["plain_images_per_s"]
        for row in rows
        if "plain_images_per_s" in row["found"]
    }
    told = []
    for row in rows:
        found = dict(row["found"])
        if "images_per_s" in found and "ratio" not in found and shape(row) in plain:
            found["of_plain"] = found["images_per_s"] / plain[shape(row)]
        told.append({**row, "found": found})
    return told


def judge(kind: str, found: dict[str, float]) -> str:
    """The goals of a row, and whether they are met."""
    said = []
    for name, sign, goal in GOALS.get(kind, []):
        if name in found:
            met = found[name] >= goal if sign == ">=" else found[name] < goal
            said.append(f"{name} {sign} {goal}: {'yes' if met else '**no**'}")
    return "; ".join(said)


def write_results(out: Path, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """``gpu_kit.json`` and ``gpu_kit.md``, each whole or not at all."""
    write_json(out / "gpu_kit.json", {"machine": machine, "rows": rows})
    told = ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)
    lines = [f"{told}", "", "| measured | setting | found | goal |", "|---|---|---|---|"]
    for row in add_ratios(rows):
        chosen = [(name, value) for name, value in row["about"].items() if value is not False]
        setting = ", ".join(n if value is True else f"{n} {value}" for n, value in chosen)
        found = ", ".join(f"{name} {value:.4g}" for name, value in row["found"].items())
        failed = row["failed"] and f"none: {row['failed']}".replace("|", "/").replace("\n", " ")
        goal = judge(row["kind"], row["found"])
        lines.append(f"| {row['kind']} | {setting} | {failed or found} | {goal} |")
    write_text(out / "gpu_kit.md", "\n".join(lines) + "\n")


def run_kit(out: Path, size: Size, minutes: float) -> None:
    """Measure all that there is time for, and train for what is left of it."""
    ends = time.monotonic() + 60 * minutes
    measured_until = ends - 60 * TRAINED * minutes
    work = out / "work"
    work.mkdir(parents=True, exist_ok=True)
    machine, rows = describe_machine(size), []
    if (out / "gpu_kit.json").exists():
        before = json.loads((out / "gpu_kit.json").read_text())
        if before["machine"] == machine:
            rows = [row for row in before["rows"] if row["found"] and row["kind"] != "train"]
    done = [(row["kind"], row["about"]) for row in rows]
    spawn = multiprocessing.get_context("spawn")
    told = (work, size.scenes, size.scene_px)
    drawing = spawn.Process(target=draw_scenes, args=told, daemon=True)
    drawing.start()
    worker = Worker(size, work)

    def note(kind: str, about: dict[str, Any], measure: Callable[[], dict[str, float]]) -> None:
        row = {"kind": kind, "about": about, "found": {}, "failed": None}
        start = time.monotonic()
        try:
            row["found"] = measure()
        except Failed as failed:
            row["failed"] = str(failed)
        row["s"] = round(time.monotonic() - start, 1)
        rows.append(row)
        print(json.dumps(row), flush=True)
        write_results(out, machine, rows)

    try:
        for kind, about in list_measurements(size):
            left_s = min(LIMIT_S, measured_until - time.monotonic())
            if (kind, about) in done:
                continue
            if left_s <= 0:
                rows.append({"kind": kind, "about": about, "found": {}, "failed": "no time left"})
            elif kind == "tests":
                note(kind, about, partial(run_tests, out, left_s))
            else:
                note(kind, about, partial(worker.ask, kind, about, left_s))
        worker.end()
        px = {"resolution_px": size.trained_px}
        note("train", px, partial(train, size, out, drawing, ends))
    finally:
        worker.end()
        drawing.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--minutes", type=float, default=25, help="that all may take")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes on a CPU, as a rehearsal")
    told = parser.parse_args()
    size = TINY if told.tiny else Size()
    if size.device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_kit: expected a GPU that torch sees, got none; --tiny rehearses on a CPU")
    run_kit(told.out.resolve(), size, told.minutes)
    print(f"written: {told.out / 'gpu_kit.md'}")


if __name__ == "__main__":
    main()
