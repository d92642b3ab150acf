"""What torch takes as a seed."""

from numbers import Integral
from typing import Any

__all__ = ["check_seed"]


def check_seed(name: str, seed: Any) -> None:
    """Refuse a seed that torch could not take, before any work is done.

    Args:
        name: of the argument, for the error.
        seed: a whole number of 64 bits, with or without a sign.

    Raises:
        ValueError: anything else.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**64:
        raise ValueError(f"{name}: got {seed!r}, expected a whole number from -2^63 to 2^64 - 1; 0, say")
