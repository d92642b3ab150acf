"""The order of the data: parts, seeds, and the permutations that checkpoints rely on."""

import pytest
import torch

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
