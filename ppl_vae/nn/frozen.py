"""Networks that are used and not trained."""

from typing import Any, Self

import torch
from torch import nn

__all__ = ["Frozen"]


class Frozen(nn.Module):
    """What a network makes of its input, without gradient and in eval mode, whatever this module's mode.

    Training what stands behind it leaves it as it is, running averages too.

    Args:
        network: any module.

    Example:
        >>> Frozen(nn.Linear(3, 2))(torch.zeros(5, 3)).requires_grad
        False
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()

    def train(self, mode: bool = True) -> Self:
        """Set the mode of this module alone: the network stays in eval mode."""
        super().train(mode)
        self.network.eval()
        return self

    def forward(self, *args: Any) -> Any:
        """The network's own output, a constant."""
        with torch.no_grad():
            return self.network(*args)
