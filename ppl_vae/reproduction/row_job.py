"""What a row's run is, whatever is measured: trained from one seed in a folder, and not again once it has a result."""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from ppl_vae.reproduction.budget import Budget
from ppl_vae.workers import Advance

__all__ = ["RowJob"]

P = TypeVar("P")
R = TypeVar("R")


@dataclass(frozen=True)
class RowJob(ABC, Generic[P, R]):
    """Trains and measures one row from one seed; called again after an end of any kind, it goes on.

    Args:
        protocol, row, seed, budget: what to run.
        folder: of the run, for results.json and what a run that goes on needs.
        start: folder of the run whose end this one begins with, or None.
        data_root: folder of the data sets.
        device, compile: as for `fit`.
    """

    protocol: P
    row: R
    seed: int
    budget: Budget
    folder: Path
    start: Path | None
    data_root: str | None
    device: str
    compile: Any

    def __call__(self, advance: Advance) -> None:
        """Train and measure, unless that has been done."""
        if self.result() is not None:
            advance(self.steps)
        else:
            self.run(advance)

    def result(self) -> dict[str, Any] | None:
        """What has been reached, `data` and `environment` of it; None before the end."""
        path = self.folder / "results.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    @abstractmethod
    def run(self, advance: Advance) -> None:
        """Train and measure, and write results.json last."""

    @abstractmethod
    def check(self) -> None:
        """Refuse, with ValueError, what would be refused once the run has begun."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Of the run."""

    @property
    @abstractmethod
    def steps_done(self) -> int:
        """0 where it has not begun."""
