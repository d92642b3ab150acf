"""Learning rates that change with the step: factors on the first learning rate, as `fit(schedule=...)` takes them."""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ppl_vae.objectives.schedules import Schedule

__all__ = ["FORMS", "Burda", "Constant", "Cosine", "Plateau", "StepDecay", "parse"]

FORMS = (
    "constant",
    "constant:FACTOR",
    "cosine",
    "cosine:WARMUP",
    "step:EVERY:FACTOR",
    "plateau",
    "plateau:FACTOR:PATIENCE",
    "burda",
)
"""What `parse` reads."""


@dataclass(frozen=True)
class Constant:
    """factor(t) = factor.

    Args:
        factor: above 0.

    Raises:
        ValueError: it is not.

    Example:
        >>> Constant()(1000)
        1.0
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ValueError(f"Constant factor: got {self.factor}, expected a number above 0")

    def __call__(self, step: int) -> float:
        """The factor at `step`."""
        return self.factor


@dataclass(frozen=True)
class Cosine:
    """factor(t) = end + (1 - end) (1 + cos(pi (t - warmup) / (steps - warmup))) / 2, after a linear warm-up.

    In the warm-up, t < warmup, it is (t + 1) / (warmup + 1): never 0, and 1 at t = warmup.

    Args:
        steps: of the whole run, the warm-up among them; from then on the factor is `end`.
        warmup: steps in which the learning rate rises, at least 0 and below `steps`.
        end: the last factor, in [0, 1].

    Raises:
        ValueError: steps < 1, a warm-up that is negative or not over before the end, or end outside [0, 1].

    References:
        SGDR: Stochastic Gradient Descent with Warm Restarts, Loshchilov and Hutter 2017, eq. 5, without restarts.

    Example:
        >>> [round(Cosine(100, warmup=4, end=0.1)(t), 3) for t in (0, 3, 4, 52, 100, 200)]
        [0.2, 0.8, 1.0, 0.55, 0.1, 0.1]
    """

    steps: int
    warmup: int = 0
    end: float = 0.0

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"Cosine steps: got {self.steps}, expected at least 1")
        if not 0 <= self.warmup < self.steps:
            raise ValueError(
                f"Cosine warmup: got {self.warmup}, expected 0 to {self.steps - 1} steps, fewer than the run has"
            )
        if not 0 <= self.end <= 1:
            raise ValueError(f"Cosine end: got {self.end}, expected a factor in [0, 1]")

    def __call__(self, step: int) -> float:
        """The factor at `step`."""
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        done = min((step - self.warmup) / (self.steps - self.warmup), 1.0)
        return self.end + (1 - self.end) * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True)
class StepDecay:
    """factor(t) = factor^floor(t / every).

    Args:
        every: steps from one decrease to the next, at least 1.
        factor: of each decrease, in (0, 1).

    Raises:
        ValueError: every < 1, or a factor outside (0, 1).

    Example:
        >>> [StepDecay(100, 0.5)(t) for t in (0, 99, 100, 250)]
        [1.0, 1.0, 0.5, 0.25]
    """

    every: int
    factor: float

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"StepDecay every: got {self.every}, expected at least 1 step")
        _check_decrease("StepDecay", self.factor)

    def __call__(self, step: int) -> float:
        """The factor at `step`."""
        return self.factor ** (step // self.every)


@dataclass(frozen=True)
class Burda:
    """factor(t) = 10^(-i / 7) in stage i = 0, ..., 7, which lasts 3^i passes over the data: 3280 passes together.

    Beyond the last stage it stays at 1 / 10. The paper's first learning rate is 1e-3 (Adam with epsilon = 1e-4,
    minibatches of 20).

    Args:
        steps_per_pass: steps of one pass over the data, at least 1.

    Raises:
        ValueError: steps_per_pass < 1.

    References:
        Importance Weighted Autoencoders, Burda et al. 2015, section 5.

    Example:
        >>> burda = Burda(steps_per_pass=600)
        >>> burda.steps // 600, [round(burda(600 * p), 3) for p in (0, 1, 4, 3279, 5000)]
        (3280, [1.0, 0.72, 0.518, 0.1, 0.1])
    """

    stages: ClassVar[int] = 8

    steps_per_pass: int

    def __post_init__(self) -> None:
        if self.steps_per_pass < 1:
            raise ValueError(f"Burda steps_per_pass: got {self.steps_per_pass}, expected at least 1")

    @property
    def steps(self) -> int:
        """Of the whole protocol."""
        return self.steps_per_pass * sum(3**i for i in range(self.stages))

    def __call__(self, step: int) -> float:
        """The factor at `step`."""
        stage, end = 0, self.steps_per_pass
        while step >= end and stage < self.stages - 1:
            stage += 1
            end += self.steps_per_pass * 3**stage
        return 10 ** (-stage / (self.stages - 1))


@dataclass
class Plateau:
    """Multiplied by `factor` when more than `patience` points of the learning curve in a row bring nothing new.

    A point brings something new if it is above the best so far by more than `threshold`. The count starts anew with
    each decrease. The factor depends on what was observed, not on the step: `state_dict` goes with a checkpoint.

    Args:
        factor: of each decrease, in (0, 1).
        patience: points of the curve, at least 0; `fit` makes about a hundred in a run.
        threshold: nats per datum, at least 0.
        smallest: where decreases end, in [0, 1].

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> plateau = Plateau(factor=0.5, patience=1)
        >>> for bound in (-120.0, -110.0, -110.5, -110.2):
        ...     plateau.observe(bound)
        >>> plateau(4)
        0.5
    """

    factor: float = 0.5
    patience: int = 10
    threshold: float = 0.01
    smallest: float = 1e-3
    _current: float = field(default=1.0, init=False, repr=False)
    _best: float = field(default=-math.inf, init=False, repr=False)
    _waited: int = field(default=0, init=False, repr=False)

    def __post_init__(self) -> None:
        _check_decrease("Plateau", self.factor)
        if self.patience < 0:
            raise ValueError(f"Plateau patience: got {self.patience}, expected at least 0 points of the learning curve")
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f"Plateau threshold: got {self.threshold}, expected a finite number of at least 0 nats")
        if not 0 <= self.smallest <= 1:
            raise ValueError(f"Plateau smallest: got {self.smallest}, expected a factor in [0, 1]")

    def observe(self, bound: float) -> None:
        """Take in a point of the learning curve.

        Args:
            bound: nats per datum; higher is better.

        Raises:
            ValueError: it is NaN or infinite.
        """
        if not math.isfinite(bound):
            raise ValueError(f"Plateau.observe: got a bound of {bound}, expected a finite number of nats per datum")
        if bound > self._best + self.threshold:
            self._best, self._waited = bound, 0
            return
        self._waited += 1
        if self._waited > self.patience:
            self._current, self._waited = max(self._current * self.factor, self.smallest), 0

    def __call__(self, step: int) -> float:
        """The factor as of the last point observed, whatever the step."""
        return self._current

    def state_dict(self) -> dict[str, float]:
        """What was observed, in plain numbers; the arguments are not part of it."""
        return {"current": self._current, "best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: other keys than a `state_dict` has.
        """
        if set(state) != set(self.state_dict()):
            raise ValueError(f"Plateau state: got keys {sorted(state)}, expected {sorted(self.state_dict())}")
        self._current, self._best = float(state["current"]), float(state["best"])
        self._waited = int(state["waited"])


def parse(text: str, *, steps: int, steps_per_pass: int) -> Schedule:
    """The schedule that a text names: `constant`, `cosine:500` (steps of warm-up), `step:1000:0.5`, `plateau:0.5:10`.

    Args:
        text: one of `FORMS`, numbers in the place of words in capitals; `200p` is 200 passes over the data, in steps.
        steps: of the whole run, for `cosine`.
        steps_per_pass: steps of one pass over the data.

    Raises:
        ValueError: another text, or numbers that the schedule refuses.

    Example:
        >>> parse("cosine:500", steps=10_000, steps_per_pass=600)
        Cosine(steps=10000, warmup=500, end=0.0)
    """
    name, *rest = text.split(":")
    try:
        numbers = [_number(r, steps_per_pass) for r in rest]
    except (ValueError, OverflowError):
        raise _unknown(text) from None
    try:
        match name, numbers:
            case "constant", []:
                return Constant()
            case "constant", [factor]:
                return Constant(factor)
            case "cosine", []:
                return Cosine(steps)
            case "cosine", [int(warmup)]:
                return Cosine(steps, warmup)
            case "step", [int(every), factor]:
                return StepDecay(every, factor)
            case "plateau", []:
                return Plateau()
            case "plateau", [factor, int(patience)]:
                return Plateau(factor, patience)
            case "burda", []:
                return Burda(steps_per_pass)
    except ValueError as error:
        raise ValueError(f"schedule {text!r}: {error}") from error
    raise _unknown(text)


def _number(text: str, steps_per_pass: int) -> float:
    if text.endswith("p"):
        return max(1, round(float(text[:-1]) * steps_per_pass))
    return float(text) if "." in text or "e" in text else int(text)


def _unknown(text: str) -> ValueError:
    return ValueError(f"schedule: got {text!r}, expected one of {', '.join(FORMS)}; cosine:500 or step:1000:0.5, say")


def _check_decrease(name: str, factor: float) -> None:
    if not 0 < factor < 1:
        raise ValueError(f"{name} factor: got {factor}, expected a number between 0 and 1, both excluded")
