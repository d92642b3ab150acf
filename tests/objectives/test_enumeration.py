"""`TraceEnum_ELBO` against sums over all states, and against Pyro's own on a shared seed."""

import itertools
import math
import warnings
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import nn

from ppl_vae import SVI, Pair
from ppl_vae.compile import loss_state, record
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.objectives.adapters import TraceEnum_ELBO
from ppl_vae.objectives.enumeration import Enumerate
from ppl_vae.terms import NotPerDatumError
from ppl_vae.testing import LinearGaussian
from tests.helpers import (
    Switches,
    assert_same,
    gradients_of,
    linear,
    seeded_bound,
    seeded_loss,
    states,
    vectors,
)
from tests.objectives.discrete_pairs import (
    ENUMERATED,
    Chain,
    HiddenChain,
    Mixture,
    Penalised,
    PureMixture,
    Renamed,
    Sequential,
    Subsampled,
    Tied,
    Two,
    by_pyro,
    exact_elbo,
    numbers,
    switches,
)


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
