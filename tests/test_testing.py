"""`check_pair` finds what is wrong, and `LinearGaussian` is what it says."""

import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule, PyroParam
from torch import nn

from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.testing import LinearGaussian, check_pair
from tests import helpers
from tests.helpers import linear, vectors

SHAPE = (1, 8, 8)
SHIPPED = {
    "mlp": lambda: VAE(SHAPE, 3, (10,)),
    "conv": lambda: VAE(SHAPE, 3, (4, 4), trunk="conv"),
    "normal": lambda: VAE(SHAPE, 3, (10,), likelihood="normal"),
    "one layer": lambda: HierarchicalVAE(SHAPE, (3,), ((10,),)),
    "two layers": lambda: HierarchicalVAE(SHAPE, (3, 2), ((10,), (5,))),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_pairs_pass(name):
    report = check_pair(SHIPPED[name](), torch.rand(5, *SHAPE).round())
    assert report.ok, str(report)
    report.raise_if_failed()


@pytest.mark.parametrize("cls", [LinearGaussian, helpers.DiscreteGuide, helpers.Scaled, helpers.Masked])
def test_other_right_pairs_pass(cls):
    report = check_pair(linear(cls), vectors(6))
    assert report.ok, str(report)


def test_a_tiled_pair_passes():
    class Tiled(LinearGaussian):
        particles = "tile"

        def decode(self, z):
            assert z.dim() == 2
            return super().decode(z)

    report = check_pair(linear(Tiled), vectors(6))
    assert report.ok, str(report)


class LatentOfTheGuideAlone(LinearGaussian):
    def guide(self, x):
        super().guide(x)
        pyro.sample("u", dist.Normal(0.0, 1.0))


class InTheStore(LinearGaussian):
    def decode(self, z):
        return super().decode(z + pyro.param("shift", torch.zeros(2, dtype=torch.float64)))


class PyroShift(PyroModule):
    def __init__(self):
        super().__init__()
        self.shift = PyroParam(torch.zeros(2, dtype=torch.float64))

    def forward(self, z):
        return z + self.shift


class PyroNetwork(LinearGaussian):
    def __init__(self, data_dim, latent_dim):
        super().__init__(data_dim, latent_dim)
        self.network = PyroShift()

    def decode(self, z):
        return super().decode(self.network(z))


class FixedSize(LinearGaussian):
    def model(self, x):
        super().model(x[:5])

    def guide(self, x):
        super().guide(x[:5])


class ScaledLatent(LinearGaussian):
    def guide(self, x):
        with pyro.poutine.scale(scale=0.5):
            super().guide(x)


class MixedRows(LinearGaussian):
    def encode(self, x):
        return super().encode(x - x.mean(0))


class BatchNormalised(LinearGaussian):
    def __init__(self, data_dim, latent_dim):
        super().__init__(data_dim, latent_dim)
        self.norm = nn.BatchNorm1d(data_dim)

    def encode(self, x):
        return super().encode(self.norm(x))


class Unused(LinearGaussian):
    def __init__(self, data_dim, latent_dim):
        super().__init__(data_dim, latent_dim)
        self.forgotten = nn.Parameter(torch.zeros(3))


class Hidden(LinearGaussian):
    def __init__(self, data_dim, latent_dim):
        super().__init__(data_dim, latent_dim)
        self.hidden = [nn.Linear(2, 2, dtype=torch.float64)]

    def decode(self, z):
        return super().decode(self.hidden[0](z))


class InfiniteSlope(LinearGaussian):
    def encode(self, x):
        return super().encode(x + (x * self.c.sum()).abs().sqrt() * 0)


class ForgetsItsBias(LinearGaussian):
    def load_state_dict(self, state_dict, strict=True, assign=False):
        return super().load_state_dict({**state_dict, "b": self.b.detach()}, strict, assign)


class NeedsDouble(LinearGaussian):
    def encode(self, x):
        return super().encode(x @ torch.eye(4, dtype=torch.float64))


class DoublePrior(LinearGaussian):
    def prior(self):
        return dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1)


class Overflows(LinearGaussian):
    """The variance is 0 in single precision."""

    def decode(self, z):
        return dist.Normal(super().decode(z).mean, 1e-25 * self.log_s.exp()).to_event(1)


class NormalisesParticles(LinearGaussian):
    """Right for one particle alone: the mean is over dimension 0 of z, the particles."""

    def decode(self, z):
        return super().decode(z - z.mean(0) if z.dim() > 2 else z)


class WorseTogether(LinearGaussian):
    """Several particles weigh less than one."""

    def decode(self, z):
        return super().decode(z + 9.0 * (z.dim() > 2))


BROKEN = {
    LatentOfTheGuideAlone: ("sites", r"the model has no latent site 'u'"),
    InTheStore: ("sites", r"got 'shift' in Pyro's parameter store"),
    PyroNetwork: ("sites", r"got '.*shift' in Pyro's parameter store"),
    helpers.GlobalSite: ("per datum", r"site 'm' is not per datum"),
    FixedSize: ("per datum", r"got 5 rows in plate 'data' for a batch of 6.*take the size from the batch"),
    ScaledLatent: ("per datum", r"site 'z' has scale 1.0, site 'z' has 0.5"),
    MixedRows: ("rows apart", r"got a bound of row \d that moved by .* nats when other rows were replaced"),
    BatchNormalised: ("rows apart", r"got a bound of row \d that moved"),
    Unused: ("gradients", r"got no gradient for \['forgotten'\]"),
    Hidden: ("gradients", r"a tensor of shape \(2.*\) which needs gradient and is not in pair.parameters"),
    InfiniteSlope: ("gradients", r"got a non-finite gradient for \["),
    ForgetsItsBias: ("state_dict", r"the bound of a copy that loaded the state: got"),
    NeedsDouble: ("dtypes", "RuntimeError: .*dtype.*$"),
    DoublePrior: ("dtypes", r"got log weights in torch.float64 from a pair and a batch in torch.float32"),
    Overflows: ("dtypes", r"log w in float32: got -inf"),
    NormalisesParticles: ("particles", r"log w of particle 0 in one trace \(plate\): got"),
    WorseTogether: ("bounds", r"expected ELBO <= IWAE"),
}


@pytest.mark.parametrize("cls", BROKEN)
def test_what_is_wrong_is_found(cls):
    name, message = BROKEN[cls]
    report = check_pair(linear(cls), vectors(6))
    assert not report.ok
    failed = {check.name: check.message for check in report.checks if not check.ok}
    assert re.search(message, failed[name]), str(report)
    with pytest.raises(AssertionError, match=re.escape(str(report))):
        report.raise_if_failed()


def test_nothing_is_reported_that_is_right():
    """The first fault alone is reported, where the checks do not depend on each other."""
    for cls in (MixedRows, BatchNormalised, Unused, ForgetsItsBias, NeedsDouble, DoublePrior, NormalisesParticles):
        report = check_pair(linear(cls), vectors(6))
        assert [check.name for check in report.checks if not check.ok] == [BROKEN[cls][0]]


def test_a_report_has_a_line_for_each_check():
    lines = str(check_pair(linear(Unused), vectors())).splitlines()
    assert lines[0] == "Unused:" and len(lines) == 9
    assert lines[1] == "  ok    sites: model ['z', 'x'], guide ['z']"
    assert lines[4].startswith("  FAIL  gradients: got no gradient for ['forgotten']")


def test_the_checks_after_a_mismatch_are_not_run():
    report = check_pair(linear(LatentOfTheGuideAlone), vectors())
    assert [check.message for check in report.checks[1:]] == ["not run; mend 'sites' first"] * 7


def test_everything_stays_as_it_was():
    pair, x = BatchNormalised(4, 2).double(), vectors()
    pair.b.grad = torch.ones_like(pair.b)
    pair.norm.eval()
    pyro.param("mine", torch.ones(1))
    storing = linear(InTheStore)
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    state = torch.get_rng_state()
    check_pair(pair, x)
    check_pair(storing, x)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(dict(pair.state_dict()), before, rtol=0, atol=0)
    assert pair.training and not pair.norm.training
    assert [name for name, p in pair.named_parameters() if p.grad is not None] == ["b"]
    assert torch.equal(pair.b.grad, torch.ones_like(pair.b))
    assert list(pyro.get_param_store().keys()) == ["mine"]


@pytest.mark.parametrize("x", [vectors(1), vectors(1).expand(4, 4), torch.zeros(())])
def test_a_batch_that_cannot_tell_rows_apart_is_refused(x):
    with pytest.raises(ValueError, match="expected unlike rows, at least 2"):
        check_pair(linear(), x)


def test_one_particle_is_too_few():
    with pytest.raises(ValueError, match="num_particles: got 1, expected at least 2"):
        check_pair(linear(), vectors(), num_particles=1)


def test_log_likelihood_is_the_integral_over_z():
    pair, x = LinearGaussian(4, 1).double(), vectors()
    z = torch.linspace(-10, 10, 4001, dtype=torch.float64).view(-1, 1, 1)
    joint = pair.prior().log_prob(z) + pair.decode(z).log_prob(x)
    integral = joint.logsumexp(0) + math.log(20 / 4000)
    torch.testing.assert_close(pair.log_likelihood(x), integral, rtol=1e-9, atol=1e-9)


def test_posterior_is_bayes_rule():
    pair, x = LinearGaussian(4, 3).double(), vectors()
    posterior, z = pair.posterior(x), vectors(5, 3)
    assert posterior.mean.shape == (5, 3) and posterior.covariance_matrix.shape == (5, 3, 3)
    by_rule = pair.prior().log_prob(z) + pair.decode(z).log_prob(x) - pair.log_likelihood(x)
    torch.testing.assert_close(posterior.log_prob(z), by_rule)


def test_the_guide_can_be_the_posterior():
    pair, x = LinearGaussian(4, 3).double(), vectors()
    assert pair.posterior(x).covariance_matrix[0].triu(1).abs().max() > 1e-3
    pair.set_guide_to_posterior()
    posterior, q = pair.posterior(x), pair.encode(x)
    torch.testing.assert_close(q.mean, posterior.mean)
    torch.testing.assert_close(torch.diag_embed(q.variance), posterior.covariance_matrix)


@pytest.mark.parametrize("latent_dim", [1, 2, 4])
def test_optimum_is_reached_by_the_closed_form_and_by_nothing_near(latent_dim):
    """Tipping & Bishop 1999, eq. 7 and 8."""
    pair = LinearGaussian(4, latent_dim).double()
    x = vectors(200) @ vectors(4, 4)
    eigenvalues, vectors_ = torch.linalg.eigh(torch.cov(x.T, correction=0))
    # With d = D there is no noise left to fit: any small s^2 will do.
    s2 = eigenvalues[:-latent_dim].mean() if latent_dim < 4 else eigenvalues[0] / 2
    with torch.no_grad():
        pair.W.copy_(vectors_[:, -latent_dim:] * (eigenvalues[-latent_dim:] - s2).sqrt())
        pair.b.copy_(x.mean(0))
        pair.log_s.copy_(s2.log() / 2)
    likelihood = pair.log_likelihood(x).mean()
    assert likelihood.item() == pytest.approx(pair.optimum(x), rel=1e-10)
    gradients = torch.autograd.grad(likelihood, [pair.W, pair.b, pair.log_s])
    assert max(g.abs().max() for g in gradients) < 1e-10


def test_single_precision_goes_in_and_comes_out():
    pair, x = LinearGaussian(4, 2), vectors().float()
    assert pair.log_likelihood(x).dtype == torch.float32
    torch.testing.assert_close(pair.log_likelihood(x).double(), pair.double().log_likelihood(x.double()))


@pytest.mark.parametrize("latent_dim", [0, 5])
def test_bad_latent_dim(latent_dim):
    with pytest.raises(ValueError, match=f"latent_dim: got {latent_dim}, expected 1 to data_dim = 4"):
        LinearGaussian(4, latent_dim)
