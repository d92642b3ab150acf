"""Convolutions of stride 2 and residual blocks: from data to a grid of features, and back."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ppl_vae.nn.init import glorot_
from ppl_vae.nn.shapes import Shape, as_shape, as_size
from ppl_vae.nn.trunks import Trunk

__all__ = ["ResidualBlocks", "ResidualDown", "ResidualUp"]

_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}


class ResidualBlocks(nn.Sequential):
    """x + W relu(conv3(relu(x))), so many times, then a ReLU; features (N, hidden, *S) -> the same shape.

    Args:
        hidden: features.
        number: of blocks.
        inner: features within a block.
        dims: of S, 1 or 2.
    """

    def __init__(self, hidden: int, number: int, inner: int, dims: int) -> None:
        super().__init__(*(_Block(hidden, inner, dims) for _ in range(number)), nn.ReLU())


class ResidualDown(Trunk):
    """Data (..., C, *S) -> features (..., F, *S / 2^halvings): convolutions of stride 2, residual blocks, a linear map.

    Args:
        in_shape: (C, L) of a sequence or (C, H, W) of an image; sizes are multiples of 2^halvings.
        features: F.
        hidden: features of a layer; half as many in the first of several.
        halvings: how often sizes are halved; 0: one convolution of stride 1.
        blocks: residual blocks.
        inner: features within a block; half of `hidden` by default.

    Raises:
        ValueError: another number of dims, or sizes that can't be halved so often.

    References:
        Neural discrete representation learning, van den Oord, Vinyals & Kavukcuoglu 2017, section 4.1: kernels of 4
        with stride 2, and two blocks of 3 and 1.

    Example:
        >>> ResidualDown((1, 28, 28), features=64)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 64, 7, 7])
    """

    def __init__(
        self,
        in_shape: Sequence[int],
        features: int,
        hidden: int = 64,
        halvings: int = 2,
        blocks: int = 2,
        inner: int | None = None,
    ) -> None:
        shape, dims = as_shape(in_shape, "in_shape"), _dims(in_shape, "in_shape")
        grid = _halved(shape[1:], halvings)
        super().__init__(shape, (as_size(features, "features"), *grid))
        conv, hidden = _CONVOLUTIONS[dims], as_size(hidden, "hidden")
        sizes = [shape[0], *[max(1, hidden // 2) if i + 1 < halvings else hidden for i in range(halvings)]]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(sizes):
            layers += [conv(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
        layers += [conv(sizes[-1], hidden, 3, padding=1), ResidualBlocks(hidden, blocks, inner or hidden // 2, dims)]
        self.layers = nn.Sequential(*layers, conv(hidden, features, 1))
        glorot_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Features (..., F, *S / 2^halvings) of x (..., C, *S)."""
        lead = self._leading(x)
        return self.layers(x.reshape(-1, *self.in_shape)).reshape(*lead, *self.out_shape)

    def _output_bias(self) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} makes features, which start at no mean")


class ResidualUp(Trunk):
    """Features (..., F, *S) -> (..., *out_shape) on a grid 2^halvings as fine: the mirror of `ResidualDown`.

    Args:
        in_shape: (F, *S).
        out_shape: (P, C, *S 2^halvings), usually `head.raw_shape`.
        hidden, halvings, blocks, inner: as of `ResidualDown`.

    Raises:
        ValueError: shapes that don't fit each other.

    Example:
        >>> ResidualUp((64, 7, 7), (1, 1, 28, 28))(torch.zeros(5, 64, 7, 7)).shape
        torch.Size([5, 1, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Sequence[int],
        hidden: int = 64,
        halvings: int = 2,
        blocks: int = 2,
        inner: int | None = None,
    ) -> None:
        super().__init__(in_shape, out_shape)
        dims = _dims(self.in_shape, "in_shape")
        number, channels, *grid = self.out_shape
        if _halved(grid, halvings) != self.in_shape[1:]:
            raise ValueError(
                f"out_shape: got {self.out_shape} for features of shape {self.in_shape}, expected a grid "
                f"{2**halvings} times as fine; change halvings={halvings}"
            )
        conv, transposed, hidden = _CONVOLUTIONS[dims], _TRANSPOSED[dims], as_size(hidden, "hidden")
        sizes = [hidden, *[max(1, hidden // 2)] * (halvings - 1), number * channels]
        layers: list[nn.Module] = [
            conv(self.in_shape[0], hidden, 3, padding=1),
            ResidualBlocks(hidden, blocks, inner or hidden // 2, dims),
        ]
        for n_in, n_out in pairwise(sizes[:-1]):
            layers += [transposed(n_in, n_out, 4, stride=2, padding=1), nn.ReLU()]
        last = conv(hidden, sizes[-1], 1) if halvings == 0 else transposed(sizes[-2], sizes[-1], 4, 2, 1)
        assert last.bias is not None
        last.bias = None  # one for each pixel is added instead, which can hold their means
        self.layers = nn.Sequential(*layers, last)
        self.output_bias = nn.Parameter(torch.zeros(self.out_shape))
        glorot_(self)

    def forward(self, x: Tensor) -> Tensor:
        """Raw parameters (..., *out_shape) of features x (..., F, *S)."""
        lead = self._leading(x)
        return self.layers(x.reshape(-1, *self.in_shape)).reshape(*lead, *self.out_shape) + self.output_bias

    def _output_bias(self) -> Tensor:
        return self.output_bias


class _Block(nn.Module):
    """x + W relu(conv3(relu(x)))."""

    def __init__(self, hidden: int, inner: int, dims: int) -> None:
        super().__init__()
        conv = _CONVOLUTIONS[dims]
        self.layers = nn.Sequential(nn.ReLU(), conv(hidden, inner, 3, padding=1), nn.ReLU(), conv(inner, hidden, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def _dims(shape: Shape, name: str) -> int:
    dims = len(as_shape(shape, name)) - 1
    if dims not in _CONVOLUTIONS:
        raise ValueError(f"{name}: got {shape}, expected (C, L) of a sequence or (C, H, W) of an image")
    return dims


def _halved(grid: Sequence[int], halvings: int) -> tuple[int, ...]:
    if halvings < 0 or any(size % 2**halvings for size in grid):
        raise ValueError(
            f"halvings: got {halvings} for sizes {tuple(grid)}, expected multiples of {2 ** max(halvings, 0)}"
        )
    return tuple(size // 2**halvings for size in grid)
