"""Models by name -> their scores and one report: the work of ``unigs evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from unigs.evaluation.baselines import load_inpainting, load_mask2former
from unigs.evaluation.judging import load_judges
from unigs.evaluation.options import JudgeFiles, Scenes
from unigs.evaluation.predictors import EmptyFloor, Oracle, RandomFloor
from unigs.evaluation.protocol import describe_inputs, open_inputs
from unigs.evaluation.run import evaluate
from unigs.report import write_report
from unigs.systems.load import load_predictor
from unigs.systems.predictor import Predictor
from unigs.systems.sampling import HOUSE, Sampling
from unigs.verbs.evaluate import name_model


def score_models(
    models: Sequence[str],
    shards: list[str],
    out: Path,
    scenes: Scenes,
    sampling: Sampling,
    judges: JudgeFiles,
    protocol: str | None,
    cache: str | None,
) -> str:
    """Score each model and write the report; its Markdown. See ``verbs.evaluate``."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    inputs = open_inputs(scenes, shards, protocol)
    describe_inputs(inputs)  # an empty set is told before weights are read
    networks = load_judges(judges, device)
    folders = []
    for model in models:
        predictor = load_model(model, device, not judges.allow_download, sampling)
        folders.append(out / predictor.name)
        evaluate(predictor, inputs, folders[-1], networks, cache)
    return write_report(out, folders)


def load_model(model: str, device: str, offline: bool, sampling: Sampling) -> Predictor:
    """A predictor by its name on the command line; see ``verbs.evaluate``."""
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
