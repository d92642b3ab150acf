"""What a law is told besides its value: vectors, whose leading dimensions are the law's batch."""

import torch
from torch import Size, Tensor
from torch.types import _size

__all__ = ["batch_of", "rows_of"]


def batch_of(context: Tensor | None, batch_shape: _size = ()) -> Size:
    """The batch shape of a law with this context (*batch_shape, F), or without one.

    Raises:
        ValueError: both a context and a batch shape.
    """
    if context is None:
        return torch.Size(batch_shape)
    if len(batch_shape):
        raise ValueError(f"batch_shape: got {tuple(batch_shape)} beside a context, expected one of them; it has one")
    return context.shape[:-1]


def rows_of(context: Tensor | None, lead: Size) -> Tensor | None:
    """The context of each of so many values, (prod(lead), F), for a context that expands to (*lead, F)."""
    return None if context is None else context.expand(*lead, -1).reshape(-1, context.shape[-1])
