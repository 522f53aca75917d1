"""
Student's t, for both sides: the host states intervals with it, and the board decides with it whether it has measured
enough.
"""

from __future__ import annotations

from collections.abc import Sequence

# 97.5 % quantiles for 1, 2, ... degrees of freedom; the last one for all that are more.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
         2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
         1.96)  # fmt: skip


def t_975(freedom: int) -> float:
    """The quantile for `freedom` >= 1 degrees."""
    return T_975[min(freedom, len(T_975)) - 1]


def half_width(values: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean of at least two independent values."""
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return float(t_975(n - 1) * (variance / n) ** 0.5)
