"""J&F of models on clips: what they are shown, what it is worth, and the rows of the report."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from clip_parts import PICTURES, build, write_davis

from unigs.annotations import find_sources
from unigs.cli import main
from unigs.evaluation.clips import Labeller, describe_clips, evaluate_clips, list_clips, read_frame
from unigs.metrics.clips import ClipQuality
from unigs.records import Prediction, Skips
from unigs.systems.clips import ClipState, Tracked
from unigs.systems.pixels import fit_size
from unigs.verbs import scoring as verb

OPTIONS = {"clips": 1, "val_clips": 2, "frames": 4, "size_px": 32}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    write_davis(folder, **OPTIONS)
    return folder / "davis"


@pytest.fixture(scope="module")
def source(root):
    return next(one for one in find_sources(davis=root) if one.split == "val")


@pytest.fixture(scope="module")
def truth(source) -> list[torch.Tensor]:
    """The ids of each clip, int64 [T, H, W]."""
    frames = [read_frame(one) for one in source.iterate(Skips())]
    return [torch.stack([frame.ids for frame in frames[k : k + 4]]) for k in (0, 4)]


class Knower:
    """Answers the truth, its ids renamed by a table that may change from frame to frame."""

    name, options, side_px, multiple_px, past_frames = "knower", {}, 32, 1, 2

    def __init__(self, truth, rename=lambda number, ids: ids) -> None:
        self._clips, self._rename, self._seen = list(truth), rename, []

    def follow(self, image, state):
        clip = self._clips[0]
        ids = self._rename(state.frame, clip[state.frame])
        self._seen.append(state)
        if state.frame == len(clip) - 1:
            self._clips.append(self._clips.pop(0))
        prediction = Prediction(image, image, ids[None].int(), [[]])
        return Tracked(prediction, ClipState(state.frame + 1, ids[None, None]))

    def recall(self, frame, labels, names, size):
        assert len(names) >= max((int(one.max()) for one in labels), default=0)
        return ClipState(frame, torch.stack(labels) if labels else None)


def score(labeller, source, out) -> dict:
    return evaluate_clips(labeller, source, list_clips(source), out)["figures"]["clips"]["all"]


@pytest.fixture(autouse=True)
def _same_size(monkeypatch):
    """The knower answers at the size of the frames."""
    monkeypatch.setattr(Knower, "side_px", property(lambda self: min(self._clips[0].shape[1:])))


def test_the_truth_is_worth_everything_under_any_names_of_ids(source, truth, tmp_path):
    for name, rename in {
        "plain": lambda _, ids: ids,
        "renamed": lambda _, ids: torch.tensor([0, 7, 3, 9, 1])[ids],
    }.items():
        figures = score(Labeller(name, Knower(truth, rename)), source, tmp_path / name)
        assert figures["j_and_f"] == figures["f_recall"] == 1
        assert figures["id_switches"] == figures["j_decay"] == 0
        assert figures["pictures"] == 2


def test_an_id_that_changes_is_counted_and_costs(source, truth, tmp_path):
    shift = lambda number, ids: (ids + number % 2 * 4) * (ids > 0)
    figures = score(Labeller("shifting", Knower(truth, shift)), source, tmp_path)
    switches = 0
    for clip in truth:
        for k in clip.unique()[1:].tolist():
            there = [t % 2 for t, ids in enumerate(clip) if (ids == k).any()]
            switches += sum(one != other for one, other in pairwise(there))
    assert figures["id_switches"] == switches > 0
    assert figures["j_mean"] < 1


def test_the_floor_copies_the_first_frame(source, truth, tmp_path):
    metric = ClipQuality()
    for clip in truth:
        metric.update(clip[:1].expand_as(clip), clip)
    expected = metric.compute()
    figures = score(Labeller("copy"), source, tmp_path)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(float(value))


def test_each_row_sees_the_past_that_it_names(source, truth, tmp_path):
    seen = {}
    for past in ("no past", "true past", "own past"):
        knower = Knower(truth, lambda _, ids: ids * 0)
        score(Labeller(past, knower, past), source, tmp_path / past)
        seen[past] = knower._seen
    assert all(state.maps is None for state in seen["no past"])
    assert [state.frame for state in seen["no past"]] == [0, 1, 2, 3] * 2
    for number, state in enumerate(seen["true past"]):
        clip, frame = truth[number // 4], number % 4
        expected = clip[max(0, frame - 2) : frame].flip(0)
        assert (state.maps is None) == (frame == 0)
        assert state.maps is None or torch.equal(state.maps, expected)
    for number, state in enumerate(seen["own past"]):
        assert (state.maps is None) == (number % 4 == 0)
        assert state.maps is None or not state.maps.any()


def test_results_belong_to_the_clips_and_to_every_byte_of_their_files(root, tmp_path):
    shutil.copytree(root, tmp_path / "davis")
    source = next(one for one in find_sources(davis=tmp_path / "davis") if one.split == "val")
    clips = list_clips(source)
    assert list(list_clips(source, 1)) == list(clips)[:1]
    seen = [describe_clips(source, clips), describe_clips(source, list_clips(source, 1))]
    for path in source.inputs(0):
        path.write_bytes(path.read_bytes() + b"\0")
        seen.append(describe_clips(source, clips))
    digests = [json.dumps(one) for one in seen]
    assert len({*digests}) == len(digests) == 4


def test_void_is_ignored_and_crowds_have_no_id(source):
    one = next(source.iterate(Skips()))
    entities = tuple(e for e in one.entities)
    first = entities[0].__class__(1, "object", "1", "255", True, True)
    frame = read_frame(SimpleNamespace(entities=(first, *entities[1:]), labels=one.labels,
                                       image=one.image))  # fmt: skip
    assert torch.equal(frame.ignored, torch.from_numpy(one.labels == 1))
    assert not frame.ids[frame.ignored].any()


def test_the_verb_writes_rows_with_intervals_and_goes_on_where_it_stopped(
    root, tmp_path, monkeypatch, capsys
):
    build().make_predictor().save(str(tmp_path / "clips"))
    build(network=PICTURES).make_predictor().save(str(tmp_path / "pictures"))
    models = [str(tmp_path / name) for name in ("clips", "pictures")]
    out = tmp_path / "eval"
    words = ["evaluate", "clips", "--models", *models, "--davis", str(root), "--out", str(out)]
    assert main(words) == 0
    said = capsys.readouterr().out
    names = [f"clips, {past}" for past in ("no past", "true past", "own past")]
    for name in (*names, "pictures, no past", "copy of frame 0"):
        assert f"**{name}**" in said
    results = json.loads((out / "clips-own-past" / "results.json").read_text())
    rows = [json.loads(line) for line in
            (out / "clips-own-past" / "rows-00000.jsonl").read_text().splitlines()][1:]  # fmt: skip
    expected = ClipQuality.summarise(torch.tensor([row["clip"] for row in rows]).sum(0))
    figures = results["figures"]["clips"]["all"]
    assert figures["j_and_f"] == pytest.approx(float(expected["j_and_f"]))
    low, high = results["intervals"]["clips"]["all"]["j_and_f"]
    assert low <= figures["j_and_f"] <= high
    assert results["settings"]["past"] == "own past"
    assert "frames of a clip, true and found" in (out / "report.html").read_text()
    before = (out / "report.md").read_text()
    whole = (out / "clips-own-past" / "rows-00000.jsonl").read_text()
    path = out / "clips-own-past" / "rows-00000.jsonl"
    path.write_text("".join(whole.splitlines(True)[:2]))
    monkeypatch.setattr(Labeller, "label", allow_one(Labeller.label, "clips, own past"))
    assert main(words) == 0
    again = [json.loads(line)["clip"] for line in path.read_text().splitlines()[1:]]
    assert again == [row["clip"] for row in rows]
    assert drop_seconds(before) == drop_seconds((out / "report.md").read_text())


def allow_one(label, name: str):
    """Labels one clip of one row, and no other."""
    calls = []

    def once(self, frames):
        calls.append(self.name)
        assert calls == [name]
        return label(self, frames)

    return once


def drop_seconds(text: str) -> list[str]:
    return [line.partition("seconds")[0] for line in text.splitlines()]


def test_wrong_words_of_the_verb_are_told(root, tmp_path, monkeypatch, capsys):
    words = ["evaluate", "clips", "--davis", str(root), "--out", str(tmp_path / "out")]
    assert main([*words, "--models", "x", "--split", "test"]) == 1
    assert "expected a split of train, val, got test" in capsys.readouterr().err
    monkeypatch.setattr(verb, "load_predictor", lambda *_: SimpleNamespace(tasks=("entity",)))
    assert main([*words, "--models", "x"]) == 1
    assert "which follows entities through clips" in capsys.readouterr().err


def test_frames_run_at_the_size_that_the_model_was_trained_on(source, truth, tmp_path):
    sizes = []

    class Small(Knower):
        def follow(self, image, state):
            sizes.append(tuple(image.shape[-2:]))
            return super().follow(image, state)

    Small.side_px = 16
    knower = Small(truth, lambda _, ids: ids)
    score(Labeller("small", knower), source, tmp_path)
    wanted = {fit_size(*one.shape[1:], 16, 1) for one in truth}
    assert set(sizes) == wanted
    assert np.prod(sizes[0]) < truth[0][0].numel()
