"""Data held out of training: which weights are best there, and when to stop."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.aggregate import Aggregate, aggregate
from ppl_vae.pair import Pair
from ppl_vae.quiet import undisturbed
from ppl_vae.svi import SVI

__all__ = ["Validation"]

LOOKED_AT = 1000
"""So many data, the first, are looked at for what q(z | x) says of them together."""


@dataclass
class Validation:
    """The bound on data held out, and the weights that were best there.

    Args:
        batches: the data, in batches.
        seed: of the noise: the same at every call.
        patience: stop after so many records without a better bound; None never stops.
    """

    batches: list[tuple[Tensor, ...]]
    seed: int
    patience: int | None = None
    best: float = -math.inf
    step: int = 0
    waited: int = 0
    weights: dict[str, Tensor] | None = None

    def measure(self, svi: SVI) -> float:
        """Nats per datum with the weights as they are; keeps the weights where none were better."""
        with undisturbed(svi.pair, None):
            bounds = svi.ranks.map(
                lambda batch: svi.objective.bound(svi.model, svi.guide, *batch),
                self.batches,
                self.seed,
                svi.pair.reference().device,
            )
        bound = torch.cat(bounds).mean().item()
        self.waited += 1
        if bound > self.best:
            self.best, self.step, self.waited = bound, svi.objective.step, 0
            self.weights = {name: value.clone() for name, value in svi.pair.state_dict().items()}
        return bound

    def aggregate(self, pair: Pair) -> Aggregate | None:
        """What the guide says of the first data together; None where it has no latent sites."""
        rows = len(self.batches[0][0])
        return aggregate(pair, self.batches[: max(1, LOOKED_AT // rows)], self.seed)

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """The best so far."""
        return {"best": self.best, "step": self.step, "waited": self.waited, "weights": self.weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from an earlier run's best."""
        self.best, self.step, self.waited = state["best"], state["step"], state["waited"]
        self.weights = state["weights"] and {name: value.clone() for name, value in state["weights"].items()}
