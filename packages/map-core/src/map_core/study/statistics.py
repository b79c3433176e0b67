"""Means over seeds, and paired differences with their 95 % intervals."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

# two-sided 95 % quantiles of Student's t for 1 to 10 degrees of freedom, then 15, 20, 30
T95 = {
    1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060, 9: 2.2622,
    10: 2.2281, 15: 2.1314, 20: 2.0860, 30: 2.0423,
}  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Attributes:
        mean: Mean of the values.
        sd: Their sample standard deviation; nan for a single value.
        half_width: Half the width of the mean's 95 % interval (Student's t); nan for a single value.
        count: Number of values.
    """

    mean: float
    sd: float
    half_width: float
    count: int

    def text(self, decimals: int) -> str:
        """The mean and, of several values, their standard deviation."""
        mean = f"{self.mean:.{decimals}f}"
        return mean if self.count < 2 else f"{mean} ± {self.sd:.{decimals}f}"


def t_quantile(degrees: int) -> float:
    """Two-sided 95 % quantile of Student's t; between tabulated degrees of freedom the wider one."""
    return T95[max(tabulated for tabulated in T95 if tabulated <= degrees)]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and 95 % interval."""
    count, mean = len(values), statistics.fmean(values)
    if count < 2:
        return Estimate(mean, math.nan, math.nan, count)
    sd = statistics.stdev(values)
    return Estimate(mean, sd, t_quantile(count - 1) * sd / math.sqrt(count), count)


def verdict(differences: Sequence[float], decimals: int = 2) -> str:
    """What paired differences show: ``+1.20 [0.30, 2.10]``, or that the arms are not told apart."""
    difference = estimate(differences)
    mean = f"{difference.mean:+.{decimals}f}"
    if difference.count < 2:
        return f"{mean} (one seed: no interval)"
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    interval = f"{mean} [{low:+.{decimals}f}, {high:+.{decimals}f}]"
    return f"{interval}, not told apart" if low <= 0 <= high else interval
