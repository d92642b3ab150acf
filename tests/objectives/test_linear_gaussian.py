"""The bounds of a pair whose log p(x) is known."""

from itertools import pairwise

import pytest
import torch
from torch.distributions import MultivariateNormal, kl_divergence

from ppl_vae import SVI
from ppl_vae.objectives import IWAE, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import linear, seeded_bound, vectors

ROWS = 20_000


def elbo_by_hand(pair, x):
    """log p(x) - KL(q(z | x) || p(z | x))."""
    q = pair.encode(x)
    q = MultivariateNormal(q.mean, torch.diag_embed(q.variance))
    return pair.log_likelihood(x) - kl_divergence(q, pair.posterior(x))


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize("num_particles", [1, 3])
def test_elbo_is_log_likelihood_minus_kl_to_the_posterior(elbo, num_particles):
    pair, x = linear(), vectors(1)
    got = seeded_bound(pair, elbo(num_particles), x.expand(ROWS, -1))
    # Fails by chance with probability 1e-5.
    assert helpers.z_score(got, elbo_by_hand(pair, x).detach()).abs() < helpers.Z_LIMIT


def test_bounds_rise_with_the_number_of_particles_up_to_the_log_likelihood():
    pair, x = linear(), vectors(1)
    rows = x.expand(ROWS, -1)
    bounds = [seeded_bound(pair, IWAE(k), rows, seed=k) for k in (1, 2, 4, 8, 16)]
    bounds.append(pair.log_likelihood(rows).detach())
    for low, high in pairwise(bounds):
        error = ((low.var() + high.var()) / ROWS).sqrt()
        # The gaps are more than twice as wide as this limit: fails by chance with probability below 1e-5.
        assert (high.mean() - low.mean()) / error > helpers.Z_LIMIT


@pytest.mark.parametrize("objective", [Trace_ELBO(3), TraceMeanField_ELBO(3), IWAE(3), RenyiELBO(0.5, 3)])
def test_with_the_posterior_as_guide_every_bound_is_the_log_likelihood(objective):
    pair, x = linear(), vectors()
    before = pair.log_likelihood(x)
    pair.set_guide_to_posterior()
    torch.testing.assert_close(pair.log_likelihood(x), before)
    got = seeded_bound(pair, objective, x.expand(5, 4))
    if isinstance(objective, TraceMeanField_ELBO):
        # Its likelihood term alone is sampled, so only its expectation is exact: fails with probability 1e-5.
        got = seeded_bound(pair, objective, x[:1].expand(ROWS, 4))
        assert helpers.z_score(got, before[0].detach()).abs() < helpers.Z_LIMIT
    else:
        torch.testing.assert_close(got, before.detach())


@pytest.mark.parametrize("objective", [Trace_ELBO(2), TraceMeanField_ELBO(2), IWAE(5)])
def test_training_reaches_the_maximum_likelihood(objective):
    pair = LinearGaussian(5, 2).double()
    x = 0.5 * vectors(200, 5) + vectors(200, 2) @ vectors(2, 5) + 1.0
    optimum = pair.optimum(x)
    assert elbo_by_hand(pair, x).mean() < optimum - 1.0
    optimiser = torch.optim.Adam(pair.parameters(), lr=0.02)
    decay = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.01, total_iters=1200)
    svi = SVI(pair, optimiser, objective)
    for _ in range(1200):
        svi.step(x)
        decay.step()
    assert pair.log_likelihood(x).mean().item() <= optimum
    assert elbo_by_hand(pair, x).mean().item() == pytest.approx(optimum, abs=0.02)
