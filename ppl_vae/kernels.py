"""Products and convolutions of a recorded loss on a CPU, in float32, by the fastest of several equal ways.

`FASTER` is a table of decompositions, as `make_fx` takes them; where an entry has nothing better it says so with
`NotImplemented`, and the operation stays what it was.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["FASTER"]

aten = torch.ops.aten

SMALLEST = 1e6
"""Products of fewer multiplications stay where they are: calling costs more than computing."""

FEW = 6
"""Output channels of a transposed convolution up to which one product and a sum of shifts beats oneDNN's kernel."""

# Inductor refuses oneDNN's own operator for weights that change; an operator of our own it calls as it is.
_library = torch.library.Library("ppl_vae", "DEF")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        # Part of a matrix, or expanded as learned first states are: without AVX-512 oneDNN has no kernel for these,
        # and its reference implementation takes a thousand times longer.
        weight = weight.contiguous()
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def _linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


_library.impl("linear", _linear, "CPU")
torch.library.register_fake("ppl_vae::linear", _linear_shape, lib=_library)


def _mm(x: Tensor, y: Tensor) -> Tensor:
    """x y through oneDNN: up to twice as fast as the default library (MKL) where there is AVX-512.

    On a processor without it (AMD's Zen 3, one thread) it took 1.0 to 1.3 times as long as MKL, 1.6 times at 20 rows.
    """
    return _product(x, y, None) if _applies(x) and _is_large(x, y) else NotImplemented


def _addmm(bias: Tensor, x: Tensor, y: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    plain = bias.dim() == 1 and beta == alpha == 1
    return _product(x, y, bias) if plain and _applies(x) and _is_large(x, y) else NotImplemented


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    plain = x.dim() == 4 and groups == 1 and set(dilation) == {1}
    if not (transposed and plain and weight.shape[1] <= FEW and _applies(x)):
        return NotImplemented
    y = _upsampled(x, weight, stride, padding, output_padding)
    return y if bias is None else y + bias[:, None, None]


FASTER: dict[Any, Callable[..., Any]] = {
    aten.mm.default: _mm,
    aten.addmm.default: _addmm,
    aten.convolution.default: _convolution,
}


def _applies(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available()


def _is_large(x: Tensor, y: Tensor) -> bool:
    return x.shape[0] * x.shape[1] * y.shape[1] >= SMALLEST


def _product(x: Tensor, y: Tensor, bias: Tensor | None) -> Tensor:
    # oneDNN would copy an x in another order; Inductor writes it in this order to begin with.
    return torch.ops.ppl_vae.linear(x.contiguous(), y.t(), bias)


def _upsampled(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], output_padding: list[int]) -> Tensor:
    """Transposed convolution, (N, C, H, W) and (C, D, k, k') -> (N, D, H', W'), as one product and shifted sums.

    Row s i + a of the output takes tap u of the kernel from row i + (a + p - u) / s of the input, for each tap for
    which that is a whole number; columns likewise.
    """
    n, c, *size = x.shape
    d, *kernel = weight.shape[1:]
    columns = (x.permute(0, 2, 3, 1).reshape(-1, c) @ weight.reshape(c, -1)).view(n, *size, d, *kernel)
    axes = list(zip(size, kernel, stride, padding, output_padding, strict=True))
    full = [(m - 1) * s - 2 * p + k + extra for m, k, s, p, extra in axes]
    phases = [[_taps(a, s, p, k) for a in range(s)] for _, k, s, p, _ in axes]
    count = [-(-m // s) for m, s in zip(full, stride, strict=True)]
    edges = [_edges(taps, m, number) for taps, m, number in zip(phases, size, count, strict=True)]
    (top, bottom), (left, right) = edges
    columns = F.pad(columns, (0, 0, 0, 0, 0, 0, left, right, top, bottom))

    def shifted(row: tuple[int, int], column: tuple[int, int]) -> Tensor:
        (u, i), (v, j) = row, column
        i, j = i + top, j + left
        return columns[:, i : i + count[0], j : j + count[1], :, u, v]

    def phase(rows: list[tuple[int, int]], cols: list[tuple[int, int]]) -> Tensor:
        parts = [shifted(row, column) for row in rows for column in cols]
        return sum(parts[1:], start=parts[0]) if parts else x.new_zeros(n, *count, d)

    grid = torch.stack([torch.stack([phase(rows, cols) for cols in phases[1]], 3) for rows in phases[0]], 2)
    y = grid.reshape(n, count[0] * stride[0], count[1] * stride[1], d)
    return y[:, : full[0], : full[1]].permute(0, 3, 1, 2)


def _taps(phase: int, stride: int, padding: int, kernel: int) -> list[tuple[int, int]]:
    """(tap, shift of the input) for outputs at a phase of the stride."""
    return [(u, (phase + padding - u) // stride) for u in range(kernel) if (phase + padding - u) % stride == 0]


def _edges(phases: list[list[tuple[int, int]]], size: int, count: int) -> tuple[int, int]:
    """Zeros to put before and behind an axis of the input, so that every shift stays inside."""
    shifts = [shift for taps in phases for _, shift in taps]
    return max(0, -min(shifts)), max(0, max(shifts) + count - size)
