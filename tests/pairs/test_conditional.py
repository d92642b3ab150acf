"""Conditional pairs against closed forms: linear-Gaussian ones, masked completions, stock Pyro; frozen baselines."""

import copy
import math

import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import evaluation, fit, generation
from ppl_vae.compile import eager_backward, loss_state, record
from ppl_vae.data.quadrants import UNKNOWN, Quadrants, quadrants
from ppl_vae.nn import MLP
from ppl_vae.objectives import IWAE, STL, DReG, Objective, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.pairs.conditional import ConditionalPair, ConditionalVAE, Prediction, PriorGuided
from ppl_vae.sites import GivenValues
from ppl_vae.terms import draw
from ppl_vae.testing import check_pair
from tests.helpers import (
    Z_LIMIT,
    Never,
    assert_same,
    pyro_adam,
    seeded_bound,
    seeded_loss,
    steps,
    stock_loss,
    z_score,
)

SHAPE = (1, 6, 5)
SIZES = {"mlp": {"hidden": (9, 8)}, "conv": {"hidden": (3, 4), "trunk": "conv", "image_features": 7}}


def completions(rows: int = 6, number: Quadrants = 1) -> tuple[Tensor, Tensor]:
    return quadrants(torch.rand(rows, *SHAPE).round(), number)


def prediction(sizes="mlp", **keywords) -> Prediction:
    return Prediction(SHAPE, SHAPE, completion=True, **(SIZES[sizes] | keywords))


def completer(sizes="mlp", baseline=None, **keywords) -> ConditionalVAE:
    return ConditionalVAE(SHAPE, SHAPE, 3, completion=True, baseline=baseline, **(SIZES[sizes] | keywords))


class Embedding(nn.Module):
    """(B, 2) classes of 5 -> (B, 2, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.calls = 0

    def forward(self, c: Tensor) -> Tensor:
        self.calls += 1
        return self.table(c)


def affine(network: nn.Sequential) -> nn.Linear:
    """The linear map of a network without hidden layers."""
    trunk = network[0]
    assert isinstance(trunk, MLP)
    return trunk.output


class Linear(ConditionalVAE):
    """z ~ N(A c + a, diag(s)^2), y ~ N(W z + V c + b, v I), by a conditional VAE without hidden layers, in float64."""

    v = 0.3

    def __init__(self, data_dim: int, given_dim: int, latent_dim: int, completion: bool = False) -> None:
        sizes = {"latent_dim": latent_dim, "hidden": (), "likelihood": "normal", "variance": self.v}
        super().__init__((data_dim,), (given_dim,), completion=completion, **sizes)
        self.double()
        for parameter in self.parameters():
            parameter.detach().normal_().mul_(0.7)
        affine(self.prior).weight.detach()[latent_dim:] = 0  # sigma is the same for all c

    def parts(self, c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """E[z | c], var[z | c] (d,), W and V c + b."""
        p = self.prior(c).base_dist
        W, V = affine(self.generation).weight.split([self.latent_dim, c.shape[1]], -1)
        return p.loc, p.scale[0] ** 2, W, c @ V.T + affine(self.generation).bias

    def log_likelihood(self, y: Tensor, c: Tensor) -> Tensor:
        """log p(y | c), or of the elements of y that are unknown in c, the same for all rows."""
        loc, variance, W, offset = self.parts(c)
        covariance = (W * variance) @ W.T + self.v * torch.eye(len(W), dtype=W.dtype)
        keep = c[0] == UNKNOWN if self.completion else torch.ones(len(W), dtype=torch.bool)
        mean = loc @ W.T + offset
        return dist.MultivariateNormal(mean[:, keep], covariance[keep][:, keep]).log_prob(y[:, keep])

    @torch.no_grad()
    def set_guide_to_posterior(self) -> None:
        """q(z | y, c) = p(z | y, c), for one latent variable and no completion."""
        assert self.latent_dim == 1 and not self.completion
        zero = torch.zeros(1, self.given_shape[0], dtype=torch.float64)
        _, variance, W, _ = self.parts(zero)
        precision = 1 / variance + W.square().sum() / self.v
        # E[z | y, c] is linear: the prior's mean, weighed against what y - V c - b says.
        prior, output = affine(self.prior), affine(self.generation)
        V = output.weight[:, 1:]
        to_y, recognition = W.T / self.v / precision, affine(self.recognition)
        recognition.weight.zero_()
        recognition.weight[0] = torch.cat([to_y[0], (prior.weight[0] / variance) / precision - to_y[0] @ V])
        recognition.bias[0] = prior.bias[0] / variance / precision - to_y[0] @ output.bias
        recognition.bias[1] = -precision.log() / 2


def linear_batch(rows: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, 5, dtype=torch.float64), torch.randn(rows, 3, dtype=torch.float64)


@pytest.mark.parametrize("objective", [Trace_ELBO(), IWAE(3)])
def test_bounds_at_the_exact_posterior_are_the_log_likelihood(objective):
    pair, batch = Linear(5, 3, 1), linear_batch()
    pair.set_guide_to_posterior()
    torch.testing.assert_close(seeded_bound(pair, objective, *batch), pair.log_likelihood(*batch))


def test_importance_sampling_and_monte_carlo_agree_with_the_closed_form():
    pair, (y, c) = Linear(5, 3, 1), linear_batch(1)
    pair.set_guide_to_posterior()
    # A guide wider than the posterior: its weights are bounded, and so are those of the prior.
    affine(pair.recognition).bias.detach()[1] += math.log(1.5)
    expected = pair.log_likelihood(y, c)
    for guided in (pair, PriorGuided(pair)):
        torch.manual_seed(0)
        with torch.no_grad():
            weights = draw(guided.model, guided.guide, y, c, num_particles=200_000).log_weight() - expected
        # E[w] = p(y | c): a two-sided test that fails with probability 1e-5.
        assert z_score(weights.exp(), 1.0).abs() < Z_LIMIT
        estimate = evaluation.log_likelihood(guided, y, c, num_particles=200_000, seed=0)
        torch.testing.assert_close(estimate, expected, rtol=0.0, atol=0.1)


def test_elbo_is_below_by_the_kl_of_the_guide():
    pair, (y, c) = Linear(5, 3, 1), linear_batch(1)
    pair.set_guide_to_posterior()
    exact = pair.recognition(torch.cat([y, c], -1))
    affine(pair.recognition).bias.detach().add_(torch.tensor([0.2, 0.3]))
    q = pair.recognition(torch.cat([y, c], -1))
    expected = pair.log_likelihood(y, c) - torch.distributions.kl_divergence(q, exact)
    torch.manual_seed(0)
    with torch.no_grad():
        log_w = draw(pair.model, pair.guide, y, c, num_particles=100_000).log_weight()
    assert z_score(log_w, expected).abs() < Z_LIMIT  # fails with probability 1e-5


def test_a_completion_is_scored_by_its_unknown_part():
    pair, (y, _) = Linear(5, 5, 2, completion=True), linear_batch(1)
    c = torch.where(torch.tensor([True, False, True, False, False]), y, UNKNOWN)
    expected = pair.log_likelihood(y, c)
    torch.manual_seed(0)
    with torch.no_grad():
        w = draw(*[getattr(PriorGuided(pair), p) for p in ("model", "guide")], y, c, num_particles=400_000)
    # log p(unknown | given), not of all of y: a two-sided test that fails with probability 1e-5.
    assert z_score((w.log_weight() - expected).exp(), 1.0).abs() < Z_LIMIT


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("make", [prediction, lambda sizes: completer(sizes, prediction(sizes))])
def test_given_pixels_have_no_influence(make, sizes):
    pair, (y, c) = make(sizes).double(), (x.double() for x in completions())
    given = c != UNKNOWN
    other = torch.where(given, 1 - y, y)  # contradicts c
    for objective in (Trace_ELBO(2), IWAE(3)):
        assert torch.equal(seeded_bound(pair, objective, y, c), seeded_bound(pair, objective, other, c))
        unknown = torch.where(given, y, 1 - y)
        assert not torch.isclose(seeded_bound(pair, objective, y, c), seeded_bound(pair, objective, unknown, c)).any()


def test_gradient_of_the_likelihood_is_zero_at_given_pixels():
    pair, (y, c) = prediction(), completions()
    logits = torch.randn(4, *y.shape, requires_grad=True)  # of four particles
    p = pair.counted(dist.Bernoulli(logits=logits).to_event(3), c)
    assert p.batch_shape == (4, len(y)) and p.event_shape == SHAPE
    log_p = p.log_prob(y)
    log_p.sum().backward()
    assert logits.grad is not None
    given = (c != UNKNOWN).expand_as(logits)
    assert bool((logits.grad[given] == 0).all()) and bool((logits.grad[~given] != 0).all())
    by_hand = dist.Bernoulli(logits=logits).log_prob(y).masked_fill(given, 0.0).sum((-1, -2, -3))
    torch.testing.assert_close(log_p, by_hand)


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("guess", [False, True])
def test_terms_by_hand(sizes, guess):
    pair, (y, c) = completer(sizes, prediction(sizes) if guess else None), completions()
    terms = draw(pair.model, pair.guide, y, c, num_particles=5)
    assert list(terms.log_p) == ["z", "y"] and list(terms.log_q) == ["z"]
    z = terms.draws[0].guide["z"].value
    assert z.shape == (5, 6, 3)
    filled = torch.where(c == UNKNOWN, pair.baseline(c).mean, c) if pair.baseline else c
    f = pair.condition(filled)
    torch.testing.assert_close(terms.log_p["z"], pair.prior(f).log_prob(z))
    torch.testing.assert_close(terms.log_q["z"], pair.recognition(torch.cat([pair.sight(y), f], -1)).log_prob(z))
    p = pair.generation(torch.cat([z, f.expand(5, *f.shape)], -1)).base_dist
    torch.testing.assert_close(terms.log_p["y"], (p.log_prob(y) * (c == UNKNOWN)).sum((-1, -2, -3)))
    prior = draw(PriorGuided(pair).model, PriorGuided(pair).guide, y, c, num_particles=5)
    torch.testing.assert_close(prior.log_weight(), prior.log_p["y"])


def test_particles_are_those_of_a_tiled_batch():
    pair, (y, c) = completer(baseline=prediction()).double(), [x.double() for x in completions()]
    together = draw(pair.model, pair.guide, y, c, num_particles=5)
    z = together.draws[0].guide["z"].value
    tiled = [x.repeat(5, 1, 1, 1) for x in (y, c)]
    with GivenValues({"z": z.flatten(0, 1)}):
        expected = draw(pair.model, pair.guide, *tiled).log_weight()
    torch.testing.assert_close(together.log_weight(), expected.view(5, 6))


# Stock Pyro says so of each frozen parameter.
@pytest.mark.filterwarnings("ignore:baseline.* was not registered")
@pytest.mark.parametrize("guess", [False, True])
def test_stock_pyro(guess):
    pair, batch = completer(baseline=prediction() if guess else None).double(), [x.double() for x in completions()]
    assert_same(seeded_loss(pair, Trace_ELBO(), *batch), stock_loss(pair, pyro.infer.Trace_ELBO(), *batch))
    mean_field = TraceMeanField_ELBO(), pyro.infer.TraceMeanField_ELBO()
    assert_same(seeded_loss(pair, mean_field[0], *batch), stock_loss(pair, mean_field[1], *batch))
    renyi = pyro.infer.RenyiELBO(0, 4, max_plate_nesting=1, vectorize_particles=True)
    assert_same(seeded_loss(pair, IWAE(4), *batch), stock_loss(pair, renyi, *batch))


@pytest.mark.filterwarnings("ignore:baseline.* was not registered")
def test_stock_pyro_trains_all_but_the_baseline():
    pair, batch = completer(baseline=prediction()), completions(2)
    before = {name: p.detach().clone() for name, p in pair.named_parameters()}
    losses = steps(pair.pyro_svi(pyro_adam(0.02), pyro.infer.Trace_ELBO()), batch, 20)
    assert sum(losses[-3:]) < sum(losses[:3])
    assert all(torch.equal(p, before[n]) == n.startswith("baseline.") for n, p in pair.named_parameters())


PAIRS = {
    "prediction": lambda: (prediction(), completions()),
    "conv prediction": lambda: (prediction("conv"), completions()),
    "completion": lambda: (completer(), completions()),
    "completion with baseline": lambda: (completer(baseline=prediction()), completions(number=3)),
    "conv with baseline": lambda: (completer("conv", prediction("conv")), completions(number=2)),
    "vector": lambda: (
        ConditionalVAE((4,), (3,), 2, (6,), likelihood="normal"),
        (torch.randn(6, 4), torch.randn(6, 3)),
    ),
    "vector with baseline": lambda: (
        ConditionalVAE((4,), (3,), 2, (6,), likelihood="normal", baseline=Prediction((4,), (3,), (5,))),
        (torch.randn(6, 4), torch.randn(6, 3)),
    ),
    "classes": lambda: (
        ConditionalVAE(SHAPE, (2,), 2, (3,), trunk="conv", condition=Embedding(), condition_dim=8, image_features=7),
        (torch.rand(6, *SHAPE).round(), torch.randint(5, (6, 2))),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_contract(name):
    pair, batch = PAIRS[name]()
    check_pair(pair, *batch).raise_if_failed()


@pytest.mark.parametrize("name", PAIRS)
def test_generate(name):
    pair, (y, c) = PAIRS[name]()
    node = dict(pair.generate(torch.zeros_like(y), c).nodes)["y"]
    assert node["value"].shape == y.shape and node["fn"].mean.shape == y.shape
    assert node["fn"].batch_shape == y.shape[:1] and node["fn"].event_shape == y.shape[1:]


@pytest.mark.parametrize("name", PAIRS)
def test_traced_away_is_eager(name):
    pair, batch = PAIRS[name]()
    loss = Trace_ELBO(2)(pair)
    recorded = record(loss, *batch, faster={})
    torch.manual_seed(1)
    noise = recorded.noise()
    value, *found = recorded.graph(*loss_state(loss).values(), torch.ones(()), *batch, *noise)
    torch.manual_seed(1)
    torch.testing.assert_close(value, eager_backward(loss, *batch))
    expected = {name: p.grad for name, p in loss.named_parameters() if p.requires_grad}
    torch.testing.assert_close(dict(zip(recorded.trained, found, strict=True)), expected, rtol=1e-4, atol=1e-4)


def test_a_condition_runs_once_for_both_programs_and_learns():
    pair, batch = PAIRS["classes"]()
    assert isinstance(pair.condition, Embedding)
    pair.condition.calls = 0
    draw(pair.model, pair.guide, *batch, num_particles=5)
    assert pair.condition.calls == 1
    with torch.no_grad():  # nothing is kept
        draw(pair.model, pair.guide, *batch, num_particles=5)
    assert pair.condition.calls == 3
    before = pair.condition.table.weight.detach().clone()
    fit(pair, batch, steps=2, batch_size=6, device="cpu", progress=False)
    assert not torch.equal(pair.condition.table.weight, before)


@pytest.mark.parametrize(
    "objective", [Trace_ELBO(2), TraceMeanField_ELBO(), IWAE(3), DReG(3), STL(2)], ids=lambda o: type(o).__name__
)
@pytest.mark.parametrize("name", ["classes", "conv with baseline"])
def test_features_made_once_change_neither_loss_nor_gradient(name: str, objective: Objective):
    pair, batch = PAIRS[name]()
    batch = [part.double() if part.is_floating_point() else part for part in batch]
    twin = copy.deepcopy(pair.double())
    twin.rollout = Never()
    assert_same(seeded_loss(pair, objective, *batch), seeded_loss(twin, objective, *batch))
    torch.testing.assert_close(seeded_bound(pair, objective, *batch), seeded_bound(twin, objective, *batch))


def test_the_baseline_stays_as_it_was_trained():
    baseline, batch = prediction(condition=nn.Sequential(nn.Flatten(), nn.Dropout()), condition_dim=30), completions()
    pair = completer(baseline=baseline)
    assert pair.baseline is not None and pair.baseline is not baseline
    before = {name: p.detach().clone() for name, p in baseline.state_dict().items()}
    for objective in (Trace_ELBO(), IWAE(3), DReG(3)):
        fit(pair, batch, objective, steps=3, batch_size=6, device="cpu", progress=False)
        assert pair.training and not any(module.training for module in pair.baseline.modules())
        assert not any(p.requires_grad for p in pair.baseline.parameters())
        torch.testing.assert_close(dict(pair.baseline.state_dict()), before, rtol=0, atol=0)
    # The one that was handed in may be trained on.
    fit(baseline, batch, steps=3, batch_size=6, device="cpu", progress=False)
    assert not torch.equal(baseline.state_dict()["generation.0.output.weight"], before["generation.0.output.weight"])
    torch.testing.assert_close(dict(pair.baseline.state_dict()), before, rtol=0, atol=0)


def test_the_elbo_of_a_prediction_is_the_cross_entropy_of_the_unknown_pixels():
    pair, (y, c) = prediction(likelihood="grey-bernoulli"), quadrants(torch.rand(6, *SHAPE), 2)
    p = pair(c).mean
    expected = (y * p.log() + (1 - y) * (1 - p).log())[..., 2:].sum((1, 2, 3))  # the right half is not given
    torch.testing.assert_close(Trace_ELBO().bound(pair.model, pair.guide, y, c), expected)


def test_elbo_and_monte_carlo_are_below_importance_sampling():
    """Two halves of an image agree in one hidden bit: z says much about y, and c nothing about z."""
    bits = torch.rand(500, 1, 1, 1) < 0.5
    noisy = torch.where(torch.rand(500, *SHAPE) < 0.05, ~bits, bits).float()
    y, c = quadrants(noisy, 2)
    c = torch.where(c == UNKNOWN, c, torch.rand_like(c).round())
    torch.manual_seed(0)
    pair = completer()
    fit(pair, (y, c), steps=400, batch_size=50, learning_rate=5e-3, device="cpu", progress=False)
    found = {
        name: torch.stack([evaluation.log_likelihood(p, y, c, num_particles=k, seed=s) for s in range(2)]).mean(0)
        for name, p, k in (("elbo", pair, 1), ("prior", PriorGuided(pair), 5), ("is", pair, 5))
    }
    # Paired over the data: each of the two one-sided tests fails with probability 1e-5 were the means equal.
    assert z_score(found["is"] - found["elbo"]) > -Z_LIMIT and z_score(found["is"] - found["prior"]) > Z_LIMIT


def test_output_starts_at_the_means():
    pair, mean = completer(), 0.2 + 0.6 * torch.rand(SHAPE)
    for parameter in pair.generation.parameters():
        parameter.detach().zero_()
    pair.set_output_mean(mean)
    torch.testing.assert_close(pair.generation(torch.randn(4, 33)).mean, mean.expand(4, *SHAPE))


def test_defaults_are_the_networks_of_the_literature():
    sizes = [tuple(p.shape) for p in Prediction((784,), (784,)).parameters() if p.dim() == 2]
    assert sizes == [(500, 784), (500, 500), (784, 500)]
    pair = ConditionalVAE((784,), (784,), completion=True)
    sizes = {name: [tuple(p.shape) for p in part.parameters() if p.dim() == 2] for name, part in pair.named_children()}
    assert sizes["prior"] == [(500, 784), (500, 500), (400, 500)]
    assert sizes["recognition"] == [(500, 1568), (500, 500), (400, 500)]
    assert sizes["generation"] == [(500, 984), (500, 500), (784, 500)]


@pytest.mark.parametrize("make", [Prediction, lambda *a, **k: ConditionalVAE(*a, latent_dim=2, **k)])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trunk": "resnet"}, "trunk: got 'resnet', expected one of mlp, conv"),
        ({"likelihood": "mse"}, "likelihood: got 'mse', expected one of bernoulli"),
        ({"variance": 0.1}, "variance: got 0.1 with likelihood 'bernoulli'"),
        ({"hidden": (0,)}, r"hidden: got \(0,\), expected sizes of at least 1"),
        ({"completion": True}, r"completion: got data_shape \(1, 6, 5\) and given_shape \(3,\), expected one shape"),
        ({"condition_dim": 3}, "condition: got NoneType with condition_dim=3, expected both or none"),
        ({"condition": nn.Linear(3, 4)}, "condition: got Linear with condition_dim=None, expected both or none"),
    ],
)
def test_bad_options(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(SHAPE, (3,), **options)


def test_bad_baseline():
    with pytest.raises(
        ValueError, match=r"baseline: got .* = \(\(4,\), \(3,\), False\), expected \(\(4,\), \(2,\), False\)"
    ):
        ConditionalVAE((4,), (2,), 2, baseline=Prediction((4,), (3,)))


def test_a_completion_scores_elements_one_at_a_time():
    pair, (y, c) = prediction(likelihood="logistic-mixture", levels=2), completions()
    with pytest.raises(ValueError, match="completion: got DiscretisedLogisticMixture, expected a likelihood of"):
        pair.model(y, c)


@pytest.mark.parametrize(
    ("pair", "c", "message"),
    [
        (Prediction((4,), (3,)), torch.zeros(6, 2), r"c: got shape \(6, 2\), expected \(B, 3\)"),
        (
            Prediction((4,), (3,)),
            torch.zeros(6, 3).long(),
            r"condition: got features of shape \(6, 3\) and torch.int64",
        ),
        (
            Prediction((4,), (3,), condition=nn.Linear(3, 5), condition_dim=4),
            torch.zeros(6, 3),
            r"condition: got features of shape \(6, 5\) and torch.float32, expected 4 floats",
        ),
    ],
)
def test_bad_conditions(pair: ConditionalPair, c, message):
    with pytest.raises(ValueError, match=message):
        pair.model(torch.zeros(6, 4), c)


@pytest.mark.parametrize("make", [Prediction, ConditionalVAE], ids=["prediction", "vae"])
def test_a_class_is_its_unit_vector(make: type[Prediction | ConditionalVAE]) -> None:
    by_class, by_vector = make((1, 2, 3), hidden=(5,), classes=4), make((1, 2, 3), (4,), hidden=(5,))
    by_vector.load_state_dict(by_class.state_dict())
    y, c = torch.rand(6, 1, 2, 3).round(), torch.tensor([0, 3, 1, 1, 2, 0])
    check_pair(by_class, y, c).raise_if_failed()
    bounds = [
        evaluation.bound(pair, Trace_ELBO(), y, given, seed=0)
        for pair, given in ((by_class, c), (by_vector, torch.eye(4)[c]))
    ]
    assert torch.equal(*bounds)


def test_classes_or_a_shape() -> None:
    with pytest.raises(ValueError, match=r"given_shape: got \(3,\) and classes=4, expected one of them"):
        ConditionalVAE((4,), (3,), classes=4)
    with pytest.raises(ValueError, match="given_shape: got None and classes=None, expected one of them"):
        Prediction((4,))


def test_not_direct_all_that_is_known_goes_through_z() -> None:
    y, c = torch.rand(5, 4).round(), torch.rand(5, 3)
    for direct in (True, False):
        pair = ConditionalVAE((4,), (3,), latent_dim=2, hidden=(6,), direct=direct)
        check_pair(pair, y, c).raise_if_failed()
        z = {"z": torch.randn(1, 2).expand(5, 2)}
        means = generation.decode(pair, z, y, c).mean
        # To rounding: on some processors a row of a product depends on which row it is.
        assert torch.allclose(means, means[:1].expand_as(means), rtol=0, atol=1e-6) is not direct
