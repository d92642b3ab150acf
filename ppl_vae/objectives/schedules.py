"""Weights that change with the step: KL warm-up, counted in steps."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["CyclicalWarmup", "LinearWarmup", "Schedule", "SigmoidWarmup", "check_weight"]

Schedule = Callable[[int], float]


def check_weight(name: str, weight: Any) -> None:
    """Refuse what is neither a finite number of at least 0 nor a schedule of such numbers (called once, for step 0).

    Args:
        name: of the argument, for the error.
        weight: a number, a 0-dim tensor, or a schedule.

    Raises:
        ValueError: anything else.
    """
    try:
        number: Any = weight(0) if callable(weight) else weight
        if isinstance(number, bool | str):
            raise TypeError(f"{type(number).__name__} is no number")
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(number)
    except (TypeError, ValueError, OverflowError) as error:
        got = f"a schedule that fails at step 0 ({error})" if callable(weight) else repr(weight)[:50]
        raise ValueError(f"{name}: got {got}, expected a finite number of at least 0, or a schedule") from error


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


@dataclass(frozen=True)
class SigmoidWarmup:
    """weight(t) = end / (1 + exp(-slope (t - middle) / steps)): near 0 at first, near `end` after `steps`.

    Args:
        steps: the transition is about so long; at least 1.
        middle: the step at which the weight is end / 2; steps / 2 if None.
        slope: steepness; 10 takes the weight from 0.7 % to 99.3 % of `end` within `steps`.
        end: the weight in the limit.

    Raises:
        ValueError: steps < 1, or a slope or end that is not finite and positive.

    References:
        Generating Sentences from a Continuous Space, Bowman et al. 2016, section 3.1.

    Example:
        >>> [round(SigmoidWarmup(100)(t), 3) for t in (0, 50, 100)]
        [0.007, 0.5, 0.993]
    """

    steps: int
    middle: float | None = None
    slope: float = 10.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"SigmoidWarmup steps: got {self.steps}, expected at least 1")
        for name, value in (("slope", self.slope), ("end", self.end)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"SigmoidWarmup {name}: got {value}, expected a finite positive number")

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        middle = self.steps / 2 if self.middle is None else self.middle
        exponent = self.slope * (step - middle) / self.steps
        return self.end * (0.5 + 0.5 * math.tanh(exponent / 2))  # the logistic function, which can't overflow


@dataclass(frozen=True)
class CyclicalWarmup:
    """Linear warm-up again and again: in each cycle 0 to `end` over `rise` of it, then constant.

    Args:
        period: steps of a cycle, at least 1.
        cycles: after so many cycles the weight stays at `end`.
        rise: the part of a cycle in which the weight rises, in (0, 1].
        end: the weight at the end of a cycle.

    Raises:
        ValueError: period or cycles < 1, rise outside (0, 1], or a negative or non-finite end.

    References:
        Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing, Fu et al. 2019, eq. 6 and 7.

    Example:
        >>> [CyclicalWarmup(10, cycles=2)(t) for t in (0, 5, 9, 10, 20)]
        [0.0, 1.0, 1.0, 0.0, 1.0]
    """

    period: int
    cycles: int = 4
    rise: float = 0.5
    end: float = 1.0

    def __post_init__(self) -> None:
        if min(self.period, self.cycles) < 1:
            raise ValueError(f"CyclicalWarmup: got period={self.period}, cycles={self.cycles}, expected at least 1")
        if not 0 < self.rise <= 1:
            raise ValueError(f"CyclicalWarmup rise: got {self.rise}, expected a part of a cycle in (0, 1]")
        if not (math.isfinite(self.end) and self.end >= 0):
            raise ValueError(f"CyclicalWarmup end: got {self.end}, expected a finite number of at least 0")

    def __call__(self, step: int) -> float:
        """The weight at `step`."""
        if step >= self.period * self.cycles:
            return self.end
        return self.end * min(step % self.period / self.period / self.rise, 1.0)
