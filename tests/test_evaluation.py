"""Log-likelihoods, bounds, active units and KL terms against closed forms.

The statistical tests compare a mean with its expectation in units of its standard error; the limit Z is exceeded
with probability 1e-5 (two-sided, normal).
"""

import json
import math
from types import SimpleNamespace
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import evaluation, terms
from ppl_vae.evaluation.likelihood import ImportanceSampling, add_weights
from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.terms import NotPerDatumError
from ppl_vae.testing import LinearGaussian

Z = 4.42


class Tiled(LinearGaussian):
    particles = "tile"


class Chain(Pair):
    """p(z1) = p(z2) = N(0, I), p(x | z) = N(z1, 1); q(z1 | x) = N(a x, 1), q(z2 | z1) = N(c z1, s^2), for two units."""

    def __init__(self, a: tuple[float, float], c: float, s: float = 1.0) -> None:
        super().__init__()
        self.a, self.c, self.s = nn.Parameter(torch.tensor(a).double()), c, s

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)
            pyro.factor("regulariser", 1e3 * x.sum(-1))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z1 = pyro.sample("z1", dist.Normal(self.a * x, 1.0).to_event(1))
            pyro.sample("z2", dist.Normal(self.c * z1, self.s).to_event(1))


class Mixture(Pair):
    """p(z) = Categorical(0.3, 0.7), p(x | z) = N(mu_z, 1); q(z | x) is the posterior."""

    log_p: Tensor

    def __init__(self, one_hot: bool) -> None:
        super().__init__()
        self.prior = dist.OneHotCategorical if one_hot else dist.Categorical
        self.one_hot = one_hot
        self.register_buffer("log_p", torch.tensor([0.3, 0.7]).double().log())
        self.mu = nn.Parameter(torch.tensor([-1.0, 2.0]).double())

    def joint(self, x: Tensor) -> Tensor:
        return self.log_p + dist.Normal(self.mu, 1.0).log_prob(x[:, None])

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.prior(logits=self.log_p))
            pyro.sample("x", dist.Normal(z @ self.mu if self.one_hot else self.mu[z], 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.prior(logits=self.joint(x)))


class Plates(Pair):
    """p(z_i) = N(0, 1), p(x_i | z_i) = N(z_i, 1) for i = 1, 2, 3 in a plate of their own; q is the posterior."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5).double())

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("units", 3, dim=-2):
            z = pyro.sample("z", dist.Normal(0 * self.gain, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("units", 3, dim=-2):
            pyro.sample("z", dist.Normal(self.gain * x.T, math.sqrt(0.5)))


class Subsampled(LinearGaussian):
    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=1, dim=-1) as i:
            pyro.sample("x", self.decode(pyro.sample("z", self.prior())), obs=x[i])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=1, dim=-1) as i:
            pyro.sample("z", self.encode(x[i]))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def oracle(rows: int = 20, kind: type[LinearGaussian] = LinearGaussian) -> tuple[LinearGaussian, Tensor]:
    pair = kind(6, 3).double()
    pair.set_guide_to_posterior()
    return pair, 2 * torch.randn(rows, 6).double()


@pytest.mark.parametrize("kind", [LinearGaussian, Tiled])
@pytest.mark.parametrize("limits", [{}, {"memory": 8000}, {"batch_size": 7}, {"memory": 30_000, "batch_size": 3}])
def test_with_the_posterior_every_weight_is_the_likelihood(kind: Any, limits: dict[str, Any]) -> None:
    pair, x = oracle(kind=kind)
    result = evaluation.importance_sampling(pair, x, num_particles=50, **limits)
    torch.testing.assert_close(result.log_likelihood, pair.log_likelihood(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(result.ess, torch.full((20,), 50.0).double(), rtol=1e-10, atol=0)
    for objective in (Trace_ELBO(), IWAE(num_particles=3)):
        bound = evaluation.bound(pair, objective, x, **limits)
        torch.testing.assert_close(bound, pair.log_likelihood(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("memory", [None, 20_000])
def test_the_estimate_is_within_its_error_of_the_likelihood(memory: int | None) -> None:
    pair, x = oracle(rows=50)
    with torch.no_grad():
        pair.l.add_(0.3)  # a guide wider than the posterior: bounded weights
    result = evaluation.importance_sampling(pair, x, num_particles=4000, memory=memory)
    # log mean w has variance (E w^2 / (E w)^2 - 1) / K (delta method), which is 1 / ess - 1 / K.
    variance = 1 / result.ess - 1 / 4000
    error = result.log_likelihood - pair.log_likelihood(x)
    assert 100 < result.ess.mean() < 3900
    assert abs(error.mean()) < Z * variance.sum().sqrt() / 50


def test_sums_over_chunks_of_weights_follow_the_formulas() -> None:
    w = torch.rand(10, 4).double()
    w[:, 3] = 0.0
    state = None
    for part in w.log().split([3, 6, 1]):
        fake: Any = SimpleNamespace(log_weight=lambda part=part: part)
        state = add_weights(state, fake)
    assert state is not None
    result = ImportanceSampling.of(state, 10)
    torch.testing.assert_close(result.log_likelihood, w.mean(0).log())
    torch.testing.assert_close(result.ess[:3], (w.sum(0) ** 2 / (w**2).sum(0))[:3])
    assert result.ess[3] == 0.0
    assert math.isnan(ImportanceSampling.of(state[:, :1], 10).standard_error)


@pytest.mark.parametrize("one_hot", [False, True])
def test_discrete_latent_sites(one_hot: bool) -> None:
    pair, x = Mixture(one_hot), torch.randn(30).double()
    result = evaluation.importance_sampling(pair, x, num_particles=20)
    torch.testing.assert_close(result.log_likelihood, pair.joint(x).logsumexp(-1))
    units = evaluation.active_units(pair, x, num_particles=50)["z"]
    if one_hot:
        torch.testing.assert_close(units.variance, pair.joint(x).softmax(-1).var(0))
    assert (units.count, units.total) == ((2, 2) if one_hot else (1, 1))


def test_plates_inside_the_data_plate() -> None:
    pair, x = Plates(), torch.randn(10, 3).double()
    result = evaluation.importance_sampling(pair, x, num_particles=20, memory=20_000)
    torch.testing.assert_close(result.log_likelihood, dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).sum(-1))
    torch.testing.assert_close(evaluation.active_units(pair, x)["z"].variance, (x / 2).var(0))


def test_factors_are_not_counted() -> None:
    x = torch.randn(5, 2).double()
    pair = Chain((0.5, 0.5), c=0.0)
    exact = dist.Normal(0.0, math.sqrt(2.0)).log_prob(x).sum(-1)
    assert (evaluation.log_likelihood(pair, x, num_particles=2000) - exact).abs().max() < 1.0


def test_active_units_of_the_first_layer_are_exact() -> None:
    x = torch.randn(300, 2).double()
    units = evaluation.active_units(Chain((0.5, 0.0), c=0.0), x, num_particles=2, memory=5000)["z1"]
    torch.testing.assert_close(units.variance, x.var(0) * torch.tensor([0.25, 0.0]))
    assert (units.count, units.total) == (1, 2)


def test_the_bias_of_a_deeper_layer_is_subtracted() -> None:
    # E_q[z2 | z1] = c z1 varies by c^2 = 1 within a datum, also for the unit that knows nothing of x.
    x, pair, size = torch.randn(2000, 2).double(), Chain((0.5, 0.0), c=1.0), 20
    units = evaluation.active_units(pair, x, num_particles=size, memory=200_000)["z2"]
    drawn = terms.draw(pair.model, pair.guide, x, num_particles=size).draws[0].guide["z2"]
    naive = drawn.fn.mean.mean(0).var(0)
    assert naive[1] > 0.01 and units.count == 1
    # A variance v of N normal values has standard error v sqrt(2 / N); the bias' own error is far smaller.
    exact = x.var(0) * torch.tensor([0.25, 0.0])
    assert ((units.variance - exact).abs() < Z * naive * math.sqrt(2 / 2000)).all()


def test_kl_per_site_meets_the_closed_form() -> None:
    x = torch.tensor([[1.0, -2.0]]).double().expand(2000, 2).contiguous()
    pair = Chain((0.5, 0.25), c=0.5, s=0.7)
    kl = evaluation.kl_per_site(pair, x, num_particles=5, memory=100_000)
    mean = pair.a.detach() * x[0]
    # KL(N(m, s^2) || N(0, 1)) = (m^2 + s^2 - 1) / 2 - log s, with E[m^2] = c^2 (mean^2 + 1) for z2.
    exact = {"z1": (mean**2).sum() / 2}
    exact["z2"] = ((0.25 * (mean**2 + 1) + 0.49 - 1) / 2 - math.log(0.7)).sum()
    for name, value in exact.items():
        assert abs(kl[name].mean() - value) < Z * kl[name].std() / math.sqrt(2000), name


def test_evaluate_agrees_with_its_parts() -> None:
    pair, x = oracle()
    result = evaluation.evaluate(pair, x, objective=Trace_ELBO(), num_particles=30, batch_size=6, seed=1)
    assert result.nll == pytest.approx(-pair.log_likelihood(x).mean().item())
    assert result.bound == pytest.approx(-result.nll)
    assert result.nll_se == pytest.approx(pair.log_likelihood(x).std().item() / math.sqrt(20))
    assert result.ess_fraction == pytest.approx(1.0)
    assert result.active_units["z"].variance == pytest.approx(pair.encode(x).mean.var(0).tolist())
    kl = evaluation.kl_per_site(pair, x, num_particles=30, batch_size=6, seed=1)["z"]
    assert result.kl["z"] == pytest.approx(kl.mean().item())
    assert (result.num_data, result.num_dims, result.num_particles, result.seed) == (20, 6, 30, 1)
    assert result.bits_per_dim == pytest.approx(result.nll / 6 / math.log(2))


def test_evaluate_of_one_datum_is_json() -> None:
    result = evaluation.evaluate(VAE((4,), latent_dim=2, hidden=(3,)), torch.ones(1, 4), num_particles=1)
    record = json.loads(json.dumps(result.as_dict(), allow_nan=False))
    assert record["nll_se"] is None and record["active_units"] == {} and record["label"] == "log-likelihood"


def test_grey_pixels_are_named() -> None:
    x = torch.rand(5, 1, 4, 4)
    pair = VAE((1, 4, 4), latent_dim=2, hidden=(3,), likelihood="grey-bernoulli")
    result = evaluation.evaluate(pair, x, num_particles=3)
    assert result.label == "not a log-likelihood (grey pixels under a Bernoulli)" and result.bits_per_dim is None
    # Support is validated over all data, not over the first chunk alone.
    x[:4] = x[:4].round()
    with pytest.raises(ValueError, match=r"site 'x'.*support"):
        evaluation.log_likelihood(VAE((1, 4, 4), latent_dim=2, hidden=(3,)), x, num_particles=3, batch_size=1)


def test_a_seed_is_reproducible_and_leaves_no_trace() -> None:
    pair, x = HierarchicalVAE((4,), (2, 2), ((3,), (3,))), torch.rand(6, 4).round()
    pair.decoder.append(nn.Identity())
    pair.encoder.eval()
    modes = [m.training for m in pair.modules()]
    before = torch.random.get_rng_state()
    first, second = (evaluation.log_likelihood(pair, x, num_particles=9, seed=3) for _ in range(2))
    assert torch.equal(first, second) and torch.equal(before, torch.random.get_rng_state())
    assert [m.training for m in pair.modules()] == modes
    assert not torch.equal(first, evaluation.log_likelihood(pair, x, num_particles=9, seed=4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_particles": 0}, "num_particles: got 0, expected a whole number of at least 1"),
        ({"num_particles": 2.5}, "num_particles: got 2.5"),
        ({"memory": 100}, "memory: got 100 bytes, expected at least"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"memory": 3000, "batch_size": 20}, "lower batch_size"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    pair, x = oracle()
    with pytest.raises(ValueError, match=message):
        evaluation.importance_sampling(pair, x, **options)


def test_every_entry_checks_its_batch() -> None:
    pair, _ = oracle()
    for function in (evaluation.log_likelihood, evaluation.active_units, evaluation.kl_per_site, evaluation.evaluate):
        with pytest.raises(ValueError, match="got 0 rows"):
            function(pair, torch.zeros(0, 6).double())
    with pytest.raises(ValueError, match="got 0 rows"):
        evaluation.bound(pair, IWAE(), torch.zeros(0, 6).double())


def test_what_has_no_value_per_datum_is_refused() -> None:
    pair, x = oracle()
    with pytest.raises(ValueError, match="joint=True"):
        evaluation.bound(pair, IWAE(joint=True), x)
    with pytest.raises(TypeError, match=r"got Trace_ELBO, expected one of ppl_vae\.objectives"):
        evaluation.bound(pair, pyro.infer.Trace_ELBO(), x)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="num_particles: got 1, expected at least 2"):
        evaluation.active_units(pair, x, num_particles=1)
    with pytest.raises(ValueError, match="got 1 row, expected at least 2"):
        evaluation.active_units(pair, x[:1])
    with pytest.raises(NotPerDatumError, match="plate 'data': got 1 rows for"):
        evaluation.log_likelihood(Subsampled(6, 3).double(), x, num_particles=3)
