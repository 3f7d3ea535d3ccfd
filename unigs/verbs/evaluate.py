"""``unigs evaluate``: the paper's tables for one or more models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from unigs.codec import Palette
from unigs.data import JOINT_SOURCES, HeldOut, Loading, UniGSData
from unigs.evaluation.baselines import load_inpainting, load_mask2former
from unigs.evaluation.judging import JudgeFiles, load_judges
from unigs.evaluation.predictors import EmptyFloor, Oracle, RandomFloor
from unigs.evaluation.protocol import Inputs, describe_inputs
from unigs.evaluation.run import evaluate
from unigs.records import TASKS, UnigsError
from unigs.report import write_report
from unigs.systems.load import load_predictor
from unigs.systems.predictor import Predictor
from unigs.systems.sampling import HOUSE, Sampling
from unigs.tasks import TaskOptions

NAMELESS = ("pipeline", "model")
"""Folders that many runs have, so that their names tell no model from another."""


@dataclass(frozen=True)
class Scenes:
    """Which pictures, and what is asked of them.

    Args:
        tasks: which of the four.
        samples_per_task: pictures of each task (paper: 1000).
        split: split of the sources.
        source_weights: per task the weights of its sources, as in the data config.
        resolution_px: side of the samples.
        min_area: entities under this part of a sample are not asked for.
        max_painted: most entities of a picture; the default is what the default palette can paint.
        batch_size: pictures per call.
        num_workers: loader processes.
        seed: of pictures and conditions.
    """

    tasks: tuple[str, ...] = TASKS
    samples_per_task: int = 1000
    split: str = "val"
    source_weights: dict[str, dict[str, float]] | None = None
    resolution_px: int = 512
    min_area: float = TaskOptions.min_area
    max_painted: int = Palette().capacity
    batch_size: int = 8
    num_workers: int = 1
    seed: int = 0

    def open(self, shards: list[str]) -> tuple[UniGSData, HeldOut]:
        """The data, and the set that is held out."""
        data = UniGSData(
            shards,
            TaskOptions(self.resolution_px, min_area=self.min_area, max_painted=self.max_painted),
            task_ratios={task: 1.0 for task in self.tasks},
            source_weights=self.source_weights or JOINT_SOURCES,
            loading=Loading(num_workers=self.num_workers),
            seed=self.seed,
        )
        return data, HeldOut(self.split, self.samples_per_task, self.batch_size)


def evaluate_models(
    models: list[str],
    shards: list[str],
    out: str,
    scenes: Scenes = Scenes(),
    sampling: Sampling = Sampling(),  # noqa: B008
    judges: JudgeFiles = JudgeFiles(),  # noqa: B008
    protocol: str | None = None,
    cache: str | None = None,
) -> None:
    """Print and write the paper's tables for one or more models.

    Args:
        models: pipeline folders; ``oracle``, ``oracle-vae=PIPELINE`` (ceilings), ``floor-empty``,
            ``floor-random``; ``sd-inpainting=FOLDER``, ``mask2former=FOLDER`` (baselines; the
            latter takes any segmenter that can judge, the benchmark's too).
        shards: folders that ``unigs shards`` wrote.
        out: folder; results of each model in a folder of its name, and one report over all.
        scenes: which pictures, and what is asked of them.
        sampling: what to do in another way than each model remembers; the paper's way is
            ``--sampling.num_inference_steps 200 --sampling.solver ddim``. Another decoder than a
            model's own is told in its name.
        judges: weights of the networks that judge pictures; figures without one are named.
        protocol: ``protocol.json`` of an earlier evaluation, to insist on the same inputs.
        cache: folder of the real pictures' FID statistics.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = Inputs(*scenes.open(shards), protocol)
    check_names(models)
    describe_inputs(inputs)  # an empty set is told before weights are read
    networks = load_judges(judges, device)
    folders = []
    for model in models:
        predictor = load_model(model, device, not judges.allow_download, sampling)
        folders.append(Path(out) / predictor.name)
        evaluate(predictor, inputs, folders[-1], networks, cache)
    print(write_report(Path(out), folders))


def name_model(model: str, sampling: Sampling = Sampling()) -> str:  # noqa: B008
    """What a model of the command line is called in tables and folders.

    Its folder's name; of one whose name says only that it is a model, that of the run around it.
    """
    kind, equals, _ = model.partition("=")
    folder = Path(model).resolve()
    name = folder.parent.name if folder.name in NAMELESS else folder.name
    if equals or kind in ("oracle", "floor-empty", "floor-random"):
        name = kind
    decoded = not name.startswith(("floor", "sd-", "mask2former"))
    other = sampling.decoder if sampling.decoder != HOUSE.decoder else None
    return f"{name}-{other}" if other and decoded else name


def check_names(models: Sequence[str]) -> None:
    """Refuse two models of one name, before the first is scored.

    Raises:
        UnigsError: with both.
    """
    names = [name_model(model) for model in models]
    for name in names:
        if names.count(name) > 1:
            twins = [model for model in models if name_model(model) == name]
            raise UnigsError(
                f"expected models of different names, got {' and '.join(twins)}, both called "
                f"{name!r}, in --models; rename a folder, or evaluate them into different --out"
            )


def load_model(model: str, device: str, offline: bool, sampling: Sampling) -> Predictor:
    """A predictor by its name on the command line; see :func:`evaluate_models`."""
    kind, _, source = model.partition("=")
    name, how = name_model(model, sampling), sampling.over(HOUSE)
    steps, seed, decoder = how.num_inference_steps, how.seed, how.decoder
    assert steps is not None
    assert seed is not None
    assert decoder is not None
    simple: dict[str, Callable[[], Predictor]] = {
        "oracle": lambda: Oracle(name=name, decoder=decoder),
        "floor-empty": EmptyFloor,
        "floor-random": lambda: RandomFloor(seed),
    }
    if kind in simple:
        return simple[kind]()
    if kind == "sd-inpainting":
        return load_inpainting(source, device, offline, steps=steps, seed=seed)
    if kind == "mask2former":
        return load_mask2former(source, device, offline)
    if kind == "oracle-vae":
        pipeline = load_predictor(source, name, device).pipeline
        return Oracle(name, pipeline.palette, pipeline.towers, decoder)
    return load_predictor(model, name, device, sampling)
