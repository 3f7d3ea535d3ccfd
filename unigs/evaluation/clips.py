"""Models that follow entities, on clips: J&F and id switches as rows of the same report.

In: the clips of a DAVIS source, and who labels their frames. Out: one row per clip; figures,
intervals over clips and differences are those of every other evaluation. A clip is read frame by
frame at its own size; the model runs at the size it was trained on, as ``unigs segment`` does.
"""

from __future__ import annotations

import hashlib
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from unigs.annotations import split_key
from unigs.annotations.base import Source
from unigs.annotations.davis import OBJECT, PAST_FRAMES
from unigs.evaluation.judging import Judges
from unigs.evaluation.protocol import digest_header
from unigs.evaluation.results import ResultStore, pick_pictures, summarise_results
from unigs.evaluation.run import describe_run, keep_results
from unigs.files import hash_file
from unigs.images import decode_image
from unigs.metrics.clips import FrameScores, score_clip, score_frame, tally_clip
from unigs.pictures import blend_labels, draw_sheet
from unigs.records import Annotated, Skips
from unigs.systems.clips import ClipPredictor, ClipState
from unigs.systems.pixels import fit_size, resize_labels, resize_pixels

TASK = "clips"
SHOWN = 6
"""Frames of a clip in its picture."""

PastKind = Literal["no past", "true past", "own past"]
"""What a model sees of the frames before: nothing, the truth (a ceiling), or its own answers."""


@dataclass(frozen=True, slots=True, eq=False)
class Labeller:
    """Who labels the frames of a clip, in their order.

    Attributes:
        name: for tables and folders.
        predictor: a model; None copies the truth of the first frame, the floor of a still clip.
        past: what the model sees of the frames before.
    """

    name: str
    predictor: ClipPredictor | None = None
    past: PastKind = "own past"

    def label(self, frames: Iterable[Frame]) -> Iterator[torch.Tensor]:
        """Ids int64 [H, W] of each frame at its own size."""
        known: deque[torch.Tensor] = deque(maxlen=PAST_FRAMES)  # true ids, the nearest first
        first, state = None, ClipState()
        for number, frame in enumerate(frames):
            first = frame.ids if first is None else first
            if self.predictor is None:
                yield first
                continue
            model, (height, width) = self.predictor, frame.ids.shape
            fitted = fit_size(height, width, model.side_px, model.multiple_px)
            if self.past == "no past":
                state = ClipState(number)
            elif self.past == "true past":
                most = max((int(ids.max()) for ids in known), default=0)
                state = model.recall(number, list(known), [OBJECT["name"]] * most, fitted)
            prediction, state = model.follow(resize_pixels(frame.image, fitted), state)
            known.appendleft(frame.ids)
            yield resize_labels(prediction.labels.cpu(), (height, width))[0].long()


class Frame(NamedTuple):
    """Image uint8 [1, 3, H, W]; true ids int64 [H, W], 0 is background; ignored bool [H, W]."""

    image: torch.Tensor
    ids: torch.Tensor
    ignored: torch.Tensor


def read_frame(annotated: Annotated) -> Frame:
    """A frame with the ids that its clip's objects have in every frame."""
    ids = [0, *(0 if e.is_crowd else int(e.annotation_id) for e in annotated.entities)]
    crowd = [False, *(e.is_crowd for e in annotated.entities)]
    labels = torch.from_numpy(annotated.labels.astype(np.int64))
    image = torch.from_numpy(decode_image(annotated.image)).permute(2, 0, 1)[None].contiguous()
    return Frame(image, torch.tensor(ids)[labels], torch.tensor(crowd)[labels])


def list_clips(source: Source, most: int | None = None) -> dict[str, list[int]]:
    """Places of the frames of each clip, in their order."""
    places = groupby(range(len(source)), key=lambda i: split_key(source.keys[i])[0])
    clips = {clip: list(mine) for clip, mine in places}
    return dict(list(clips.items())[:most])


def describe_clips(source: Source, clips: dict[str, list[int]]) -> dict[str, Any]:
    """What the figures depend on: every file of every frame, by content."""
    digest = hashlib.sha256()
    for i in (i for places in clips.values() for i in places):
        digest.update(source.keys[i].encode())
        for path in source.inputs(i):
            digest.update(hash_file(path).encode() if path.exists() else b"none")
    return {"clips": list(clips), "split": source.split, "files": digest.hexdigest()}


def evaluate_clips(
    labeller: Labeller, source: Source, clips: dict[str, list[int]], out: Path
) -> dict[str, Any]:
    """Score one labeller on clips; one that was interrupted goes on after its last whole clip.

    Args:
        labeller: whom.
        source: of DAVIS.
        clips: see :func:`list_clips`.
        out: folder of the results.

    Returns:
        What ``results.json`` holds.
    """
    inputs = describe_clips(source, clips)
    asked: Any = labeller.predictor or labeller
    header = describe_run(asked, Judges(), inputs)
    settings = {**header["settings"], "past": labeller.past} if labeller.predictor else {}
    store = ResultStore(out, header | {"model": labeller.name, "settings": settings})
    with tqdm(total=sum(map(len, clips.values())), desc=labeller.name, unit="frame") as bar:
        for index, (clip, places) in enumerate(clips.items()):
            if index not in store.rows:
                row, strip = judge_clip(labeller, source, places, bar)
                store.add([{"index": index, "task": TASK, "key": clip, **row}], None, [strip])
            else:
                bar.update(len(places))
    rows = store.read_all()
    results = {
        "model": labeller.name,
        "inputs": digest_header(inputs),
        "figures": summarise_results(store, out, ""),
        "missing": {},
        "curves": {},
        "picks": {TASK: pick_pictures(rows, 1)},
    }
    return keep_results(store, rows, results)


def judge_clip(
    labeller: Labeller, source: Source, places: list[int], bar: Any
) -> tuple[dict[str, Any], np.ndarray]:
    """What is kept of one clip, and its picture uint8 [H, W, 3]."""
    skips, seen, scores = Skips(), deque[Frame](maxlen=1), list[FrameScores]()

    def read() -> Iterator[Frame]:
        for i in places:
            annotated = source.load(i, skips)
            bar.update()
            if annotated is not None:
                seen.append(read_frame(annotated))
                yield seen[0]

    shown = {*np.linspace(0, len(places) - 1, SHOWN).round().astype(int).tolist()}
    tiles: list[list[np.ndarray]] = []
    started = time.perf_counter()
    for number, labels in enumerate(labeller.label(read())):
        (frame,) = seen
        scores.append(score_frame(labels, frame.ids, frame.ignored))
        if number in shown:
            image = frame.image[0].numpy()
            tiles.append([blend_labels(image, ids.numpy()) for ids in (frame.ids, labels)])
    seconds = time.perf_counter() - started
    found = score_clip(scores)
    told = f"{len(found.j)} objects, {len(scores)} frames, {found.id_switches} id switches"
    row = {
        "names": [],
        "prompt": told,
        "clip": tally_clip(found).tolist(),
        "rating": float((found.j.mean() + found.f.mean()) / 2) if found.j.size else 1.0,
        "seconds": seconds / max(1, len(scores)),
        "skipped": dict(skips.counts),
    }
    columns = list(zip(*tiles))
    lines = list(zip(("ground truth", labeller.name), columns))
    sheet = draw_sheet([""] * len(tiles), lines)
    return row, np.ascontiguousarray(sheet.transpose(1, 2, 0))
