"""PixelCNN: masked convolutions, plain and gated."""

import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae.nn.causal import PixelTrunk, divisible
from ppl_vae.nn.causal_conv import CausalConv2d, Place, readout
from ppl_vae.nn.init import glorot_

__all__ = ["GatedPixelCNN", "PixelCNN"]


class PixelCNN(PixelTrunk):
    """Masked convolutions: 7 x 7 of kind A; residual blocks 1 x 1, 3 x 3, 1 x 1 of kind B; two layers 1 x 1.

    A pixel is a function of those above and on the left within a cone; some of those on the right above are never seen
    (the blind spot), see `GatedPixelCNN`.

    Args:
        out_shape: (P, C, H, W), a head's raw_shape.
        hidden: h; maps have 2 h features, h within a block.
        blocks: residual blocks.
        features: of the two last layers.
        context_dim: F; a linear map of the context is added to the features of each block.
        joint: for a joint head: no channel of a pixel sees another.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016, table 1 and figure 5.

    Example:
        >>> import torch
        >>> PixelCNN((1, 1, 8, 8), hidden=4, blocks=2)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 1, 8, 8])
    """

    def __init__(
        self,
        out_shape: tuple[int, ...],
        hidden: int = 64,
        blocks: int = 7,
        features: int = 64,
        context_dim: int | None = None,
        joint: bool = False,
    ) -> None:
        super().__init__(out_shape, context_dim, joint)
        number, channels = out_shape[:2]
        groups = 1 if joint else channels
        hidden, features = (
            divisible(size, channels, name) for size, name in ((hidden, "hidden"), (features, "features"))
        )
        self.first = CausalConv2d(channels, 2 * hidden, above=3, left=3, right=3, kind="A", channels=groups)
        self.blocks = nn.ModuleList(_Block(hidden, groups, context_dim) for _ in range(blocks))
        self.last = readout(2 * hidden, features, number * channels, groups)

    def raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C, H, W) for x (N, C, H, W)."""
        h = self.first(2 * x - 1)
        for block in self.blocks:
            h = block(h, context)
        return self._unblocked(self.last(h))

    def pixel(self, place: Place, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C) at the place that is next."""
        return self.raw(_nothing(self), context)[..., 0, 0]

    def write(self, x: Tensor) -> None:
        """What is known of the pixel at that place, (N, C, 1, 1)."""
        self.first.write(2 * x - 1)

    def _output_bias(self) -> Tensor:
        return self.last[-1].bias  # pyright: ignore[reportReturnType]


class GatedPixelCNN(PixelTrunk):
    """A stack of the rows above and one of the own row, tanh(a) sigmoid(b), which together see all that comes before.

    v' = gate(conv(v) + U c);  h' = h + W gate(row(h) + V v_conv + U' c): residual in the horizontal stack alone.

    Args:
        out_shape: (P, C, H, W), a head's raw_shape.
        hidden: features of each stack.
        layers: of the stacks.
        kernel: 3 (or 5, ...): of each layer but the first, which has 7.
        features: of the two last layers.
        context_dim: F, of c.
        joint: for a joint head: no channel of a pixel sees another.

    References:
        Conditional image generation with PixelCNN decoders, van den Oord et al. 2016, section 2 and eq. 3.

    Example:
        >>> import torch
        >>> GatedPixelCNN((1, 1, 8, 8), hidden=4, layers=2)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 1, 1, 8, 8])
    """

    def __init__(
        self,
        out_shape: tuple[int, ...],
        hidden: int = 64,
        layers: int = 8,
        kernel: int = 3,
        features: int = 64,
        context_dim: int | None = None,
        joint: bool = False,
    ) -> None:
        super().__init__(out_shape, context_dim, joint)
        number, channels = out_shape[:2]
        groups = 1 if joint else channels
        if kernel % 2 == 0:
            raise ValueError(f"kernel: got {kernel}, expected an odd number")
        hidden, features = (
            divisible(size, channels, name) for size, name in ((hidden, "hidden"), (features, "features"))
        )
        self.layers = nn.ModuleList(
            _Gated(i, layers, hidden, kernel // 2 if i else 3, channels, groups, context_dim) for i in range(layers)
        )
        self.last = readout(hidden, features, number * channels, groups)
        self._above: list[Tensor] = []

    def raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C, H, W) for x (N, C, H, W)."""
        x = 2 * x - 1
        return self._across(x, self._down(F.pad(x, (0, 0, 1, -1)), context))

    def begin_row(self, above: Tensor | None, context: Tensor | None) -> None:
        """The vertical stack, one row further."""
        seen = _nothing(self).expand(1, *self.in_shape[:1], 1, self.in_shape[-1]) if above is None else 2 * above - 1
        self._above = self._down(seen, context)

    def pixel(self, place: Place, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C) at the place that is next."""
        above = [told[..., place.column : place.column + 1] for told in self._above]
        return self._across(_nothing(self), above)[..., 0, 0]

    def write(self, x: Tensor) -> None:
        """What is known of the pixel at that place, (N, C, 1, 1)."""
        first = self.layers[0]
        assert isinstance(first, _Gated)
        first.row.write(2 * x - 1)

    def _down(self, x: Tensor, context: Tensor | None) -> list[Tensor]:
        """What each layer is told of the rows above, of an input shifted down by one row, and of the context."""
        told: list[Tensor] = []
        for layer in self.layers:
            assert isinstance(layer, _Gated)
            seen = layer.column(x)
            told.append(layer.from_above(seen) + _told(layer.told, context))
            if len(told) < len(self.layers):
                x = layer.gated(seen + _told(layer.told_above, context))
        return told

    def _across(self, x: Tensor, above: list[Tensor]) -> Tensor:
        for layer, told in zip(self.layers, above, strict=True):
            x = layer(x, told)
        return self._unblocked(self.last(x))

    def _output_bias(self) -> Tensor:
        return self.last[-1].bias  # pyright: ignore[reportReturnType]


class _Block(nn.Module):
    """x + W relu(conv(relu(V relu(x)) ) + U c)."""

    def __init__(self, hidden: int, channels: int, context_dim: int | None) -> None:
        super().__init__()
        self.before = CausalConv2d(2 * hidden, hidden, channels=channels)
        self.around = CausalConv2d(hidden, hidden, above=1, left=1, right=1, channels=channels)
        self.after = CausalConv2d(hidden, 2 * hidden, channels=channels)
        self.told = None if context_dim is None else glorot_(nn.Linear(context_dim, hidden))

    def forward(self, x: Tensor, context: Tensor | None) -> Tensor:
        around = self.around(self.before(x.relu()).relu())
        return x + self.after((around + _told(self.told, context)).relu())


class _Gated(nn.Module):
    """Layer i of both stacks; the first sees the data and has no residual, of the last nothing goes on downwards."""

    def __init__(
        self, i: int, layers: int, hidden: int, reach: int, channels: int, groups: int, context_dim: int | None
    ) -> None:
        super().__init__()
        self.groups, self.first = groups, i == 0
        n_in, size, kind = (channels, 2 * hidden, "A") if self.first else (hidden, 2 * hidden, "B")
        # The vertical stack's input is shifted down: its own row is the row above.
        self.column = CausalConv2d(n_in, size, above=reach, left=reach, right=reach, kind="rows")
        self.row = CausalConv2d(n_in, size, left=reach, kind=kind, channels=groups)
        self.from_above = glorot_(nn.Conv2d(size, size, 1))
        self.after = CausalConv2d(hidden, hidden, channels=groups)
        self.told = None if context_dim is None else glorot_(nn.Linear(context_dim, size))
        self.told_above = None if context_dim is None or i + 1 == layers else glorot_(nn.Linear(context_dim, size))

    def forward(self, h: Tensor, told: Tensor) -> Tensor:
        out = self.after(self.gated(self.row(h) + told))
        return out if self.first else h + out

    def gated(self, x: Tensor) -> Tensor:
        """tanh(a) sigmoid(b), (N, 2 h, H, W) -> (N, h, H, W); each channel's block has its a and its b."""
        a, b = x.unflatten(1, (self.groups, 2, -1)).unbind(2)
        return (a.tanh() * b.sigmoid()).flatten(1, 2)


def _told(network: nn.Linear | None, context: Tensor | None) -> Tensor | float:
    return 0.0 if network is None or context is None else network(context)[..., None, None]


def _nothing(trunk: PixelTrunk) -> Tensor:
    """What a first layer is called with when the pixel is not known yet."""
    return next(trunk.parameters()).new_zeros(1, 1, 1, 1)
