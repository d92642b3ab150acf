"""PixelRNN: images read row by row or diagonal by diagonal, by LSTMs that are causal."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae.nn.causal import ImageTrunk, divisible
from ppl_vae.nn.causal_conv import CausalConv2d, readout
from ppl_vae.nn.init import glorot_

__all__ = ["DiagonalBiLSTM", "RowLSTM", "skewed", "unskewed"]


def skewed(x: Tensor) -> Tensor:
    """Rows shifted to the right, row r by r columns: (..., H, W) -> (..., H, W + H - 1), zeros where nothing is.

    A column then holds a diagonal of the map.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016, figure 3.

    Example:
        >>> skewed(torch.tensor([[1, 2], [3, 4]]))
        tensor([[1, 2, 0],
                [0, 3, 4]])
    """
    height, width = x.shape[-2:]
    # With H zeros behind each row, rows of one element less begin where they should.
    return F.pad(x, (0, height)).flatten(-2)[..., : height * (width + height - 1)].unflatten(-1, (height, -1))


def unskewed(x: Tensor, width: int) -> Tensor:
    """The map that was `skewed`: (..., H, W + H - 1) -> (..., H, W)."""
    height = x.shape[-2]
    return F.pad(x.flatten(-2), (0, height)).unflatten(-1, (height, width + height))[..., :width]


class RowLSTM(ImageTrunk):
    """Convolutional LSTMs that go down the image: a pixel sees a triangle above it, and its own row through its input.

    One masked 7 x 7 layer, residual LSTM layers, two masked layers 1 x 1. States begin at learned values.

    Args:
        out_shape: (P, C, H, W), a head's raw_shape.
        hidden: h, units of an LSTM; maps have 2 h features.
        layers: LSTMs.
        kernel: an odd number, columns that the input of a state and the states of the row above are seen from.
        features: of the two last layers.
        context_dim: F, of what else is known; a linear map of it joins the input of each LSTM.
        joint: for a joint head: no channel of a pixel sees another.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016, section 3.1 and table 1.

    Example:
        >>> RowLSTM((1, 1, 8, 8), hidden=4, layers=2)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 1, 8, 8])
    """

    def __init__(
        self,
        out_shape: tuple[int, ...],
        hidden: int = 16,
        layers: int = 7,
        kernel: int = 3,
        features: int = 32,
        context_dim: int | None = None,
        joint: bool = False,
    ) -> None:
        super().__init__(out_shape, context_dim, joint)
        groups = 1 if joint else out_shape[1]
        if kernel % 2 == 0:
            raise ValueError(f"kernel: got {kernel}, expected an odd number")
        hidden = divisible(hidden, groups, "hidden")
        self.frame = _Frame(out_shape, hidden, features, groups)
        self.layers = nn.ModuleList(_Row(hidden, kernel // 2, groups, context_dim) for _ in range(layers))

    def raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C, H, W) for x (N, C, H, W)."""
        return self._unblocked(self.frame(x, lambda h: _through(self.layers, h, context)))

    def _output_bias(self) -> Tensor:
        return self.frame.bias


class DiagonalBiLSTM(ImageTrunk):
    """LSTMs along the diagonals, from the left and from the right: a pixel sees what comes before it, but for one.

    The LSTM from the right is moved down by a row, so that it sees rows above alone. The last pixel of the row above is
    seen by those pixels alone that the first layer reaches from there: mask A hides it from the features at its place,
    with which the LSTM from the right begins. So it is in the paper. The rest is as of `RowLSTM`.

    Args:
        out_shape, hidden, layers, features, context_dim, joint: as for `RowLSTM`.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016, section 3.2 and table 1.

    Example:
        >>> DiagonalBiLSTM((1, 1, 8, 8), hidden=4, layers=2)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 1, 8, 8])
    """

    def __init__(
        self,
        out_shape: tuple[int, ...],
        hidden: int = 16,
        layers: int = 7,
        features: int = 32,
        context_dim: int | None = None,
        joint: bool = False,
    ) -> None:
        super().__init__(out_shape, context_dim, joint)
        groups = 1 if joint else out_shape[1]
        hidden = divisible(hidden, groups, "hidden")
        self.frame = _Frame(out_shape, hidden, features, groups)
        self.layers = nn.ModuleList(_Diagonal(hidden, groups, context_dim) for _ in range(layers))

    def raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C, H, W) for x (N, C, H, W)."""
        return self._unblocked(self.frame(x, lambda h: _through(self.layers, h, context)))

    def _output_bias(self) -> Tensor:
        return self.frame.bias


class _Frame(nn.Module):
    """What both have before and after their LSTMs."""

    def __init__(self, out_shape: tuple[int, ...], hidden: int, features: int, groups: int) -> None:
        super().__init__()
        number, channels = out_shape[:2]
        features = divisible(features, groups, "features")
        self.first = CausalConv2d(channels, 2 * hidden, above=3, left=3, right=3, kind="A", channels=groups)
        self.last = readout(2 * hidden, features, number * channels, groups)

    @property
    def bias(self) -> Tensor:
        return self.last[-1].bias  # pyright: ignore[reportReturnType]

    def forward(self, x: Tensor, layers: Callable[[Tensor], Tensor]) -> Tensor:
        return self.last(layers(self.first(2 * x - 1)))


def _through(layers: nn.ModuleList, h: Tensor, context: Tensor | None) -> Tensor:
    for layer in layers:
        h = h + layer(h, context)
    return h


class _Gates(nn.Module):
    """An LSTM whose input is a map: what it is given, and how a state follows from the one before."""

    def __init__(self, hidden: int, reach: int, channels: int, context_dim: int | None) -> None:
        super().__init__()
        self.hidden, self.channels = hidden, channels
        self.input = CausalConv2d(2 * hidden, 4 * hidden, left=reach, channels=channels)
        self.told = None if context_dim is None else glorot_(nn.Linear(context_dim, 4 * hidden))
        self.start = nn.ParameterList(nn.Parameter(torch.zeros(hidden, 1)) for _ in range(2))

    def inputs(self, x: Tensor, context: Tensor | None) -> Tensor:
        """(N, 2 h, H, W) -> (N, 4 h, H, W)."""
        told = 0.0 if self.told is None or context is None else self.told(context)[..., None, None]
        return self.input(x) + told

    def started(self, number: int, places: int) -> tuple[Tensor, Tensor]:
        """The first h and c, (N, h, places) each."""
        h, c = (part.expand(number, -1, places) for part in self.start)
        return h, c

    def step(self, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        """The next h and c (N, h, places) by gates (N, 4 h, places); each channel's block has its four."""
        o, f, i, g = gates.unflatten(1, (self.channels, 4, -1)).unbind(2)
        c = (f.sigmoid() * c.unflatten(1, (self.channels, -1)) + i.sigmoid() * g.tanh()).flatten(1, 2)
        return o.sigmoid().flatten(1, 2) * c.tanh(), c


class _Row(nn.Module):
    """(N, 2 h, H, W) -> (N, 2 h, H, W): an LSTM down the rows."""

    def __init__(self, hidden: int, reach: int, channels: int, context_dim: int | None) -> None:
        super().__init__()
        self.gates = _Gates(hidden, reach, channels, context_dim)
        self.above = glorot_(nn.Conv1d(hidden, 4 * hidden, 2 * reach + 1, padding=reach, bias=False))
        self.up = CausalConv2d(hidden, 2 * hidden, channels=channels)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        inputs = self.gates.inputs(x, context)
        h, c = self.gates.started(len(inputs), inputs.shape[-1])
        rows: list[Tensor] = []
        for row in inputs.unbind(2):
            h, c = self.gates.step(row + self.above(h), c)
            rows.append(h)
        return self.up(torch.stack(rows, 2))


class _Diagonal(nn.Module):
    """(N, 2 h, H, W) -> (N, 2 h, H, W): LSTMs along the diagonals, from both sides."""

    def __init__(self, hidden: int, channels: int, context_dim: int | None) -> None:
        super().__init__()
        self.sides = nn.ModuleList(_Side(hidden, channels, context_dim) for _ in range(2))
        self.up = CausalConv2d(hidden, 2 * hidden, channels=channels)

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        left, right = self.sides
        from_right = F.pad(right(x.flip(-1), context).flip(-1), (0, 0, 1, 0))[:, :, :-1]
        return self.up(left(x, context) + from_right)


class _Side(nn.Module):
    """(N, 2 h, H, W) -> (N, h, H, W): the state of a pixel from those on its left and above it."""

    def __init__(self, hidden: int, channels: int, context_dim: int | None) -> None:
        super().__init__()
        self.gates = _Gates(hidden, 0, channels, context_dim)
        self.own, self.above = (glorot_(nn.Conv1d(hidden, 4 * hidden, 1, bias=False)) for _ in range(2))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        inputs = skewed(self.gates.inputs(x, context))
        h, c = self.gates.started(len(inputs), inputs.shape[2])
        columns: list[Tensor] = []
        for column in inputs.unbind(-1):
            h, c = self.gates.step(column + self.own(h) + self.above(F.pad(h, (1, 0))[..., :-1]), c)
            columns.append(h)
        return unskewed(torch.stack(columns, -1), x.shape[-1])
