"""`Trace_ELBO` and `TraceMeanField_ELBO` against Pyro's on a shared seed, and against closed forms."""

import itertools

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.poutine.trace_struct import Trace
from torch.distributions import kl_divergence

from ppl_vae import Pair
from ppl_vae.objectives import Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import assert_same, linear, pixels, seeded_bound, seeded_loss, stock_loss, vectors

REPARAMETERISED = {
    "vae": lambda: (helpers.small_vae(), pixels()),
    "one layer": lambda: (helpers.small_hierarchy(1), pixels()),
    "linear": lambda: (linear(), vectors()),
    "subsampled": lambda: (linear(helpers.Subsampled), vectors()),
    "scaled": lambda: (linear(helpers.Scaled), vectors()),
    "masked": lambda: (linear(helpers.Masked), vectors()),
    "global": lambda: (linear(helpers.GlobalSite), vectors()),
}
ALL = {
    **REPARAMETERISED,
    "three layers": lambda: (helpers.small_hierarchy(3), pixels()),
    "discrete": lambda: (linear(helpers.DiscreteGuide), vectors()),
}
particles = pytest.mark.parametrize(("num_particles", "vectorised"), [(1, True), (1, False), (3, True), (3, False)])


@particles
@pytest.mark.parametrize("name", ALL)
def test_trace_elbo_is_pyros(name, num_particles, vectorised):
    pair, x = ALL[name]()
    ours = Trace_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=vectorised)
    stock = pyro.infer.Trace_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=vectorised)
    assert_same(seeded_loss(pair, ours, x), stock_loss(pair, stock, x))


@particles
@pytest.mark.parametrize("name", REPARAMETERISED)
def test_mean_field_elbo_is_pyros(name, num_particles, vectorised):
    pair, x = REPARAMETERISED[name]()
    ours = TraceMeanField_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=vectorised)
    stock = pyro.infer.TraceMeanField_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=vectorised)
    assert_same(seeded_loss(pair, ours, x), stock_loss(pair, stock, x))


@pytest.mark.parametrize("elbo", [Trace_ELBO(4), TraceMeanField_ELBO(4)])
def test_the_loss_is_the_negative_bound_summed_over_the_batch(elbo):
    pair, x = linear(), vectors()
    assert seeded_bound(pair, elbo, x).shape == (5,)
    assert seeded_loss(pair, elbo, x)[0] == pytest.approx(-seeded_bound(pair, elbo, x).sum().item(), rel=1e-12)


def test_bound_is_the_mean_log_weight():
    pair, x = linear(), vectors()
    by_hand = helpers.log_weights(pair, x, 3).mean(0)
    torch.testing.assert_close(seeded_bound(pair, Trace_ELBO(3), x), by_hand.detach(), rtol=1e-12, atol=1e-12)


def test_mean_field_elbo_of_gaussians_by_hand():
    pair, x = linear(), vectors()
    torch.manual_seed(0)
    q = pair.encode(x)
    z, mean, sigma = q.rsample(), q.mean, q.base_dist.scale
    kl = 0.5 * (mean**2 + sigma**2 - 1 - 2 * sigma.log()).sum(-1)
    by_hand = pair.decode(z).log_prob(x) - kl
    torch.testing.assert_close(seeded_bound(pair, TraceMeanField_ELBO(), x), by_hand.detach())


def test_mean_field_elbo_samples_a_kl_term_without_closed_form():
    class StudentPrior(LinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.StudentT(x.new_tensor(5.0)).expand([2]).to_event(1))
                pyro.sample("x", self.decode(z), obs=x)

    pair, x = linear(StudentPrior), vectors()
    sampled, analytic = Trace_ELBO(3), TraceMeanField_ELBO(3)
    torch.testing.assert_close(seeded_bound(pair, analytic, x), seeded_bound(pair, sampled, x))
    assert_same(seeded_loss(pair, analytic, x), seeded_loss(pair, sampled, x))


@pytest.mark.parametrize("run", [seeded_bound, seeded_loss])
def test_mean_field_elbo_refuses_a_bottom_up_guide(run):
    with pytest.raises(ValueError, match=r"site 'z1': the model draws 'z2' before it.*fallback=True"):
        run(helpers.small_hierarchy(2), TraceMeanField_ELBO(), pixels())


@pytest.mark.parametrize("run", [seeded_bound, seeded_loss])
def test_mean_field_elbo_refuses_a_discrete_guide_site(run):
    with pytest.raises(ValueError, match=r"site 'y': got Bernoulli, which is not reparameterised.*Trace_ELBO"):
        run(linear(helpers.DiscreteGuide), TraceMeanField_ELBO(), vectors())


def test_fallback_is_analytic_where_valid_and_sampled_elsewhere():
    pair, x = helpers.small_hierarchy(2), pixels()
    torch.manual_seed(0)
    terms = Trace_ELBO(4).terms(pair.model, pair.guide, x)
    draw = terms.draws[0]
    analytic = kl_divergence(draw.guide["z2"].fn, draw.model["z2"].fn)
    by_hand = terms.log_p["x"] - (terms.log_q["z1"] - terms.log_p["z1"]) - analytic
    got = seeded_bound(pair, TraceMeanField_ELBO(4, fallback=True), x)
    torch.testing.assert_close(got, by_hand.mean(0).detach())


def test_fallback_is_unbiased():
    pair, x = helpers.small_hierarchy(2), pixels(1).expand(20_000, -1, -1, -1)
    mixture = seeded_bound(pair, TraceMeanField_ELBO(fallback=True), x)
    sampled = seeded_bound(pair, Trace_ELBO(), x)
    assert (mixture - sampled).std() > 0.01
    # Fails by chance with probability 1e-5.
    assert helpers.z_score(mixture - sampled).abs() < helpers.Z_LIMIT


class Auxiliary(Pair):
    """q(u) q(y | u) with an auxiliary u; both are switches, so every expectation is a sum of four terms."""

    def __init__(self):
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(0.3))
        self.b = torch.nn.Parameter(torch.tensor([-0.2, 0.9]))
        self.c = torch.nn.Parameter(torch.tensor(0.5))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.4)))
            pyro.sample("x", dist.Normal(self.c * y, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Bernoulli(logits=self.a), infer={"is_auxiliary": True})
            pyro.sample("y", dist.Bernoulli(logits=self.b[u.long()]))


def test_score_function_gradient_is_exact_in_expectation_with_auxiliary_sites():
    pair, x = Auxiliary().double(), vectors(1, 1)[0]
    expected_gradient = {name: torch.zeros_like(p) for name, p in pair.named_parameters()}
    elbo = torch.zeros((), dtype=torch.float64)
    for values in itertools.product((0.0, 1.0), repeat=2):
        outcome = Trace()
        for name, value in zip("uy", values, strict=True):
            infer = {"is_auxiliary": name == "u"}
            node = {"type": "sample", "value": x.new_full((1,), value), "is_observed": False, "infer": infer}
            outcome.add_node(name, name=name, **node)
        guide = pyro.poutine.replay(pair.guide, trace=outcome)
        terms = Trace_ELBO().terms(pair.model, guide, x)
        q = (terms.log_q["u"] + terms.log_q["y"]).exp().sum()
        elbo = elbo + q * terms.log_weight().sum()
        loss = Trace_ELBO().differentiable_loss(pair.model, guide, x)
        for name, gradient in helpers.gradients_of(pair, loss).items():
            expected_gradient[name] += q.detach() * gradient
    torch.testing.assert_close(expected_gradient, helpers.gradients_of(pair, -elbo))


@pytest.mark.parametrize("elbo", [Trace_ELBO(3), TraceMeanField_ELBO(3)])
def test_a_factor_in_the_guide_is_in_the_loss_and_not_in_the_bound(elbo):
    class GuideFactor(LinearGaussian):
        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", self.encode(x))
                pyro.factor("penalty", z.square().sum(-1), has_rsample=True)

    plain, x = linear(), vectors()
    pair = linear(GuideFactor)
    pair.load_state_dict(plain.state_dict())
    torch.testing.assert_close(seeded_bound(pair, elbo, x), seeded_bound(plain, elbo, x))
    torch.manual_seed(0)
    z = plain.encode(x).expand(torch.Size((3, 5))).rsample()
    penalty = z.square().sum().item() / 3
    assert seeded_loss(pair, elbo, x)[0] == pytest.approx(seeded_loss(plain, elbo, x)[0] + penalty, rel=1e-10)


@pytest.mark.parametrize("elbo", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_without_latent_sites_the_elbo_is_the_log_likelihood(elbo):
    class Coin(Pair):
        def __init__(self):
            super().__init__()
            self.logit = torch.nn.Parameter(torch.tensor(0.5))

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Bernoulli(logits=self.logit), obs=x)

    pair, x = Coin(), torch.tensor([1.0, 0.0])
    expected = dist.Bernoulli(logits=torch.tensor(0.5)).log_prob(x)
    torch.testing.assert_close(elbo.bound(pair.model, pair.guide, x), expected)
    assert elbo.loss(pair.model, pair.guide, x) == pytest.approx(-expected.sum().item())


@pytest.mark.parametrize("elbo", [Trace_ELBO, TraceMeanField_ELBO])
@pytest.mark.parametrize(
    ("argument", "value"), [("num_particles", 0), ("num_particles", 1.5), ("kl_weight", -1.0), ("kl_weight", torch.inf)]
)
def test_bad_arguments(elbo, argument, value):
    with pytest.raises(ValueError, match=f"{argument}: got {value}"):
        elbo(**{argument: value})
