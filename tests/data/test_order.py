"""The order of the data: parts, seeds, and the permutations that checkpoints rely on."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_vae.data.order import Order


def test_the_permutations_are_those_of_torch() -> None:
    """Old checkpoints hold the state of the generator that drew them."""
    generator = torch.Generator().manual_seed(3)
    order = Order(10, batch_size=5, seed=3)
    for _ in range(3):
        expected = torch.randperm(10, generator=generator)
        assert torch.equal(torch.cat([order.next(), order.next()]), expected)


def test_parts_make_up_the_batch() -> None:
    whole, parts = Order(10, 6, seed=1), [Order(10, 6, seed=1, part=(r, 3)) for r in range(3)]
    for _ in range(4):
        assert torch.equal(whole.next(), torch.cat([part.next() for part in parts]))


def test_a_state_brings_its_seed() -> None:
    source, resumed = Order(10, 3, seed=5), Order(10, 3, seed=99)
    for _ in range(7):
        source.next()
    resumed.load_state_dict(source.state_dict())
    assert resumed.seed == 5 and (resumed.epoch, resumed.position, resumed.left) == (2, 1, 2)
    assert torch.equal(resumed.again(), source.again()) and torch.equal(resumed.next(), source.next())


def test_the_permutation_stays_one_tensor() -> None:
    order = Order(10, 5)
    place = order.permutation.data_ptr()
    order.new_pass()
    order.load_state_dict(order.state_dict())
    assert order.permutation.data_ptr() == place


def test_parts_of_unequal_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="got batch_size=5 for 2 processes; expected a multiple"):
        Order(10, 5, part=(0, 2))


GROUPS = st.lists(st.integers(-2, 3), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(groups=GROUPS, batch_size=st.integers(1, 8), seed=st.integers(0, 9))
def test_a_pass_over_groups_gives_all_but_their_remainders_once(groups: list[int], batch_size: int, seed: int) -> None:
    """By counting; and where no group has enough, that is said."""
    counts = Counter(groups)
    expected = {group: count // batch_size for group, count in counts.items() if count >= batch_size}
    if batch_size > len(groups):
        return
    if not expected:
        with pytest.raises(ValueError, match=f"got batch_size={batch_size} for groups of at most"):
            Order(len(groups), batch_size, seed, groups=groups)
        return
    order = Order(len(groups), batch_size, seed, groups=groups)
    assert order.steps_per_pass == sum(expected.values())
    assert order.unused == sum(count for count in counts.values() if count < batch_size)
    assert order.is_uniform == (len(expected) == 1)
    for epoch in range(2):
        seen, met = Counter[int](), Counter[int]()
        for _ in range(order.steps_per_pass):
            rows = order.next().tolist()
            assert len(rows) == batch_size and {groups[row] for row in rows} == {order.group}
            assert order.again().tolist() == rows
            seen.update(rows)
            met[groups[rows[0]]] += 1
        assert order.epoch == epoch and order.left == 0
        assert met == expected and set(seen.values()) == {1}


@settings(max_examples=30, deadline=None)
@given(groups=GROUPS.filter(lambda g: max(Counter(g).values()) >= 3), steps=st.integers(0, 20), seed=st.integers(0, 9))
def test_groups_resume_within_a_pass(groups: list[int], steps: int, seed: int) -> None:
    source, resumed = (Order(len(groups), 3, s, groups=torch.tensor(groups)) for s in (seed, 99))
    for _ in range(steps):
        source.next()
    resumed.load_state_dict(source.state_dict())
    for _ in range(2 * source.steps_per_pass):
        assert torch.equal(resumed.next(), source.next()) and resumed.group == source.group
    assert resumed.epoch == source.epoch


def test_rows_and_batches_of_groups_are_shuffled_anew() -> None:
    """Of 20 passes none repeats another, by chance once in 1e5: 3 rows of a group of 6, and 4 batches, vary freely."""
    groups = [0] * 6 + [1] * 6
    order = Order(12, 3, groups=groups)
    passes = [[(order.next().tolist(), order.group) for _ in range(4)] for _ in range(20)]
    assert len({str(p) for p in passes}) == 20
    assert len({tuple(group for _, group in p) for p in passes}) > 1, "the order of the groups"
    assert all(len({row for p in passes for row in p[i][0]}) > 6 for i in range(4)), "any batch may come first"


def test_parts_of_groups_make_up_the_batch() -> None:
    groups = [i % 3 for i in range(30)]
    whole, parts = Order(30, 6, 1, groups=groups), [Order(30, 6, 1, (r, 3), groups=groups) for r in range(3)]
    for _ in range(7):
        assert torch.equal(whole.next(), torch.cat([part.next() for part in parts]))
        assert {part.group for part in parts} == {whole.group}


def test_without_groups_a_state_is_as_it_was() -> None:
    """Checkpoints of earlier versions go on, and hold what they held."""
    order = Order(10, 5)
    assert set(order.state_dict()) == {"epoch", "position", "generator", "num_data", "batch_size"}
    assert (order.group, order.unused, order.is_uniform, order.steps_per_pass) == (None, 0, True, 2)


def test_states_of_other_groups_are_refused() -> None:
    plain, grouped, other = Order(4, 2), Order(4, 2, groups=[0, 0, 1, 1]), Order(4, 2, groups=[0, 0, 0, 1])
    for source, target in ((plain, grouped), (grouped, plain), (other, grouped)):
        with pytest.raises(ValueError, match="got a state of groups with so many rows"):
            target.load_state_dict(source.state_dict())


@pytest.mark.parametrize("groups", [[0, 1, 2], torch.zeros(4, 1, dtype=torch.int64), torch.zeros(4), [True] * 4])
def test_groups_that_are_no_numbers_of_rows_are_refused(groups: object) -> None:
    with pytest.raises(ValueError, match=r"got groups \(.*; expected \(4,\) whole numbers"):
        Order(4, 2, groups=groups)  # type: ignore[arg-type]
