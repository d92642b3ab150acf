"""One attribute of a scene changed at random, a scene told from the other side, scenes of all combinations."""

from itertools import product

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from ppl_vae.data.dataset import DataError, Dataset
from ppl_vae.data.scene_facts import FACTS, canonical, check_facts
from ppl_vae.data.scenes import Scenes, scenes

RED, YELLOW, GREEN, BLUE = range(4)
BANNED = (3, 5, 3, 3, 0, 9, 7, 1, 2, 4, 6, 8)
NAMES = list(FACTS)


def made(coloured: bool, **fields: object) -> Scenes:
    """One image of each digit, 1 to 10 in bits of its first row, and no play: an image is a function of the facts."""
    bits = (torch.arange(1, 11)[:, None] >> torch.arange(16)) & 1
    x, labels = bits.float().view(10, 1, 4, 4), torch.arange(10)
    digits = Dataset(name="bits", train=x, test=x, train_labels=labels, test_labels=labels)
    settings = {"size": 8, "coloured": coloured, "banned": BANNED, "num_train": 5, "num_test": 5} | fields
    return scenes(digits, **settings)  # type: ignore[arg-type]


def all_facts(coloured: bool, digits: int = 10) -> Tensor:
    """Every scene there can be of so many digits, by loops."""
    inks = range(4) if coloured else [-1]
    rows = [
        [place, a, b, ink, second, ground]
        for place, a, b in product(range(8), range(digits), range(-1, digits))
        if (place < 4) == (b >= 0)
        for ink, second, ground in product(inks, inks if b >= 0 else [-1], inks)
        if not coloured or ground not in (ink, second)
    ]
    return torch.tensor(rows)


def allowed(row: list[int], name: str, templates: tuple[int, ...] = tuple(range(8))) -> set[int]:
    """The rule of a flip, spelt out."""
    place, _, _, ink, second_ink, ground = row
    old = row[NAMES.index(name)]
    values = {
        "place": {t for t in templates if (t < 4) == (place < 4)},
        "ink": set(range(4)) - {ground},
        "second ink": set(range(4)) - {ground},
        "field": set(range(4)) - {ink, second_ink},
    }
    return set() if old < 0 else values.get(name, set(range(10))) - {old}


@pytest.mark.parametrize(("coloured", "digits"), [(False, 10), (True, 3)])
def test_canonical_facts_are_equal_exactly_where_images_are(coloured: bool, digits: int) -> None:
    """By enumeration: as many different images as canonical facts, and as pairs of the two."""
    data, facts = made(coloured), all_facts(coloured, digits)
    told, images = canonical(facts), data.compose(facts).flatten(1)
    pairs = torch.cat([told.float(), images], 1)
    number = len(told.unique(dim=0))
    assert number == len(images.unique(dim=0)) == len(pairs.unique(dim=0)) < len(facts)
    two = facts[:, 0] < 4
    assert number == int(two.sum()) // 2 + int((~two).sum())


def test_the_same_scene_told_from_the_other_side_has_the_same_canonical_facts() -> None:
    facts = all_facts(True, 3)
    two = facts[facts[:, 0] < 4]
    other = two[:, [0, 2, 1, 4, 3, 5]]
    other[:, 0] = torch.tensor([1, 0, 3, 2])[two[:, 0]]
    assert torch.equal(canonical(other), canonical(two)) and not torch.equal(other, two)
    assert torch.equal(canonical(canonical(facts)), canonical(facts)), "told twice is told once"
    assert set(canonical(facts)[:, 0].tolist()) == {0, 2, 4, 5, 6, 7}
    kept = (facts[:, 0] >= 4) | (facts[:, 0] % 2 == 0)
    assert torch.equal(canonical(facts)[kept], facts[kept])
    assert canonical(torch.tensor([[1, 3, 7, RED, BLUE, GREEN]])).tolist() == [[0, 7, 3, BLUE, RED, GREEN]]
    check_facts(canonical(facts), coloured=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("coloured", [False, True])
def test_a_flip_changes_one_attribute_of_the_scenes_that_have_it(coloured: bool, name: str) -> None:
    data, facts = made(coloured), all_facts(coloured, 10 if not coloured else 3)
    if not coloured and name in ("ink", "second ink", "field"):
        with pytest.raises(DataError, match=f"got attribute '{name}', expected one of place, digit, second digit"):
            data.flips(facts, name)
        return
    column, before = NAMES.index(name), facts.clone()
    state = torch.get_rng_state()
    flipped, rows = data.flips(facts, name, seed=3)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(facts, before), "nothing else moves"
    assert rows.tolist() == [i for i, row in enumerate(facts.tolist()) if allowed(row, name)]
    changed = flipped != facts[rows]
    assert changed[:, column].all() and changed.sum() == len(rows), "this column, and no other"
    check_facts(flipped, coloured)  # a field of another colour than the inks, among other rules
    assert all(
        new[column] in allowed(old, name) for old, new in zip(facts[rows].tolist(), flipped.tolist(), strict=True)
    )
    assert torch.equal(data.flips(facts, name, seed=3)[0], flipped)
    assert not torch.equal(data.flips(facts, name, seed=4)[0], flipped)


SOME = (
    [0, 3, 7, RED, BLUE, GREEN],
    [3, 3, 3, RED, RED, GREEN],
    [6, 0, -1, YELLOW, -1, BLUE],
)


@pytest.mark.parametrize("row", SOME)
def test_all_values_that_a_scene_allows_are_as_frequent(row: list[int]) -> None:
    """Fails once in 1e6 seeds for each of six attributes at most (chi-squared); a value is missing less often."""
    data = made(coloured=True)
    for i, name in enumerate(NAMES):
        flipped, rows = data.flips(torch.tensor([row]).expand(2_000, -1), name, seed=i)
        values, counts = flipped[:, i].unique(return_counts=True)
        assert set(values.tolist()) == allowed(row, name) and len(rows) == (2_000 if row[i] >= 0 else 0)
        assert len(values) < 2 or chisquare(counts.numpy()).pvalue > 1e-6


def test_places_change_among_those_in_use_with_as_many_digits() -> None:
    """A place is missing once in 1e200 seeds."""
    data = made(False, templates=("left", "bottom", "top left", "top right", "bottom left"))
    facts = torch.tensor([[0, 3, 7, -1, -1, -1], [4, 1, -1, -1, -1, -1]]).repeat(2_000, 1)
    flipped, rows = data.flips(facts, "place")
    assert len(rows) == 4_000
    assert set(flipped[0::2, 0].tolist()) == {3} and set(flipped[1::2, 0].tolist()) == {6, 7}
    alone = made(False, templates=("left", "top left", "top right"))
    flipped, rows = alone.flips(facts, "place")
    assert rows.tolist() == list(range(1, 4_000, 2)), "there is no other place for two digits"
    assert set(flipped[:, 0].tolist()) == {6}
    one = made(False, templates=("top left",))
    flipped, rows = one.flips(facts[1::2], "place")
    assert flipped.shape == (0, 6) and rows.shape == (0,)


def test_flips_may_be_held_out_ones() -> None:
    """Of 2,000 flips of a digit to one of nine none is the banned one once in 1e100 seeds."""
    data = made(False)
    flipped, _ = data.flips(torch.tensor([[0, 1, 1, -1, -1, -1]]).expand(2_000, -1), "digit")
    assert (flipped[:, 1] == BANNED[0]).any()


@pytest.mark.parametrize("coloured", [False, True])
def test_unrestricted_scenes_are_of_all_combinations(coloured: bool) -> None:
    """Held-out ones among them. Of 20,000 one of two digits is missing once in 1e8 seeds."""
    data = made(coloured)
    facts = data.unrestricted(20_000)
    check_facts(facts, coloured)
    found = {tuple(row) for row in facts[:, :3].tolist()}
    assert found == {tuple(row) for row in all_facts(False)[:, :3].tolist()}
    assert {tuple(row) for row in data.held_out(5_000)[:, :3].tolist()} < found
    assert torch.equal(data.unrestricted(17), facts[:17]), "the same at every call"
    assert not torch.equal(made(coloured, seed=1).unrestricted(17), facts[:17])
    assert chisquare(torch.bincount(facts[:, 0]).numpy()).pvalue > 1e-6  # fails once in 1e6 seeds
    few = made(coloured, templates=("top", "top left")).unrestricted(200)
    assert set(few[:, 0].tolist()) == {2, 4}
    with pytest.raises(DataError, match="got 0 scenes to draw, expected 1 or more"):
        data.unrestricted(0)
