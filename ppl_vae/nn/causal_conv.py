"""Convolutions that see only what comes before, in the order rows, columns, channels."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CausalConv2d", "Place", "Stepwise", "causal_mask", "readout", "stepwise"]

Kind = Literal["A", "B", "rows"]


def causal_mask(
    n_out: int, n_in: int, above: int, left: int, right: int, kind: Kind = "B", channels: int = 1
) -> Tensor:
    """Which weights of a kernel may count: ones and zeros, (n_out, n_in, above + 1, left + 1 + right).

    Rows above count, and of the own row what is on the left. At the own pixel features belong to the `channels` of the
    data in equal blocks, R, G, B: a feature of one sees those of earlier ones, and with "B" those of its own.

    Args:
        n_out: features of the result, a multiple of `channels`.
        n_in: features seen, a multiple of `channels`.
        above: rows above.
        left: columns on the left.
        right: columns on the right.
        kind: "A" in the first layer: not the own channel. "B" in later ones. "rows": the whole own row counts (that
            of an input shifted down by a row).
        channels: C of the data.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016, section 3.4 (masks A and B).

    Example:
        >>> causal_mask(1, 1, above=1, left=1, right=1, kind="A")[0, 0]
        tensor([[1., 1., 1.],
                [1., 0., 0.]])
    """
    for name, number in (("n_out", n_out), ("n_in", n_in)):
        if number < 1 or number % channels:
            raise ValueError(f"{name}: got {number} features, expected a multiple of the {channels} channels")
    mask = torch.ones(n_out, n_in, above + 1, left + 1 + right)
    if kind == "rows":
        return mask
    mask[:, :, above, left + 1 :] = 0
    out, seen = (torch.arange(n) * channels // n for n in (n_out, n_in))
    own = seen < out[:, None] if kind == "A" else seen <= out[:, None]
    mask[:, :, above, left] = own.float()
    return mask


@dataclass
class Place:
    """The pixel that is next, (row, column)."""

    row: int = 0
    column: int = 0


class Stepwise(ABC):
    """A module that can go pixel by pixel, and keeps what it has seen; see `stepwise`."""

    @abstractmethod
    def begin_steps(self, place: Place, batch: int, height: int, width: int) -> None:
        """From now on inputs are of the place that is next, of B images (H, W); nothing of them is seen yet."""

    @abstractmethod
    def end_steps(self) -> None:
        """Inputs are of whole images again, and nothing is kept."""


class CausalConv2d(nn.Module, Stepwise):
    """Features (B, n_in, H, W) -> (B, n_out, H, W) of the same size, by a kernel under a `causal_mask`.

    Inside `stepwise` it takes one pixel (B, n_in, 1, 1) or one row (B, n_in, 1, W) at the place that is next, keeps it,
    and gives the features there: what was seen before is not computed again. Of kind "A" it is then told the data
    by `write`, and what it is called with does not count: the pixel is not known yet.

    Args:
        n_in, n_out, above, left, right, kind, channels: as for `causal_mask`.

    References:
        Fast generation for convolutional autoregressive models, Ramachandran et al. 2017 (what is kept).

    Example:
        >>> CausalConv2d(1, 4, above=3, left=3, right=3, kind="A")(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    mask: Tensor

    def __init__(
        self,
        n_in: int,
        n_out: int,
        *,
        above: int = 0,
        left: int = 0,
        right: int = 0,
        kind: Kind = "B",
        channels: int = 1,
    ) -> None:
        super().__init__()
        self.n_in, self.above, self.left, self.right, self.kind = n_in, above, left, right, kind
        self.register_buffer("mask", causal_mask(n_out, n_in, above, left, right, kind, channels), persistent=False)
        self.weight, self.bias = nn.Parameter(torch.empty_like(self.mask)), nn.Parameter(torch.zeros(n_out))
        fans = self.mask.sum() / n_out + self.mask.sum() / n_in  # weights that count
        nn.init.uniform_(self.weight, -(bound := math.sqrt(6 / max(1.0, fans.item()))), bound)
        self._steps: _Steps | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Features of all pixels, or of those at the place that is next."""
        if self._steps is not None:
            return self._steps.features(self, x)
        return F.conv2d(F.pad(x, (self.left, self.right, self.above, 0)), self.weight * self.mask, self.bias)

    def write(self, x: Tensor) -> None:
        """What is known of the pixel at the place that is next, (B, n_in, 1, 1); within `stepwise`."""
        assert self._steps is not None
        self._steps.keep(self, x)

    def begin_steps(self, place: Place, batch: int, height: int, width: int) -> None:
        """Pixel by pixel from now on."""
        self._steps = _Steps(self, place, batch, height, width)

    def end_steps(self) -> None:
        """All pixels at once again."""
        self._steps = None


def readout(n_in: int, features: int, n_out: int, channels: int) -> nn.Sequential:
    """The two layers 1 x 1 that end a network of pixels, each after a ReLU; the last has the output bias."""
    return nn.Sequential(
        nn.ReLU(),
        CausalConv2d(n_in, features, channels=channels),
        nn.ReLU(),
        CausalConv2d(features, n_out, channels=channels),
    )


class _Steps:
    """What one convolution has seen of B images: with borders of zeros, so that windows need no padding."""

    def __init__(self, conv: CausalConv2d, place: Place, batch: int, height: int, width: int) -> None:
        size = (batch, height + conv.above, conv.left + width + conv.right, conv.n_in)
        # Channels last in memory: a pixel's window is a few runs, and one product with the kernel in that order.
        self.seen = conv.weight.new_zeros(size).permute(0, 3, 1, 2)
        self.place, self.weight = place, conv.weight * conv.mask
        self.flat = self.weight.permute(0, 2, 3, 1).flatten(1)

    def keep(self, conv: CausalConv2d, x: Tensor) -> None:
        first = conv.left + (self.place.column if x.shape[-1] == 1 else 0)
        self.seen[:, :, conv.above + self.place.row, first : first + x.shape[-1]] = x[:, :, 0]

    def features(self, conv: CausalConv2d, x: Tensor) -> Tensor:
        if self.weight.shape[2:] != (1, 1):  # else of kind B, and nothing around it
            if conv.kind != "A":
                self.keep(conv, x)
            is_pixel, row, column = x.shape[-1] == 1, self.place.row, self.place.column
            x = self.seen[:, :, row : row + conv.above + 1]
            x = x[..., column : column + conv.left + 1 + conv.right] if is_pixel else x
        if x.shape[2:] != self.weight.shape[2:]:
            return F.conv2d(x, self.weight, conv.bias)
        return F.linear(x.permute(0, 2, 3, 1).flatten(1), self.flat, conv.bias)[..., None, None]


@contextmanager
def stepwise(network: nn.Module, batch: int, height: int, width: int) -> Iterator[Place]:
    """Within it the network goes pixel by pixel, from the first; the place is moved by who calls it."""
    place, steppers = Place(), [module for module in network.modules() if isinstance(module, Stepwise)]
    try:
        for module in steppers:
            module.begin_steps(place, batch, height, width)
        yield place
    finally:
        for module in steppers:
            module.end_steps()
