"""Chunks are as large as the budget says, whatever the numbers of data and particles."""

import pytest
import torch
from torch import Tensor

from ppl_vae import evaluation, terms
from ppl_vae.evaluation.memory import ChunkSize, Cost, Meter, plan
from ppl_vae.pairs import HierarchicalVAE
from ppl_vae.testing import LinearGaussian


def test_memory_stays_within_the_budget_for_any_number_of_particles() -> None:
    pair, x = LinearGaussian(6, 3).double(), torch.randn(30, 6).double()
    for num_particles in (100, 10_000):
        with Meter() as meter:
            evaluation.importance_sampling(pair, x, num_particles=num_particles, memory=100_000)
        assert 20_000 < meter.peak < 100_000 + 10_000  # and the results: 30 x 2 sums


def test_the_cost_of_a_chunk_is_predicted_to_the_byte() -> None:
    pair = HierarchicalVAE((4,), (2, 2), ((3,), (3,)))

    def run(rows: int, particles: int) -> Tensor:
        with torch.no_grad():
            return terms.draw(pair.model, pair.guide, torch.ones(rows, 4), num_particles=particles).log_weight()

    with Meter() as meter:
        run(7, 13)
    assert Cost.measure(run).peak(7, 13) == meter.peak


def test_chunks_fill_particles_first_and_are_even() -> None:
    cost = Cost(torch.tensor([[100.0], [10.0], [1.0]]).double(), torch.tensor([[0.0], [0.0], [2.0]]).double())
    assert cost.peak(3, 5) == 145
    assert plan(cost, 1000, 50, memory=10**6, tensor_bytes=10**6) == ChunkSize(1000, 50)
    assert plan(cost, 1000, 50, memory=10**6, tensor_bytes=800) == ChunkSize(8, 50)
    assert plan(cost, 1000, 1000, memory=10**6, tensor_bytes=800) == ChunkSize(1, 334)
    assert plan(cost, 1000, 1000, memory=210, tensor_bytes=10**6) == ChunkSize(1, 100)
    assert plan(cost, 1000, 1000, memory=10**6, tensor_bytes=800, split=False) == ChunkSize(1, 1000)
    with pytest.raises(ValueError, match="expected at least 1110, which 1000 particles of 1 data take; raise memory"):
        plan(cost, 1000, 1000, memory=210, tensor_bytes=800, split=False)
