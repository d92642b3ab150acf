"""Results of many parts: the same as a list of them, in a few tensors."""

import gc

import torch
from torch import Tensor

from ppl_vae import evaluation
from ppl_vae.evaluation.latents import Moments
from ppl_vae.pairs import VAE
from ppl_vae.shelf import Shelf


def test_results_come_back_as_they_were() -> None:
    results = [
        ({"z": Moments(i, torch.full((3,), float(i)), torch.ones(2))}, torch.arange(2 if i < 4 else 1), "nats")
        for i in range(5)
    ]  # the last part of the data is a smaller one
    shelf = Shelf(len(results))
    for result in results:
        shelf.put(result)
    for found, expected in zip(shelf.all(), results, strict=True):
        assert found[0]["z"].count == expected[0]["z"].count and found[2] == "nats"
        assert torch.equal(found[0]["z"].mean, expected[0]["z"].mean) and found[1].dtype == torch.int64
        assert torch.equal(found[1], expected[1])


def test_nothing_put_gives_nothing() -> None:
    assert Shelf(0).all() == []


def test_an_evaluation_keeps_no_tensor_for_each_part() -> None:
    # Small tensors that stay alive between large ones break up the memory: 10,000 parts took 20 GB.
    alive = []

    class Watched(VAE):
        calls = 0

        def guide(self, x: Tensor) -> None:
            self.calls += 1
            if self.calls in (130, 190):  # among the parts, which come after trials and a validated pass
                alive.append(sum(type(found) is Tensor for found in gc.get_objects()))
            super().guide(x)

    pair, x = Watched((1, 8, 8), latent_dim=2, hidden=(4,)), torch.rand(100, 1, 8, 8).round()
    evaluation.evaluate(pair, x, num_particles=3, batch_size=1, seed=0)
    early, late = alive
    assert late < early + 60  # it was several for each part


def test_weight_diagnostics_of_parts_are_those_of_all_data_in_form() -> None:
    pair, x = VAE((1, 8, 8), latent_dim=2, hidden=(4,)), torch.rand(6, 1, 8, 8).round()
    whole = evaluation.weight_diagnostics(pair, x, num_particles=30, seed=0, batch_size=6)
    parts = evaluation.weight_diagnostics(pair, x, num_particles=30, seed=0, batch_size=1)
    assert parts.ess.shape == whole.ess.shape == (6,) and parts.num_particles == 30
