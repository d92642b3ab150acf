"""PixelCNN: masked convolutions, plain and gated."""

import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae.nn.attention import CausalAttention
from ppl_vae.nn.causal import PixelTrunk, divisible
from ppl_vae.nn.causal_conv import CausalConv2d, Place, Stepwise, readout
from ppl_vae.nn.init import glorot_
from ppl_vae.nn.shapes import as_size

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


class GatedPixelCNN(PixelTrunk, Stepwise):
    """A stack of the rows above and one of the own row, tanh(a) sigmoid(b), which together see all that comes before.

    v' = gate(conv(v) + U c);  h' = h + W gate(row(h) + V v_conv + U' c): residual in the horizontal stack alone.
    With attention h'' = h' + attention(h') after some layers: what is far away is seen too.

    Args:
        out_shape: (P, C, H, W), a head's raw_shape.
        hidden: features of each stack, rounded up to a multiple of C.
        layers: of the stacks.
        kernel: 3 (or 5, ...): of each layer but the first, which has 7.
        features: of the two last layers.
        context_dim: F, of c.
        joint: for a joint head: no channel of a pixel sees another.
        reader: makes of c (N, F) a map (N, G, H, W), of which each pixel is told the features at its place; without
            one all pixels are told c.
        reader_dim: G.
        attention: a `CausalAttention` after every so many layers, where C is 1 or `joint`; None for none.
        heads: of each attention, a divisor of `hidden`.

    Raises:
        ValueError: an even kernel, sizes below 1, a reader without its sizes (or the reverse), or attention that does
            not fit; later, a reader's map of another shape.

    References:
        Conditional image generation with PixelCNN decoders, van den Oord et al. 2016, section 2 and eq. 3 (2.3: maps).
        Generating diverse high-fidelity images with VQ-VAE-2, Razavi, van den Oord & Vinyals 2019, section 3.2
        (attention among the layers, and maps from a stack of residual blocks).

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
        *,
        reader: nn.Module | None = None,
        reader_dim: int | None = None,
        attention: int | None = None,
        heads: int = 4,
    ) -> None:
        super().__init__(out_shape, context_dim, joint)
        number, channels = out_shape[:2]
        groups = 1 if joint else channels
        if kernel % 2 == 0:
            raise ValueError(f"kernel: got {kernel}, expected an odd number")
        hidden, features = (
            divisible(size, channels, name) for size, name in ((hidden, "hidden"), (features, "features"))
        )
        told = _told_size(context_dim, reader, reader_dim)
        self.layers = nn.ModuleList(
            _Gated(i, layers, hidden, kernel // 2 if i else 3, channels, groups, told) for i in range(layers)
        )
        self.last = readout(hidden, features, number * channels, groups)
        # After the rest, so that the weights of a seed are those without these options.
        self.every = None if attention is None else _attention_period(attention, layers, groups)
        blocks = 0 if self.every is None else layers // self.every
        self.attention = nn.ModuleList(CausalAttention(hidden, heads) for _ in range(blocks))
        self.reader, self.reader_dim = reader, reader_dim
        self.end_steps()

    def raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C, H, W) for x (N, C, H, W)."""
        x, told = 2 * x - 1, _rows(self._read(context), 0, x.shape[-2])
        return self._across(x, self._down(F.pad(x, (0, 0, 1, -1)), told))

    def begin_steps(self, place: Place, batch: int, height: int, width: int) -> None:
        """Pixel by pixel from now on."""
        self._place = place

    def end_steps(self) -> None:
        """All pixels at once again."""
        self._place: Place | None = None
        self._context: Tensor | None = None  # as read, once for all rows
        self._above: list[Tensor] = []

    def begin_row(self, above: Tensor | None, context: Tensor | None) -> None:
        """The vertical stack, one row further."""
        assert self._place is not None
        if above is None:
            self._context = self._read(context)
            seen = _nothing(self).expand(1, *self.in_shape[:1], 1, self.in_shape[-1])
        else:
            seen = 2 * above - 1
        self._above = self._down(seen, _rows(self._context, self._place.row, 1))

    def pixel(self, place: Place, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, C) at the place that is next."""
        above = [told[..., place.column : place.column + 1] for told in self._above]
        return self._across(_nothing(self), above)[..., 0, 0]

    def write(self, x: Tensor) -> None:
        """What is known of the pixel at that place, (N, C, 1, 1)."""
        first = self.layers[0]
        assert isinstance(first, _Gated)
        first.row.write(2 * x - 1)

    def _read(self, context: Tensor | None) -> Tensor | None:
        """What is told: the context (N, F), or the reader's map of it (N, G, H, W)."""
        if self.reader is None or context is None:
            return context
        told, expected = self.reader(context), (len(context), self.reader_dim, *self.in_shape[1:])
        if told.shape != expected:
            raise ValueError(
                f"reader: got a map of shape {tuple(told.shape)} for a context of shape {tuple(context.shape)}, "
                f"expected {expected}: (N, reader_dim, H, W); change the reader, or reader_dim"
            )
        return told

    def _down(self, x: Tensor, context: Tensor | None) -> list[Tensor]:
        """What each layer is told of the rows above, of an input shifted down by one row, and of the context.

        A map of the context is not shifted: its row is that of the output, in both stacks.
        """
        told: list[Tensor] = []
        for layer in self.layers:
            assert isinstance(layer, _Gated)
            seen = layer.column(x)
            told.append(layer.from_above(seen) + _told(layer.told, context))
            if len(told) < len(self.layers):
                x = layer.gated(seen + _told(layer.told_above, context))
        return told

    def _across(self, x: Tensor, above: list[Tensor]) -> Tensor:
        for i, (layer, told) in enumerate(zip(self.layers, above, strict=True), 1):
            x = layer(x, told)
            if self.every is not None and i % self.every == 0:
                x = x + self.attention[i // self.every - 1](x)
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
    """Of a context (N, F) the same at all pixels, (N, h, 1, 1); of a map (N, G, H, W) at each what is there."""
    if network is None or context is None:
        return 0.0
    if context.dim() == 2:
        return network(context)[..., None, None]
    return F.conv2d(context, network.weight[..., None, None], network.bias)


def _rows(context: Tensor | None, first: int, number: int) -> Tensor | None:
    """Some rows of a map (N, G, H, W); a context without rows as it is."""
    return context if context is None or context.dim() == 2 else context[:, :, first : first + number]


def _told_size(context_dim: int | None, reader: nn.Module | None, reader_dim: int | None) -> int | None:
    """How many numbers a pixel is told."""
    if reader is None and reader_dim is None:
        return context_dim
    if reader is None or reader_dim is None or context_dim is None:
        given = None if reader is None else type(reader).__name__
        raise ValueError(
            f"got reader={given}, reader_dim={reader_dim}, context_dim={context_dim}, expected all of them, or no "
            "reader; a reader maps (N, context_dim) to (N, reader_dim, H, W)"
        )
    return as_size(reader_dim, "reader_dim")


def _attention_period(attention: int, layers: int, groups: int) -> int:
    if groups > 1:
        raise ValueError(
            f"attention: got {attention} with the {groups} channels of a pixel one after another, expected None, since "
            "attention goes from pixel to pixel; use images of one channel, or joint=True with a joint head"
        )
    if as_size(attention, "attention") > layers:
        raise ValueError(
            f"attention: got {attention}, expected at most the {layers} layers, after so many of which attention "
            "follows; use None for no attention"
        )
    return attention


def _nothing(trunk: PixelTrunk) -> Tensor:
    """What a first layer is called with when the pixel is not known yet."""
    return next(trunk.parameters()).new_zeros(1, 1, 1, 1)
