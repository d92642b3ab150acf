"""An exponential moving average of a module's parameters."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

__all__ = ["WeightAverage"]


class WeightAverage:
    """a <- d a + (1 - d) w after each step, for all parameters w; a starts at the w of before the first step.

    Buffers are not averaged: they go with the current weights.

    Args:
        module: whose parameters.
        decay: d in (0, 1), e.g. 0.999: the average is over the last 1 / (1 - d) steps or so.

    Raises:
        ValueError: decay is not in (0, 1).
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"ema: got {decay}, expected a number between 0 and 1, such as 0.999")
        self._update: Any = get_ema_multi_avg_fn(decay)
        self.parameters = [p for p in module.parameters() if p.requires_grad]
        self.values = [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are."""
        self._update(self.values, self.parameters, 0)

    @torch.no_grad()
    def write(self) -> None:
        """Make the average the module's weights."""
        _copy(self.parameters, self.values)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within, the module has the averaged weights."""
        before = [p.detach().clone() for p in self.parameters]
        self.write()
        try:
            yield
        finally:
            with torch.no_grad():
                _copy(self.parameters, before)

    def state_dict(self) -> dict[str, Any]:
        """The averages, in the order of the parameters."""
        return {"values": [v.clone() for v in self.values]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the averages of an earlier run."""
        _copy(self.values, state["values"])


def _copy(targets: list[Any], sources: list[Tensor]) -> None:
    # In place: a captured step reads and writes the same memory for ever.
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)
