"""`VIMCO` and `ThermodynamicELBO` against sums over all that the particles of a discrete guide can be."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ppl_vae import SVI
from ppl_vae.objectives import IWAE, VIMCO, RenyiELBO, ThermodynamicELBO, Trace_ELBO
from ppl_vae.objectives.score import left_out
from tests import helpers
from tests.helpers import (
    Switches,
    assert_same,
    expected_gradients,
    farthest,
    gradients_of,
    linear,
    seeded_bound,
    seeded_loss,
    vectors,
)

X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)


def exact_bound(pair: Switches, x: Tensor, num_particles: int, beta: float = 1.0) -> Tensor:
    """E[L_K], differentiable: the sum over the 4^K outcomes."""
    log_p, log_q = pair.tables(x)
    log_z = pair.prior().log_prob(helpers.states(2))
    log_w = log_p - log_z + beta * (log_z - log_q)
    outcomes = torch.cartesian_prod(*[torch.arange(4)] * num_particles)
    bounds = log_w[outcomes].logsumexp(1) - math.log(num_particles)
    return (log_q[outcomes].sum(1).exp() * bounds).sum()


@pytest.mark.parametrize(("num_particles", "beta"), [(2, 1.0), (3, 1.0), (2, 0.4)])
def test_vimco_is_exact_in_expectation(num_particles, beta):
    pair = Switches().double()
    loss = -exact_bound(pair, X, num_particles, beta)
    got = expected_gradients(pair, VIMCO(num_particles, kl_weight=beta), X)
    assert_same(got, (loss.item(), gradients_of(pair, loss)))


@pytest.mark.parametrize("vectorised", [True, False])
def test_vimco_of_a_normal_and_a_discrete_site_is_unbiased(vectorised):
    """On a reparameterised pair the oracle is IWAE's gradient. Fails by chance with probability 1e-5."""
    pair, x = linear(), vectors(1).expand(4_000, -1)
    ours = VIMCO(3, vectorize_particles=vectorised)
    assert farthest(helpers.chunk_gradients(pair, ours, x) - helpers.chunk_gradients(pair, IWAE(3), x)) < 1


def test_vimco_by_hand():
    """Mnih & Rezende, eq. 7 to 10, one particle after another."""
    pair, x = linear(), vectors()
    torch.manual_seed(0)
    q = pair.encode(x)
    z = q.expand(torch.Size((4, 5))).sample()
    log_q = q.log_prob(z)
    log_w = pair.prior().log_prob(z) + pair.decode(z).log_prob(x) - log_q
    bound, w = log_w.exp().mean(0).log(), log_w.detach().exp()
    surrogate = bound
    for k in range(4):
        others = [w[j] for j in range(4) if j != k]
        replaced = (others[0] * others[1] * others[2]) ** (1 / 3)
        surrogate = surrogate + (bound.detach() - ((sum(others) + replaced) / 4).log()) * log_q[k]
    assert_same(seeded_loss(pair, VIMCO(4), x), (-bound.sum().item(), gradients_of(pair, -surrogate.sum())))
    torch.testing.assert_close(seeded_bound(pair, VIMCO(4), x), bound.detach())


def test_left_out_against_a_loop():
    log_w = 3 * vectors(5, 7)
    for k, row in enumerate(left_out(log_w)):
        others = torch.cat([log_w[:k], log_w[k + 1 :]])
        expected = torch.cat([others, others.mean(0, keepdim=True)]).logsumexp(0) - math.log(5)
        torch.testing.assert_close(row, expected, rtol=1e-12, atol=1e-12)


def test_left_out_where_one_weight_dominates():
    log_w = torch.tensor([900.0, 0.0, -800.0]).unsqueeze(-1)
    expected = torch.tensor([-math.log(3), 900 - math.log(3), 900 - math.log(3)]).unsqueeze(-1)
    torch.testing.assert_close(left_out(log_w), expected)


def train(pair: Switches, step, number: int) -> None:
    batch = X.expand(64, 3)
    for _ in range(number):
        step(batch)


def test_vimco_trains_a_guide_that_stock_renyi_never_moves():
    pair = Switches().double()
    pair.c.data = -3 * (pair.encode(X).base_dist.logits.detach()).sign()
    pair.requires_grad_(False)
    pair.c.requires_grad_(True)
    start, before = pair.c.detach().clone(), exact_bound(pair, X, 2).item()
    with pytest.raises(ValueError, match=r"guide site 'z': got Independent, which is not reparameterised"):
        seeded_loss(pair, RenyiELBO(0.0, 2), X.unsqueeze(0))
    stock = helpers.stock_renyi(0, 2, True)
    assert helpers.stock_loss(pair, stock, X.expand(64, 3))[1]["c"].abs().max() == 0
    train(pair, pair.pyro_svi(helpers.pyro_adam(0.05), stock).step, 20)
    assert torch.equal(pair.c, start)
    train(pair, SVI(pair, torch.optim.Adam([pair.c], 0.05), VIMCO(2)).step, 400)
    got = exact_bound(pair, X, 2).item()
    # The optimum of E[L_2] over c, by gradient descent on the exact sum.
    exact = torch.optim.LBFGS([pair.c], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        exact.zero_grad()
        loss = -exact_bound(pair, X, 2)
        loss.backward()
        return loss

    exact.step(closure)
    optimum = exact_bound(pair, X, 2).item()
    assert optimum - before > 0.05
    assert optimum - got < 0.02 * (optimum - before)
    assert optimum < pair.tables(X)[0].logsumexp(0).item()


def riemann(pair: Switches, x: Tensor, betas: tuple[float, ...]) -> Tensor:
    """The thermodynamic bound with exact expectations, differentiable (all of it, the weights too)."""
    log_p, log_q = pair.tables(x)
    grid = (0.0, *betas, 1.0)
    total = torch.zeros((), dtype=torch.float64)
    for low, high in pairwise(grid):
        pi = torch.softmax((1 - low) * log_q + low * log_p, 0)
        total = total + (high - low) * (pi * (log_p - log_q)).sum()
    return total


def test_the_riemann_sum_lies_between_the_elbo_and_log_p():
    pair = Switches().double()
    values = [riemann(pair, X, betas).item() for betas in ((), (0.5,), (0.25, 0.5, 0.75))]
    values.append(pair.tables(X)[0].logsumexp(0).item())
    assert values == sorted(set(values))


def test_thermodynamic_bound_of_one_interval_is_the_elbo():
    """Its covariance over K particles is (K - 1) / K of that of the guide's score: exactly, by enumeration."""
    pair, x = Switches().double(), X
    loss = -riemann(pair, x, ())
    expected = gradients_of(pair, loss)
    for name in ("A", "c"):
        expected[name] *= 2 / 3
    assert_same(expected_gradients(pair, ThermodynamicELBO(3, betas=()), x), (loss.item(), expected))
    pair, x = linear(), vectors()
    got = seeded_bound(pair, ThermodynamicELBO(4, betas=()), x)
    torch.testing.assert_close(got, seeded_bound(pair, Trace_ELBO(4), x), rtol=1e-12, atol=1e-12)


def test_thermodynamic_value_by_hand():
    pair, x = linear(), vectors()
    log_w = helpers.log_weights(pair, x, 6).detach()
    by_hand = torch.zeros(5, dtype=torch.float64)
    for low, high in ((0.0, 0.2), (0.2, 0.7), (0.7, 1.0)):
        w = log_w.exp() ** low
        by_hand += (high - low) * (w / w.sum(0) * log_w).sum(0)
    objective = ThermodynamicELBO(6, betas=(0.2, 0.7))
    torch.testing.assert_close(seeded_bound(pair, objective, x), by_hand, rtol=1e-12, atol=1e-12)
    assert seeded_loss(pair, objective, x)[0] == pytest.approx(-by_hand.sum().item(), rel=1e-12)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_thermodynamic_gradient_is_that_of_the_riemann_sum(beta):
    """With K = 20,000 the bias is far below the error, with K = 2 far above. Fails by chance with probability 1e-5."""
    pair, betas = Switches().double(), (0.1, 0.3, 0.6)
    log_p, log_q = pair.tables(X)
    log_z = pair.prior().log_prob(helpers.states(2))
    log_w = log_p - log_z + beta * (log_z - log_q)
    grid = (0.0, *betas, 1.0)
    loss = torch.zeros((), dtype=torch.float64)
    for low, high in pairwise(grid):
        loss = loss - (high - low) * (torch.softmax(log_q + low * log_w, 0) * log_w).sum()
    exact = torch.cat([-g.flatten() for g in gradients_of(pair, loss).values()])
    ours = ThermodynamicELBO(20_000, betas=betas, kl_weight=beta)
    sample = helpers.chunk_gradients(pair, ours, X.expand(2, 3))
    assert farthest(sample, exact) < 1
    assert farthest(sample, 1.2 * exact) > 5
    few = ThermodynamicELBO(2, betas=betas, kl_weight=beta)
    assert farthest(helpers.chunk_gradients(pair, few, X.expand(20_000, 3)), exact) > 5


@pytest.mark.parametrize("objective", [VIMCO(3), ThermodynamicELBO(3)])
def test_loop_and_plate_agree_on_a_discrete_pair(objective):
    """Mean gradients of both ways of drawing. Fails by chance with probability 1e-5."""
    pair, x = linear(helpers.DiscreteGuide), vectors(1).expand(2_000, -1)
    plate = helpers.chunk_gradients(pair, objective, x, 40)
    objective.vectorize_particles = False
    loop = helpers.chunk_gradients(pair, objective, x, 40)
    assert farthest(plate - loop) < 1


def test_bad_arguments():
    for cls in (VIMCO, ThermodynamicELBO):
        with pytest.raises(ValueError, match="num_particles: got 1, expected at least 2"):
            cls(1)
    for betas in ((0.5, 0.5), (0.6, 0.3), (0.0, 0.5), (0.5, 1.0), (-0.1,), (1.2,)):
        with pytest.raises(ValueError, match="expected increasing numbers in"):
            ThermodynamicELBO(5, betas=betas)
