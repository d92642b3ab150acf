"""Shapes as users write them."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

Shape = int | Sequence[int]


def as_shape(shape: Shape, name: str = "shape") -> tuple[int, ...]:
    """Return `shape` as a tuple; an int n means (n,).

    Args:
        shape: whole numbers.
        name: of the argument, for the error.

    Raises:
        ValueError: for a size below 1, or one that is no whole number.
    """
    sizes: Any = (shape,) if isinstance(shape, Integral) else shape
    if not isinstance(sizes, Sequence) or isinstance(sizes, str | bytes) or not all(map(_is_size, sizes)):
        raise ValueError(f"{name}: got {shape!r}, expected sizes of at least 1: whole numbers, such as (200, 200)")
    return tuple(int(n) for n in sizes)


def as_size(size: int, name: str) -> int:
    """Return `size`, one whole number of at least 1.

    Args:
        size: the number.
        name: of the argument, for the error.

    Raises:
        ValueError: for anything else.
    """
    if not _is_size(size):
        raise ValueError(f"{name}: got {size!r}, expected a whole number of at least 1")
    return int(size)


def _is_size(n: Any) -> bool:
    return isinstance(n, Integral) and not isinstance(n, bool) and int(n) >= 1
