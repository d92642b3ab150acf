"""What judges are made of."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

__all__ = ["CHUNK", "FEATURES", "features_of"]

CHUNK = 500
"""Images at a time."""

FEATURES = 128
"""Of an image."""


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
