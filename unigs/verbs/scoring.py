"""Models by name -> their scores and one report: what ``unigs evaluate`` does, of clips too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import get_args

import torch

from unigs.annotations.base import Source
from unigs.evaluation.baselines import load_peer
from unigs.evaluation.clips import Labeller, PastKind, evaluate_clips, list_clips
from unigs.evaluation.judging import load_judges
from unigs.evaluation.options import JudgeFiles, Scenes
from unigs.evaluation.peers import PEERS
from unigs.evaluation.predictors import EmptyFloor, Oracle, RandomFloor
from unigs.evaluation.protocol import describe_inputs, open_inputs
from unigs.evaluation.run import evaluate
from unigs.records import UnigsError
from unigs.report import write_report
from unigs.systems.load import load_predictor
from unigs.systems.predictor import Predictor
from unigs.systems.sampling import HOUSE, Sampling
from unigs.verbs.evaluate import name_model, split_model

COPY = Labeller("copy of frame 0")


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
    kind, source = split_model(model)
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
    if kind in PEERS:
        return load_peer(kind, source, device, offline, steps=steps, seed=seed)
    if kind == "oracle-vae":
        pipeline = load_predictor(source, name, device).pipeline
        return Oracle(name, pipeline.palette, pipeline.towers, decoder)
    return load_predictor(model, name, device, sampling)


def score_followers(
    models: Sequence[str], source: Source, clips: int | None, out: Path, sampling: Sampling
) -> str:
    """Score each model on a source's clips and write the report; its Markdown.

    See ``verbs.clips``.
    """
    chosen = list_clips(source, clips)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [row for model in models for row in list_rows(model, device, sampling)]
    folders = []
    for row in [*rows, COPY]:
        folders.append(out / row.name.replace(" ", "-").replace(",", ""))
        evaluate_clips(row, source, chosen, folders[-1])
    return write_report(out, folders)


def list_rows(model: str, device: str, sampling: Sampling) -> list[Labeller]:
    """The rows of one model.

    Raises:
        UnigsError: it cannot follow a clip.
    """
    name = name_model(model)
    predictor = load_predictor(model, name, device, sampling)
    if not hasattr(predictor, "follow"):
        raise UnigsError(
            f"expected a model of Pix2SeqD, which follows entities through clips, got a "
            f"{type(predictor).__name__}, at {model}"
        )
    if not predictor.past_frames:
        return [Labeller(f"{name}, no past", predictor, "no past")]
    return [Labeller(f"{name}, {past}", predictor, past) for past in get_args(PastKind)]
