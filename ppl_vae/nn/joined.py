"""An MLP of two inputs, neither of which is repeated for the other's sake."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae.nn.shapes import Shape, as_size
from ppl_vae.nn.trunks import MLP, Activation

__all__ = ["JoinedMLP"]


class JoinedMLP(nn.Module):
    """The MLP of two inputs side by side, `MLP(...)(torch.cat([a, b], -1))`, for inputs of different leading dims.

    The first layer's part of each input is computed once for it, and added to the other's: an image that K classes are
    summed out for is read once, not K times.

    Args:
        first, second: sizes of the inputs.
        out_shape: shape of one output, usually `head.raw_shape`.
        hidden: sizes of the hidden layers, one at least.
        activation: makes the activation after each.

    Raises:
        ValueError: sizes below 1, or no hidden layer.

    Example:
        >>> import torch
        >>> JoinedMLP(4, 3, (2, 5), hidden=(8,))(torch.zeros(6, 4), torch.zeros(10, 1, 3)).shape
        torch.Size([10, 6, 2, 5])
    """

    def __init__(
        self,
        first: int,
        second: int,
        out_shape: Shape,
        hidden: Sequence[int] = (200, 200),
        activation: Activation = nn.Tanh,
    ) -> None:
        super().__init__()
        if not hidden:
            raise ValueError("hidden: got no layer, expected one at least: (500,), say")
        self.first = as_size(first, "first")
        self.mlp = MLP(first + as_size(second, "second"), out_shape, hidden, activation)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Map a (..., first) and b (..., second), whose leading dims broadcast, to (..., *out_shape)."""
        entry, *rest = self.mlp.hidden
        assert isinstance(entry, nn.Linear)
        of_a, of_b = entry.weight[:, : self.first], entry.weight[:, self.first :]
        h = F.linear(a, of_a) + F.linear(b, of_b, entry.bias)
        for layer in rest:
            h = layer(h)
        return self.mlp.read_out(h)
