"""Noise of gradients against closed forms; which parameters are whose; the law of Rainforth et al. 2018.

A statistical test compares an estimate with its expectation in units of its standard error, at a failure rate of
1e-5 for each of its comparisons (two-sided, normal).
"""

import math

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import Pair
from ppl_vae.evaluation import GradientMoments, gradient_moments, gradient_snr, gradient_variance, parameter_groups
from ppl_vae.objectives import IWAE, STL, VIMCO, DReG, Objective, ReweightedWakeSleep, Trace_ELBO, WakeSleep
from ppl_vae.pairs import VAE
from ppl_vae.testing import LinearGaussian
from tests.helpers import Z_LIMIT, DiscreteGuide, linear, vectors


class Tied(LinearGaussian):
    """The guide's matrix is the model's, transposed."""

    def encode(self, x):
        return dist.Independent(dist.Normal(x @ self.W + self.c, self.l.exp()), 1)


class PointMass(LinearGaussian):
    """The guide puts all mass on one z, whose log q does not depend on where it is."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(x @ self.A.T + self.c, event_dim=1))


class NoLatent(Pair):
    """p(x) = N(a, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(self.a.expand(4), 1.0).to_event(1), obs=x)


class Toy(Pair):
    """p(z) = N(mu, I);  p(x | z) = N(z, I);  q(z | x) = N(x / 2 + b, 2/3 I)."""

    def __init__(self, x: Tensor, moved: float) -> None:
        super().__init__()
        self.mu = nn.Parameter(x.mean(0) + moved)
        self.b = nn.Parameter(x.mean(0) / 2 + moved)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x / 2 + self.b, math.sqrt(2 / 3)).to_event(1))


def elbo_gradients(pair: LinearGaussian, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of the gradient of -ELBO (K = 1, summed over B) with respect to b and c, by hand.

    With z = m + S e the model's is -(x - W z - b) / s^2, and the guide's z - W^T (x - W z - b) / s^2, for log q of a
    reparameterised Normal does not depend on its mean; both are linear in e ~ N(0, I).
    """
    with torch.no_grad():
        m, S, s2 = x @ pair.A.T + pair.c, torch.diag(pair.l.exp()), (2 * pair.log_s).exp()
        slope = torch.eye(len(pair.c), dtype=x.dtype) + pair.W.T @ pair.W / s2
        mean_b = -(x - m @ pair.W.T - pair.b).sum(0) / s2
        mean_c = (m @ slope - (x - pair.b) @ pair.W / s2).sum(0)
        variance_b = len(x) * (pair.W @ S / s2).square().sum(1)
        variance_c = len(x) * (slope @ S).square().sum(1)
    return {"b": (mean_b, variance_b), "c": (mean_c, variance_c)}


@pytest.mark.parametrize("batch_size", [None, 2])
def test_mean_and_variance_are_those_of_the_closed_form(batch_size: int | None) -> None:
    pair, x, S = linear(), vectors(5), 700
    moments = gradient_moments(pair, Trace_ELBO(), x, num_samples=S, batch_size=batch_size)
    for group, (name, (mean, variance)) in zip(("model", "guide"), elbo_gradients(pair, x).items(), strict=True):
        error = (moments[group].mean[name] - mean) / (variance / S).sqrt()
        assert error.abs().max() < Z_LIMIT
        # A Gaussian's sample variance has the standard deviation sigma^2 sqrt(2 / (S - 1)).
        error = (moments[group].variance[name] / variance - 1) / math.sqrt(2 / (S - 1))
        assert error.abs().max() < Z_LIMIT


def test_a_mean_gradient_is_that_of_the_loss() -> None:
    """With a constant gradient, that of the loss itself, in float64 and to all digits."""
    pair, x = NoLatent(), vectors(5)
    moments = gradient_moments(pair, Trace_ELBO(), x, num_samples=3)
    assert moments["model"].mean["a"].item() == pytest.approx((pair.a - x).sum().item(), rel=1e-12)
    assert moments["model"].average_variance == 0 and moments["model"].snr == math.inf
    assert moments["guide"].num_parameters == 0 and math.isnan(moments["guide"].snr)


def test_ratio_and_variance_are_averages_over_components() -> None:
    mean = {"a": torch.tensor([3.0, 0.0]).double(), "b": torch.tensor(-2.0).double()}
    variance = {"a": torch.tensor([9.0, 0.0]).double(), "b": torch.tensor(1.0).double()}
    moments = GradientMoments(mean, variance, num_samples=5)
    assert moments.num_parameters == 3
    assert moments.average_variance == pytest.approx(10 / 3)
    assert moments.snr == pytest.approx((1 + 2) / 2)  # the component without a gradient does not count
    assert moments.snr_rms == pytest.approx(math.sqrt(2 / 4 * (1 + 4) / 2 - 1 / 5))
    assert math.isnan(GradientMoments(mean, variance, num_samples=3).snr_rms)
    signal = GradientMoments({n: m / 2 for n, m in mean.items()}, {n: v / 4 for n, v in variance.items()}, 10)
    assert moments.snr_rms_of(signal) == pytest.approx(math.sqrt(2 / 4 * (0.25 - 0.025 + 1 - 0.025) / 2))


@pytest.mark.parametrize("ratio", [0.0, 0.1, 1.0])
def test_root_mean_square_ratio_has_no_bias(ratio: float) -> None:
    """The mean over 20,000 components of known ratio, each from S = 8 Gaussian draws."""
    draws = ratio + torch.randn(8, 20000, dtype=torch.float64)
    moments = GradientMoments({"a": draws.mean(0)}, {"a": draws.var(0)}, num_samples=8)
    squares = 5 / 7 * draws.mean(0) ** 2 / draws.var(0) - 1 / 8
    assert moments.snr_rms**2 == pytest.approx(max(squares.mean().item(), 0.0))
    assert abs(squares.mean() - ratio**2) < Z_LIMIT * squares.std() / math.sqrt(20000)


def test_short_forms_are_the_moments() -> None:
    pair, x = linear(), vectors(5)
    moments = gradient_moments(pair, IWAE(num_particles=3), x, num_samples=5, seed=1)
    assert gradient_snr(pair, IWAE(num_particles=3), x, num_samples=5, seed=1) == {
        group: m.snr for group, m in moments.items()
    }
    assert gradient_variance(pair, IWAE(num_particles=3), x, num_samples=5, seed=1) == {
        group: m.average_variance for group, m in moments.items()
    }


def test_groups() -> None:
    x = vectors(5)
    assert parameter_groups(linear(), x) == {"model": ["W", "b", "log_s"], "guide": ["A", "c", "l"]}
    tied = {"model": ["W", "b", "log_s"], "guide": ["W", "c", "l"]}
    assert parameter_groups(linear(Tied), x) == tied
    assert parameter_groups(linear(PointMass), x) == {"model": ["W", "b", "log_s"], "guide": ["A", "c"]}
    assert parameter_groups(NoLatent(), x) == {"model": ["a"], "guide": []}
    discrete = parameter_groups(DiscreteGuide(4, 2).double(), x)
    assert discrete == {"model": ["W", "b", "log_s"], "guide": ["A", "c", "l"]}


def test_groups_of_networks_cover_all_parameters_once() -> None:
    pair = VAE((1, 3, 4), latent_dim=3, hidden=(6,))
    groups = parameter_groups(pair, torch.zeros(2, 1, 3, 4))
    assert groups["model"] and groups["guide"]
    assert sorted(groups["model"] + groups["guide"]) == sorted(n for n, _ in pair.named_parameters())


def test_a_frozen_parameter_is_in_no_group() -> None:
    pair, x = linear(), vectors(5)
    pair.W.requires_grad_(False)
    pair.A.requires_grad_(False)
    moments = gradient_moments(pair, DReG(num_particles=2), x, num_samples=2)
    assert {g: list(m.mean) for g, m in moments.items()} == {"model": ["b", "log_s"], "guide": ["c", "l"]}
    assert not pair.W.requires_grad and pair.b.requires_grad
    for parameter in pair.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(ValueError, match="LinearGaussian has no parameter with a gradient"):
        gradient_moments(pair, Trace_ELBO(), x)


def test_a_shared_parameter_counts_in_both_groups() -> None:
    moments = gradient_moments(linear(Tied), Trace_ELBO(), vectors(5), num_samples=4)
    assert torch.equal(moments["model"].variance["W"], moments["guide"].variance["W"])


def test_nothing_is_left_behind() -> None:
    pair = VAE((1, 3, 4), latent_dim=3, hidden=(6,))
    pair.train()
    next(pair.children()).eval()
    modes = [m.training for m in pair.modules()]
    first, *others = pair.parameters()
    first.grad = torch.full_like(first, 7.0)
    values = [p.detach().clone() for p in pair.parameters()]
    objective, state = DReG(num_particles=2), torch.get_rng_state()
    with torch.no_grad():  # the caller's own mode of differentiation is put back too
        gradient_moments(pair, objective, torch.zeros(2, 1, 3, 4), num_samples=3, seed=5)
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in pair.modules()] == modes
    assert bool((first.grad == 7).all()) and all(p.grad is None for p in others)
    assert all(p.requires_grad for p in pair.parameters()) and objective.step == 0
    assert all(torch.equal(p, v) for p, v in zip(pair.parameters(), values, strict=True))


def test_a_seed_repeats_and_none_uses_the_global_stream() -> None:
    pair, x = linear(), vectors(5)
    seeded = [gradient_snr(pair, Trace_ELBO(), x, num_samples=3, seed=2) for _ in range(2)]
    assert seeded[0] == seeded[1]
    free = [gradient_snr(pair, Trace_ELBO(), x, num_samples=3) for _ in range(2)]
    assert free[0] != free[1]


@pytest.mark.parametrize("objective", [VIMCO(3), ReweightedWakeSleep(3, insomnia=0.5), WakeSleep(2), STL(2)])
def test_any_objective(objective: Objective) -> None:
    variance = gradient_variance(linear(), objective, vectors(5), num_samples=4)
    assert all(math.isfinite(v) and v > 0 for v in variance.values())


def test_refusals() -> None:
    pair, x = linear(), vectors(5)
    with pytest.raises(TypeError, match="objective: got Trace_ELBO"):
        gradient_moments(pair, pyro.infer.Trace_ELBO(), x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_samples: got 1"):
        gradient_moments(pair, Trace_ELBO(), x, num_samples=1)
    with pytest.raises(ValueError, match="batch_size: got 0"):
        gradient_moments(pair, Trace_ELBO(), x, batch_size=0)
    with pytest.raises(ValueError, match="joint"):
        gradient_moments(pair, IWAE(joint=True), x, batch_size=2)
    with pytest.raises(ValueError, match="non-finite"):
        gradient_moments(pair, Trace_ELBO(), x * math.nan)


def test_the_law_of_the_number_of_particles() -> None:
    """Slopes between K = 16 and K = 256 in 2 dimensions are +-0.5, to 0.1.

    From 250 draws a standard deviation has a relative error of 1 / sqrt(500), less by sqrt(2) for two components;
    the means are known far better (ratios above 4; the guide's from DReG). Over log(16) = 2.8 that is 0.016 of
    slope, and 0.072 at a failure rate of 1e-5. The law's own remainder, a factor of 1 + O(1 / K) at K = 16, has
    the rest.
    """
    x = torch.randn(32, 2, dtype=torch.float64) * math.sqrt(2)
    pair, ratios = Toy(x, moved=0.3), []
    for K in (16, 256):
        iwae, dreg = (
            gradient_moments(pair, objective, x, num_samples=250, seed=seed)
            for seed, objective in enumerate((IWAE(num_particles=K), DReG(num_particles=K)))
        )
        ratios.append((iwae["model"].snr_rms, iwae["guide"].snr_rms_of(dreg["guide"]), dreg["guide"].snr_rms))
    slopes = [math.log(b / a) / math.log(16) for a, b in zip(*ratios, strict=True)]
    assert slopes == pytest.approx([0.5, -0.5, 0.5], abs=0.1)
