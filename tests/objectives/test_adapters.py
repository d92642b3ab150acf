"""`TraceEnum_ELBO` and `TraceGraph_ELBO` against sums over all states, and against Pyro's own on a shared seed."""

import copy
import itertools
import math
import pickle
import warnings
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import config_enumerate
from torch import Tensor, nn

from ppl_vae import SVI, Pair, evaluation, fit
from ppl_vae.compile import loss_state, record
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.objectives import Objective, Trace_ELBO
from ppl_vae.objectives.adapters import TraceEnum_ELBO, TraceGraph_ELBO
from ppl_vae.objectives.enumeration import Enumerate
from ppl_vae.sites import GivenValues
from ppl_vae.terms import NotPerDatumError
from ppl_vae.testing import LinearGaussian
from tests import helpers
from tests.helpers import (
    DiscreteGuide,
    Grads,
    Switches,
    assert_same,
    expected_gradients,
    farthest,
    gradients,
    gradients_of,
    linear,
    seeded_bound,
    seeded_loss,
    states,
    vectors,
)

X = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
AVERAGE = {"use_decaying_avg_baseline": True, "baseline_beta": 0.7}


def switches(rows: int = 5) -> Tensor:
    return torch.bernoulli(torch.full((rows, 3), 0.5, dtype=torch.float64))


class Two(Pair):
    """Two independent switches, each with a pixel of its own and one that both see."""

    baselines: Any = ({}, {})

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (2, 3, 2))
        self.w, self.A = nn.Parameter(torch.randn(4).double()), nn.Parameter(torch.randn(3, 2).double())
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=self.a[0]))
            z = pyro.sample("z", dist.Bernoulli(logits=self.a[1]))
            pyro.sample("x0", dist.Bernoulli(logits=self.b[0] + self.w[0] * y), obs=x[:, 0])
            pyro.sample("x1", dist.Bernoulli(logits=self.b[1] + self.w[1] * z), obs=x[:, 1])
            pyro.sample("x2", dist.Bernoulli(logits=self.b[2] + self.w[2] * y + self.w[3] * y * z), obs=x[:, 2])

    def infer(self, i: int, x: Tensor) -> Any:
        options = dict(self.baselines[i])
        particles = options.pop("particles", None)
        if options.pop("network", False):
            # The cost of K particles drawn in one trace has the shape (K, B).
            options |= {"nn_baseline": self.net, "nn_baseline_input": x}
            if particles:
                options["nn_baseline"] = lambda x: self.net(x).expand(particles, len(x))
        if options.pop("value", False):
            options["baseline_value"] = self.net(x)
        return {"baseline": options} if options else {}

    def guide(self, x):
        logits = x @ self.A + self.c
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Bernoulli(logits=logits[..., 0]), infer=self.infer(0, x))
            pyro.sample("z", dist.Bernoulli(logits=logits[..., 1]), infer=self.infer(1, x))


class Tied(Two):
    """The second switch depends on the first, in model and guide; a category and a Normal besides."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=self.a[0]))
            z = pyro.sample("z", dist.Bernoulli(logits=self.a[1] * y))
            k = pyro.sample("k", dist.Categorical(logits=self.b * z.unsqueeze(-1)))
            u = pyro.sample("u", dist.Normal(self.b[k.long()], 1.0))
            pyro.sample("x0", dist.Bernoulli(logits=self.b[0] + self.w[0] * y * u), obs=x[:, 0])
            pyro.sample("x1", dist.Bernoulli(logits=self.b[1] + self.w[1] * z + k), obs=x[:, 1])

    def guide(self, x):
        logits = x @ self.A + self.c
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=logits[..., 0]))
            pyro.sample("z", dist.Bernoulli(logits=logits[..., 1] * y))
            pyro.sample("k", dist.Categorical(logits=x @ torch.diag(self.b)))
            pyro.sample("u", dist.Normal(logits[..., 0] * y, 1.0))


class Sequential(Two):
    """One switch is enumerated by a run for each of its states."""

    def infer(self, i: int, x: Tensor) -> Any:
        return {"enumerate": "sequential"} if i == 0 else {}


class GlobalSequential(Two):
    """A latent mean that all data share, outside the plate whose switch is enumerated by runs."""

    def model(self, x):
        m = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(logits=self.a[0]))
            pyro.sample("x", dist.Bernoulli(logits=self.b + (self.w[0] * y + m).unsqueeze(-1)).to_event(1), obs=x)

    def guide(self, x):
        pyro.sample("m", dist.Normal(self.c[0], 1.0))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Bernoulli(logits=(x @ self.A)[:, 0]), infer={"enumerate": "sequential"})


class HalfSampled(Two):
    """One switch is sampled."""

    def infer(self, i: int, x: Tensor) -> Any:
        return {"enumerate": None} if i == 0 else {}


class Chain(Two):
    """A chain of switches y0, y1, y2, one for each pixel; the guide has it too, with memory of its own."""

    def chain(self, x, first: Tensor, stay: Tensor, observed: bool) -> None:
        y: Any = 0.0
        with pyro.plate("data", len(x), dim=-1):
            for t in pyro.markov(range(3)):
                y = pyro.sample(f"y{t}", dist.Bernoulli(logits=first[..., t] + stay * y))
                if observed:
                    pyro.sample(f"x{t}", dist.Bernoulli(logits=self.w[1] + self.w[2] * y), obs=x[:, t])

    def model(self, x):
        self.chain(x, self.b, self.a[0], True)

    def guide(self, x):
        self.chain(x, x * self.c[0], self.c[1], False)


class HiddenChain(Chain):
    """The guide leaves the chain out."""

    def guide(self, x):
        pass


class Mixture(Pair):
    """p(k) = Categorical(a), p(z) = Normal(0, 1), p(x | z, k) = Normal(m_k + z, s): the guide leaves k out."""

    penalised = False

    def __init__(self):
        super().__init__()
        self.a, self.m, self.c = (nn.Parameter(torch.randn(n, dtype=torch.float64)) for n in (3, 3, 3))

    def rows(self, x) -> Any:
        return pyro.plate("data", len(x), dim=-1)

    def model(self, x):
        with self.rows(x):
            k = pyro.sample("k", dist.Categorical(logits=self.a))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(self.m[k] + z, 0.5), obs=x)
            if self.penalised:
                pyro.factor("penalty", -x.square())

    def guide(self, x):
        with self.rows(x):
            pyro.sample("z", dist.Normal(self.c[0] * x + self.c[1], self.c[2].exp()))

    def log_p(self, x: Tensor, z: Tensor | float = 0.0) -> Tensor:
        """log sum_k p(k) p(x | z, k), (..., B)."""
        parts = [self.a.log_softmax(0)[k] + dist.Normal(self.m[k] + z, 0.5).log_prob(x) for k in range(3)]
        return torch.stack(parts).logsumexp(0)


class Renamed(Mixture):
    def rows(self, x) -> Any:
        return pyro.plate("rows", len(x), dim=-1)


class PureMixture(Mixture):
    """Without z: log p(x) is known, and the guide is empty."""

    def model(self, x):
        with self.rows(x):
            k = pyro.sample("k", dist.Categorical(logits=self.a))
            pyro.sample("x", dist.Normal(self.m[k], 0.5), obs=x)

    def guide(self, x):
        pass


class Subsampled(Mixture):
    def rows(self, x) -> Any:
        return pyro.plate("data", 50, subsample=torch.arange(len(x)), dim=-1)


class Penalised(Subsampled):
    penalised = True


def by_pyro(pair: Pair, elbo: Any, x: Tensor, seed: int = 0) -> tuple[float, Grads]:
    """Pyro's value and gradient; discrete sites are configured as its users do."""
    pair.zero_grad()
    torch.manual_seed(seed)
    if isinstance(elbo, pyro.infer.TraceGraph_ELBO):
        return elbo.loss_and_grads(pair.model, pair.guide, x), gradients(pair)
    loss = elbo.differentiable_loss(config_enumerate(pair.model), config_enumerate(pair.guide), x)
    return loss.item(), gradients_of(pair, loss)


def exact_elbo(pair: Switches, x: Tensor) -> Tensor:
    log_p, log_q = pair.tables(x)
    return (log_q.exp() * (log_p - log_q)).sum()


def numbers(rows: int = 5) -> Tensor:
    return torch.randn(rows, dtype=torch.float64)


ENUMERATED = {
    "two": (Two, switches), "tied": (Tied, switches), "sequential": (Sequential, switches),
    "global sequential": (GlobalSequential, switches), "half": (HalfSampled, switches),
    "chain": (Chain, switches), "hidden": (HiddenChain, switches),
    "mixture": (Mixture, numbers), "pure": (PureMixture, numbers),
    "subsampled": (Subsampled, numbers), "factor": (Penalised, numbers),
    "normal": (lambda: linear(DiscreteGuide), vectors), "global": (lambda: linear(helpers.GlobalSite), vectors),
}  # fmt: skip


@pytest.mark.parametrize(("K", "vectorised"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize(("make", "batch"), ENUMERATED.values(), ids=ENUMERATED)
def test_enumerated_value_and_gradient_are_pyros(make, batch, K, vectorised):
    pair, x = make(), batch()
    stock = pyro.infer.TraceEnum_ELBO(
        K, max_plate_nesting=1, vectorize_particles=vectorised, strict_enumeration_warning=False
    )
    ours = TraceEnum_ELBO(K, vectorize_particles=vectorised, strict_enumeration_warning=False)
    assert_same(seeded_loss(pair, ours, x), by_pyro(pair, stock, x))
    torch.manual_seed(0)
    assert ours.loss(pair.model, pair.guide, x) == pytest.approx(seeded_loss(pair, ours, x)[0], rel=1e-12)


def test_multiple_samples_of_one_site_are_pyros(monkeypatch):
    class Tensorised(LinearGaussian):
        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", self.encode(x), infer={"enumerate": "parallel", "num_samples": 4})

    pair, x = linear(Tensorised), vectors()
    ours = seeded_loss(pair, TraceEnum_ELBO(), x)
    # Pyro makes a number of the default dtype here.
    monkeypatch.setattr(torch, "tensor", partial(torch.tensor, dtype=torch.float64))
    assert_same(ours, by_pyro(pair, pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), x))


@pytest.mark.parametrize("K", [1, 3])
def test_enumerated_switches_have_no_noise(K):
    """A site of two switches, `.to_event(1)`, which Pyro would sample."""
    pair, x = Switches().double(), switches()
    exact = torch.stack([exact_elbo(pair, row) for row in x])
    expected = -exact.sum().item(), gradients_of(pair, -exact.sum())
    for seed in (0, 1):
        assert_same(seeded_loss(pair, TraceEnum_ELBO(K), x, seed=seed), expected)
        got = seeded_bound(pair, TraceEnum_ELBO(K), x, seed=seed)
        torch.testing.assert_close(got, exact.detach(), rtol=1e-10, atol=1e-10)
        assert not got.requires_grad


def test_the_product_of_supports():
    fns = [dist.Bernoulli(torch.rand(4, 2, 3)), dist.Categorical(torch.rand(4, 2, 3, 5)).to_event(1)]
    fns.append(dist.OneHotCategorical(torch.rand(4, 2, 3)).to_event(1))
    supports = [[0.0, 1.0], list(range(5)), torch.eye(3).tolist()]
    dims = [(2, 6), (2, 6), (1, 2)]
    for fn, support, (event, number) in zip(fns, supports, dims, strict=True):
        fn = fn.to_event(event - 1 if isinstance(fn, dist.Independent) else event)

        def program(fn=fn):
            pyro.sample("z", fn)

        site = pyro.poutine.trace(Enumerate()(program)).get_trace().nodes["z"]
        product: Any = dict(site)["fn"]
        values = product.enumerate_support(expand=False)
        expected = torch.tensor(list(itertools.product(support, repeat=number)), dtype=values.dtype)
        assert values.shape[1 : 1 + len(fn.batch_shape)] == (1,) * len(fn.batch_shape)
        assert torch.equal(values.reshape(expected.shape), expected)
        assert product.enumerate_support().shape == (len(values), *fn.batch_shape, *fn.event_shape)
        total = product.log_prob(values).logsumexp(0)
        torch.testing.assert_close(total, torch.zeros_like(total), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rows", [1, 4])
def test_a_site_that_the_guide_leaves_out_is_marginalised(rows):
    pair, x = PureMixture(), numbers(rows)
    log_p = pair.log_p(x)
    expected = -log_p.sum().item(), gradients_of(pair, -log_p.sum())
    assert_same(seeded_loss(pair, TraceEnum_ELBO(), x), expected)
    torch.testing.assert_close(seeded_bound(pair, TraceEnum_ELBO(), x), log_p.detach(), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [Mixture, Renamed, Subsampled, Penalised])
@pytest.mark.parametrize("K", [1, 6])
def test_the_bound_of_a_mixture_by_hand(make, K):
    """Neither scale nor factor enters it, and both enter the loss."""
    pair, x = make(), numbers(4)
    torch.manual_seed(0)
    q = dist.Normal(pair.c[0] * x + pair.c[1], pair.c[2].exp())
    z = q.rsample(torch.Size((K,)))
    by_hand = (pair.log_p(x, z) + dist.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).mean(0)
    got = seeded_bound(pair, TraceEnum_ELBO(K), x)
    torch.testing.assert_close(got, by_hand.detach(), rtol=1e-10, atol=1e-10)
    loss = -(by_hand - (x.square() if make is Penalised else 0.0)).sum() * (
        50 / 4 if issubclass(make, Subsampled) else 1
    )
    assert_same(seeded_loss(pair, TraceEnum_ELBO(K), x), (loss.item(), gradients_of(pair, loss)))


@pytest.mark.parametrize("make", [Two, Tied, Sequential, Chain, HiddenChain])
@pytest.mark.parametrize("K", [1, 3])
def test_rows_of_the_bound_sum_to_the_loss_and_stand_alone(make, K):
    pair, x, ours = make(), switches(), TraceEnum_ELBO(K)
    rows = seeded_bound(pair, ours, x)
    assert rows.shape == (5,) and rows.sum().item() == pytest.approx(-seeded_loss(pair, ours, x)[0], rel=1e-10)
    if make is not Tied:  # which has a Normal site
        alone = torch.cat([seeded_bound(pair, ours, row.unsqueeze(0)) for row in x])
        torch.testing.assert_close(rows, alone, rtol=1e-10, atol=1e-10)


def test_a_hidden_chain_by_hand():
    pair, x, parts = HiddenChain(), switches(), []
    for y in states(3):
        before = torch.cat([y.new_zeros(1), y[:-1]])
        log_p = dist.Bernoulli(logits=pair.b + pair.a[0] * before).log_prob(y).sum()
        parts.append(log_p + dist.Bernoulli(logits=pair.w[1] + pair.w[2] * y).log_prob(x).sum(-1))
    log_p = torch.stack(parts).logsumexp(0)
    torch.testing.assert_close(seeded_bound(pair, TraceEnum_ELBO(), x), log_p.detach(), rtol=1e-10, atol=1e-10)
    assert_same(seeded_loss(pair, TraceEnum_ELBO(), x), (-log_p.sum().item(), gradients_of(pair, -log_p.sum())))


def test_the_bound_of_masked_rows_is_zero():
    class Masked(Two):
        def model(self, x):
            with pyro.poutine.mask(mask=x[:, 0] > 0):
                super().model(x)

        def guide(self, x):
            with pyro.poutine.mask(mask=x[:, 0] > 0):
                super().guide(x)

    pair, plain, x = Masked(), Two(), switches()
    plain.load_state_dict(pair.state_dict())
    expected = seeded_bound(plain, TraceEnum_ELBO(), x) * x[:, 0]
    torch.testing.assert_close(seeded_bound(pair, TraceEnum_ELBO(), x), expected)


def test_states_that_never_happen_cost_nothing():
    chances = torch.tensor([0.4, 0.6, 0.0], dtype=torch.float64)

    class Never(Two):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                y = pyro.sample("y", dist.Categorical(probs=chances))
                pyro.sample("x", dist.Bernoulli(logits=self.b[y]), obs=x[:, 0])

        def guide(self, x):
            logits = torch.cat([self.c, self.c.new_full((1,), -math.inf)])
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("y", dist.Categorical(logits=logits))

    pair, x = Never(), switches()
    got = seeded_loss(pair, TraceEnum_ELBO(), x)
    log_q = pair.c.log_softmax(0)
    log_p = dist.Bernoulli(logits=pair.b[:2]).log_prob(x[:, :1]) + chances[:2].log()
    loss = -(log_q.exp() * (log_p - log_q)).sum()
    assert_same(got, (loss.item(), gradients_of(pair, loss)))


def test_a_pair_that_draws_no_discrete_site_has_the_elbo_and_a_warning():
    pair, x = linear(), vectors()
    quiet = TraceEnum_ELBO(3, strict_enumeration_warning=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(seeded_loss(pair, quiet, x), seeded_loss(pair, Trace_ELBO(3), x))
    with pytest.warns(UserWarning, match=r"got latent sites \['z'\], expected one to enumerate.*Use Trace_ELBO"):
        seeded_loss(pair, TraceEnum_ELBO(), x)


def test_what_cannot_be_enumerated_is_refused_by_name():
    class Many(Two):
        options: Any = None

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Bernoulli(logits=self.a.new_zeros(50)).to_event(1))
                pyro.sample("x", dist.Bernoulli(logits=self.b + z.mean(-1, keepdim=True)).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Bernoulli(logits=self.c[0].expand(50)).to_event(1), infer=self.options or {})

    pair, x = Many(), switches()
    with pytest.raises(ValueError, match=r"site 'z': got 50 dimensions of 2 states each, 2\^50 in all, expected"):
        seeded_loss(pair, TraceEnum_ELBO(), x)
    pair.options = {"enumerate": None}
    ours = TraceEnum_ELBO(strict_enumeration_warning=False)
    assert seeded_loss(pair, ours, x)[0] == pytest.approx(seeded_loss(pair, Trace_ELBO(), x)[0])


def test_a_reparameterised_discrete_site_is_not_enumerated():
    """Pyro sums its states without their probabilities: too much by about their number."""

    class StraightThrough(Pair):
        options: Any = None

        def __init__(self):
            super().__init__()
            self.logits = nn.Parameter(torch.randn(3, dtype=torch.float64))

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.OneHotCategorical(logits=x.new_zeros(3)))
                pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                law = dist.OneHotCategoricalStraightThrough(logits=self.logits)
                pyro.sample("z", law, infer=self.options or {})

    pair, x = StraightThrough(), switches()
    ours = TraceEnum_ELBO(strict_enumeration_warning=False)
    assert_same(seeded_loss(pair, ours, x), seeded_loss(pair, Trace_ELBO(), x))
    pair.options = {"enumerate": "parallel"}
    with pytest.raises(ValueError, match="site 'z': got OneHotCategoricalStraightThrough, which is reparameterised"):
        seeded_loss(pair, TraceEnum_ELBO(), x)


@pytest.mark.parametrize("objective", [TraceEnum_ELBO(), TraceGraph_ELBO()])
@pytest.mark.filterwarnings("ignore:Found.*vars")
def test_sites_that_do_not_match_are_refused_by_name(objective):
    class Without(LinearGaussian):
        def guide(self, x):
            pass

    class Extra(LinearGaussian):
        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", self.encode(x))
                pyro.sample("y", dist.Bernoulli(x.new_tensor(0.3)))

    for cls, message in ((Without, "the guide has no site 'z'"), (Extra, "the model has no latent site 'y'")):
        with pytest.raises(ValueError, match=message):
            seeded_loss(linear(cls), objective, vectors())


def test_the_bound_of_a_global_site_is_refused():
    class Global(PureMixture):
        def model(self, x):
            k = pyro.sample("k", dist.Categorical(logits=self.a))
            with self.rows(x):
                pyro.sample("x", dist.Normal(self.m[k], 0.5), obs=x)

    pair, x = Global(), numbers()
    expected = (pair.a.log_softmax(0) + dist.Normal(pair.m, 0.5).log_prob(x.unsqueeze(-1)).sum(0)).logsumexp(0)
    assert seeded_loss(pair, TraceEnum_ELBO(), x)[0] == pytest.approx(-expected.item(), rel=1e-12)
    with pytest.raises(NotPerDatumError, match="site 'k' is not per datum"):
        seeded_bound(pair, TraceEnum_ELBO(), x)


def test_a_nonfinite_mixture_is_explained():
    """The site that the guide leaves out is sampled to find the cause."""
    pair, x = Mixture(), numbers()
    svi = SVI(pair, torch.optim.SGD(pair.parameters(), 0.1), TraceEnum_ELBO())
    svi.step(x)
    with torch.no_grad():
        pair.m[:] = math.inf
    with pytest.raises(NonFiniteError, match="parameter 'm' is already non-finite"):
        svi.step(x)
    with torch.no_grad():
        pair.m[:], pair.c[2] = 0.0, 800.0
    with pytest.raises(NonFiniteError, match="site 'z' of the guide"):
        svi.step(x)
    drawn = TraceEnum_ELBO(4).terms(Mixture().model, Mixture().guide, x)
    assert drawn.log_weight().shape == (4, 5) and drawn.latent == ["z"]


@pytest.mark.parametrize(("K", "vectorised"), [(1, True), (3, True), (3, False)])
@pytest.mark.parametrize("make", [Two, lambda: linear(DiscreteGuide), lambda: linear(helpers.GlobalSite)])
def test_graph_value_and_gradient_are_pyros(make, K, vectorised):
    pair, x = make(), switches() if make is Two else vectors()
    stock = pyro.infer.TraceGraph_ELBO(K, max_plate_nesting=1, vectorize_particles=vectorised)
    ours = TraceGraph_ELBO(K, vectorize_particles=vectorised)
    assert_same(seeded_loss(pair, ours, x), by_pyro(pair, stock, x))
    torch.manual_seed(0)
    assert ours.loss(pair.model, pair.guide, x) == pytest.approx(seeded_loss(pair, ours, x)[0], rel=1e-12)


BASELINES = {
    "average": (AVERAGE, {}),
    "network": ({"network": True}, {}),
    "value": ({"value": True}, AVERAGE),
    "both": (AVERAGE | {"network": True}, AVERAGE),
}


@pytest.mark.parametrize("baselines", BASELINES.values(), ids=BASELINES)
@pytest.mark.parametrize(("K", "vectorised"), [(1, True), (3, True), (3, False)])
def test_baselines_and_their_gradients_are_pyros_step_after_step(baselines, K, vectorised):
    if K > 1 and vectorised and baselines != BASELINES["average"]:
        baselines = ({"network": True, "particles": K}, AVERAGE)
    pair, x, ours = Two(), switches(), TraceGraph_ELBO(K, vectorize_particles=vectorised)
    pair.baselines = baselines
    stock = pyro.infer.TraceGraph_ELBO(K, max_plate_nesting=1, vectorize_particles=vectorised)
    for seed in range(4):
        expected = by_pyro(pair, stock, x, seed)
        assert_same(seeded_loss(pair, ours, x, seed=seed), expected)
        trained = any(g.abs().max() > 0 for name, g in expected[1].items() if name.startswith("net"))
        assert trained == (baselines != BASELINES["average"])


def test_graph_is_exact_in_expectation():
    """No noise: the mean over all that the particle can be."""
    pair = Switches().double()
    loss = -exact_elbo(pair, X)
    assert_same(expected_gradients(pair, TraceGraph_ELBO(), X), (loss.item(), gradients_of(pair, loss)))


class Fixed(Two):
    """Baselines that are given, (2,), for a batch of one: Pyro's cost has the shape () then."""

    given: Any = None

    def infer(self, i: int, x: Tensor) -> Any:
        return {} if self.given is None else {"baseline": {"baseline_value": self.given[i]}}


def guide_moments(pair: Two, objective: Objective) -> tuple[Tensor, Tensor]:
    """The exact mean and total variance of the gradient of the guide's parameters for X: a sum over the 4 states."""
    q = dist.Bernoulli(logits=(X @ pair.A + pair.c).detach()).to_event(1)
    mean, square = torch.zeros(8).double(), torch.zeros(()).double()
    for z in states(2):
        guide = GivenValues({"y": z[:1], "z": z[1:]})(pair.guide)
        grads = gradients_of(pair, objective.differentiable_loss(pair.model, guide, X.unsqueeze(0)))
        flat, chance = torch.cat([grads["A"].flatten(), grads["c"]]), q.log_prob(z).exp()
        mean, square = mean + chance * flat, square + chance * flat.square().sum()
    return mean, square - mean.square().sum()


def test_dependencies_and_baselines_take_variance_off_and_nothing_else():
    """Sums over all states: nothing here is left to chance. Each switch is spared the other's pixel and prior."""
    pair = Fixed()
    with torch.no_grad():
        pair.w[3] = 0.0  # otherwise the second switch is upstream of all
    grads = seeded_loss(pair, TraceEnum_ELBO(), X.unsqueeze(0))[1]
    mean = torch.cat([grads["A"].flatten(), grads["c"]])
    plain_mean, plain = guide_moments(pair, Trace_ELBO())
    graph_mean, graph = guide_moments(pair, TraceGraph_ELBO())
    pair.given = mean_costs(pair)
    less_mean, less = guide_moments(pair, TraceGraph_ELBO())
    for other in (plain_mean, graph_mean, less_mean):
        torch.testing.assert_close(other, mean, rtol=1e-10, atol=1e-10)
    assert less < 0.9 * graph < 0.81 * plain


def mean_costs(pair: Fixed) -> Tensor:
    """The means of what the averages follow: the cost downstream of each switch, (2,)."""
    objective, costs = TraceGraph_ELBO(), torch.zeros(2).double()
    logits = (X @ pair.A + pair.c).detach()
    options, pair.given = {"use_decaying_avg_baseline": True, "baseline_beta": 0.0}, None
    pair.infer = lambda i, x: {"baseline": options}
    for z in states(2):
        guide = GivenValues({"y": z[:1], "z": z[1:]})(pair.guide)
        objective.differentiable_loss(pair.model, guide, X.unsqueeze(0))
        (averages,) = objective._averages[guide].values()
        chance = dist.Bernoulli(logits=logits).log_prob(z).sum().exp()
        costs += chance * torch.stack([averages[f"__baseline_avg_downstream_cost_{n}"] for n in "yz"])
    del pair.infer
    return costs


def test_graph_of_a_normal_and_a_discrete_site_is_unbiased():
    """Against the gradient with the switch summed out. Fails by chance with probability 1e-5."""
    pair, x = linear(DiscreteGuide), vectors(1).expand(2_000, -1)
    graph = helpers.chunk_gradients(pair, TraceGraph_ELBO(), x, 60)
    assert farthest(graph - helpers.chunk_gradients(pair, TraceEnum_ELBO(), x, 60)) < 1
    assert farthest(1.3 * graph - helpers.chunk_gradients(pair, TraceEnum_ELBO(), x, 60)) > 3


def test_graph_bound_is_that_of_samples():
    pair, x = linear(DiscreteGuide), vectors()
    bound = seeded_bound(pair, TraceGraph_ELBO(3), x)
    torch.testing.assert_close(bound, seeded_bound(pair, Trace_ELBO(3), x))
    assert bound.sum().item() == pytest.approx(-seeded_loss(pair, TraceGraph_ELBO(3), x)[0], rel=1e-12)


def with_averages(seed: int = 0) -> Two:
    torch.manual_seed(seed)
    pair = Two()
    pair.baselines = (AVERAGE, AVERAGE)
    return pair


def weights_after(pair: Two, svi: Any, x: Tensor, number: int, seed: int = 0) -> Tensor:
    torch.manual_seed(seed)
    for _ in range(number):
        svi.step(x)
    return torch.cat([p.detach().flatten() for p in pair.parameters()])


def adam(pair: Pair) -> torch.optim.Adam:
    return torch.optim.Adam(pair.parameters(), lr=0.05)


@pytest.mark.parametrize("stock", [False, True])
def test_two_pairs_in_one_process_do_not_know_of_each_other(stock):
    def runs(pair: Pair, objective: Objective) -> Any:
        if stock:
            return pair.pyro_svi(helpers.pyro_adam(0.05), objective)
        return SVI(pair, adam(pair), objective)

    x, y = switches(), 1 - switches()
    alone = []
    for seed, batch in ((0, x), (1, y)):
        pair = with_averages(seed)
        alone.append(weights_after(pair, runs(pair, TraceGraph_ELBO()), batch, 6))
    shared = TraceGraph_ELBO()
    pairs = [with_averages(seed) for seed in (0, 1)]
    svis = [runs(pair, shared) for pair in pairs]
    streams = [torch.manual_seed(0).get_state()] * 2
    for _ in range(6):
        for i, batch in enumerate((x, y)):
            torch.set_rng_state(streams[i])
            svis[i].step(batch)
            streams[i] = torch.get_rng_state()
    for pair, expected in zip(pairs, alone, strict=True):
        assert torch.equal(torch.cat([p.detach().flatten() for p in pair.parameters()]), expected)
    assert not [name for name in pyro.get_param_store() if "baseline" in name]
    if stock:  # and the averages are nothing to optimise
        assert all(len(svi.optim.optim_objs) == len(list(pairs[0].parameters())) for svi in svis)


def test_pyros_store_does_share_the_averages():
    """What the test above guards against."""
    pair, other, x = with_averages(0), with_averages(1), switches()
    stock = pyro.infer.TraceGraph_ELBO()
    first = by_pyro(pair, stock, x)[1]
    pyro.clear_param_store()
    by_pyro(other, stock, x)
    assert not torch.allclose(by_pyro(pair, stock, x)[1]["c"], first["c"])
    pyro.clear_param_store()
    ours = TraceGraph_ELBO()
    seeded_loss(other, ours, x)
    torch.testing.assert_close(seeded_loss(pair, ours, x)[1]["c"], first["c"])


def test_averages_begin_anew_with_each_module_and_each_copy():
    pair, x, objective = with_averages(), switches(), TraceGraph_ELBO()
    first, second = seeded_loss(pair, objective, x)[1], seeded_loss(pair, objective, x)[1]
    assert not torch.equal(first["c"], second["c"])
    for fresh in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert fresh.describe() == objective.describe()
        torch.testing.assert_close(seeded_loss(pair, fresh, x)[1], first)
    objective(pair)
    torch.testing.assert_close(seeded_loss(pair, objective, x)[1], first)


def test_looking_at_the_loss_leaves_the_averages_alone():
    pair, x, objective = with_averages(), switches(), TraceGraph_ELBO()
    seeded_loss(pair, objective, x)
    before = copy.deepcopy(objective._averages[pair])
    objective.loss(pair.model, pair.guide, x)
    objective.bound(pair.model, pair.guide, x)
    torch.testing.assert_close(objective._averages[pair], before)


def test_batches_of_different_sizes_have_averages_of_their_own():
    pair, objective = with_averages(), TraceGraph_ELBO()
    for rows in (5, 3, 1, 5):
        assert math.isfinite(seeded_loss(pair, objective, switches(rows))[0])
    assert len(objective._averages[pair]) == 3


def test_a_baseline_of_the_wrong_shape_is_refused():
    pair = Fixed()
    pair.infer = lambda i, x: {"baseline": {"baseline_value": torch.zeros(5, 1).double()}}
    with pytest.raises(ValueError, match="Expected baseline at site"):
        seeded_loss(pair, TraceGraph_ELBO(), switches())
    assert not pyro.get_param_store()


OBJECTIVES = [TraceEnum_ELBO(), TraceEnum_ELBO(2), TraceGraph_ELBO(), TraceGraph_ELBO(2)]
every = pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda o: f"{type(o).__name__}-{o.num_particles}")


@every
def test_training_in_our_svi_stock_svi_and_as_a_module(objective):
    x = switches().repeat(20, 1)
    for way in ("ours", "stock", "module"):
        pair = Two() if objective.num_particles > 1 else with_averages()
        before = {n: p.detach().clone() for n, p in pair.named_parameters()}
        start = seeded_loss(pair, TraceEnum_ELBO(), x)[0]
        optim = adam(pair)
        if way == "module":
            loss = objective(pair)
            for _ in range(20):
                optim.zero_grad()
                loss(x).backward()
                optim.step()
        else:
            stock = pair.pyro_svi(helpers.pyro_adam(0.05), objective)
            helpers.steps(SVI(pair, optim, objective) if way == "ours" else stock, [x], 20)
        assert seeded_loss(pair, TraceEnum_ELBO(), x)[0] < start - 1
        assert not [n for n, p in pair.named_parameters() if torch.equal(p, before[n]) and not n.startswith("net")]


@every
def test_fit_is_reproducible(objective):
    x, ends, pair = switches(100), [], with_averages()
    for _ in range(2):
        pair.load_state_dict(with_averages().state_dict())
        history = fit(pair, x, objective, steps=8, batch_size=20, progress=False)
        ends.append(torch.cat([p.detach().flatten() for p in pair.parameters()]))
        assert math.isfinite(history.records[-1].bound)
    assert torch.equal(*ends)
    got = evaluation.bound(pair, objective, x, batch_size=30, seed=0)
    assert got.shape == (100,) and bool(got.isfinite().all())


@pytest.mark.parametrize(("make", "batch"), ENUMERATED.values(), ids=ENUMERATED)
def test_enumerated_loss_is_recorded(make, batch):
    pair, x, objective = make(), batch(), TraceEnum_ELBO(2, strict_enumeration_warning=False)
    loss = objective(pair)
    recorded = record(loss, x)
    torch.manual_seed(1)
    eager = loss(x)
    expected = torch.autograd.grad(eager, [dict(loss.named_parameters())[n] for n in recorded.trained])
    torch.manual_seed(1)
    got = recorded.graph(*loss_state(loss).values(), torch.ones(()), x, *recorded.noise())
    torch.testing.assert_close(got, (eager.detach(), *expected), rtol=1e-10, atol=1e-10)


def test_a_compiled_svi_goes_on_eagerly_with_sampled_switches():
    pair, again, x = with_averages(), with_averages(), switches()
    svi = SVI(pair, adam(pair), TraceGraph_ELBO(), compile="inductor")
    with pytest.warns(UserWarning, match="can't be compiled and goes on eagerly .*ProvenanceTensor"):
        got = weights_after(pair, svi, x, 4)
    assert torch.equal(got, weights_after(again, SVI(again, adam(again), TraceGraph_ELBO()), x, 4))


def test_copies_and_descriptions():
    objective = TraceEnum_ELBO(3, max_plate_nesting=1, strict_enumeration_warning=False)
    for fresh in (copy.deepcopy(objective), pickle.loads(pickle.dumps(objective))):
        assert vars(fresh) == vars(objective)
    assert objective.describe().items() >= {"class": "TraceEnum_ELBO", "num_particles": 3}.items()
    for cls in (TraceEnum_ELBO, TraceGraph_ELBO):
        with pytest.raises(ValueError, match="num_particles: got 0"):
            cls(0)
