"""The learning curve of a run."""

import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

__all__ = ["History", "Record", "every"]


@dataclass(frozen=True)
class Record:
    """One point of the learning curve.

    Args:
        step: steps taken.
        bound: minus the loss, in nats per datum, averaged over the steps since the last record.
        seconds: wall time of training, evaluation and compilation included.
        gradient_norm: of the last step, before clipping where it is clipped.
        learning_rate: of the last step.
        skipped: steps left out so far, for a loss or a gradient that was not finite.
        valid: the bound on the validation data, in nats per datum.
        kl, mutual_information, active_units: of the first validation data, as of `Aggregate`; None where there are
            none, or no latent sites.
    """

    step: int
    bound: float
    seconds: float
    gradient_norm: float = math.nan
    learning_rate: float = math.nan
    skipped: int = 0
    valid: float | None = None
    kl: float | None = None
    mutual_information: float | None = None
    active_units: int | None = None


@dataclass
class History:
    """What `fit` returns.

    Args:
        records: the learning curve.
        steps: steps taken.
        seconds: wall time, of all parts of a run that was resumed.
        ms_per_step: median over the records of the wall time of a step, in milliseconds.
        compile: how the loss was run.
        device: where.
        best: the step of the best validation bound, whose weights the pair has; None without validation.
        resumed: the steps at which the run was taken up again.
    """

    records: list[Record] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    ms_per_step: float = math.nan
    compile: str = "off"
    device: str = "cpu"
    best: int | None = None
    resumed: list[int] = field(default_factory=list)

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(step, bound) of the records."""
        return [(record.step, record.bound) for record in self.records]

    def finish(self, steps: int, seconds: float) -> None:
        """Complete it at the end of the run."""
        self.steps, self.seconds = steps, seconds
        points = [(0, 0.0), *((record.step, record.seconds) for record in self.records)]
        gaps = sorted((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairwise(points))
        self.ms_per_step = 1e3 * gaps[len(gaps) // 2] if gaps else math.nan

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def every(steps: int) -> int:
    """Steps from one point of the learning curve to the next."""
    return max(1, min(steps // 100, 1000))
