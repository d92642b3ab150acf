"""The weight of the KL term: a number or a schedule, in the loss alone."""

import math

import pytest
import torch

from ppl_vae import SVI
from ppl_vae.objectives import (
    IWAE,
    CyclicalWarmup,
    LinearWarmup,
    RenyiELBO,
    SigmoidWarmup,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from tests import helpers
from tests.helpers import assert_same, linear, seeded_bound, seeded_loss, vectors


def test_linear_warmup():
    warmup = LinearWarmup(10, start=0.2, end=1.2)
    assert [warmup(t) for t in (0, 5, 10, 1000)] == pytest.approx([0.2, 0.7, 1.2, 1.2])


@pytest.mark.parametrize(("steps", "start", "end"), [(0, 0, 1), (5, -0.1, 1), (5, 0, math.inf), (5, math.nan, 1)])
def test_bad_warmup(steps, start, end):
    with pytest.raises(ValueError, match="LinearWarmup"):
        LinearWarmup(steps, start, end)


def test_sigmoid_warmup():
    warmup = SigmoidWarmup(100, middle=30, slope=8.0, end=0.5)
    expected = [0.5 / (1 + math.exp(-8 * (t - 30) / 100)) for t in range(200)]
    assert [warmup(t) for t in range(200)] == pytest.approx(expected, rel=1e-12)
    assert SigmoidWarmup(100)(50) == 0.5 and warmup(30) == 0.25
    assert SigmoidWarmup(100)(0) == pytest.approx(1 - SigmoidWarmup(100)(100), rel=1e-9) == pytest.approx(0.0066928509)
    # exp would overflow here.
    assert SigmoidWarmup(1)(10**6) == 1.0 and SigmoidWarmup(1, middle=1e6)(0) == 0.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"steps": 5, "slope": 0.0}, "slope: got 0.0"),
        ({"steps": 5, "slope": math.inf}, "slope: got inf"),
        ({"steps": 5, "end": -1.0}, "end: got -1.0"),
        ({"steps": 5, "end": math.nan}, "end: got nan"),
    ],
)
def test_bad_sigmoid_warmup(arguments, message):
    with pytest.raises(ValueError, match=f"SigmoidWarmup {message}"):
        SigmoidWarmup(**arguments)


def test_cyclical_warmup():
    warmup = CyclicalWarmup(8, cycles=3, rise=0.5, end=2.0)
    cycle = [0.0, 0.5, 1.0, 1.5, 2.0, 2.0, 2.0, 2.0]
    assert [warmup(t) for t in range(30)] == pytest.approx(cycle * 3 + [2.0] * 6)
    assert [CyclicalWarmup(4, cycles=1, rise=1.0)(t) for t in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"period": 0}, "period=0"),
        ({"period": 5, "cycles": 0}, "cycles=0"),
        ({"period": 5, "rise": 0.0}, "rise: got 0.0"),
        ({"period": 5, "rise": 1.5}, "rise: got 1.5"),
        ({"period": 5, "end": -1.0}, "end: got -1.0"),
        ({"period": 5, "end": math.inf}, "end: got inf"),
    ],
)
def test_bad_cyclical_warmup(arguments, message):
    with pytest.raises(ValueError, match=f"CyclicalWarmup.*{message}"):
        CyclicalWarmup(**arguments)


def parts(pair, x, num_particles):
    """log p(x | z) and log p(z) - log q(z | x) by hand, and the analytic KL."""
    torch.manual_seed(0)
    q = pair.encode(x)
    z = q.expand(torch.Size((num_particles, len(x)))).rsample()
    kl = torch.distributions.kl_divergence(q, pair.prior())
    return pair.decode(z).log_prob(x), pair.prior().log_prob(z) - q.log_prob(z), kl


FORMULAS = {
    Trace_ELBO: lambda likelihood, ratio, kl: (likelihood + 0.3 * ratio).mean(0),
    TraceMeanField_ELBO: lambda likelihood, ratio, kl: likelihood.mean(0) - 0.3 * kl,
    IWAE: lambda likelihood, ratio, kl: (likelihood + 0.3 * ratio).logsumexp(0) - math.log(4),
}


@pytest.mark.parametrize("weight", [0.3, lambda step: 0.3])
@pytest.mark.parametrize("cls", FORMULAS)
def test_kl_weight_by_hand(cls, weight):
    pair, x = linear(), vectors()
    objective = cls(num_particles=4, kl_weight=weight)
    expected = -FORMULAS[cls](*parts(pair, x, 4)).sum()
    assert_same(seeded_loss(pair, objective, x), (expected.item(), helpers.gradients_of(pair, expected)))
    torch.testing.assert_close(seeded_bound(pair, objective, x), seeded_bound(pair, cls(num_particles=4), x))


def test_kl_weight_of_a_discrete_site_weighs_its_score_too():
    """With weight 0 the gradient of q(y) is that of the likelihood alone."""
    pair, x = linear(helpers.DiscreteGuide), vectors()
    objective = Trace_ELBO(kl_weight=0.0)
    torch.manual_seed(0)
    terms = objective.terms(pair.model, pair.guide, x)
    by_hand = terms.log_p["x"].sum() + (terms.log_p["x"].detach() * terms.log_q["y"]).sum()
    expected = helpers.gradients_of(pair, -by_hand)
    torch.testing.assert_close(seeded_loss(pair, objective, x)[1], expected)


@pytest.mark.parametrize("cls", [Trace_ELBO, IWAE, RenyiELBO])
def test_svi_counts_steps_and_other_uses_do_not(cls):
    pair, x = linear(), vectors()
    objective = cls(num_particles=2, kl_weight=LinearWarmup(4))
    svi = SVI(pair, torch.optim.SGD(pair.parameters(), lr=0.0), objective)
    weights = []
    for _ in range(5):
        weights.append(objective.current_kl_weight)
        svi.step(x)
        svi.evaluate_loss(x)
        objective.bound(pair.model, pair.guide, x)
    assert weights == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_stock_svi_counts_steps():
    pair, x = linear(), vectors()
    objective = IWAE(2, kl_weight=LinearWarmup(4))
    svi = pair.pyro_svi(helpers.pyro_adam(0.0), objective)
    losses = []
    for _ in range(3):
        torch.manual_seed(0)
        losses.append(svi.step(x))
    expected = [seeded_loss(pair, IWAE(2, kl_weight=weight), x)[0] for weight in (0.0, 0.25, 0.5)]
    assert losses == pytest.approx(expected)
    assert len({round(loss, 6) for loss in losses}) == 3
