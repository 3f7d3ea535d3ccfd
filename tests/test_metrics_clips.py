"""J&F and id switches: against loops over pixels and trackeval, and laws of clips."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from scipy.ndimage import binary_dilation

from unigs.metrics.clips import ClipQuality, score_clip, score_frame, tally_clip
from unigs.records import UnigsError
from unigs.synthetic import draw_clip

SIZE = 40


def draw_pair(seed, frames=9, void=0.0):
    """(predicted, true, ignored) of a clip, [T, H, W]: jittered masks, renamed and swapped ids."""
    rng = np.random.default_rng(seed)
    true = np.stack([f.ids for f in draw_clip(seed, SIZE, frames, max_things=4)]).astype(np.int32)
    found = true.copy()
    names = 1 + rng.permutation(12)[:6]
    for t in range(frames):
        table = np.array([0, *names[:5]])
        if t > frames // 2:
            table[1:3] = table[[2, 1]]  # from here on two ids are swapped
        drop = rng.random(6) < 0.2
        drop[0] = False
        table[drop[: len(table)]] = 0
        found[t] = np.roll(table[true[t]], rng.integers(-2, 3, 2), (0, 1))
    found[:, 30:34, 30:34] = 11 + seed % 2  # a spare prediction
    ignored = rng.random(true.shape) < void
    return torch.from_numpy(found), torch.from_numpy(true), torch.from_numpy(ignored)


def outline(mask):
    """By a loop over pixels."""
    height, width = mask.shape
    edge = np.zeros_like(mask)
    for y in range(height):
        for x in range(width):
            steps = [(y, x + 1), (y + 1, x), (y + 1, x + 1)]
            steps = [(b, a) for b, a in steps if b < height and a < width]
            edge[y, x] = any(mask[y, x] != mask[step] for step in steps)
    return edge


def loop_j_and_f(found, true):
    """(J, F) of two bool masks."""
    union = (found | true).sum()
    j = (found & true).sum() / union if union else 1.0
    reach = math.ceil(0.008 * math.hypot(*true.shape))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = x**2 + y**2 <= reach**2
    edges = outline(found), outline(true)
    wide = [binary_dilation(edge, disk) for edge in edges]
    counts = [edge.sum() for edge in edges]
    if not min(counts):
        return j, float(max(counts) == 0)
    precision = (edges[0] & wide[1]).sum() / counts[0]
    recall = (edges[1] & wide[0]).sum() / counts[1]
    return j, 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def loop_figures(found, true, ignored):
    """All figures of one clip, every partner tried."""
    found, true = found.numpy() * ~ignored.numpy(), true.numpy() * ~ignored.numpy()
    objects = [k for k in np.unique(true) if k]
    spare = [k for k in np.unique(found) if k] + [-1] * len(objects)
    both = {
        (p, n): np.array([loop_j_and_f(a == p, b == n) for a, b in zip(found, true, strict=True)])
        for p in {*spare}
        for n in objects
    }
    mean = {pair: values.mean() for pair, values in both.items()}
    choices = {*permutations(spare, len(objects))}
    best = max(choices, key=lambda c: sum(mean[pair] for pair in zip(c, objects, strict=True)))
    series = np.array([both[p, n] for p, n in zip(best, objects)])  # [N, T, 2]
    frames = series.shape[1]
    ends = [round(1 + (frames - 1) * k / 4 + 1e-10) for k in range(5)]
    figures = {}
    for place, kind in enumerate("jf"):
        values = series[..., place]
        figures[f"{kind}_mean"] = values.mean()
        figures[f"{kind}_recall"] = (values > 0.5).mean()
        decays = values[:, : ends[1]].mean(1) - values[:, ends[3] - 1 :].mean(1)
        figures[f"{kind}_decay"] = decays.mean()
    return figures


def computed(*clips):
    metric = ClipQuality()
    for clip in clips:
        metric.update(*clip)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize(("seed", "frames", "void"), [(4, 7, 0.0), (3, 5, 0.1)])
def test_figures_equal_loops_over_pixels_and_partners(seed, frames, void):
    """Ends of quarters of 7 frames lie at halves, which are rounded up."""
    clip = draw_pair(seed, frames, void)
    figures = computed(clip)
    for name, value in loop_figures(*clip).items():
        assert figures[name] == pytest.approx(value, abs=1e-9), name
    assert 0.1 < figures["j_mean"] < 0.95
    assert 0.1 < figures["f_mean"] < 0.99


def to_trackeval(found, true):
    """One clip as trackeval wants it: run lengths and ids from 0."""
    from pycocotools import mask as coco_mask

    data = {"num_timesteps": len(true)}
    for name, clip in (("tracker", found.numpy()), ("gt", true.numpy())):
        ids = [k for k in np.unique(clip) if k]
        data[f"num_{name}_ids"] = len(ids)
        seen = [[n for n, k in enumerate(ids) if (frame == k).any()] for frame in clip]
        data[f"{name}_ids"] = [np.array(places, int) for places in seen]
        data[f"{name}_dets"] = [
            [coco_mask.encode(np.asfortranarray(f == ids[n], np.uint8)) for n in places]
            for f, places in zip(clip, seen, strict=True)
        ]
        data[f"num_{name}_dets"] = sum(map(len, seen))
    data["similarity_scores"] = [
        np.asarray(coco_mask.iou(b, a, [0] * len(a))).reshape(len(b), len(a))
        for a, b in zip(data["tracker_dets"], data["gt_dets"], strict=True)
    ]
    return data


def test_figures_equal_those_of_trackeval():
    metrics = pytest.importorskip("trackeval.metrics", exc_type=ImportError)
    clips = [draw_pair(seed, frames) for seed in range(4) for frames in (4, 7, 14)]
    quiet = {"PRINT_CONFIG": False}
    scorer = metrics.JAndF()
    scorer.optim_type = "J&F"  # as DAVIS pairs; its default looks at J alone
    rows = [scorer.eval_sequence(to_trackeval(*clip[:2])) for clip in clips]
    names = {"J": "j", "F": "f", "Mean": "mean", "Recall": "recall", "Decay": "decay"}
    for clip, row in zip(clips, rows, strict=True):
        figures = computed(clip)
        for key, value in row.items():
            if "-" in key:
                name = "_".join(names[word] for word in key.split("-"))
                assert figures[name] == pytest.approx(value, abs=1e-9)
        frames = [score_frame(*frame) for frame in zip(*clip, strict=True)]
        if not any((frame.j == 0.5).any() for frame in frames):
            switches = metrics.CLEAR(quiet).eval_sequence(to_trackeval(*clip[:2]))["IDSW"]
            assert figures["id_switches"] == switches
    combined = metrics.JAndF().combine_sequences({str(k): row for k, row in enumerate(rows)})
    assert computed(*clips)["j_and_f"] == pytest.approx(combined["J&F"], abs=1e-9)


def test_names_of_ids_order_of_clips_and_ranks_change_no_figure():
    clips = [draw_pair(seed) for seed in range(4)]
    whole = computed(*clips)
    table = torch.from_numpy(np.append(0, 1 + np.random.default_rng(9).permutation(60)))
    renamed = [(table[p.long()], 61 - table[t.long()] * (t > 0), v) for p, t, v in clips]
    renamed = [(p, t * (old > 0), v) for (p, t, v), (_, old, _) in zip(renamed, clips, strict=True)]
    assert computed(*reversed(renamed)) == whole
    ranks = [ClipQuality() for _ in range(2)]
    for place, clip in enumerate(clips):
        ranks[place % 2].update(*clip)
    ranks[0].merge_state(ranks[1])
    assert {name: float(value) for name, value in ranks[0].compute().items()} == whole


def test_truth_is_one_and_nothing_is_found_only_where_nothing_is():
    _, true, ignored = draw_pair(2)
    figures = computed((true * 7, true, ignored))
    assert figures == {
        **dict.fromkeys(("j_and_f", "j_mean", "j_recall", "f_mean", "f_recall"), 1.0),
        **dict.fromkeys(("j_decay", "f_decay", "id_switches"), 0.0),
    }
    absent = np.mean([[not (frame == k).any() for frame in true] for k in true.unique() if k])
    nothing = computed((torch.zeros_like(true), true, ignored))
    assert nothing["j_mean"] == nothing["f_mean"] == pytest.approx(absent)
    empty = torch.zeros_like(true)
    assert math.isnan(computed((true, empty, ignored))["j_mean"])  # no object: no figure


def test_a_frame_at_a_time_is_the_clip_at_once():
    predicted, true, ignored = draw_pair(3, void=0.1)
    frames = [score_frame(*frame) for frame in zip(predicted, true, ignored, strict=True)]
    torch.testing.assert_close(
        tally_clip(score_clip(frames)), ClipQuality.measure(predicted, true, ignored)
    )


def rows(*frames):
    return torch.tensor([[frame] * 2 for frame in frames])


def test_switches_by_hand():
    """Lost and found again under its id is none; under another id is one."""
    true = rows([1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 2, 2])
    same = rows([5, 5, 6, 6], [0, 0, 6, 6], [5, 5, 6, 6], [5, 5, 6, 6])
    swapped = rows([5, 5, 6, 6], [0, 0, 6, 6], [6, 6, 5, 5], [6, 6, 5, 5])
    assert computed((same, true))["id_switches"] == 0
    assert computed((swapped, true))["id_switches"] == 2
    assert computed((swapped, true), (swapped, true))["id_switches"] == 4
    scores = score_clip([score_frame(*frame) for frame in zip(swapped, true, strict=True)])
    assert scores.partners.tolist() in ([5, 6], [6, 5])


def test_an_object_without_a_partner_is_compared_with_nothing():
    """Not with what another object's partner covers of it."""
    figures = computed((rows([5, 5, 5, 0], [5, 5, 5, 0]), rows([1, 1, 2, 3], [1, 1, 2, 3])))
    assert figures["j_mean"] == pytest.approx(2 / 9)


def test_half_of_an_object_is_not_found():
    """An IoU of exactly 0.5 counts neither for recall nor as a change of its id."""
    true = rows(*3 * [[1, 1, 0]])
    figures = computed((rows([5, 0, 0], [6, 0, 0], [5, 0, 0]), true))
    assert figures["j_mean"] == pytest.approx(1 / 3)
    assert figures["j_recall"] == figures["id_switches"] == 0


def test_an_outline_counts_within_its_reach_and_no_further():
    """0.8 % of a diagonal of 500 px are 4."""
    masks = torch.zeros(3, 300, 400, dtype=torch.int32)
    for mask, columns in zip(masks, (200, 204, 205)):
        mask[:, :columns] = 1
    near, far = (computed((masks[k : k + 1], masks[:1]))["f_mean"] for k in (1, 2))
    assert (near, far) == (1, 0)


def test_of_partners_of_one_j_the_better_outline_counts_under_any_names():
    true = torch.zeros(1, 40, 40, dtype=torch.int32)
    true[:, 8:32, 8:32] = 1
    smooth, ragged = torch.zeros_like(true), torch.zeros_like(true)
    smooth[:, 8:32, 8:16] = 1
    ragged[:, 8:32:2, 16:32:2] = ragged[:, 9:32:2, 17:32:2] = 1
    assert smooth.sum() == ragged.sum()
    alone = computed((smooth, true))
    for found in (smooth + 2 * ragged, 2 * smooth + ragged):
        assert computed((found, true)) == alone


def test_clips_that_do_not_fit_are_refused():
    clip = torch.ones(3, 4, 4, dtype=torch.int32)
    for other, message in ((clip[:2], "shape"), (clip.float(), "integers")):
        with pytest.raises(UnigsError, match=message):
            ClipQuality().update(other, clip)
