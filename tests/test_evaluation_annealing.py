"""Annealed importance sampling and bidirectional Monte Carlo against closed forms.

The statistical tests compare a mean with its expectation in units of its standard error, from independent data or
chains; the limit Z is exceeded with probability 1e-5 (two-sided, normal).
"""

import math
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_vae
from ppl_vae import evaluation
from ppl_vae.evaluation import annealed_importance_sampling, annealing, bidirectional_monte_carlo, importance_sampling
from ppl_vae.evaluation.hmc import AnnealedPath, AnnealingSettings, leapfrog, sigmoid_schedule, transition
from ppl_vae.pair import Pair
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.terms import NotPerDatumError
from ppl_vae.testing import LinearGaussian
from tests.helpers import DiscreteGuide, GlobalSite, generate

Z = 4.42


class Tiled(LinearGaussian):
    particles = "tile"


class Positive(LinearGaussian):
    """A latent site of positive values."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            scale = pyro.sample("scale", dist.LogNormal(x.new_zeros(()), 1.0))
            pyro.sample("x", self.decode(x.new_zeros(2) * scale.unsqueeze(-1)), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("scale", dist.LogNormal(self.c[0], 1.0))


class Auxiliary(LinearGaussian):
    """The guide draws u and then z."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("u", dist.Normal(x.new_zeros(()), 1.0), infer={"is_auxiliary": True})
            pyro.sample("z", self.encode(x))


class Plates(LinearGaussian):
    """p(z_i) = N(0, 1), p(x_i | z_i) = N(z_i, 1) for i = 1, 2, 3 in a plate of their own, and a regulariser."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.factor("regulariser", 1e3 + 0 * x.sum(-1))
            with pyro.plate("units", 3, dim=-2):
                z = pyro.sample("z", dist.Normal(0 * self.c[0], 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("units", 3, dim=-2):
            pyro.sample("z", dist.Normal(0.3 * x.T, 1.0))

    def log_likelihood(self, x: Tensor) -> Tensor:
        return dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).sum(-1)


def oracle(rows: int = 100, kind: type[LinearGaussian] = LinearGaussian, dim: int = 4) -> tuple[LinearGaussian, Tensor]:
    """A pair whose guide is too wide, and data of its model."""
    pair = kind(dim, 2).double()
    pair.set_guide_to_posterior()
    with torch.no_grad():
        pair.l.add_(0.5)
        pair.c.add_(0.3)
    return pair, torch.randn(rows, dim).double()


def z_of_mean(values: Tensor, expected: float = 0.0) -> float:
    return ((values.mean() - expected) / (values.std() / len(values) ** 0.5)).item()


def one_chain_weights(pair: LinearGaussian, x: Tensor, **settings: Any) -> Tensor:
    """w / p(x) of independent chains, one for each datum: their expectation is 1."""
    result = annealed_importance_sampling(pair, x, num_chains=1, leapfrog_steps=3, **settings)
    return (result.log_likelihood - pair.log_likelihood(x)).exp()


@pytest.mark.parametrize("start", ["guide", "prior"])
@pytest.mark.parametrize("num_steps", [1, 2, 20])
def test_the_weights_average_to_the_likelihood(start: Any, num_steps: int) -> None:
    pair, x = oracle(4000)
    ratio = one_chain_weights(pair, x, start=start, num_steps=num_steps, batch_size=4000)
    assert abs(z_of_mean(ratio, 1.0)) < Z


@pytest.mark.parametrize("kind", [Tiled, Plates])
def test_so_they_do_however_a_pair_lays_out_its_sites(kind: Any) -> None:
    pair, x = oracle(300, kind=kind, dim=3)
    result = annealed_importance_sampling(pair, x, num_chains=3, num_steps=15, leapfrog_steps=3, batch_size=200)
    assert abs(z_of_mean((result.log_likelihood - pair.log_likelihood(x)).exp(), 1.0)) < Z
    assert 1 < result.ess.mean() < 3


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_more_steps_are_more_accurate_and_the_bound_is_a_lower_one(start: Any) -> None:
    pair, x = oracle(200)
    few, more = (
        annealed_importance_sampling(
            pair, x, num_chains=4, num_steps=t, leapfrog_steps=4, start=start, batch_size=200
        ).log_likelihood
        - pair.log_likelihood(x)
        for t in (1, 40)
    )
    assert z_of_mean(few) < Z and z_of_mean(more) < Z
    assert z_of_mean(more.abs() - few.abs()) < -Z
    assert abs(more.mean()) < 0.1


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_from_the_posterior_every_weight_is_the_likelihood(num_steps: int) -> None:
    pair, x = oracle(5)
    pair.set_guide_to_posterior()
    result = annealed_importance_sampling(pair, x, num_chains=3, num_steps=num_steps)
    torch.testing.assert_close(result.log_likelihood, pair.log_likelihood(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(result.ess, torch.full_like(result.ess, 3.0))
    assert result.num_chains == 3 and result.num_steps == num_steps
    assert result.acceptance.isnan().all() if num_steps == 1 else (result.acceptance > 0).all()


@pytest.mark.parametrize(("start", "chains", "num_steps"), [("guide", 4, 40), ("prior", 16, 200)])
def test_both_directions_enclose_the_likelihood(start: Any, chains: int, num_steps: int) -> None:
    pair, x = oracle(150)
    bounds = bidirectional_monte_carlo(
        pair, x, num_chains=chains, num_steps=num_steps, leapfrog_steps=4, start=start, batch_size=150, seed=1
    )
    assert bounds.gap.mean / bounds.gap.standard_error > -Z
    assert bounds.gap.mean < 0.05
    assert bounds.gap.mean == pytest.approx(bounds.upper_mean.mean - bounds.lower_mean.mean)
    assert bounds.lower_mean.standard_error > bounds.gap.standard_error > 0
    assert ((bounds.acceptance > 0.3) & (bounds.acceptance <= 1)).all()


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_the_reverse_chains_average_to_one_over_the_likelihood(monkeypatch: pytest.MonkeyPatch, start: Any) -> None:
    pair, x = oracle(1500)
    seen: list[Tensor] = []
    simulate = annealing._simulate

    def watched(*arguments: Any) -> Any:
        simulated, values = simulate(*arguments)
        seen.append(simulated[0])
        return simulated, values

    monkeypatch.setattr(annealing, "_simulate", watched)
    bounds = bidirectional_monte_carlo(
        pair, x, num_chains=1, num_steps=12, leapfrog_steps=3, start=start, batch_size=800
    )
    exact = pair.log_likelihood(torch.cat(seen))
    assert len(seen) == 2 and not torch.equal(torch.cat(seen), x)
    assert abs(z_of_mean((bounds.lower - exact).exp(), 1.0)) < Z
    assert abs(z_of_mean((exact - bounds.upper).exp(), 1.0)) < Z
    assert z_of_mean(bounds.lower - exact) < Z and z_of_mean(bounds.upper - exact) > -Z


def test_the_schedule_increases_from_0_to_1() -> None:
    for num_steps in (1, 2, 3, 1000):
        betas = sigmoid_schedule(num_steps)
        assert betas.shape == (num_steps + 1,) and betas[0] == 0 and betas[-1] == 1 and (betas.diff() > 0).all()
    betas = sigmoid_schedule(10)
    torch.testing.assert_close(betas + betas.flip(0), torch.ones(11).double())
    assert betas.diff().argmin() in (0, 9)


def quartic_gradient(z: Tensor) -> Tensor:
    return -z - z**3


def energy(z: Tensor, v: Tensor) -> Tensor:
    return (z**2 / 2 + z**4 / 4 + v**2 / 2).sum(-1)


def test_leapfrog_runs_back_and_keeps_the_volume() -> None:
    z, v, step = torch.randn(6, 2).double(), torch.randn(6, 2).double(), torch.full((6, 1), 0.1).double()
    z1, v1 = leapfrog(quartic_gradient, z, v, step, 20)
    z2, v2 = leapfrog(quartic_gradient, z1, -v1, step, 20)
    torch.testing.assert_close((z2, -v2), (z, v), rtol=1e-10, atol=1e-10)

    def flow(state: Tensor) -> Tensor:
        return torch.cat(leapfrog(quartic_gradient, state[:2], state[2:], step[0], 20))

    jacobian: Any = torch.autograd.functional.jacobian(flow, torch.cat([z[0], v[0]]))
    assert torch.linalg.det(jacobian).item() == pytest.approx(1.0, abs=1e-9)


def test_leapfrog_keeps_the_energy_to_second_order() -> None:
    z, v = torch.randn(50, 2).double(), torch.randn(50, 2).double()
    errors = []
    for num in (50, 100, 200):
        step = torch.tensor(1.0 / num).double()
        errors.append((energy(*leapfrog(quartic_gradient, z, v, step, num)) - energy(z, v)).abs().mean())
    assert errors[0] < 1e-3
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(4.0, rel=0.05)


def test_a_transition_leaves_the_posterior_as_it_is() -> None:
    pair, x = oracle(2)
    path = AnnealedPath.of(pair, (x,), AnnealingSettings(4000, 10, 4, "prior", 2))
    posterior = pair.posterior(x)
    z = posterior.sample(torch.Size((4000,)))
    step = torch.tensor([0.5, 0.9]).double()
    whiten = torch.linalg.inv(torch.linalg.cholesky(posterior.covariance_matrix))
    for _ in range(2):
        z = transition(path, z, 1.0, step, 4)[0]
    z, log_ratio, acceptance = transition(path, z, 1.0, step, 4)
    assert 0.3 < acceptance.mean() < 0.999
    torch.testing.assert_close(log_ratio, pair.decode(z).log_prob(x))
    u = torch.einsum("bij,kbj->kbi", whiten, z - posterior.mean).detach()
    products = u[..., 0] * u[..., 1]
    moments = torch.cat([u.flatten(1), (u**2 - 1).flatten(1), products], 1)
    scores = moments.mean(0) / (moments.std(0) / len(moments) ** 0.5)
    assert (scores.abs() < 4.9).all()  # 10 moments share the failure rate 1e-5


@pytest.mark.parametrize("start", ["guide", "prior"])
def test_two_layers(start: Any) -> None:
    pair = HierarchicalVAE((1, 3, 4), (4, 3), ((6,), (5,))).double()
    x = torch.rand(40, 1, 3, 4).double().round()
    got = annealed_importance_sampling(pair, x, num_chains=8, num_steps=25, leapfrog_steps=4, start=start)
    # log mean_k p(x | z_k) with z_k from the prior, by hand; the decoder is close to constant before training.
    decoder = generate(pair, x[:1].expand(3000, -1, -1, -1))["x"]["fn"]
    exact = decoder.expand([3000]).log_prob(x[:, None]).detach().logsumexp(1) - math.log(3000)
    assert abs(z_of_mean((got.log_likelihood - exact).exp(), 1.0)) < Z
    assert abs(got.mean - exact.mean().item()) < (0.15 if start == "prior" else 1.0)
    bounds = bidirectional_monte_carlo(pair, num_data=3, num_chains=2, num_steps=3, leapfrog_steps=2, start=start)
    assert bounds.lower.shape == bounds.upper.shape == (3,) and bounds.gap.mean > -1


def test_log_likelihood_by_either_method() -> None:
    pair, x = oracle(5)
    settings: dict[str, Any] = {"num_steps": 7, "batch_size": 3, "seed": 2}
    got = evaluation.log_likelihood(pair, x, method="ais", num_particles=4, **settings)
    assert torch.equal(got, annealed_importance_sampling(pair, x, num_chains=4, **settings).log_likelihood)
    plain = evaluation.log_likelihood(pair, x, num_particles=4, seed=2)
    assert torch.equal(plain, importance_sampling(pair, x, num_particles=4, seed=2).log_likelihood)
    for settings, message in (
        ({"method": "hmc"}, "method: got 'hmc'"),
        ({"num_steps": 3}, "num_steps: got 3 with method='is'"),
        ({"method": "ais", "memory": 10**6}, "memory: got 1000000 with method='ais'"),
        ({"method": "ais", "num_particles": 0}, "num_chains: got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluation.log_likelihood(pair, x, **settings)


def test_agrees_with_importance_sampling_on_digits() -> None:
    digits = ppl_vae.data.load("digits")
    pair = VAE(digits.shape, latent_dim=4, hidden=(40,))
    ppl_vae.fit(pair, digits, steps=200, learning_rate=4e-3, compile="off", progress=False)
    x = digits.test_batch()[:60]
    exact = importance_sampling(pair, x, num_particles=5000, seed=0).log_likelihood
    assert exact.mean() > -34
    for start in ("guide", "prior"):
        got = annealed_importance_sampling(
            pair, x, num_chains=8, num_steps=40, leapfrog_steps=5, start=start, batch_size=60, seed=1
        )
        assert got.log_likelihood.dtype == torch.float64 and got.mean > -34
        assert abs(z_of_mean((got.log_likelihood - exact).exp(), 1.0)) < Z
        assert abs(got.mean - exact.mean().item()) < 0.2


def test_parameters_gradients_modes_and_random_numbers_are_left_alone() -> None:
    pair, x = oracle(3)
    pair.W.requires_grad_(False)
    before = [p.clone() for p in pair.parameters()]
    trained = [p.requires_grad for p in pair.parameters()]
    state = torch.get_rng_state()
    pair.train()
    settings: dict[str, Any] = {"num_chains": 2, "num_steps": 4, "leapfrog_steps": 2, "seed": 5}
    first, again = (annealed_importance_sampling(pair, x, **settings).log_likelihood for _ in range(2))
    bidirectional_monte_carlo(pair, x, **settings)
    assert torch.equal(first, again) and not first.requires_grad
    assert torch.equal(torch.get_rng_state(), state) and pair.training
    assert all(torch.equal(p, q) for p, q in zip(pair.parameters(), before, strict=True))
    assert [p.requires_grad for p in pair.parameters()] == trained
    assert all(p.grad is None for p in pair.parameters())
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    ("kind", "start", "message"),
    [
        (DiscreteGuide, "prior", "site 'y': got Bernoulli"),
        (Positive, "guide", "site 'scale': got LogNormal"),
        (Auxiliary, "guide", "site 'u': got an auxiliary site"),
    ],
)
def test_refused_sites_are_named(kind: Any, start: Any, message: str) -> None:
    pair, x = oracle(3, kind=kind)
    with pytest.raises(ValueError, match=message):
        annealed_importance_sampling(pair, x, start=start)


def test_from_the_prior_auxiliary_sites_play_no_part() -> None:
    pair, x = oracle(200, kind=Auxiliary)
    ratio = one_chain_weights(pair, x, start="prior", num_steps=5, batch_size=200)
    assert abs(z_of_mean(ratio, 1.0)) < Z


def test_a_site_outside_the_data_plate_is_refused() -> None:
    pair, x = oracle(3, kind=GlobalSite)
    with pytest.raises(NotPerDatumError, match="'m'"):
        annealed_importance_sampling(pair, x)


def test_without_latent_sites_there_is_nothing_to_sample() -> None:
    class Plain(Pair):
        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x)

    with pytest.raises(ValueError, match="no latent site"):
        annealed_importance_sampling(Plain(), torch.zeros(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_chains": 0}, "num_chains: got 0"),
        ({"num_steps": 0}, "num_steps: got 0"),
        ({"leapfrog_steps": 1.5}, "leapfrog_steps: got 1.5"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"start": "posterior"}, "start: got 'posterior'"),
    ],
)
def test_bad_arguments(settings: dict[str, Any], message: str) -> None:
    pair, x = oracle(3)
    for function in (annealed_importance_sampling, bidirectional_monte_carlo):
        with pytest.raises(ValueError, match=message):
            function(pair, x, **settings)


def test_bad_batches() -> None:
    pair, x = oracle(3)
    with pytest.raises(ValueError, match="float32"):
        annealed_importance_sampling(pair, x.float())
    with pytest.raises(ValueError, match="no attribute data_shape"):
        bidirectional_monte_carlo(pair)
    with pytest.raises(ValueError, match="num_data: got 0"):
        bidirectional_monte_carlo(VAE((1, 3, 4)), num_data=0)
    with pytest.raises(ValueError, match="site 'x': got 48 of 48 values outside the support"):
        annealed_importance_sampling(VAE((1, 3, 4)), torch.full((4, 1, 3, 4), 0.5))
    with pytest.raises(ValueError, match="site 'x': its observed value is not an argument"):
        bidirectional_monte_carlo(oracle(3, kind=Plates, dim=3)[0], torch.zeros(3, 3).double())
