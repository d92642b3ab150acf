"""Settings that are whole numbers, checked with their names."""

from typing import Any

from ppl_vae.data.dataset import DataError


def check_counts(**numbers: Any) -> None:
    """Raises DataError unless each is a whole number from 1."""
    for name, number in numbers.items():
        if not is_count(number):
            raise DataError(f"{name}: got {number!r}, expected a whole number from 1; give another")


def is_count(number: Any) -> bool:
    """Whether this is a whole number from 1."""
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1
