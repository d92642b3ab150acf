"""Rows of a table, whatever they are of."""

from collections.abc import Sequence
from typing import Protocol, TypeVar

__all__ = ["AnyRow", "check_names", "chosen"]


class AnyRow(Protocol):
    """What a row has: see `Row`."""

    @property
    def name(self) -> str:
        """Of the row."""
        ...

    @property
    def on_request(self) -> bool:
        """Whether it is left out unless it is named."""
        ...

    @property
    def same_as(self) -> str | None:
        """The row whose run is this row's too."""
        ...

    @property
    def start(self) -> str | None:
        """The row whose end this one begins with."""
        ...

    @property
    def has_run(self) -> bool:
        """Whether it is trained itself."""
        ...


R = TypeVar("R", bound=AnyRow)


def check_names(rows: Sequence[AnyRow]) -> None:
    """Refuse rows of one name.

    Raises:
        ValueError: names that are not all different, or none.
    """
    names = [row.name for row in rows]
    if len(set(names)) < len(names) or not names:
        raise ValueError(f"rows: got the names {names}, expected at least one, each once; rename them")


def chosen(rows: Sequence[R], names: list[str] | None) -> list[R]:
    """Rows by name, or number from 1, with those whose runs they need; all but those on request by default.

    Raises:
        ValueError: there is no such row.
    """
    if names is None:
        return [row for row in rows if not row.on_request]
    known = {str(number): row for number, row in enumerate(rows, 1)} | {row.name: row for row in rows}
    if unknown := [name for name in names if name not in known]:
        said = ", ".join(f"{number} {row.name!r}" for number, row in enumerate(rows, 1))
        raise ValueError(f"rows: got {', '.join(unknown)}, expected names or numbers of {said}")
    wanted = {known[name].name for name in names}
    wanted |= {other for row in rows if row.name in wanted for other in (row.same_as, row.start) if other}
    return [row for row in rows if row.name in wanted]
