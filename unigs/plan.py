"""The order of the training stream: index -> (task, source, pass, shard, member). Pure integers.

In: how many samples each shard holds, exact weights, a seed. Out: a :class:`Draw` for any index, in
time that does not grow with the index, so that resuming is one integer. No I/O, no state, no random
generator: ``streams`` does the reading. Two draws are made per index (paper Sec. 4.1 and
supplement): the task by its ratio, then the data set by the task's own weights.

Both draws follow Tijdeman's chairman assignment (Discrete Mathematics 32, 1980): at every prefix
every count differs from its target by less than one, for any number of choices. Within a source,
each pass visits every sample once: shards in a keyed order, then windows of a few shards, and a
keyed permutation inside each window, so that only a window's shards are open at a time.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from math import gcd, lcm

import numpy as np

from unigs.records import UnigsError
from unigs.seeds import derive_seed

MAX_PERIOD = 1_000_000
"""Longest period of a mixture, in draws: a table of this length is built at start (about 2 s)."""

_ROUNDS = 4
_MASK64 = (1 << 64) - 1


class PlanError(UnigsError):
    """Weights, ratios or sizes from which no stream can be planned."""


@dataclass(frozen=True, slots=True)
class Draw:
    """Where the sample of one index lies.

    Attributes:
        index: its place in the stream, from 0.
        task: the task it is made for.
        source: the data set it comes from.
        pass_: how often that source was read completely before.
        shard, member: its place in that source's shards, each from 0.
    """

    index: int
    task: str
    source: str
    pass_: int
    shard: int
    member: int


class Mix:
    """Which of k weighted choices the n-th draw takes, and how often each was taken before it.

    Args:
        weights: name -> weight, of any scale. Floats are read as the decimals they are written as
            (0.3 is 3/10), so that the ratios are exact. Names with weight 0 are left out.
        what: what is mixed, for error messages.

    Raises:
        PlanError: a weight is negative or not finite, all are zero, or their exact ratio repeats
            only after more than ``MAX_PERIOD`` draws.
    """

    def __init__(self, weights: Mapping[str, float], what: str = "weights") -> None:
        shares = {name: _read_fraction(weight, name, what) for name, weight in weights.items()}
        shares = {name: share for name, share in shares.items() if share > 0}
        if not shares:
            raise PlanError(
                f"expected at least one positive weight, got {dict(weights)} for {what}"
            )
        scale = lcm(*(share.denominator for share in shares.values()))
        parts = [int(share * scale) for share in shares.values()]
        self.names = tuple(shares)
        self.parts = tuple(part // gcd(*parts) for part in parts)
        self.period = sum(self.parts)
        if self.period > MAX_PERIOD:
            raise PlanError(
                f"expected weights whose ratio repeats within {MAX_PERIOD} draws, got "
                f"{dict(weights)} (period {self.period}) for {what}; round them, for example to "
                "three decimals, or write small integers such as 1 and 2"
            )
        self._order = assign_chairs(self.parts)
        taken = np.eye(len(self.parts), dtype=np.int32)[self._order]
        self._before = np.cumsum(taken, axis=0, dtype=np.int32) - taken  # [period, k]

    def pick(self, n: int) -> str:
        """The name that draw ``n`` (from 0) takes."""
        return self.names[self._order[n % self.period]]

    def count_before(self, n: int) -> dict[str, int]:
        """How often each name was taken by draws 0..n-1."""
        rounds, place = divmod(n, self.period)
        row = self._before[place].tolist()
        return {
            name: rounds * part + seen
            for name, part, seen in zip(self.names, self.parts, row, strict=True)
        }

    def __str__(self) -> str:
        return " ".join(f"{name}={part}" for name, part in zip(self.names, self.parts, strict=True))


def assign_chairs(parts: Sequence[int]) -> np.ndarray:
    """One period of Tijdeman's chairman assignment: the choice taken by each draw.

    Of the k choices whose share so far is behind by at least 1/(2k-2), the one with the earliest
    deadline is taken; no prefix then deviates from a target by more than 1 - 1/(2k-2).

    Args:
        parts: k positive integers; the weight of choice i is ``parts[i] / sum(parts)``.

    Returns:
        int16 [sum(parts)]; choice i occurs ``parts[i]`` times.
    """
    k, period = len(parts), sum(parts)
    order = np.zeros(period, dtype=np.int16)
    if k == 1:
        return order
    slack = 2 * k - 2
    counts = [0] * k
    for n in range(1, period + 1):
        best, best_late, best_part = -1, 0, 1
        for i, part in enumerate(parts):
            behind = slack * (part * n - counts[i] * period)
            if behind < period:
                continue
            late = period * (slack - 1) - behind  # steps to the deadline = late / (slack * part)
            if best < 0 or late * best_part < best_late * part:
                best, best_late, best_part = i, late, part
        counts[best] += 1
        order[n - 1] = best
    return order


def permute(place: int, size: int, key: int) -> int:
    """A keyed bijection of 0..size-1: a Feistel network, walked until it falls inside.

    Args:
        place: in 0..size-1.
        size: how many there are.
        key: 64 bits; another key is another order.
    """
    bits = max(2, (size - 1).bit_length())
    low_bits = bits // 2
    low_mask, high_mask = (1 << low_bits) - 1, (1 << (bits - low_bits)) - 1
    while True:
        high, low = place >> low_bits, place & low_mask
        for turn in range(_ROUNDS):
            high ^= _scramble(key + (low << 8 | 2 * turn)) & high_mask
            low ^= _scramble(key + (high << 8 | 2 * turn + 1)) & low_mask
        place = high << low_bits | low
        if place < size:  # the domain is under twice the size: two turns on average at most
            return place


class Plan:
    """The whole stream as a function of the index.

    Args:
        sizes: source -> how many samples each of its shards holds.
        task_ratios: task -> weight; counts stay within one of these at every prefix.
        source_weights: task -> source -> weight, exact in the same way among the task's own draws.
        seed: another seed is another order of every pass; the tasks' pattern stays.
        window_shards: shards that are shuffled into each other. More mixes better and keeps more
            files open (and, with remote shards, cached).

    Raises:
        PlanError: a task without sources, an unknown or empty source, weights that are none.
    """

    def __init__(
        self,
        sizes: Mapping[str, Sequence[int]],
        task_ratios: Mapping[str, float],
        source_weights: Mapping[str, Mapping[str, float]],
        seed: int = 0,
        window_shards: int = 8,
    ) -> None:
        if window_shards < 1:
            raise PlanError(f"expected window_shards of at least 1, got {window_shards}")
        self.seed = seed
        self.window_shards = window_shards
        self._tasks = Mix(task_ratios, "the tasks' ratios")
        for task in self._tasks.names:
            if task not in source_weights:
                raise PlanError(f"expected source weights for task {task!r}, got {source_weights}")
        self._mixes = {
            task: Mix(source_weights[task], f"the sources of task {task!r}")
            for task in self._tasks.names
        }
        self.sources = tuple(dict.fromkeys(s for mix in self._mixes.values() for s in mix.names))
        self._sizes = {source: _check_sizes(sizes, source) for source in self.sources}
        self._totals = {source: sum(counts) for source, counts in self._sizes.items()}
        self._orders: dict[tuple[str, int], tuple[list[int], list[int]]] = {}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks with a positive ratio."""
        return self._tasks.names

    def count_samples(self, source: str) -> int:
        """Samples in one pass of a source."""
        return self._totals[source]

    def describe(self) -> str:
        """The mixture in words; equal for equal streams, apart from seed and shards."""
        mixes = "; ".join(f"{task}: {mix}" for task, mix in self._mixes.items())
        return f"tasks: {self._tasks}; {mixes}; window_shards={self.window_shards}"

    def draw(self, index: int) -> Draw:
        """Where the sample of ``index`` lies; O(1) after the tables are built."""
        task = self._tasks.pick(index)
        seen = self._tasks.count_before(index)
        source = self._mixes[task].pick(seen[task])
        position = sum(
            mix.count_before(seen[other]).get(source, 0) for other, mix in self._mixes.items()
        )
        return Draw(index, task, source, *self.locate(source, position))

    def locate(self, source: str, position: int) -> tuple[int, int, int]:
        """(pass, shard, member) of a source's draw number ``position``, counted over all tasks."""
        pass_, place = divmod(position, self._totals[source])
        order, starts = self._order_pass(source, pass_)
        first, last = self._span_window(starts, place)
        base = starts[first]
        key = derive_seed(self.seed, pass_, f"window {first} of {source}")
        place = base + permute(place - base, starts[last] - base, key)
        slot = bisect_right(starts, place) - 1
        return pass_, order[slot], place - starts[slot]

    def list_windows(self, index: int) -> dict[str, list[int]]:
        """Per source the shards of the window that ``index`` stands in and of the next one."""
        seen = self._tasks.count_before(index)
        windows = {}
        for source in self.sources:
            position = sum(m.count_before(seen[t]).get(source, 0) for t, m in self._mixes.items())
            pass_, place = divmod(position, self._totals[source])
            order, starts = self._order_pass(source, pass_)
            first, last = self._span_window(starts, place)
            ahead = order[first : last + self.window_shards]
            if last >= len(order):
                ahead = ahead + self._order_pass(source, pass_ + 1)[0][: self.window_shards]
            windows[source] = list(dict.fromkeys(ahead))
        return windows

    def _span_window(self, starts: list[int], place: int) -> tuple[int, int]:
        slot = bisect_right(starts, place) - 1
        first = slot - slot % self.window_shards
        return first, min(first + self.window_shards, len(starts) - 1)

    def _order_pass(self, source: str, pass_: int) -> tuple[list[int], list[int]]:
        """The shards in the order of this pass, and the sample at which each starts (and the end).

        Only the current and the next pass of a source are ever asked for, so few are kept.
        """
        known = self._orders.get((source, pass_))
        if known is None:
            key = derive_seed(self.seed, pass_, f"shards of {source}")
            counts = self._sizes[source]
            order = sorted(range(len(counts)), key=lambda shard: _scramble(key + shard))
            known = order, list(accumulate((counts[shard] for shard in order), initial=0))
            if len(self._orders) > 4 * len(self.sources):
                self._orders.clear()
            self._orders[source, pass_] = known
        return known


def _read_fraction(weight: float, name: str, what: str) -> Fraction:
    try:
        share = Fraction(str(weight))
    except ValueError:
        share = Fraction(-1)
    if share < 0:
        raise PlanError(
            f"expected a finite weight of at least 0, got {weight!r} for {name} in {what}"
        )
    return share


def _check_sizes(sizes: Mapping[str, Sequence[int]], source: str) -> tuple[int, ...]:
    if source not in sizes:
        raise PlanError(
            f"expected a source among {sorted(sizes)}, got {source!r} in the source weights"
        )
    counts = tuple(int(count) for count in sizes[source])
    if sum(counts) < 1:
        raise PlanError(f"expected at least one sample in source {source!r}, got shards {counts}")
    return counts


def _scramble(x: int) -> int:
    """SplitMix64's finaliser (Steele et al. 2014): a bijection of 64 bits without visible order."""
    x = (x * 0x9E3779B97F4A7C15) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return x ^ (x >> 31)
