"""``unigs evaluate clips``: J&F of models that follow entities, on clips of DAVIS or like it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from unigs.annotations import find_sources
from unigs.evaluation.clips import Labeller, PastKind, evaluate_clips, list_clips
from unigs.records import UnigsError
from unigs.report import write_report
from unigs.systems.load import load_predictor
from unigs.systems.sampling import Sampling
from unigs.verbs.evaluate import check_names, name_model

COPY = Labeller("copy of frame 0")


def evaluate_on_clips(
    models: list[str],
    davis: Path,
    out: Path,
    split: str = "val",
    clips: int | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
) -> None:
    """Print and write J&F and id switches of one or more models, with intervals over clips.

    A model that looks back has three rows: no past, the true past (a ceiling), and its own. The
    last row copies the truth of the first frame.

    Args:
        models: folders that ``unigs export`` wrote, of Pix2SeqD; names of models that ship.
        davis: root of DAVIS as released, or of ``unigs synthetic clips``.
        out: folder; results of each row in a folder of its name, and one report over all.
        split: train or val.
        clips: only the first so many.
        sampling: what to do in another way than each model remembers.

    Raises:
        UnigsError: no such clips, a model of another system, or results of something else in
            ``out``.

    Example:
        unigs evaluate clips --models runs/pix2seq-d-video/model --davis DAVIS --out runs/clips/eval
    """
    check_names(models)
    found = {source.split: source for source in find_sources(davis=davis)}
    if split not in found:
        raise UnigsError(f"expected a split of {', '.join(sorted(found))}, got {split}, at {davis}")
    source = found[split]
    source.require_pictures()
    chosen = list_clips(source, clips)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = [row for model in models for row in list_rows(model, device, sampling)]
    folders = []
    for row in [*rows, COPY]:
        folders.append(out / row.name.replace(" ", "-").replace(",", ""))
        evaluate_clips(row, source, chosen, folders[-1])
    print(write_report(out, folders))


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
