"""`prior_sampling` against Gaussian integrals, and its product of matrices against the plain table."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae.evaluation import importance_sampling, prior, prior_sampling
from ppl_vae.pair import Pair
from ppl_vae.pairs import VAE, ConditionalVAE, HelmholtzMachine
from ppl_vae.testing import LinearGaussian
from tests.helpers import generate, pixels, small_hierarchy, small_vae, states


def oracle(rows: int = 5) -> tuple[LinearGaussian, Tensor]:
    """One latent variable, and data of the model."""
    pair = LinearGaussian(3, 1).double()
    with torch.no_grad():
        return pair, pair.decode(pair.prior().sample(torch.Size((rows,)))).sample()


def log_second_moment(pair: LinearGaussian, x: Tensor) -> Tensor:
    """log E[p(x | z)^2] over the prior, (N,): N(x; m, s^2 I)^2 = (4 pi s^2)^(-D / 2) N(x; m, s^2 / 2 I)."""
    s2, D = (2 * pair.log_s).exp(), x.shape[-1]
    covariance = pair.W @ pair.W.T + s2 / 2 * torch.eye(D).double()
    return dist.MultivariateNormal(pair.b, covariance).log_prob(x) - D / 2 * (4 * math.pi * s2).log()


@torch.no_grad()
def test_log_likelihood_and_ess_are_the_exact_ones() -> None:
    """The error of the estimated p(x) is known. Fails by chance with probability 1e-5 (5 data, each 2e-6)."""
    pair, x = oracle()
    exact, second = pair.log_likelihood(x), log_second_moment(pair, x)
    ratio = (second - 2 * exact).exp()  # E[w^2] / E[w]^2
    for K in (20_000, 2_500):
        got = prior_sampling(pair, x, num_particles=K, seed=1)
        error = ((ratio - 1) / K).sqrt()
        assert error.max() < 0.1
        assert ((got.log_likelihood - exact).expm1() / error).abs().max() < 4.76
        torch.testing.assert_close(got.ess, K / ratio, rtol=0.2, atol=0)
        assert got.num_particles == K and got.log_likelihood.dtype == torch.float64
    assert prior_sampling(pair, x).num_particles == 20_000


@torch.no_grad()
def test_one_particle_is_one_draw() -> None:
    pair, x = oracle()
    torch.manual_seed(3)
    z = pair.prior().expand(torch.Size((1,))).sample()
    got = prior_sampling(pair, x, num_particles=1, seed=3)
    torch.testing.assert_close(got.log_likelihood, pair.decode(z).log_prob(x))
    torch.testing.assert_close(got.ess, torch.ones(5).double())


@torch.no_grad()
def test_all_data_see_the_same_draws() -> None:
    """The estimate of a datum does not depend on those beside it, nor on their number."""
    pair, x = oracle(7)
    whole = prior_sampling(pair, x, num_particles=1_500).log_likelihood
    parts = torch.cat([prior_sampling(pair, row, num_particles=1_500).log_likelihood for row in x.split([1, 4, 2])])
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-12)


PAIRS: dict[str, Any] = {
    "one site": small_vae,
    "two sites": small_hierarchy,
    "three sites": lambda: small_hierarchy(3),
    "switches": lambda: HelmholtzMachine((1, 3, 4), (4, 3)).double(),
}


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_the_product_of_matrices_is_the_table(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pair, x = make(), pixels(4)
    got = prior_sampling(pair, x, num_particles=1_200)
    # By hand: a table of the draws, those of the chunks of 1,000 and 200 one after the other.
    torch.manual_seed(0)
    laws = [generate(pair, x[:1].expand(number, *x.shape[1:]))["x"]["fn"] for number in (1_000, 200)]
    log_p = torch.cat([law.log_prob(x.unsqueeze(1)) for law in laws], 1).detach()
    torch.testing.assert_close(got.log_likelihood, log_p.logsumexp(1) - math.log(1_200), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.ess, log_p.softmax(1).square().sum(1).reciprocal(), rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(prior, "BY_PRODUCT", type(None))
    slow = prior_sampling(pair, x, num_particles=1_200)
    torch.testing.assert_close(got.log_likelihood, slow.log_likelihood, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got.ess, slow.ess, rtol=1e-10, atol=1e-10)


def test_the_sum_over_all_data_is_one() -> None:
    """Exactly, whatever the draws."""
    pair = HelmholtzMachine((4,), (3, 2)).double()
    got = prior_sampling(pair, states(4), num_particles=10)
    torch.testing.assert_close(got.log_likelihood.exp().sum(), torch.ones(()).double())


def test_agrees_with_importance_sampling() -> None:
    """Fails by chance with probability 1e-5 (5 data, each 2e-6)."""
    pair, x = small_vae(), pixels()
    got, other = prior_sampling(pair, x), importance_sampling(pair, x, num_particles=20_000, seed=1)
    error = (1 / got.ess + 1 / other.ess - 2 / 20_000).sqrt()
    assert ((got.log_likelihood - other.log_likelihood) / error).abs().max() < 4.76 and error.max() < 0.1


@pytest.mark.parametrize("make", [lambda: oracle(30), lambda: (small_vae(), pixels(30))])
def test_chunks_change_nothing_but_the_noise(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the data nothing at all; of the draws, which then are others, within the errors (1e-5 for 30 data)."""
    pair, x = make()
    runs = [prior_sampling(pair, x, num_particles=4_500)]
    for name, value in (("ROWS", 7), ("DRAWS", 333)):
        monkeypatch.setattr(prior, name, value)
        runs.append(prior_sampling(pair, x, num_particles=4_500))
    torch.testing.assert_close(runs[1].log_likelihood, runs[0].log_likelihood, rtol=1e-12, atol=1e-12)
    error = (1 / runs[0].ess + 1 / runs[2].ess - 2 / 4_500).sqrt()
    assert ((runs[2].log_likelihood - runs[0].log_likelihood) / error).abs().max() < 5.1


def test_random_numbers_modes_and_gradients_are_left_alone() -> None:
    pair, x = oracle()
    pair.train()
    state = torch.get_rng_state()
    first, again, other = (prior_sampling(pair, x, num_particles=50, seed=s).log_likelihood for s in (4, 4, 5))
    assert torch.equal(first, again) and not torch.equal(first, other) and not first.requires_grad
    assert torch.equal(torch.get_rng_state(), state) and pair.training
    assert all(p.grad is None for p in pair.parameters()) and len(pyro.get_param_store()) == 0
    torch.manual_seed(4)
    assert torch.equal(prior_sampling(pair, x, num_particles=50, seed=None).log_likelihood, first)
    assert not torch.equal(torch.get_rng_state(), state)


def test_models_without_a_guide_and_regularisers() -> None:
    class Mixture(Pair):
        """p(k) = Categorical(1/2, 1/2), p(x | k) = N(k, 1); a regulariser, which is not counted."""

        def model(self, x: Tensor) -> None:
            with pyro.plate("data", len(x), dim=-1):
                k = pyro.sample("k", dist.Categorical(x.new_tensor([0.5, 0.5])))
                pyro.factor("regulariser", 1e3 + 0 * x)
                pyro.sample("x", dist.Normal(k.to(x.dtype), 1.0), obs=x)

    x = torch.tensor([-1.0, 0.5, 3.0], dtype=torch.float64)
    got = prior_sampling(Mixture(), x, num_particles=10_000).log_likelihood
    p = torch.stack([dist.Normal(k, 1.0).log_prob(x) for k in (0.0, 1.0)]).exp()
    # The share of k = 1 is known to 0.005. Fails by chance with probability 1e-5: all data share the draws.
    assert ((got.exp() - p.mean(0)) / ((p[1] - p[0]).abs() * 0.005 + 1e-12)).abs().max() < 4.42


@pytest.mark.parametrize("likelihood", ["grey-bernoulli", "normal", "discretised-logistic"])
def test_other_likelihoods(likelihood: Any) -> None:
    pair, x = VAE((1, 3, 4), 2, (5,), likelihood=likelihood), torch.randint(256, (3, 1, 3, 4)) / 255
    got = prior_sampling(pair, x, num_particles=40)
    torch.manual_seed(0)
    law = generate(pair, x[:1].expand(40, 1, 3, 4))["x"]["fn"]
    by_hand = law.log_prob(x.unsqueeze(1)).logsumexp(1) - math.log(40)
    torch.testing.assert_close(got.log_likelihood, by_hand.detach().double())


@pytest.mark.parametrize("number", [0, -1, 1.5, True])
def test_bad_numbers(number: Any) -> None:
    pair, x = oracle()
    with pytest.raises(ValueError, match=f"num_particles: got {number!r}, expected a whole number of at least 1"):
        prior_sampling(pair, x, num_particles=number)


def test_a_model_that_is_conditioned_is_refused() -> None:
    pair: Any = ConditionalVAE((1, 3, 4), classes=3, latent_dim=2, hidden=(5,))
    with pytest.raises(ValueError, match=r"got 1 argument, expected those of ConditionalVAE\.model"):
        prior_sampling(pair, pixels().float())
