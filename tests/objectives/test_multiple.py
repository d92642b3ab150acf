"""`MIWAE`, `PIWAE`, `CIWAE` and `VRMax` against hand-written formulas on a shared seed."""

import math

import pytest
import torch

from ppl_vae.objectives import CIWAE, IWAE, MIWAE, PIWAE, Trace_ELBO, VRMax
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import assert_same, linear, log_weights, pixels, seeded_bound, seeded_loss, vectors

GUIDE = ("A", "c", "l")


def loss_of(pair, per_datum):
    """Value and gradients of a hand-written objective."""
    return -per_datum.sum().item(), helpers.gradients_of(pair, -per_datum.sum())


def miwae(log_w, num_bounds):
    """mean_m log mean_k w_mk, written as loops."""
    size = len(log_w) // num_bounds
    bounds = [log_w[m * size : (m + 1) * size].exp().mean(0).log() for m in range(num_bounds)]
    return sum(bounds, torch.zeros(())) / num_bounds


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("make", [lambda: (linear(), vectors()), lambda: (helpers.small_hierarchy(), pixels())])
def test_miwae_has_iwae_and_the_elbo_as_its_ends(make, vectorised):
    pair, x = make()
    for ours, expected in ((MIWAE(1, 5), IWAE(5)), (MIWAE(5, 1), Trace_ELBO(5)), (MIWAE(1, 1), Trace_ELBO())):
        ours.vectorize_particles = expected.vectorize_particles = vectorised
        assert_same(seeded_loss(pair, ours, x), seeded_loss(pair, expected, x))
        torch.testing.assert_close(seeded_bound(pair, ours, x), seeded_bound(pair, expected, x))


def test_miwae_by_hand():
    pair, x = linear(), vectors()
    by_hand = miwae(log_weights(pair, x, 6), 2)
    torch.testing.assert_close(seeded_bound(pair, MIWAE(2, 3), x), by_hand.detach(), rtol=1e-12, atol=1e-12)
    assert_same(seeded_loss(pair, MIWAE(2, 3), x), loss_of(pair, by_hand))
    # Which of the two numbers is which matters.
    assert (seeded_bound(pair, MIWAE(3, 2), x) - by_hand).abs().max() > 1e-3


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("cls", [LinearGaussian, helpers.Subsampled, helpers.Masked])
def test_piwae_trains_the_model_with_one_bound_and_the_guide_with_many(cls, vectorised):
    """Both oracles are other objectives on the same samples; those are checked by hand elsewhere."""
    pair, x = linear(cls), vectors()
    whole, parts = IWAE(6, vectorize_particles=vectorised), MIWAE(2, 3, vectorize_particles=vectorised)
    value, model = seeded_loss(pair, whole, x)
    guide = seeded_loss(pair, parts, x)[1]
    expected = {name: guide[name] if name in GUIDE else model[name] for name in model}
    assert_same(seeded_loss(pair, PIWAE(2, 3, vectorize_particles=vectorised), x), (value, expected))
    assert (model["A"] - guide["A"]).abs().max() > 1e-6 and (model["W"] - guide["W"]).abs().max() > 1e-6


def test_piwae_by_hand():
    pair, x = linear(), vectors()
    expected = loss_of(pair, log_weights(pair, x, 6).exp().mean(0).log())
    for name in GUIDE:
        expected[1][name] = loss_of(pair, miwae(log_weights(pair, x, 6), 2))[1][name]
    assert_same(seeded_loss(pair, PIWAE(2, 3), x), expected)


def test_piwae_of_two_layers_with_a_kl_weight():
    pair, x = helpers.small_hierarchy(2), pixels()
    value, model = seeded_loss(pair, IWAE(6, kl_weight=0.4), x)
    guide = seeded_loss(pair, MIWAE(3, 2, kl_weight=0.4), x)[1]
    expected = {n: guide[n] if n.startswith(("encoder", "up")) else model[n] for n in model}
    assert_same(seeded_loss(pair, PIWAE(3, 2, kl_weight=0.4), x), (value, expected))


def test_piwae_with_weights_far_apart():
    """One group outweighs the other by up to 70 nats, where its weights among all underflow in float32."""
    pair, x = linear(), 40 * vectors()
    log_w = log_weights(pair, x, 4).detach().unflatten(0, (2, 2)).logsumexp(1)
    assert 20 < (log_w[0] - log_w[1]).abs().max() < 70
    guide = seeded_loss(pair, MIWAE(2, 2), x)[1]
    got = seeded_loss(pair, PIWAE(2, 2), x)[1]
    for name in GUIDE:
        torch.testing.assert_close(got[name], guide[name], rtol=1e-9, atol=1e-9)


def test_piwae_with_weights_so_far_apart_that_they_underflow():
    """In float32 a group 103 nats below the others has weight 0 among all, and its full part in the guide's bound."""
    pair, x = LinearGaussian(4, 2), 150 * torch.randn(5, 4)
    log_w = log_weights(pair, x, 4).detach().unflatten(0, (2, 2)).logsumexp(1)
    assert (log_w[0] - log_w[1]).abs().max() > 200
    (value, model), guide = seeded_loss(pair, IWAE(4), x), seeded_loss(pair, MIWAE(2, 2), x)[1]
    expected = {name: guide[name] if name in GUIDE else model[name] for name in model}
    got = seeded_loss(pair, PIWAE(2, 2), x)
    assert got[0] == pytest.approx(value, rel=1e-6)
    for name, gradient in expected.items():
        limit = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(got[1][name], gradient, rtol=1e-5, atol=limit)


@pytest.mark.parametrize("beta", [0.0, 0.05, 0.7, 1.0])
def test_ciwae_by_hand(beta):
    pair, x = linear(), vectors()
    log_w = log_weights(pair, x, 5)
    by_hand = beta * log_w.mean(0) + (1 - beta) * log_w.exp().mean(0).log()
    torch.testing.assert_close(seeded_bound(pair, CIWAE(5, beta), x), by_hand.detach(), rtol=1e-12, atol=1e-12)
    assert_same(seeded_loss(pair, CIWAE(5, beta), x), loss_of(pair, by_hand))


def test_ciwae_has_iwae_and_the_elbo_as_its_ends():
    pair, x = helpers.small_hierarchy(), pixels()
    assert_same(seeded_loss(pair, CIWAE(4, 0.0), x), seeded_loss(pair, IWAE(4), x))
    assert_same(seeded_loss(pair, CIWAE(4, 1.0), x), seeded_loss(pair, Trace_ELBO(4), x))


def test_vr_max_follows_the_best_particle():
    pair, x = linear(), vectors()
    log_w = log_weights(pair, x, 5)
    best = log_w.argmax(0)
    assert len(best.unique()) > 1
    by_hand = log_w[best, torch.arange(len(x))]
    torch.testing.assert_close(seeded_bound(pair, VRMax(5), x), by_hand.detach(), rtol=1e-12, atol=1e-12)
    assert_same(seeded_loss(pair, VRMax(5), x), loss_of(pair, by_hand))


def test_vr_max_is_no_bound():
    """At the exact posterior it is log p(x); elsewhere it exceeds log p(x) once there are many particles."""
    pair, x = linear(), vectors()
    assert not VRMax().is_bound and CIWAE().is_bound and MIWAE(2, 3).is_bound
    assert (seeded_bound(pair, VRMax(2_000), x) > pair.log_likelihood(x) + 0.1).all()


@pytest.mark.parametrize("objective", [MIWAE(2, 2), PIWAE(2, 2), CIWAE(4), VRMax(4)])
def test_discrete_sites_are_refused(objective):
    name = type(objective).__name__
    with pytest.raises(ValueError, match=rf"guide site 'y': got Bernoulli, which is not reparameterised; {name}"):
        seeded_loss(linear(helpers.DiscreteGuide), objective, vectors())


@pytest.mark.parametrize("cls", [MIWAE, PIWAE])
@pytest.mark.parametrize("numbers", [(0, 3), (3, 0), (-1, -1)])
def test_bad_numbers_of_particles(cls, numbers):
    with pytest.raises(ValueError, match=rf"num_bounds={numbers[0]}, particles_per_bound={numbers[1]}"):
        cls(*numbers)


@pytest.mark.parametrize("beta", [-0.1, 1.1, math.nan])
def test_bad_beta(beta):
    with pytest.raises(ValueError, match=f"beta: got {beta}"):
        CIWAE(5, beta)
