"""Mean, median, spread and interval of a handful of seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit


@dataclass(frozen=True)
class Summary:
    """What n scores say, in their own unit. NaN: undefined (one seed has no spread, a NaN score has no mean)."""

    n: int
    mean: float
    median: float
    std: float  # of the sample, n - 1 in the denominator
    low: float  # interval of the mean
    high: float


def summarize(scores: Sequence[float], confidence: float = 0.95) -> Summary:
    """Summarize the scores of the seeds; `low` to `high` is Student's t interval of their mean.

    A NaN among the scores makes everything but `n` NaN: leaving it out would hide a run that went wrong.
    """
    values = np.asarray(scores, dtype=float)
    n, nan = len(values), float("nan")
    if n == 0 or np.isnan(values).any():
        return Summary(n, nan, nan, nan, nan, nan)
    mean, median = float(values.mean()), float(np.median(values))
    if n == 1:
        return Summary(n, mean, median, nan, nan, nan)
    std = float(values.std(ddof=1))
    # stdtrit(df, p) is the quantile function of t; scipy.stats says the same but takes a second to import.
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * std / n**0.5
    return Summary(n, mean, median, std, mean - half, mean + half)
