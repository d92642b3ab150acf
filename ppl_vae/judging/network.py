"""What judges are made of."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

__all__ = ["CHUNK", "FEATURES", "Share", "features_of"]

CHUNK = 500
"""Images at a time."""

FEATURES = 128
"""Of an image."""


@dataclass(frozen=True)
class Share:
    """A share of `number` cases, and its standard error."""

    value: float
    number: int

    @property
    def se(self) -> float:
        """sqrt(p (1 - p) / n)."""
        return (self.value * (1 - self.value) / self.number) ** 0.5

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.se:.3f})"

    @classmethod
    def of(cls, hits: Tensor) -> "Share":
        """Of a tensor of truth values."""
        return cls(hits.double().mean().item(), hits.numel())


def features_of(shape: Sequence[int]) -> nn.Sequential:
    """Images (B, C, H, W) -> `FEATURES` (B, 128), by three convolutions, each halving the size.

    Raises:
        ValueError: images of fewer than 8 pixels along a side, of which nothing is left after three halvings.
    """
    channels, height, width = shape
    if min(height, width) < 8:
        raise ValueError(f"shape: got images of {height} by {width} pixels, expected at least 8 by 8; enlarge them")
    widths = (channels, 32, 64, 64)
    blocks: list[nn.Module] = []
    for n_in, n_out in pairwise(widths):
        blocks += [nn.Conv2d(n_in, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    features = widths[-1] * (height // 8) * (width // 8)
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(features, FEATURES), nn.ReLU())
