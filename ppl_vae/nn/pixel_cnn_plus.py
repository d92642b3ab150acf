"""PixelCNN++: two causal streams at several sizes, with short cuts from the way down to the way up."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae.nn.causal import ImageTrunk
from ppl_vae.nn.causal_conv import CausalConv2d, Kind
from ppl_vae.nn.init import glorot_
from ppl_vae.nn.shapes import as_size

__all__ = ["PixelCNNPlus"]

Streams = tuple[Tensor, Tensor]
"""What a map has seen: of the rows above; of them and of what is on the left."""


class PixelCNNPlus(ImageTrunk):
    """A stream of the rows above and one of what is above or on the left, halved and doubled in size; for a joint head.

    Gated residual blocks x + a sigmoid(b), on the way up with a short cut from the way down. No channel of a pixel sees
    another, which is left to the head.

    Args:
        out_shape: (P, C, H, W), a joint head's raw_shape; H and W are multiples of 2^(scales - 1).
        hidden: features of each stream.
        blocks: of each size on the way down, and on the way up, where larger sizes have one more.
        scales: sizes, each half as high and wide as the one before.
        dropout: share of the features within a block that are dropped in training.
        context_dim: F, of what else is known; a linear map of it joins each block.

    Raises:
        ValueError: images that can't be halved so often, or sizes below 1.

    References:
        Salimans, Karpathy, Chen and Kingma, PixelCNN++: Improving the PixelCNN with discretized logistic
        mixture likelihood and other modifications, 2017, sections 2.3 to 2.5. Weights start from Glorot's law, not
        normalised by a first batch.

    Example:
        >>> import torch
        >>> PixelCNNPlus((6, 1, 8, 8), hidden=4, blocks=1)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 6, 1, 8, 8])
    """

    rows_alone = False

    def __init__(
        self,
        out_shape: tuple[int, ...],
        hidden: int = 64,
        blocks: int = 2,
        scales: int = 3,
        dropout: float = 0.5,
        context_dim: int | None = None,
    ) -> None:
        super().__init__(out_shape, context_dim, joint=True)
        number, channels, height, width = out_shape
        hidden, blocks = as_size(hidden, "hidden"), as_size(blocks, "blocks")
        if height % (part := 2 ** (as_size(scales, "scales") - 1)) or width % part:
            raise ValueError(
                f"out_shape: got images of {height} by {width}, expected multiples of {part}, since they are halved "
                f"{scales - 1} times; use fewer scales, or pad the images"
            )
        self.first = _First(channels + 1, hidden)
        self.down = nn.ModuleList(
            nn.ModuleList(_Block(hidden, 0, dropout, context_dim) for _ in range(blocks)) for _ in range(scales)
        )
        self.up = nn.ModuleList(  # from the smallest size
            nn.ModuleList(_Block(hidden, 1, dropout, context_dim) for _ in range(blocks + (i > 0)))
            for i in range(scales)
        )
        self.halvings = nn.ModuleList(_Halved(hidden) for _ in range(scales - 1))
        self.doublings = nn.ModuleList(_Doubled(hidden) for _ in range(scales - 1))
        self.last = glorot_(nn.Conv2d(hidden, number * channels, 1))

    def raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C, H, W) for x (N, C, H, W)."""
        # Ones tell the border from a pixel of the middle grey.
        streams = self.first(F.pad(2 * x - 1, (0, 0, 0, 0, 0, 1), value=1.0))
        passed: list[Streams] = [streams]
        for i, size in enumerate(self.down):
            for block in size:  # type: ignore[union-attr]
                passed.append(streams := block(streams, None, context))
            if i < len(self.halvings):
                passed.append(streams := self.halvings[i](streams))
        streams = passed.pop()
        for i, size in enumerate(self.up):
            for block in size:  # type: ignore[union-attr]
                streams = block(streams, passed.pop(), context)
            if i < len(self.doublings):
                streams = self.doublings[i](streams)
        return self._unblocked(self.last(F.elu(streams[1])))

    def _output_bias(self) -> Tensor:
        bias = self.last.bias
        assert bias is not None
        return bias


class _First(nn.Module):
    """The two streams of the data (N, C, H, W): moved by a pixel, so that none sees its own."""

    def __init__(self, n_in: int, hidden: int) -> None:
        super().__init__()
        self.above = CausalConv2d(n_in, hidden, above=1, left=1, right=1, kind="rows")
        self.wide = CausalConv2d(n_in, hidden, left=1, right=1, kind="rows")
        self.high = CausalConv2d(n_in, hidden, above=1, kind="rows")

    def forward(self, x: Tensor) -> Streams:
        down, right = (0, 0, 1, -1), (1, -1)
        return F.pad(self.above(x), down), F.pad(self.wide(x), down) + F.pad(self.high(x), right)


class _Block(nn.Module):
    """A gated residual block of each stream; the second one sees the first."""

    def __init__(self, hidden: int, shortcuts: int, dropout: float, context_dim: int | None) -> None:
        super().__init__()
        self.above = _Gated(hidden, shortcuts, dropout, context_dim, right=1, kind="rows")
        self.left = _Gated(hidden, shortcuts + 1, dropout, context_dim, right=0, kind="B")

    def forward(self, streams: Streams, passed: Streams | None, context: Tensor | None) -> Streams:
        above, left = streams
        above = self.above(above, [] if passed is None else [passed[0]], context)
        return above, self.left(left, [above] if passed is None else [above, passed[1]], context)


class _Gated(nn.Module):
    """x + a sigmoid(b), where a and b see x around a pixel, and other maps at it."""

    def __init__(
        self, hidden: int, others: int, dropout: float, context_dim: int | None, right: int, kind: Kind
    ) -> None:
        super().__init__()
        self.around = CausalConv2d(2 * hidden, hidden, above=1, left=1, right=right, kind=kind)
        self.others = glorot_(nn.Conv2d(2 * hidden * others, hidden, 1)) if others else None
        self.again = CausalConv2d(2 * hidden, 2 * hidden, above=1, left=1, right=right, kind=kind)
        self.told = None if context_dim is None else glorot_(nn.Linear(context_dim, 2 * hidden))
        self.drop = nn.Dropout(dropout)

    def forward(self, x: Tensor, others: list[Tensor], context: Tensor | None) -> Tensor:
        inner = self.around(_both_signs(x))
        if self.others is not None:
            inner = inner + self.others(_both_signs(torch.cat(others, 1)))
        gates = self.again(self.drop(_both_signs(inner)))
        if self.told is not None and context is not None:
            gates = gates + self.told(context)[..., None, None]
        a, b = gates.chunk(2, 1)
        return x + a * b.sigmoid()


class _Halved(nn.Module):
    """(N, h, 2 H, 2 W) -> (N, h, H, W): a place sees none but what its first pixel may."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.above = glorot_(nn.Conv2d(hidden, hidden, (2, 3), stride=2))
        self.left = glorot_(nn.Conv2d(hidden, hidden, (2, 2), stride=2))

    def forward(self, streams: Streams) -> Streams:
        above, left = streams
        return self.above(F.pad(above, (1, 1, 1, 0))), self.left(F.pad(left, (1, 0, 1, 0)))


class _Doubled(nn.Module):
    """(N, h, H, W) -> (N, h, 2 H, 2 W)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.above = glorot_(nn.ConvTranspose2d(hidden, hidden, (2, 3), stride=2))
        self.left = glorot_(nn.ConvTranspose2d(hidden, hidden, (2, 2), stride=2))

    def forward(self, streams: Streams) -> Streams:
        above, left = streams
        return self.above(above)[..., 1:], self.left(left)


def _both_signs(x: Tensor) -> Tensor:
    """elu(x) and elu(-x), (N, h, H, W) -> (N, 2 h, H, W)."""
    return F.elu(torch.cat([x, -x], 1))
