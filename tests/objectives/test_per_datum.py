"""Where Pyro's `RenyiELBO` silently is not the bound: a right number, or an error that names the site."""

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch

from ppl_vae.objectives import IWAE, RenyiELBO, Trace_ELBO
from ppl_vae.terms import NotPerDatumError
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import assert_same, linear, log_weights, seeded_bound, seeded_loss, stock_loss, vectors

K = 5


def by_hand(pair, x, scale=1.0, alpha=0.0):
    """-scale * sum_b log mean_k w_bk and its gradients."""
    power = 1 - alpha
    bound = (torch.logsumexp(power * log_weights(pair, x, K), 0) - math.log(K)) / power
    loss = -scale * bound.sum()
    return loss.item(), helpers.gradients_of(pair, loss)


def pyros(pair, x, vectorised=True, alpha=0.0):
    return stock_loss(pair, helpers.stock_renyi(alpha, K, vectorised), x)[0]


@pytest.mark.parametrize("alpha", [0.0, 0.5, -1.0])
@pytest.mark.parametrize(("cls", "scale"), [(helpers.Subsampled, 50 / 5), (helpers.Scaled, 3.0)])
def test_the_scale_stands_outside_the_logarithm(cls, scale, alpha):
    pair, x = linear(cls), vectors()
    expected = by_hand(pair, x, scale, alpha)
    assert_same(seeded_loss(pair, RenyiELBO(alpha, num_particles=K), x), expected)
    got = seeded_bound(pair, RenyiELBO(alpha, num_particles=K), x)
    assert got.shape == (5,) and got.sum().item() == pytest.approx(-expected[0] / scale)
    assert abs(pyros(pair, x, alpha=alpha) - expected[0]) > 0.1


def test_a_scale_on_one_site_is_refused_by_name():
    class ScaledLatent(LinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                with pyro.poutine.scale(scale=0.5):
                    z = pyro.sample("z", self.prior())
                pyro.sample("x", self.decode(z), obs=x)

        def guide(self, x):
            with pyro.poutine.scale(scale=0.5):
                super().guide(x)

    pair, x = linear(ScaledLatent), vectors()
    with pytest.raises(NotPerDatumError, match=r"site 'x' has scale 1.*site 'z' has 0.5.*kl_weight"):
        seeded_loss(pair, IWAE(K), x)
    stock = pyro.infer.Trace_ELBO(K, max_plate_nesting=1, vectorize_particles=True)
    assert_same(seeded_loss(pair, Trace_ELBO(K), x), stock_loss(pair, stock, x))


@pytest.mark.parametrize("run", [seeded_bound, seeded_loss])
def test_a_site_outside_the_plate_is_refused_by_name(run):
    with pytest.raises(NotPerDatumError, match=r"site 'm' is not per datum: got no plate.*joint=True.*Trace_ELBO"):
        run(linear(helpers.GlobalSite), IWAE(K), vectors())


def test_a_global_site_has_no_elbo_per_datum():
    with pytest.raises(NotPerDatumError, match="site 'm' is not per datum"):
        seeded_bound(linear(helpers.GlobalSite), Trace_ELBO(K), vectors())


class TwoNames(LinearGaussian):
    """z and x in plates of different names."""

    def model(self, x):
        with pyro.plate("codes", len(x), dim=-1):
            z = pyro.sample("z", self.prior())
        with pyro.plate("images", len(x), dim=-1):
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x):
        with pyro.plate("codes", len(x), dim=-1):
            pyro.sample("z", self.encode(x))


class GuidePlateAlone(LinearGaussian):
    """One z for all data; the guide has an auxiliary site for each datum, the model has no plate at all."""

    def model(self, x):
        z = pyro.sample("z", self.prior())
        pyro.sample("x", self.decode(z.unsqueeze(-2).expand(*z.shape[:-1], len(x), 2)).to_event(1), obs=x)

    def guide(self, x):
        z = pyro.sample("z", self.encode(x.mean(0)))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("u", dist.Normal(z.sum(-1), 1.0), infer={"is_auxiliary": True})


class Sequential(LinearGaussian):
    """One site for each row, in a Python loop."""

    def rows(self, x) -> Any:
        return pyro.plate("data", len(x))

    def model(self, x):
        for i in self.rows(x):
            z = pyro.sample(f"z_{i}", self.prior())
            pyro.sample(f"x_{i}", self.decode(z), obs=x[i])

    def guide(self, x):
        for i in self.rows(x):
            pyro.sample(f"z_{i}", self.encode(x[i]))


@pytest.mark.parametrize("run", [seeded_bound, seeded_loss])
@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (TwoNames, r"site 'x' is not per datum: got plate 'images' \(dim=-1, size=5\), expected the plate 'codes'"),
        (GuidePlateAlone, r"site 'z' is not per datum: got no plate, expected pyro.plate"),
        (Sequential, r"site 'z_0' is not per datum: got plate 'data' \(sequential\), expected pyro.plate"),
    ],
)
def test_sites_without_one_vectorised_plate_are_refused_by_name(cls, message, run):
    with pytest.raises(NotPerDatumError, match=message):
        run(linear(cls), IWAE(K), vectors())


def test_sites_in_plates_of_two_names_make_pyro_take_one_weight_for_the_batch():
    pair, x = linear(TwoNames), vectors()
    log_w = log_weights(pair, x, K)
    assert pyros(pair, x) == pytest.approx(-(log_w.sum(1).logsumexp(0) - math.log(K)).item())
    assert abs(pyros(pair, x) + (log_w.logsumexp(0) - math.log(K)).sum().item()) > 0.1


@pytest.mark.filterwarnings("ignore:Found plate statements in guide but not model")
def test_a_plate_of_the_guide_alone_makes_pyro_count_the_model_once_for_each_datum():
    pair, x = linear(GuidePlateAlone), vectors()
    ours = IWAE(K, max_plate_nesting=1, joint=True)
    torch.manual_seed(0)
    draw = ours.terms(pair.model, pair.guide, x).draws[0]
    z, u = draw.guide["z"].value, draw.guide["u"].value
    log_w = pair.prior().log_prob(z) + pair.decode(z).log_prob(x).sum(1, keepdim=True)
    log_w = log_w - pair.encode(x.mean(0)).log_prob(z) - dist.Normal(z.sum(-1), 1.0).log_prob(u).sum(1, keepdim=True)
    by_hand = -(log_w.logsumexp(0) - math.log(K)).item()
    assert seeded_loss(pair, ours, x)[0] == pytest.approx(by_hand)
    assert abs(pyros(pair, x) - by_hand) > 1.0


class SubsampledInside(LinearGaussian):
    """The plate picks three rows of the batch by itself."""

    def model(self, x):
        with pyro.plate("data", len(x), subsample_size=3, dim=-1) as rows:
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.decode(z), obs=x[rows])

    def guide(self, x):
        with pyro.plate("data", len(x), subsample_size=3, dim=-1) as rows:
            pyro.sample("z", self.encode(x[rows]))


@pytest.mark.parametrize("vectorised", [True, False])
def test_all_particles_share_the_minibatch_that_a_plate_picks(vectorised):
    pair, x = linear(SubsampledInside), vectors(30)
    objective = IWAE(K, vectorize_particles=vectorised)
    torch.manual_seed(0)
    terms = objective.terms(pair.model, pair.guide, x)
    rows = terms.draws[0].model["x"].value
    assert all(torch.equal(d.model["x"].value, rows) for d in terms.draws)
    z = torch.cat([d.guide["z"].value.reshape(-1, 3, 2) for d in terms.draws])
    assert z.shape == (K, 3, 2) and len(z[:, 0].unique(dim=0)) == K
    log_w = pair.prior().log_prob(z) + pair.decode(z).log_prob(rows) - pair.encode(rows).log_prob(z)
    expected = -10.0 * (log_w.logsumexp(0) - math.log(K)).sum()
    got = seeded_loss(pair, objective, x)
    assert_same(got, (expected.item(), helpers.gradients_of(pair, expected)))
    assert abs(pyros(pair, x, vectorised) - got[0]) > 0.1


def test_a_discrete_guide_site_is_refused_by_name():
    pair, x = linear(helpers.DiscreteGuide), vectors()
    message = r"guide site 'y': got Bernoulli, which is not reparameterised.*Trace_ELBO.*TraceEnum_ELBO"
    with pytest.raises(ValueError, match=message):
        seeded_loss(pair, IWAE(K), x)
    assert -seeded_bound(pair, IWAE(K), x).sum().item() == pytest.approx(pyros(pair, x))


@pytest.mark.parametrize("objective", [Trace_ELBO(K), IWAE(K)])
def test_a_factor_in_the_model_is_in_the_loss_and_not_in_the_bound(objective):
    class Penalised(LinearGaussian):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", self.prior())
                pyro.factor("penalty", -z.square().sum(-1))
                pyro.sample("x", self.decode(z), obs=x)

    plain, x = linear(), vectors()
    pair = linear(Penalised)
    pair.load_state_dict(plain.state_dict())
    torch.testing.assert_close(seeded_bound(pair, objective, x), seeded_bound(plain, objective, x))
    log_w = log_weights(plain, x, K)
    torch.manual_seed(0)
    penalty = -plain.encode(x).expand(torch.Size((K, 5))).rsample().square().sum(-1)
    mean = torch.mean if isinstance(objective, Trace_ELBO) else lambda w, dim: w.logsumexp(dim) - math.log(K)
    expected = -mean(log_w + penalty, 0).sum()
    assert_same(seeded_loss(pair, objective, x), (expected.item(), helpers.gradients_of(plain, expected)))


def test_joint_is_one_weight_for_the_whole_batch():
    pair, x = linear(), vectors()
    expected = -(log_weights(pair, x, K).sum(1).logsumexp(0) - math.log(K))
    expected = expected.item(), helpers.gradients_of(pair, expected)
    assert_same(seeded_loss(pair, IWAE(K, joint=True), x), expected)
    torch.testing.assert_close(seeded_bound(pair, IWAE(K, joint=True), x), torch.tensor([-expected[0]]).double())


@pytest.mark.parametrize(("cls", "vectorised"), [(Sequential, False), (helpers.GlobalSite, True)])
def test_joint_is_what_pyro_computes_of_a_program_without_one_plate(cls, vectorised):
    pair, x = linear(cls), vectors()
    stock = helpers.stock_renyi(0.5, K, vectorised)
    ours = RenyiELBO(0.5, K, max_plate_nesting=1, vectorize_particles=vectorised, joint=True)
    assert_same(seeded_loss(pair, ours, x), stock_loss(pair, stock, x))


def test_there_is_a_differentiable_loss_where_pyro_has_none():
    pair, x = linear(), vectors()
    with pytest.raises(AttributeError, match="differentiable_loss"):
        helpers.stock_renyi(0.0, K, True)(pair, pair)(x)
    module = IWAE(K)(pair.model, pair.guide)
    torch.manual_seed(0)
    loss = module(x)
    assert_same((loss.item(), helpers.gradients_of(pair, loss)), by_hand(pair, x))
