"""`RenyiELBO` and `IWAE` against Pyro's on a shared seed, and against hand-written formulas."""

import math
from itertools import pairwise

import pytest
import torch

from ppl_vae.objectives import IWAE, RenyiELBO, Trace_ELBO
from tests import helpers
from tests.helpers import assert_same, linear, log_weights, pixels, seeded_bound, seeded_loss, stock_loss, vectors

PAIRS = {
    "vae": lambda: (helpers.small_vae(), pixels()),
    "two layers": lambda: (helpers.small_hierarchy(2), pixels()),
    "linear": lambda: (linear(), vectors()),
    "masked": lambda: (linear(helpers.Masked), vectors()),
}
ALPHAS = (0.0, 0.5, -1.0)


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("num_particles", [1, 5])
@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("name", PAIRS)
def test_renyi_elbo_is_pyros(name, alpha, num_particles, vectorised):
    pair, x = PAIRS[name]()
    ours = RenyiELBO(alpha, num_particles, max_plate_nesting=1, vectorize_particles=vectorised)
    stock = helpers.stock_renyi(alpha, num_particles, vectorised)
    assert_same(seeded_loss(pair, ours, x), stock_loss(pair, stock, x))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_bound_by_hand(alpha):
    pair, x = linear(), vectors()
    w = log_weights(pair, x, 6).exp()
    by_hand = (w ** (1 - alpha)).mean(0).log() / (1 - alpha)
    got = seeded_bound(pair, RenyiELBO(alpha, num_particles=6), x)
    torch.testing.assert_close(got, by_hand.detach())
    assert not got.requires_grad


def test_gradient_is_burdas():
    """Burda et al. 2015, eq. 13 and 14: sum_k w~_k grad log w_k, with w~_k taken as constants."""
    pair, x = linear(), vectors()
    log_w = log_weights(pair, x, 6)
    normalised = torch.softmax(log_w, 0).detach()
    expected = helpers.gradients_of(pair, -(normalised * log_w).sum())
    torch.testing.assert_close(seeded_loss(pair, IWAE(6), x)[1], expected)


def test_bounds_fall_with_alpha_down_to_the_elbo():
    """For one set of weights the power means are ordered."""
    pair, x = linear(), vectors()
    bounds = [seeded_bound(pair, RenyiELBO(alpha, 8), x) for alpha in (-1.0, 0.0, 0.5, 0.9)]
    bounds.append(seeded_bound(pair, Trace_ELBO(8), x))
    assert all((high > low).all() for high, low in pairwise(bounds))
    near_one = seeded_bound(pair, RenyiELBO(1 - 1e-6, 8), x)
    torch.testing.assert_close(near_one, bounds[-1], rtol=0, atol=1e-4)


def test_iwae_is_renyi_with_alpha_0():
    pair, x = linear(), vectors()
    assert_same(seeded_loss(pair, IWAE(4), x), seeded_loss(pair, RenyiELBO(0.0, num_particles=4), x))
    assert IWAE().num_particles == 50


def test_one_particle_is_the_elbo():
    pair, x = linear(), vectors()
    assert_same(seeded_loss(pair, IWAE(1), x), seeded_loss(pair, Trace_ELBO(1), x))


def test_is_bound():
    assert IWAE().is_bound and RenyiELBO(0.5).is_bound and Trace_ELBO().is_bound
    assert not RenyiELBO(-1.0).is_bound


def test_weights_far_apart_do_not_overflow():
    pair, x = linear(), 1e3 * vectors()
    loss, gradients = seeded_loss(pair, IWAE(5), x)
    assert math.isfinite(loss) and loss > 1e5
    assert all(g.isfinite().all() for g in gradients.values())


@pytest.mark.parametrize("alpha", [1, 1.0, math.nan, math.inf])
def test_bad_alpha(alpha):
    with pytest.raises(ValueError, match="use Trace_ELBO"):
        RenyiELBO(alpha)


@pytest.mark.parametrize("num_particles", [0, -3, 2.5])
def test_bad_num_particles(num_particles):
    with pytest.raises(ValueError, match=f"num_particles: got {num_particles}"):
        IWAE(num_particles)
