"""Every shipped pair trains under every stock ELBO of Pyro that takes continuous sites."""

import math

import pyro.infer
import pytest
import torch

from ppl_vae.pairs import VAE, HierarchicalVAE
from tests import helpers
from tests.helpers import pixels, pyro_adam, steps

PAIRS = {
    "vae": helpers.small_vae,
    "conv vae": lambda: VAE((1, 3, 4), 3, (2, 2), trunk="conv").double(),
    "one layer": lambda: helpers.small_hierarchy(1),
    "two layers": lambda: helpers.small_hierarchy(2),
    "three layers": lambda: helpers.small_hierarchy(3),
    "two conv layers": lambda: HierarchicalVAE((1, 3, 4), (3, 2), ((2, 2), (4,)), trunk="conv").double(),
}
VECTORISED = {"num_particles": 4, "vectorize_particles": True, "max_plate_nesting": 1}
ELBOS = {
    "trace": lambda: pyro.infer.Trace_ELBO(),
    "trace, vectorised": lambda: pyro.infer.Trace_ELBO(**VECTORISED),
    "graph": lambda: pyro.infer.TraceGraph_ELBO(),
    "enum": lambda: pyro.infer.TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False),
    "mean field": lambda: pyro.infer.TraceMeanField_ELBO(),
    "renyi": lambda: pyro.infer.RenyiELBO(num_particles=4),
    "renyi, vectorised": lambda: pyro.infer.RenyiELBO(**VECTORISED),
}
# What these return is not one loss: infinity, and a pair of numbers.
WITHOUT_LOSS = {
    "tail adaptive": lambda: pyro.infer.TraceTailAdaptive_ELBO(**VECTORISED),
    "wake-sleep": lambda: pyro.infer.ReweightedWakeSleep(insomnia=1.0, **VECTORISED),
}


# A bottom-up guide is not mean-field, of which Pyro warns.
@pytest.mark.filterwarnings("ignore:Failed to verify mean field")
@pytest.mark.parametrize("elbo", ELBOS)
@pytest.mark.parametrize("name", PAIRS)
def test_parameters_move_and_the_loss_falls(name, elbo):
    pair, x = PAIRS[name](), pixels(1).expand(8, -1, -1, -1)
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    losses = steps(pair.pyro_svi(pyro_adam(0.02), ELBOS[elbo]()), [x], 12)
    assert all(map(math.isfinite, losses)) and sum(losses[-3:]) < sum(losses[:3])
    assert all(not torch.equal(p, before[name]) for name, p in pair.named_parameters())


@pytest.mark.parametrize("elbo", WITHOUT_LOSS)
@pytest.mark.parametrize("name", PAIRS)
def test_parameters_move_and_stay_finite(name, elbo):
    pair, x = PAIRS[name](), pixels()
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    svi = pair.pyro_svi(pyro_adam(0.02), WITHOUT_LOSS[elbo]())
    for _ in range(3):
        svi.step(x)
    assert all(p.isfinite().all() and not torch.equal(p, before[name]) for name, p in pair.named_parameters())
