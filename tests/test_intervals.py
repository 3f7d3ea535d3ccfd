"""Laws of intervals: independent references, coverage, and that order and ranks change nothing."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from scipy.stats import bootstrap, norm
from test_metrics_segmentation import jitter, random_labels

from unigs.evaluation.figures import resample_rows, summarise_rows, weigh_rows
from unigs.evaluation.intervals import (
    compare_results,
    find_intervals,
    read_resampled,
    resample_results,
    write_resampled,
)
from unigs.evaluation.judging import TALLIES
from unigs.metrics.average_precision import measure_detections
from unigs.metrics.bootstrap import draw_weights, find_interval
from unigs.metrics.classes import Named, measure_pixels, measure_segments, split_kinds
from unigs.records import UnigsError
from unigs.tasks import ClassTable

TABLE = ClassTable(("disc", "ring", "sky"), (True, True, False))


def make_row(rng, index):
    """A row as the evaluation keeps it, of a picture of its own; every fifth has no target."""
    true = random_labels(rng, 5) * (index % 5 > 0)
    found = jitter(true, rng) if index % 3 else random_labels(rng, 4)
    names = [TABLE.names[k] for k in rng.integers(0, 3, 5)]
    pair = Named(found, names), Named(true, names[::-1])
    things, stuff = split_kinds(measure_segments(*pair, TABLE), TABLE)
    scores = (rng.integers(0, 5, int(found.max())) / 5).tolist()  # with ties
    detections, truths = measure_detections(scores, found, true)
    return {
        "index": index,
        "task": "entity",
        "key": f"picture-{index:03d}",
        "names": names[: int(true.max())],
        **{name: kind.measure(found, true).tolist() for name, kind in TALLIES.items()},
        "detections": detections.tolist(),
        "truths": truths.tolist(),
        "class_pixels": measure_pixels(*pair, TABLE),
        "class_things": things,
        "class_stuff": stuff,
        "synthesis": TALLIES["entities"].measure(found, true).tolist(),
        "recognised": [index % 2, 2],
        "clip_score": float(rng.random()),
        "known_error": float(rng.random()),
        "seconds": 0.1,
    }


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [make_row(rng, index) for index in range(24)]


def figures_of(rows):
    figures = summarise_rows(rows)
    return {k: v for k, v in figures.items() if k not in ("pictures", "seconds_per_picture")}


def test_weights_of_one_give_the_figures_bit_for_bit(rows):
    figures = figures_of(rows)
    assert len(figures) > 28
    weighed = weigh_rows(rows, np.ones((300, len(rows))))
    assert weighed.keys() == figures.keys()
    for name, value in figures.items():
        np.testing.assert_array_equal(weighed[name], np.full(300, value), err_msg=name)


def test_a_weight_is_the_row_so_many_times(rows):
    weights = draw_weights([row["key"] for row in rows])[:20]
    weighed = weigh_rows(rows, weights)
    for place, mine in enumerate(weights.astype(int)):
        repeated = [row for row, count in zip(rows, mine) for _ in range(count)]
        for name, value in figures_of(repeated).items():
            np.testing.assert_array_equal(weighed[name][place], value, err_msg=name)


def test_order_changes_no_interval(rows):
    order = np.random.default_rng(1).permutation(len(rows))
    there, back = resample_rows(rows), resample_rows([rows[place] for place in order])
    for name, values in there.items():
        np.testing.assert_array_equal(values, back[name], err_msg=name)


def test_an_interval_of_a_mean_is_scipys_and_the_normal_one():
    values = np.random.default_rng(2).normal(5, 2, 400)
    weights = draw_weights([str(place) for place in range(400)], 3000)
    low, high = find_interval(weights @ values / 400)
    reference = bootstrap((values,), np.mean, n_resamples=3000, method="percentile", rng=3)
    half = norm.ppf(0.975) * values.std(ddof=1) / math.sqrt(400)
    for mine, theirs, normal in zip(
        (low, high), reference.confidence_interval, (values.mean() - half, values.mean() + half)
    ):
        assert mine == pytest.approx(theirs, abs=0.12 * half)
        assert mine == pytest.approx(normal, abs=0.12 * half)


def test_an_interval_of_a_ratio_of_sums_is_scipys():
    rng = np.random.default_rng(4)
    counts = rng.integers(1, 9, 300).astype(float)
    sums = counts * rng.random(300)
    weights = draw_weights([str(place) for place in range(300)], 3000)
    mine = find_interval(weights @ sums / (weights @ counts))
    theirs = bootstrap(
        (sums, counts),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        n_resamples=3000,
        method="percentile",
        rng=5,
    ).confidence_interval
    assert mine == pytest.approx(theirs, abs=0.12 * (theirs.high - theirs.low))


def test_nineteen_of_twenty_intervals_hold_the_truth():
    rng = np.random.default_rng(6)
    weights = draw_weights([str(place) for place in range(100)])
    held = 0
    for _ in range(400):
        low, high = find_interval(weights @ (rng.random(100) < 0.7) / 100)
        held += low <= 0.7 <= high
    assert 0.91 < held / 400 < 0.98


def test_rows_of_one_picture_come_and_go_together():
    weights = draw_weights(["a", "b", "a", "c"])
    np.testing.assert_array_equal(weights[:, 0], weights[:, 2])
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all()
    assert len({tuple(row) for row in weights}) > 5


def save(folder, rows):
    folder.mkdir()
    resampled = resample_results(rows)
    write_resampled(folder, resampled)
    assert read_resampled(folder).keys() == resampled.keys()
    return {"folder": folder, "figures": {"entity": {"all": summarise_rows(rows)}}}


def test_a_model_differs_from_itself_by_nothing(rows, tmp_path):
    model = save(tmp_path / "a", rows)
    found = compare_results(model, model)["entity"]["all"]
    assert found.keys() == {k for k, v in figures_of(rows).items() if v == v}
    for one in found.values():
        assert one == {"difference": 0.0, "interval": [0.0, 0.0], "differs": False}


def test_a_paired_difference_knows_what_two_intervals_do_not(rows, tmp_path):
    """A model that is a little better on each picture differs, though the intervals overlap."""
    worse = [row | {"known_error": row["known_error"] + 0.01} for row in rows]
    first, second = save(tmp_path / "a", rows), save(tmp_path / "b", worse)
    one = compare_results(first, second)["entity"]["all"]["known_error"]
    assert one["differs"]
    assert one["interval"] == pytest.approx([0.01, 0.01], abs=1e-9)
    ends = [
        find_intervals(resample_results(r))["entity"]["all"]["known_error"] for r in (rows, worse)
    ]
    assert ends[0][1] > ends[1][0]


def test_one_picture_has_an_interval_of_no_width_and_none_has_none(rows):
    one = find_intervals(resample_results(rows[1:2]))
    figures = figures_of(rows[1:2])
    for name, value in figures.items():
        interval = one["entity"]["all"].get(name)
        assert interval == (None if math.isnan(value) else [value, value])
    json.dumps(one, allow_nan=False)
    assert find_intervals(resample_results([])) == {}
    assert find_interval(np.full(9, np.nan)) is None
    assert find_interval(np.array([np.nan, 1.0])) == [1.0, 1.0]


def test_resamples_that_are_not_there_are_told(rows, tmp_path):
    model = save(tmp_path / "a", rows)
    (tmp_path / "a" / "resamples.safetensors").write_bytes(b"x" * 40)
    with pytest.raises(UnigsError, match="figures of resamples"):
        compare_results(model, model)
    (tmp_path / "a" / "resamples.safetensors").unlink()
    with pytest.raises(UnigsError, match=r"resamples\.safetensors"):
        compare_results(model, model)
