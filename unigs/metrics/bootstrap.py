"""Intervals by the bootstrap over pictures (Efron, 1979; the percentile method).

In: the picture of each row. Out: how often each row counts in each resample, int [R, N]; a figure
that is computed of sums is computed of R weighted sums alike, and two quantiles of its R values are
its interval. Rows of one picture come and go together, since they are not independent.

SciPy's ``bootstrap`` draws indices anew for each figure and knows no weights, so that the figures
of one set, and those of two models, would not share their resamples; torchmetrics' ``BootStrapper``
measures every picture R times. Tests hold the intervals equal to SciPy's.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from unigs.seeds import rng

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0


def draw_weights(pictures: Sequence[str], resamples: int = RESAMPLES) -> np.ndarray:
    """How often each row counts in each resample of the pictures, with replacement.

    A function of the set of pictures: neither the order of rows nor ranks change what a picture
    counts, and two models on the same pictures get the same weights.

    Args:
        pictures: N names; rows of one name belong to one picture.
        resamples: R.

    Returns:
        float64 [R, N], whole numbers.
    """
    names = sorted(set(pictures))
    place = {name: k for k, name in enumerate(names)}
    count = len(names)
    shares = np.full(count, 1 / max(count, 1))
    draws = rng(SEED, count, "bootstrap").multinomial(count, shares, size=resamples)
    return draws[:, [place[name] for name in pictures]].astype(np.float64)


def find_interval(values: np.ndarray) -> list[float] | None:
    """Both ends of the percentile interval, [low, high].

    Args:
        values: float64 [R], a figure of each resample; NaN where it is not defined (a resample
            without a single case), which is left out.

    Returns:
        None if no value is defined.
    """
    seen = values[np.isfinite(values)]
    tail = (1 - LEVEL) / 2
    return np.quantile(seen, [tail, 1 - tail]).tolist() if len(seen) else None
