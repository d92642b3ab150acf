"""A recurrent cell that takes any number of leading dims and starts where it has learned to."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["LSTM", "Memory"]


class Memory(NamedTuple):
    """What an LSTM remembers: `h`, its output, and `cell`, both (..., size)."""

    h: Tensor
    cell: Tensor


class LSTM(nn.Module):
    """`torch.nn.LSTMCell` for inputs (..., in_dim), with learned first states.

    Args:
        in_dim: size of an input.
        size: of the output and the cell.

    References:
        Long Short-Term Memory, Hochreiter & Schmidhuber 1997.

    Example:
        >>> lstm = LSTM(3, 5)
        >>> lstm(torch.zeros(7, 2, 3), lstm.start()).h.shape
        torch.Size([7, 2, 5])
    """

    def __init__(self, in_dim: int, size: int) -> None:
        super().__init__()
        self.update = nn.LSTMCell(in_dim, size)
        self.h, self.cell = nn.Parameter(torch.zeros(size)), nn.Parameter(torch.zeros(size))

    def start(self) -> Memory:
        """The first memory, (size,): it is broadcast to the first input."""
        return Memory(self.h, self.cell)

    def forward(self, x: Tensor, memory: Memory) -> Memory:
        """The memory after one more input; their leading dims are broadcast."""
        leading = torch.broadcast_shapes(x.shape[:-1], memory.h.shape[:-1])
        flat = [t.expand(*leading, t.shape[-1]).reshape(-1, t.shape[-1]) for t in (x, *memory)]
        h, cell = self.update(flat[0], (flat[1], flat[2]))
        return Memory(h.reshape(*leading, -1), cell.reshape(*leading, -1))
