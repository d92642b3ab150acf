"""Weights that change with the step: KL warm-up, counted in steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["LinearWarmup", "Schedule"]

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class LinearWarmup:
    """weight(t) = start + (end - start) min(t / steps, 1): deterministic warm-up.

    Args:
        steps: after so many steps the weight is `end`; at least 1.
        start: the weight at step 0.
        end: the weight from step `steps` on.

    Raises:
        ValueError: steps < 1, or a negative or non-finite weight.

    References:
        Ladder Variational Autoencoders, Sønderby et al. 2016, section 2.3.

    Example:
        >>> [LinearWarmup(4)(t) for t in (0, 2, 9)]
        [0.0, 0.5, 1.0]
    """

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"LinearWarmup steps: got {self.steps}, expected at least 1")
        for weight in (self.start, self.end):
            if not (math.isfinite(weight) and weight >= 0):
                raise ValueError(f"LinearWarmup weights: got {weight}, expected a finite number of at least 0")

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)
