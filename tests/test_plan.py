"""Laws of the order: exact at every prefix, every sample once per pass, a window at a time."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unigs.plan import Mix, Plan, PlanError, permute

WEIGHTS = st.lists(
    st.one_of(st.integers(1, 60), st.integers(1, 99).map(lambda n: n / 100)), min_size=1, max_size=6
)
SHARDS = st.lists(st.integers(0, 9), min_size=1, max_size=9).filter(sum)


def name_weights(weights: list[float]) -> dict[str, float]:
    return {f"w{i}": weight for i, weight in enumerate(weights)}


@settings(max_examples=30, deadline=None)
@given(WEIGHTS)
def test_every_prefix_is_within_one_of_its_target(weights):
    mix = Mix(name_weights(weights))
    total = sum(Fraction(str(w)) for w in weights)
    k, counts = len(weights), Counter()
    bound = 1 - Fraction(1, 2 * k - 2) if k > 1 else 0  # Tijdeman's, tighter than one
    for n in range(min(2 * mix.period + 1, 1500)):
        assert mix.count_before(n) == {name: counts[name] for name in mix.names}
        for name, weight in name_weights(weights).items():
            assert abs(counts[name] - n * Fraction(str(weight)) / total) <= bound
        counts[mix.pick(n)] += 1


@settings(max_examples=40, deadline=None)
@given(st.lists(SHARDS, min_size=3, max_size=3), WEIGHTS, st.integers(0, 2**62), st.integers(1, 4))
def test_every_sample_once_per_pass_whatever_the_mixture(sizes, weights, seed, window):
    shards = dict(zip("abc", sizes, strict=True))
    tasks = name_weights(weights)
    mixes = {task: {"abc"[i % 3]: 1, "abc"[(i + 1) % 3]: 0.3} for i, task in enumerate(tasks)}
    plan = Plan(shards, tasks, mixes, seed, window)
    seen: dict[str, list] = {source: [] for source in plan.sources}
    for index in range(700):
        draw = plan.draw(index)
        seen[draw.source].append((draw.pass_, draw.shard, draw.member))
    for source, draws in seen.items():
        size = sum(shards[source])
        for start in range(0, len(draws), size):
            one_pass = draws[start : start + size]
            assert {draw[0] for draw in one_pass} == {start // size}
            assert len(set(one_pass)) == len(one_pass)  # a whole pass of distinct ones is all
            assert all(0 <= member < shards[source][shard] for _, shard, member in one_pass)


def test_both_levels_stay_within_one_of_their_targets():
    ratios = {"inpainting": 0.3, "synthesis": 0.3, "referring": 0.2, "entity": 0.2}
    weights = {task: {"a": 0.55, "b": 0.25, "c": 0.2} for task in ratios}
    plan = Plan({"a": [5], "b": [3, 4], "c": [1]}, ratios, weights)
    tasks, sources = Counter(), Counter()
    for index in range(2000):
        draw = plan.draw(index)
        tasks[draw.task] += 1
        sources[draw.task, draw.source] += 1
        for task, ratio in ratios.items():
            assert abs(tasks[task] - ratio * (index + 1)) < 1
            for source, weight in weights[task].items():
                assert abs(sources[task, source] - weight * tasks[task]) < 1


@settings(max_examples=40, deadline=None)
@given(SHARDS, st.integers(1, 4), st.integers(0, 1000))
def test_a_window_is_left_for_good_before_the_next_begins(sizes, window, seed):
    plan = Plan({"a": sizes}, {"t": 1}, {"t": {"a": 1}}, seed, window)
    visits = [plan.draw(index).shard for index in range(sum(sizes))]
    first = {shard: visits.index(shard) for shard in set(visits)}
    last = {shard: len(visits) - visits[::-1].index(shard) for shard in set(visits)}
    for n in range(len(visits)):
        assert sum(first[shard] <= n < last[shard] for shard in first) <= window
        assert visits[n] in plan.list_windows(n)["a"]


@given(st.integers(1, 300), st.integers(0, 2**64 - 1))
@settings(deadline=None)
def test_permute_is_a_bijection(size, key):
    assert sorted(permute(place, size, key) for place in range(size)) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 5, 8, 13])
def test_permute_sends_every_place_everywhere_alike(size):
    keys = 4000
    counts = Counter((i, permute(i, size, 7919 * k)) for k in range(keys) for i in range(size))
    expected = keys / size
    chi2 = sum((counts[i, j] - expected) ** 2 / expected for i in range(size) for j in range(size))
    freedom = (size - 1) ** 2
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5 + 5


def test_a_window_is_shuffled_and_passes_differ():
    plan = Plan({"a": [50] * 8}, {"t": 1}, {"t": {"a": 1}}, seed=1, window_shards=4)
    passes = [[plan.draw(400 * p + i) for i in range(400)] for p in range(2)]
    orders = [[(draw.shard, draw.member) for draw in one] for one in passes]
    assert sorted(orders[0]) == sorted(orders[1])
    assert sum(a == b for a, b in zip(*orders, strict=True)) < 20
    switches = sum(a[0] != b[0] for a, b in zip(orders[0], orders[0][1:], strict=False))
    assert switches > 250  # 300 expected when four shards are mixed evenly, 7 when unmixed


def test_passes_visit_the_shards_in_other_orders():
    plan = Plan({"a": [1] * 30}, {"t": 1}, {"t": {"a": 1}}, seed=1, window_shards=1)
    first, second = ([plan.draw(30 * p + i).shard for i in range(30)] for p in range(2))
    assert sorted(first) == sorted(second) == list(range(30))
    assert sum(a == b for a, b in zip(first, second, strict=True)) < 8


def test_an_index_needs_no_history():
    make = lambda seed: Plan(
        {"a": [3, 4], "b": [9]}, {"x": 0.7, "y": 0.3}, {"x": {"a": 1}, "y": {"a": 1, "b": 2}}, seed
    )
    forwards, backwards, far = make(5), make(5), make(5)
    far.draw(10**15)
    expected = [forwards.draw(i) for i in range(300)]
    assert [backwards.draw(i) for i in reversed(range(300))] == expected[::-1]
    assert [far.draw(i) for i in range(300)] == expected
    assert [make(6).draw(i) for i in range(300)] != expected
    assert [make(6).draw(i).task for i in range(300)] == [draw.task for draw in expected]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (({"a": [1]}, {"t": -1}, {"t": {"a": 1}}), "finite weight"),
        (({"a": [1]}, {"t": float("nan")}, {"t": {"a": 1}}), "finite weight"),
        (({"a": [1]}, {"t": 0}, {"t": {"a": 1}}), "positive weight"),
        (({"a": [1]}, {"t": 1}, {}), "source weights for task 't'"),
        (({"a": [1]}, {"t": 1}, {"t": {"b": 1}}), "got 'b'"),
        (({"a": [0, 0]}, {"t": 1}, {"t": {"a": 1}}), "at least one sample in source 'a'"),
        (({"a": [1]}, {"t": 1 / 3, "u": 1 / 7}, {"t": {"a": 1}, "u": {"a": 1}}), "round them"),
    ],
)
def test_unusable_mixtures_are_refused_in_words(arguments, words):
    with pytest.raises(PlanError, match=words):
        Plan(*arguments)


def test_choices_of_weight_zero_are_never_drawn():
    plan = Plan({"a": [2], "b": [0]}, {"t": 1, "u": 0}, {"t": {"a": 1, "b": 0}})
    assert {(plan.draw(i).task, plan.draw(i).source) for i in range(50)} == {("t", "a")}
