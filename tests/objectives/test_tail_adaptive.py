"""`TailAdaptive`: ranks counted one by one, hand-written gradients, and what it does to a guide that cannot fit."""

import copy
import math

import pyro.infer
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ppl_vae import SVI
from ppl_vae.compile import loss_state, record
from ppl_vae.objectives import IWAE, LinearWarmup, Objective, Trace_ELBO
from ppl_vae.objectives.tail_adaptive import TailAdaptive, tail_weights
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import Grads, assert_same, linear, log_weights, pixels, seeded_bound, seeded_loss, vectors

MODEL, GUIDE = ("W", "b", "log_s"), ("A", "c", "l")


class Tiled(LinearGaussian):
    particles = "tile"


def counted(log_w: Tensor, beta: float) -> Tensor:
    """rho~ with every weight compared with every other, (K, B)."""
    columns = []
    for column in log_w.T.tolist():
        rho = [(sum(other >= own for other in column) / len(column)) ** beta for own in column]
        columns.append([r / sum(rho) for r in rho])
    return torch.tensor(columns, dtype=torch.float64).T


def drawn_noise(pair: LinearGaussian, x: Tensor, num_particles: int, mode: str = "plate") -> Tensor:
    """What the guide draws after seed 0, (K, B, d), in the order of the way of drawing it."""
    torch.manual_seed(0)
    shape = (len(x), len(pair.c))
    if mode == "loop":
        return torch.stack([torch.randn(shape, dtype=x.dtype) for _ in range(num_particles)])
    return torch.randn(num_particles, *shape, dtype=x.dtype)


def by_hand(pair: LinearGaussian, x: Tensor, noise: Tensor, beta: float, kl_weight=1.0) -> tuple[float, Grads]:
    """Value and gradients of the loss: -L_K for the model, -sum_k rho~_k log w_k along the paths for the guide."""
    loc, scale = x @ pair.A.T + pair.c, pair.l.exp()
    z = loc + scale * noise
    log_q = Normal(loc.detach(), scale.detach()).log_prob(z).sum(-1)
    log_w = pair.decode(z).log_prob(x) + kl_weight * (pair.prior().log_prob(z) - log_q)
    loss = -(log_w.logsumexp(0) - math.log(len(z))).sum()
    paths = -(counted(log_w.detach(), beta) * log_w).sum()
    gradients = torch.autograd.grad(loss, [getattr(pair, n) for n in MODEL], retain_graph=True)
    gradients += torch.autograd.grad(paths, [getattr(pair, n) for n in GUIDE])
    return loss.item(), dict(zip((*MODEL, *GUIDE), gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("beta", [-1.0, -0.5, -3.0])
def test_ranks_are_counted_with_ties(beta: float, dtype: torch.dtype) -> None:
    tied = torch.randint(0, 4, (9, 30), dtype=dtype)
    for log_w in (tied, torch.randn(9, 30, dtype=dtype), torch.zeros(9, 30, dtype=dtype), tied[:2]):
        got = tail_weights(log_w, beta)
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), counted(log_w, beta), rtol=1e-6, atol=0)
    assert len(tied[:, 0].unique()) < 9


def test_ranks_of_few_by_hand() -> None:
    """F = (2/3, 1/3, 1) and, tied at the top, (2/3, 2/3, 1): an equal weight is in the tail of both."""
    log_w = torch.tensor([[5.0, 7.0], [9.0, 7.0], [-1.0, -math.inf]])
    expected = torch.tensor([[1.5, 1.5], [3.0, 1.5], [1.0, 1.0]])
    torch.testing.assert_close(tail_weights(log_w, -1.0), expected / expected.sum(0))


@pytest.mark.parametrize("change", [lambda w: w + 3.0, lambda w: w**3 + 7 * w, torch.atan, lambda w: 1e6 * w])
def test_only_ranks_matter(change) -> None:
    log_w = torch.randn(20, 5, dtype=torch.float64)
    assert torch.equal(tail_weights(change(log_w), -1.0), tail_weights(log_w, -1.0))


def test_a_strong_power_leaves_the_greatest_weights_alone() -> None:
    """50^200 has no float32."""
    log_w = torch.randn(50, 4)
    expected = torch.nn.functional.one_hot(log_w.argmax(0), 50).T.float()
    torch.testing.assert_close(tail_weights(log_w, -200.0), expected)


@pytest.mark.parametrize("mode", ["plate", "tile", "loop"])
@pytest.mark.parametrize(("beta", "kl_weight"), [(-1.0, 1.0), (-0.5, 1.0), (-1.0, 0.4)])
def test_gradient_by_hand(beta: float, kl_weight: float, mode: str) -> None:
    pair, x = linear(Tiled if mode == "tile" else LinearGaussian), vectors()
    objective = TailAdaptive(6, beta, vectorize_particles=mode != "loop", kl_weight=kl_weight)
    expected = by_hand(pair, x, drawn_noise(pair, x, 6, mode), beta, kl_weight)
    assert_same(seeded_loss(pair, objective, x), expected)


@pytest.mark.parametrize("cls", [LinearGaussian, helpers.Subsampled, helpers.Masked])
def test_the_model_follows_the_importance_weighted_bound(cls) -> None:
    pair, x = linear(cls), vectors()
    loss, expected = seeded_loss(pair, IWAE(50), x)
    value, got = seeded_loss(pair, TailAdaptive(), x)
    assert_same((value, {n: got[n] for n in MODEL}), (loss, {n: expected[n] for n in MODEL}))
    assert (got["A"] - expected["A"]).abs().max() > 1e-3
    assert torch.equal(seeded_bound(pair, TailAdaptive(), x), seeded_bound(pair, IWAE(50), x))
    assert TailAdaptive().is_bound


def test_equal_weights_give_the_gradient_of_the_elbo_along_the_paths() -> None:
    """By hand on one layer; on two, `Trace_ELBO` itself with its paths alone."""
    pair, x = linear(), vectors()
    assert_same(seeded_loss(pair, TailAdaptive(5, beta=0), x), by_hand(pair, x, drawn_noise(pair, x, 5), 0.0))
    layers, x = helpers.small_hierarchy(2), pixels()
    elbo = Trace_ELBO(5)
    elbo.gradient = "path"
    got, expected = seeded_loss(layers, TailAdaptive(5, beta=0), x)[1], seeded_loss(layers, elbo, x)[1]
    guide = [n for n in got if n.startswith(("encoder", "up"))]
    assert len(guide) > 4
    assert_same((0.0, {n: got[n] for n in guide}), (0.0, {n: expected[n] for n in guide}))


def test_no_gradient_at_the_posterior() -> None:
    pair, x = linear(), vectors()
    pair.set_guide_to_posterior()
    gradient = seeded_loss(pair, TailAdaptive(5), x)[1]
    assert max(gradient[n].abs().max() for n in GUIDE) < 1e-12
    assert gradient["W"].abs().max() > 1e-3


def test_a_kl_weight_draws_the_guide_to_the_posterior_of_a_tempered_likelihood() -> None:
    """p(x | z)^2 is Normal with half the variance, up to a constant."""
    pair, x = linear(), vectors()
    with torch.no_grad():
        pair.log_s.sub_(math.log(2) / 2)
        pair.set_guide_to_posterior()
        pair.log_s.add_(math.log(2) / 2)
    gradient = seeded_loss(pair, TailAdaptive(5, kl_weight=0.5), x)[1]
    assert max(gradient[n].abs().max() for n in GUIDE) < 1e-12
    assert seeded_loss(pair, TailAdaptive(5), x)[1]["l"].abs().max() > 1e-3


def test_log_weights_far_apart_in_float32() -> None:
    """Of K normalised weights all but one underflow, and the guide still learns from each of them."""
    x = 60 * torch.randn(5, 4)
    pair = LinearGaussian(4, 2)
    exact = copy.deepcopy(pair).double()
    expected = by_hand(exact, x.double(), drawn_noise(pair, x, 6).double(), -1.0)
    log_w = log_weights(pair, x, 6)
    assert (log_w.amax(0) - log_w.amin(0)).min() > 50 and (log_w.amax(0) - log_w.amin(0)).max() > 300
    assert (torch.softmax(log_w, 0) == 0).any()
    value, got = seeded_loss(pair, TailAdaptive(6), x)
    assert value == pytest.approx(expected[0], rel=1e-5)
    for name, gradient in got.items():
        limit = 1e-4 * expected[1][name].abs().max().item()
        torch.testing.assert_close(gradient.double(), expected[1][name], rtol=1e-4, atol=limit)


PRECISION = torch.tensor([[5.0, 4.0], [4.0, 5.0]], dtype=torch.float64)


def correlated() -> LinearGaussian:
    """A fixed model whose posterior at x = 0 is N(0, PRECISION^-1), of correlation -0.8: no diagonal guide fits it."""
    pair = linear()
    with torch.no_grad():
        pair.W.zero_()
        pair.W[0] = 2.0
    for name in (*MODEL, "A"):
        getattr(pair, name).requires_grad_(False)
    torch.testing.assert_close(pair.posterior(vectors(1)).precision_matrix[0], PRECISION)
    return pair


def trained_variance(objective: Objective) -> Tensor:
    """The guide's two variances after training at x = 0, averaged over the second half of the steps."""
    pair, after = correlated(), []
    x = torch.zeros(32, 4, dtype=torch.float64)
    svi = SVI(pair, torch.optim.Adam([pair.c, pair.l], lr=0.05), objective)
    for step in range(160):
        svi.step(x)
        if step >= 80:
            after.append((2 * pair.l.detach()).exp())
    return torch.stack(after).mean(0)


def stationary_variance(num_particles: int) -> float:
    """Where E[sum_k rho~_k g_k] = 0 for z = sqrt(v) e, by bisection on shared noise e.

    log w = -e^T (v PRECISION - I) e / 2 + const, and its derivative along the path as log v grows is log w - const.
    """
    noise = torch.randn(num_particles, 5_000, 2, dtype=torch.float64)
    low, high = 0.05, 2.0
    for _ in range(12):
        middle = (low + high) / 2
        slope = -((noise @ (middle * PRECISION - torch.eye(2, dtype=torch.float64))) * noise).sum(-1) / 2
        # Sorted, the least weight first: F = K / K, ..., 1 / K.
        rho = num_particles / torch.arange(num_particles, 0, -1, dtype=torch.float64)
        low, high = (middle, high) if (rho @ slope.sort(0).values).mean() > 0 else (low, middle)
    return (low + high) / 2


def test_it_covers_mass_that_the_elbo_leaves_out() -> None:
    """The ELBO's variance is 1 / PRECISION_ii = 0.2, where the mean of g = d log w / d log v over the guide is 0.

    Here g is log w up to a constant, so ranks put more weight on greater g: at that variance their mean is positive,
    and the guide must widen.
    """
    elbo, tail, expected = trained_variance(Trace_ELBO(20)), trained_variance(TailAdaptive(20)), stationary_variance(20)
    torch.testing.assert_close(elbo, torch.full_like(elbo, 0.2), rtol=0.05, atol=0)
    torch.testing.assert_close(tail, torch.full_like(tail, expected), rtol=0.05, atol=0)
    assert (tail > 1.2 * elbo).all()


def test_discrete_sites_are_refused() -> None:
    with pytest.raises(
        ValueError, match="guide site 'y': got Bernoulli, which is not reparameterised; TailAdaptive would"
    ):
        seeded_loss(linear(helpers.DiscreteGuide), TailAdaptive(3), vectors())


def test_a_guide_without_a_module_is_refused() -> None:
    pair, x = linear(), vectors()
    with pytest.raises(ValueError, match=r"guide: got function '<lambda>', expected a method of a Pair"):
        TailAdaptive(3).differentiable_loss(pair.model, lambda x: pair.guide(x), x)


@pytest.mark.parametrize("number", [1, 0, -3])
def test_too_few_particles(number: int) -> None:
    with pytest.raises(ValueError, match=rf"num_particles: got {number}, expected at least 2.* use STL"):
        TailAdaptive(number)


@pytest.mark.parametrize("beta", [0.5, math.nan, math.inf, -math.inf])
def test_bad_beta(beta: float) -> None:
    with pytest.raises(ValueError, match=f"beta: got {beta}, expected a finite number of at most 0"):
        TailAdaptive(beta=beta)


def test_stock_svi() -> None:
    pair, x = linear(), vectors()
    stock = pair.pyro_svi(helpers.pyro_adam(0.0), TailAdaptive(4))
    assert isinstance(stock, pyro.infer.SVI)
    pair.zero_grad()
    torch.manual_seed(0)
    loss = stock.loss_and_grads(stock.model, stock.guide, x)
    assert_same((float(loss), helpers.gradients(pair)), seeded_loss(pair, TailAdaptive(4), x))


RECORDED = {
    "plate": TailAdaptive(4),
    "loop": TailAdaptive(4, -0.5, vectorize_particles=False),
    "weighted": TailAdaptive(4, kl_weight=LinearWarmup(4, start=0.5)),
}


@pytest.mark.parametrize("objective", RECORDED.values(), ids=RECORDED)
@pytest.mark.parametrize("make", [linear, helpers.small_hierarchy])
def test_recorded_equals_eager_on_shared_noise(make, objective: TailAdaptive) -> None:
    pair = make()
    x = vectors() if isinstance(pair, LinearGaussian) else pixels()
    objective.step = 1
    recorded = record(objective(pair), x)
    kl_weight = torch.as_tensor(objective.current_kl_weight, dtype=x.dtype)
    expected = seeded_loss(pair, objective, x)
    torch.manual_seed(0)
    value, *got = recorded.graph(*loss_state(objective(pair)).values(), kl_weight, x, *recorded.noise())
    names = [name.removeprefix("owners.0.") for name in recorded.trained]
    assert set(names) == set(dict(pair.named_parameters()))
    assert_same((value.item(), dict(zip(names, got, strict=True))), expected)
