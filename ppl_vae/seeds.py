"""What torch takes as a seed."""

from numbers import Integral
from typing import Any

import torch

__all__ = ["check_seed", "check_seeds", "fresh_seed", "spread_seed"]

MOST_SEEDS = 1_000_000
"""More is a slip of the keyboard."""

_STRIDE = 0x9E3779B97F4A7C15
"""Between the seeds of two streams: 2^64 over the golden ratio, so that neighbouring seeds of users do not meet it."""


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


def check_seeds(seeds: int) -> None:
    """Refuse a number of seeds, each of which is a run of its own, that makes no sense.

    Raises:
        ValueError: fewer than 1, or more than a million.
    """
    if not 1 <= seeds <= MOST_SEEDS:
        raise ValueError(f"seeds: got {seeds}, expected 1 to {MOST_SEEDS:,}: each is a run of its own; 3, say")


def spread_seed(seed: int, index: int) -> int:
    """The seed of one of several streams of a run; that of index 0 is the run's."""
    return (seed + index * _STRIDE) % 2**63 if index else seed


def fresh_seed() -> int:
    """A seed from torch's global stream."""
    return int(torch.randint(2**63 - 1, ()))
