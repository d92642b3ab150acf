"""Shapes as users write them."""

from collections.abc import Sequence

Shape = int | Sequence[int]


def as_shape(shape: Shape) -> tuple[int, ...]:
    """Return `shape` as a tuple; an int n means (n,).

    Raises:
        ValueError: for a size below 1.
    """
    sizes = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    if any(n < 1 for n in sizes):
        raise ValueError(f"got shape {sizes}, expected sizes of at least 1")
    return sizes
