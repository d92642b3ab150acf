"""Sources with fewer data: the first of a part, or all but the last."""

from dataclasses import replace
from typing import Any, TypeVar

from ppl_vae.data.dataset import DataError

D = TypeVar("D")


def shortened(data: D, parts: tuple[str, str], unit: str, num_train: int | None, num_test: int | None) -> D:
    """The first `num_train` and `num_test` of two parts of a source (None: all), said so in the note.

    Args:
        data: a dataclass with a name and a note.
        parts: its fields that hold training and test data.
        unit: what those count.
        num_train, num_test: how many.

    Raises:
        DataError: a number below 1, or above what there is.
    """
    source: Any = data
    notes, fields = [source.note] if source.note else [], {}
    for part, field, number in zip(("train", "test"), parts, (num_train, num_test), strict=True):
        there = len(getattr(data, field))
        if number is None or number == there:
            continue
        if not 1 <= number <= there:
            raise DataError(f"{source.name}: got num_{part}={number}; expected 1 to {there}, the {unit} there are")
        fields[field] = getattr(data, field)[:number]
        notes.append(f"only the first {number:,} of {there:,} {part} {unit}")
    return replace(source, note="; ".join(notes), **fields)


def number_left(name: str, there: int, number: int, unit: str) -> int:
    """How many of a part are left when its last `number` are held out.

    Raises:
        DataError: a number below 1, or one that leaves nothing.
    """
    if not 1 <= number < there:
        raise DataError(f"{name}: got {number} {unit} to hold out; expected 1 to {there - 1}")
    return there - number
