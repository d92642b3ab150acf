"""MADE: masked linear layers over the elements of a vector, and without hidden layers logistic regressions."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae.nn.causal import CausalTrunk, indices
from ppl_vae.nn.init import glorot_
from ppl_vae.nn.shapes import as_shape

__all__ = ["MADE"]


class MADE(CausalTrunk):
    """Raw parameters of x_i from x_<i by masked linear layers; each hidden unit sees the first so many elements.

    Without hidden layers each x_i is a (logistic) regression on x_<i: a fully visible belief network.

    Args:
        out_shape: (P, *shape), a head's raw_shape; the elements of an image in the order rows, columns, channels.
        hidden: units of the hidden layers; unit j sees the first j mod D of D elements.
        activation: makes the nonlinearity between layers.
        context_dim: F, of what else is known; it joins the first layer, and every element may depend on it.

    References:
        MADE: masked autoencoder for distribution estimation, Germain, Gregor, Murray & Larochelle 2015, eq. 12 to 14.
        Graphical models for machine learning and digital communication, Frey 1998 (fully visible belief networks).

    Example:
        >>> MADE((1, 5), hidden=(8,))(torch.zeros(3, 5)).shape
        torch.Size([3, 1, 5])
    """

    order: Tensor

    def __init__(
        self,
        out_shape: tuple[int, ...],
        hidden: Sequence[int] = (500,),
        activation: Callable[[], nn.Module] = nn.ReLU,
        context_dim: int | None = None,
    ) -> None:
        super().__init__(out_shape, context_dim)
        shape = torch.Size(self.in_shape)
        flat = torch.empty(shape).stride()
        places = [sum(i * step for i, step in zip(index, flat, strict=True)) for index in indices(shape)]
        self.register_buffer("order", torch.tensor(places), persistent=False)
        size, widths = shape.numel(), as_shape(hidden, "hidden") if hidden else ()
        # How many elements a unit has seen, an input itself too: it sees the units below that have seen no more.
        seen = [torch.arange(size) + 1, *(torch.arange(width) % size for width in widths), torch.arange(size)]
        ends = [1] * len(widths) + [out_shape[0]]
        self.layers = nn.ModuleList(map(_Masked, seen, seen[1:], ends))
        self.activation = activation()
        first = len(seen[1]) * ends[0]
        self.told = None if context_dim is None else glorot_(nn.Linear(context_dim, first))

    def raw(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Raw parameters (N, P, *shape) for x (N, *shape)."""
        h = x.flatten(1).index_select(1, self.order)
        for i, layer in enumerate(self.layers):
            h = layer(self.activation(h) if i else h)
            if i == 0 and self.told is not None and context is not None:
                h = h + self.told(context)
        back = torch.empty_like(self.order).scatter_(0, self.order, torch.arange(len(self.order), device=x.device))
        return h.unflatten(1, (self.out_shape[0], -1)).index_select(2, back).view(-1, *self.out_shape)

    @torch.no_grad()
    def set_output_bias(self, raw: Tensor) -> None:
        """Write the output bias, `raw` (P, *shape)."""
        self._output_bias().copy_(raw.flatten(1).index_select(1, self.order).flatten())

    def _output_bias(self) -> Tensor:
        last = self.layers[-1]
        assert isinstance(last, _Masked)
        return last.bias


class _Masked(nn.Linear):
    """A linear layer, `blocks` times side by side, in which a unit sees those that see as many elements or fewer."""

    mask: Tensor

    def __init__(self, below: Tensor, above: Tensor, blocks: int) -> None:
        super().__init__(len(below), blocks * len(above))
        self.register_buffer("mask", (below <= above[:, None]).float().repeat(blocks, 1), persistent=False)
        glorot_(self, blocks)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.mask, self.bias)
