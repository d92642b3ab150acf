"""A mean over the data and how far to trust it."""

import math
from typing import NamedTuple

from torch import Tensor

__all__ = ["Estimate", "standard_error"]


class Estimate(NamedTuple):
    """A mean over the data and its standard error, nats."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """From one value for each datum, (N,)."""
        return cls(values.mean().item(), standard_error(values))


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of N values; NaN for one."""
    if len(values) < 2:
        return math.nan
    return values.double().std().item() / math.sqrt(len(values))
