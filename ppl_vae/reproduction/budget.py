"""How much of a protocol is run, and how far that has come."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.workers import Advance

if TYPE_CHECKING:  # which needs this
    from ppl_vae.reproduction.protocol import Protocol

__all__ = ["Budget", "Progress"]


@dataclass(frozen=True)
class Budget:
    """How much of a protocol is run.

    Args:
        fraction: of each stage of the schedule, for a rehearsal; 1 is the protocol.
        passes: stop after so many passes of the (scaled) schedule; None: all of them.
        num_particles: K of the NLL; None: the protocol's, or its rehearsal's where fraction is below 1.
        num_test: the first so many test data; None likewise.
        batch_size: data per step, where it is not to be the protocol's: a deviation, which the page names.
    """

    fraction: float = 1.0
    passes: float | None = None
    num_particles: int | None = None
    num_test: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: got {self.fraction}, expected a number above 0, and at most 1")
        if self.passes is not None and not self.passes > 0:
            raise ValueError(f"passes: got {self.passes}, expected a number above 0")
        for name in ("num_particles", "num_test", "batch_size"):
            if (value := getattr(self, name)) is not None:
                require_positive(name, value)

    def of(self, protocol: "Protocol") -> tuple[int, int]:
        """K and the number of test data; 0 for all."""
        rehearses = self.fraction < 1
        particles = self.num_particles or (protocol.rehearsal_particles if rehearses else protocol.num_particles)
        return particles, self.num_test or (protocol.rehearsal_test if rehearses else 0)


class Progress:
    """Tells how many steps have been taken since the last time."""

    def __init__(self, advance: Advance) -> None:
        self.advance, self.done = advance, 0

    def __call__(self, step: int) -> None:
        """The run has come to this step."""
        self.advance(step - self.done)
        self.done = step
