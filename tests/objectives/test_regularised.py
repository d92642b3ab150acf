"""beta, free bits and capacity against hand-written losses; the bound they report is the ELBO."""

import pytest
import torch

from ppl_vae import SVI
from ppl_vae.objectives import BetaELBO, CapacityELBO, FreeBits, LinearWarmup, Trace_ELBO
from tests import helpers
from tests.helpers import assert_same, linear, pixels, seeded_bound, seeded_loss, vectors

REGULARISED = [BetaELBO(3.0), FreeBits(0.3), FreeBits(0.3, "dim"), CapacityELBO(2.0)]


def parts(pair, x, num_particles):
    """log p(x | z), (K, B), and log q - log p of each dimension of z, (K, B, d), from the noise of seed 0."""
    torch.manual_seed(0)
    shape = (num_particles, len(x)) if num_particles > 1 else (len(x),)
    q = pair.encode(x).expand(torch.Size(shape))
    z = q.rsample()
    return pair.decode(z).log_prob(x), q.base_dist.log_prob(z) - pair.prior().base_dist.log_prob(z)


def loss_by_hand(pair, x, num_particles, cost):
    likelihood, ratio = parts(pair, x, num_particles)
    loss = len(x) * cost(ratio) - likelihood.reshape(-1, len(x)).mean(0).sum()
    return loss.item(), helpers.gradients_of(pair, loss)


@pytest.mark.parametrize("objective", REGULARISED, ids=lambda o: type(o).__name__)
def test_the_bound_is_the_elbo(objective):
    pair, x = linear(), vectors()
    torch.testing.assert_close(seeded_bound(pair, objective, x), seeded_bound(pair, Trace_ELBO(), x))


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize("nats", [0.0, 0.3, 100.0])
def test_free_bits_per_site_and_per_dimension_by_hand(nats, num_particles):
    pair, x = linear(), vectors()
    by_site = loss_by_hand(pair, x, num_particles, lambda r: r.sum(-1).mean().clamp(min=nats))
    assert_same(seeded_loss(pair, FreeBits(nats, num_particles=num_particles), x), by_site)
    by_dim = loss_by_hand(pair, x, num_particles, lambda r: r.flatten(end_dim=-2).mean(0).clamp(min=nats).sum())
    assert_same(seeded_loss(pair, FreeBits(nats, "dim", num_particles), x), by_dim)


def test_some_dimensions_are_free_and_others_not():
    pair, x = linear(), vectors()
    _, ratio = parts(pair, x, 1)
    low, high = ratio.mean(0).sort().values.tolist()
    cost = (low + high) / 2
    loss, gradients = seeded_loss(pair, FreeBits(cost, "dim"), x)
    expected = loss_by_hand(pair, x, 1, lambda r: cost + r.mean(0).max())
    assert_same((loss, gradients), expected)


def test_beta_is_a_kl_weight():
    pair, x = linear(), vectors()
    assert_same(seeded_loss(pair, BetaELBO(3.0, 4), x), seeded_loss(pair, Trace_ELBO(4, kl_weight=3.0), x))


@pytest.mark.parametrize("capacity", [0.5, 50.0])
def test_capacity_by_hand(capacity):
    pair, x = linear(), vectors()
    expected = loss_by_hand(pair, x, 3, lambda r: 7.0 * (r.sum(-1).mean() - capacity).abs())
    assert_same(seeded_loss(pair, CapacityELBO(capacity, 7.0, num_particles=3), x), expected)


def test_capacity_grows_with_the_steps():
    pair, x, objective = linear(), vectors(), CapacityELBO(LinearWarmup(4, end=8.0), 1.0)
    svi = SVI(pair, torch.optim.SGD(pair.parameters(), lr=0.0), objective)
    for step in range(3):
        expected = loss_by_hand(pair, x, 1, lambda r, step=step: (r.sum(-1).mean() - 2.0 * step).abs())
        torch.manual_seed(0)
        assert svi.step(x) == pytest.approx(expected[0])


def test_training_holds_the_kl_term_at_the_capacity():
    pair, x = linear(), vectors(200)
    svi = SVI(pair, torch.optim.Adam(pair.parameters(), lr=0.02), CapacityELBO(1.5, 100.0, num_particles=8))
    for _ in range(400):
        svi.step(x)
    q = pair.encode(x)
    kl = 0.5 * (q.mean**2 + q.variance - 1 - q.variance.log()).sum(-1).mean()
    assert kl.item() == pytest.approx(1.5, abs=0.1)


def test_every_layer_has_its_own_free_bits():
    pair, x = helpers.small_hierarchy(2), pixels()
    loss, _ = seeded_loss(pair, FreeBits(1000.0), x)
    torch.manual_seed(0)
    likelihood = Trace_ELBO().terms(pair.model, pair.guide, x).log_likelihood().sum().item()
    assert loss == pytest.approx(len(x) * 2 * 1000.0 - likelihood)


@pytest.mark.parametrize("objective", [FreeBits(0.3), CapacityELBO(2.0)], ids=lambda o: type(o).__name__)
def test_a_discrete_site_is_refused_by_name(objective):
    with pytest.raises(ValueError, match="guide site 'y': got Bernoulli"):
        seeded_loss(linear(helpers.DiscreteGuide), objective, vectors())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FreeBits(-1.0), "nats: got -1.0"),
        (lambda: FreeBits(0.5, "pixel"), "per: got 'pixel'"),  # pyright: ignore[reportArgumentType]
        (lambda: CapacityELBO(1.0, gamma=-2.0), "gamma: got -2.0"),
        (lambda: BetaELBO(-1.0), "beta: got -1.0"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
