"""Facts of scenes of one or two digits: which there are, which are held out, and draws of them."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ppl_vae.data.dataset import DataError

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COLOURS = ("red", "yellow", "green", "blue")
PLACES = ("left", "right", "top", "bottom", "top left", "bottom right", "top right", "bottom left")
"""The templates: the first four are of two digits, the corners of one."""

TWO = 4
"""Number of templates of two digits."""

FACTS = {
    "place": PLACES,
    "digit": DIGITS,
    "second digit": DIGITS,
    "ink": COLOURS,
    "second ink": COLOURS,
    "field": COLOURS,
}
"""The columns of a row of facts, and the names of their classes; a fact that a scene lacks is -1."""

SLOTS = 12
"""Digits of all templates together: two for each of four, one for each corner."""


def scaled(u: Tensor, number: Tensor | int) -> Tensor:
    """Uniform on [0, 1) to uniform on 0 .. number - 1."""
    return (u * number).long()  # u <= 1 - 2^-24, and u * number never rounds up to a whole number


def check_facts(facts: Tensor, coloured: bool) -> None:
    """Raises DataError unless each row is a scene's; reads the facts on the host."""
    if facts.dim() != 2 or facts.shape[1] != len(FACTS) or facts.dtype != torch.int64:
        raise DataError(
            f"got facts {tuple(facts.shape)} {facts.dtype}, expected (number, 6) torch.int64; "
            f"a row is {', '.join(FACTS)}"
        )
    place, digit, second, ink, second_ink, field = facts.unbind(1)
    two = place < TWO
    all_, none = torch.ones_like(two), torch.zeros_like(two)
    rules = (
        ("a place 0 to 7", place, PLACES, all_),
        ("a digit 0 to 9", digit, DIGITS, all_),
        ("a second digit 0 to 9 where there are two (places 0 to 3), else -1", second, DIGITS, two),
        ("an ink 0 to 3 if the scenes are coloured, else -1", ink, COLOURS, all_ if coloured else none),
        ("a second ink 0 to 3 for a second digit in colour, else -1", second_ink, COLOURS, two if coloured else none),
        ("a field 0 to 3 if the scenes are coloured, else -1", field, COLOURS, all_ if coloured else none),
    )
    for rule, column, classes, there in rules:
        _check_rows(facts, torch.where(there, (column >= 0) & (column < len(classes)), column == -1), rule)
    if coloured:
        _check_rows(facts, (field != ink) & (field != second_ink), "a field of another colour than the inks")


def _check_rows(facts: Tensor, good: Tensor, rule: str) -> None:
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        raise DataError(
            f"got facts {facts[row].tolist()} in row {row}, expected {rule}; a row is {', '.join(FACTS)}: mend it"
        )


def canonical(facts: Tensor) -> Tensor:
    """The same scenes told from the left or from the top, (B, 6): "A on the right of B" is "B on the left of A".

    Two facts are of one scene exactly where their canonical ones are equal.
    """
    place, digit, second, ink, second_ink, field = facts.unbind(1)
    swapped = torch.stack([place - 1, second, digit, second_ink, ink, field], 1)
    is_second = (place < TWO) & (place % 2 == 1)
    return torch.where(is_second[:, None], swapped, facts)


def flipped_at_random(facts: Tensor, column: int, templates: Sequence[int], seed: int) -> tuple[Tensor, Tensor]:
    """Facts with another class in one column, uniform over those that the scene allows.

    Args:
        facts: (B, 6).
        column: of the fact.
        templates: places to go to, those with as many digits.
        seed: of a private generator.

    Returns:
        The changed facts (M, 6), and the rows that they come from, (M,): the others have no other class.
    """
    names, here = list(FACTS), facts[:, column]
    classes = torch.arange(len(FACTS[names[column]]), device=facts.device)
    allowed = (classes != here[:, None]) & (here[:, None] >= 0)
    if names[column] == "place":
        used = torch.isin(classes, torch.tensor(templates, device=facts.device))
        allowed &= used & ((classes < TWO) == (here[:, None] < TWO))
    elif names[column] == "field":
        allowed &= (classes != facts[:, 3:4]) & (classes != facts[:, 4:5])
    elif "ink" in names[column]:
        allowed &= classes != facts[:, 5:6]
    score = torch.rand(allowed.shape, generator=torch.Generator().manual_seed(seed)).to(facts.device)
    rows = allowed.any(1).nonzero().squeeze(1)
    changed = facts[rows].clone()
    changed[:, column] = torch.where(allowed, score, -1.0)[rows].argmax(1)
    return changed, rows


def slots(template: int) -> tuple[int, ...]:
    """Indices of a template's digits among the twelve of all templates: 2 for each of four, 1 for each corner."""
    return (2 * template, 2 * template + 1) if template < TWO else (TWO + template,)


def combinations(template: int, banned: Sequence[int]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """All (template, digit, second digit) of a template: those allowed, and those with a banned digit."""
    ban = [banned[slot] for slot in slots(template)]
    seconds = range(len(DIGITS)) if template < TWO else (-1,)
    allowed, held_out = [], []
    for a in range(len(DIGITS)):
        for b in seconds:
            held = a == ban[0] or (template < TWO and b == ban[1])
            (held_out if held else allowed).append((template, a, b))
    return allowed, held_out


def draw_facts(groups: Sequence[Sequence[tuple[int, ...]]], number: int, coloured: bool, seed: int) -> Tensor:
    """Facts: groups are equiprobable, and so are the combinations of a group, and all allowed colours.

    The first so many do not depend on how many follow.

    Args:
        groups: of (template, digit, second digit).
        number: N.
        coloured: whether there are colours.
        seed: of a private generator.

    Returns:
        (N, 6) int64.
    """
    u = torch.rand(number, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    counts = torch.tensor([len(group) for group in groups])
    group = scaled(u[:, 0], len(groups))
    row = (counts.cumsum(0) - counts)[group] + scaled(u[:, 1], counts[group])
    facts = torch.full((number, len(FACTS)), -1)
    facts[:, :3] = torch.tensor([combination for group in groups for combination in group])[row]
    if coloured:  # a uniform field and inks uniform over the other colours: uniform over all that is allowed
        field = scaled(u[:, 2], len(COLOURS))
        inks = scaled(u[:, 3:], len(COLOURS) - 1)
        inks += inks >= field[:, None]
        facts[:, 3], facts[:, 5] = inks[:, 0], field
        facts[:, 4] = torch.where(facts[:, 2] < 0, -1, inks[:, 1])
    return facts


def check_templates(templates: Iterable[int | str]) -> tuple[int, ...]:
    """Numbers of templates given by number or name, ascending; raises DataError for others, or none, or one twice."""
    given = [templates] if isinstance(templates, str) else list(templates)
    chosen = [PLACES.index(t) if t in PLACES else t for t in given]
    good = {t for t in chosen if isinstance(t, int) and 0 <= t < len(PLACES)}
    if not chosen or len(good) < len(chosen):
        raise DataError(
            f"got templates {given}, expected some of {', '.join(PLACES)}, or their numbers 0 to 7, each once; "
            "mend the list"
        )
    return tuple(sorted(good))


def check_banned(banned: Sequence[int]) -> None:
    """Raises DataError unless there is a digit, or -1 for none, for each slot."""
    if len(banned) != SLOTS or not all(-1 <= digit < len(DIGITS) for digit in banned):
        raise DataError(
            f"got banned={list(banned)}, expected {SLOTS} digits 0 to 9, or -1 where none is held out: first and "
            "second digit of left, right, top and bottom, then the corners; or leave it out"
        )
