"""SemiSupervisedVAE against the bounds of Kingma et al. 2014 summed over the classes by hand, and integrals over z."""

import math

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import evaluation, fit
from ppl_vae.compile import loss_state, record
from ppl_vae.data import UNLABELLED, load, partly_labelled
from ppl_vae.objectives import IWAE, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from ppl_vae.pairs import SemiSupervisedVAE
from ppl_vae.testing import check_pair
from tests.helpers import Grads, assert_same, generate, gradients_of, pixels, seeded_bound, seeded_loss

SHAPE, K = (1, 3, 4), 3
GIVEN = {
    "none": torch.tensor([-1, -1, -1, -1, -1]),
    "all": torch.tensor([0, 1, 2, 1, 0]),
    "some": torch.tensor([-1, 2, -1, 0, 1]),
}


def small(latent_dim: int = 2, **options) -> SemiSupervisedVAE:
    """With weights large enough for the classes to differ."""
    pair = SemiSupervisedVAE(SHAPE, K, latent_dim, (6,), **options).double()
    for network in (pair.classifier, pair.decoder):
        for parameter in network.parameters():
            parameter.data.mul_(3)
    return pair


def hesitant(latent_dim: int) -> SemiSupervisedVAE:
    """With a guide near the prior, whose importance weights have a small variance."""
    pair = small(latent_dim)
    for parameter in [*pair.classifier.parameters(), *pair.encoder.parameters()]:
        parameter.data.mul_(0.2)
    return pair


def encode(pair: SemiSupervisedVAE, x: Tensor, y: Tensor) -> dist.TorchDistribution:
    """q(z | x, y): both side by side, by the plain network."""
    return pair.posterior(pair.encoder.mlp(torch.cat([x, y], -1)))


def decode(pair: SemiSupervisedVAE, z: Tensor, y: Tensor) -> dist.TorchDistribution:
    return pair.likelihood(pair.decoder.mlp(torch.cat([z, y], -1)))


def tables(pair: SemiSupervisedVAE, x: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """log p(x, y, z_y) - log q(z_y | x, y) for each class y, on the noise of the guide, and log q(y | x): (K, B)."""
    y = torch.eye(K, dtype=x.dtype).unsqueeze(1).expand(K, len(x), K)
    torch.manual_seed(seed)
    q = encode(pair, x.flatten(1).expand(K, -1, -1), y)
    z = q.rsample()
    log_p = decode(pair, z, y).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - math.log(K)
    return log_p - q.log_prob(z), pair.classifier(x).log_softmax(-1).T


def exact_bound(pair: SemiSupervisedVAE, x: Tensor, c: Tensor) -> Tensor:
    """-L(x, y) of eq. 6 where the class is given, -U(x) of eq. 7 elsewhere: (B,), a loop over the rows."""
    log_w, log_q = tables(pair, x)
    unlabelled = (log_q.exp() * (log_w - log_q)).sum(0)
    return torch.stack([unlabelled[i] if c[i] < 0 else log_w[c[i], i] for i in range(len(x))])


@pytest.mark.parametrize("alpha", [0.0, 0.7])
@pytest.mark.parametrize("c", GIVEN.values(), ids=GIVEN)
def test_loss_gradient_and_bound_are_the_sums_over_the_classes(c, alpha):
    pair, x = small(classification=alpha), pixels()
    bound = exact_bound(pair, x, c)
    log_q = pair.classifier(x).log_softmax(-1)
    classified = sum(log_q[i, c[i]] for i in range(len(x)) if c[i] >= 0)
    loss = -bound.sum() - alpha * classified
    value, gradients = seeded_loss(pair, TraceEnum_ELBO(), x, c)
    assert all(g.isfinite().all() for g in gradients.values())
    assert_same((value, gradients), (loss.item(), gradients_of(pair, loss)))
    # What is reported does not know of the classification loss.
    torch.testing.assert_close(seeded_bound(pair, TraceEnum_ELBO(), x, c), bound.detach(), rtol=1e-10, atol=1e-10)


def of_classifier(gradients: Grads) -> list[Tensor]:
    return [g for name, g in gradients.items() if name.startswith("classifier.")]


@pytest.mark.parametrize("objective", [TraceEnum_ELBO(), Trace_ELBO(3)])
def test_labels_teach_the_classifier_by_the_classification_loss_alone(objective):
    x, c = pixels(), GIVEN["all"]
    assert all(not g.any() for g in of_classifier(seeded_loss(small(), objective, x, c)[1]))
    pair = small(classification=0.7)
    got = of_classifier(seeded_loss(pair, objective, x, c)[1])
    expected = of_classifier(gradients_of(pair, -0.7 * pair.classify(x).log_prob(c).sum()))
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
    assert all(g.any() for g in got)


@pytest.mark.parametrize("c", GIVEN.values(), ids=GIVEN)
def test_no_metric_counts_the_classification_loss(c):
    plain, pair, x = small(), small(classification=5.0), pixels()
    pair.load_state_dict(plain.state_dict())
    for objective in (TraceEnum_ELBO(2), Trace_ELBO(2)):
        bounds = [evaluation.bound(p, objective, x, c, seed=0) for p in (plain, pair)]
        assert torch.equal(*bounds)
    assert torch.equal(*(evaluation.log_likelihood(p, x, c, num_particles=7, seed=0) for p in (plain, pair)))


@pytest.mark.parametrize("c", GIVEN.values(), ids=GIVEN)
def test_sampled_classes_have_the_score_function(c):
    """Value and gradient of `Trace_ELBO` by hand, at the class and the z that the guide draws."""
    pair, x = small(), pixels()
    log_q = pair.classifier(x).log_softmax(-1)
    given = nn.functional.one_hot(c.clamp(min=0), K).double()
    free = (c < 0).unsqueeze(-1)
    torch.manual_seed(0)
    y = dist.OneHotCategorical(logits=torch.where(free, log_q.detach(), given.log())).sample()
    assert torch.equal(y[c >= 0], given[c >= 0])
    q = encode(pair, x.flatten(1), y)
    z = q.rsample()
    log_w = decode(pair, z, y).log_prob(x) + dist.Normal(0.0, 1.0).log_prob(z).sum(-1) - math.log(K)
    log_w = log_w - q.log_prob(z)
    log_q = torch.where(c < 0, (y * log_q).sum(-1), 0.0)
    elbo = log_w - log_q.detach()
    loss = -elbo.sum() - (elbo.detach() * log_q).sum()
    expected = -elbo.sum().item(), gradients_of(pair, loss)
    assert_same(seeded_loss(pair, Trace_ELBO(), x, c), expected)
    torch.testing.assert_close(seeded_bound(pair, Trace_ELBO(), x, c), elbo.detach())


@pytest.mark.parametrize("objective", [TraceMeanField_ELBO(), IWAE(2)])
def test_objectives_that_need_a_path_through_the_class_are_refused(objective):
    """Also where all classes are given: the class is a site all the same."""
    for c in GIVEN.values():
        with pytest.raises(ValueError, match=r"guide site 'y': got OneHotCategorical, which is not reparameterised"):
            seeded_loss(small(), objective, pixels(), c)


def integrals(pair: SemiSupervisedVAE, x: Tensor) -> Tensor:
    """log p(x, y) for each class y, (K, B): integrals over a z of one dimension."""
    z, width = torch.linspace(-10, 10, 2_001, dtype=x.dtype), 0.01
    y = torch.eye(K, dtype=x.dtype).view(K, 1, 1, K).expand(K, 1, len(z), K)
    law = decode(pair, z.view(-1, 1).expand(K, 1, -1, 1), y)
    log_p = law.log_prob(x.unsqueeze(1)) + dist.Normal(0.0, 1.0).log_prob(z)
    return log_p.logsumexp(-1) + math.log(width / K)


@pytest.mark.parametrize("c", GIVEN.values(), ids=GIVEN)
def test_log_likelihood_is_that_of_what_is_given(c):
    """log p(x, y) with a class and log p(x) without, by importance sampling with 20,000 particles.

    Fails by chance with probability 1e-5 (5 data, each 2e-6).
    """
    pair, x = hesitant(1), pixels()
    exact = integrals(pair, x).detach()
    expected = torch.stack([exact[:, i].logsumexp(0) if c[i] < 0 else exact[c[i], i] for i in range(len(x))])
    got = evaluation.importance_sampling(pair, x, c, num_particles=20_000, seed=0)
    error = (1 / got.ess - 1 / 20_000).sqrt()
    assert error.max() < 0.05
    assert ((got.log_likelihood - expected).expm1() / error).abs().max() < 4.76


def test_every_class_alone_sums_to_what_no_class_gives():
    """sum_y p(x, y) = p(x), on independent particles. Fails by chance with probability 1e-5 (5 data)."""
    pair, x = hesitant(2), pixels()
    runs = [
        evaluation.importance_sampling(pair, x, torch.full((5,), y), num_particles=20_000, seed=y + 1)
        for y in range(-1, K)
    ]
    p = torch.stack([run.log_likelihood for run in runs]).exp()
    error = (p.square() * torch.stack([1 / run.ess - 1 / 20_000 for run in runs])).sum(0).sqrt()
    assert ((p[0] - p[1:].sum(0)) / error).abs().max() < 4.76 and (error / p[0]).max() < 0.05


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_samples_are_of_the_class_given_or_of_any(alpha):
    """Fails by chance with probability 1e-5 (three classes of 1,000 draws)."""
    pair, c = small(classification=alpha), torch.tensor([-1, 0, 2]).repeat(1_000)
    nodes = generate(pair, pixels(3_000), c)
    y, x = nodes["y"]["value"], nodes["x"]["value"]
    assert y.shape == (3_000, K) and bool((y.sum(-1) == 1).all()) and x.shape == (3_000, *SHAPE)
    assert torch.equal(y.argmax(-1)[c >= 0], c[c >= 0])
    assert (y[c < 0].sum(0) - 1_000 / K).abs().max() < 4.66 * math.sqrt(1_000 * 2 / 9)
    torch.testing.assert_close(nodes["x"]["fn"].mean, decode(pair, nodes["z"]["value"], y).mean)


def test_classify_and_the_guide_agree():
    pair, x = small(), pixels()
    law = pair.classify(x)
    assert law.batch_shape == (5,) and law.probs.shape == (5, K)
    logits = pair._class_logits(x, GIVEN["some"])
    torch.testing.assert_close(logits.softmax(-1)[[0, 2]], law.probs[[0, 2]])
    assert torch.equal(logits.softmax(-1)[[1, 3, 4]], torch.eye(K, dtype=x.dtype)[[2, 0, 1]])


def test_output_starts_at_the_pixel_means():
    pair, mean = small(), 0.2 + 0.6 * torch.rand(SHAPE, dtype=torch.float64)
    for parameter in pair.decoder.parameters():
        parameter.detach().zero_()
    pair.set_output_mean(mean)
    z, y = torch.randn(K, 2).double(), torch.eye(K).double()
    torch.testing.assert_close(decode(pair, z, y).mean, mean.expand(K, *SHAPE))


@pytest.mark.parametrize("options", [{}, {"classification": 0.5}, {"likelihood": "normal", "variance": 0.5}])
@pytest.mark.parametrize("c", GIVEN.values(), ids=GIVEN)
def test_pair_passes_the_checks(c, options):
    report = check_pair(SemiSupervisedVAE(SHAPE, K, 2, (6,), **options), pixels().float(), c)
    assert report.ok, str(report)


def test_recorded_equals_eager_on_shared_noise():
    pair, x, c = SemiSupervisedVAE(SHAPE, K, 2, (6,), classification=0.7), pixels().float(), GIVEN["some"]
    loss = TraceEnum_ELBO()(pair)
    recorded, state = record(loss, x, c), {n: v.clone() for n, v in loss_state(loss).items()}
    torch.manual_seed(1)
    eager = loss(x, c)
    torch.manual_seed(1)
    again, *gradients = recorded.graph(*state.values(), torch.ones(()), x, c, *recorded.noise())
    torch.testing.assert_close(again, eager.detach(), rtol=1e-6, atol=0)
    for a, b in zip(gradients, torch.autograd.grad(eager, list(pair.parameters())), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-7
    # One record serves batches with other classes given.
    for c in GIVEN.values():
        torch.manual_seed(2)
        eager = loss(x, c)
        torch.manual_seed(2)
        again = recorded.graph(*state.values(), torch.ones(()), x, c, *recorded.noise())[0]
        torch.testing.assert_close(again, eager.detach(), rtol=1e-6, atol=0)


def test_a_hundred_labels_teach_digits():
    """Untrained, 9 of 10 test digits are misread, and log p(x) is about -64 ln 2 = -44 nats."""
    data = partly_labelled(load("digits"), 100, repeat=3)
    pair = SemiSupervisedVAE(data.shape, data.classes, 3, (50,), classification=10.0)
    options = {"batch_size": 100, "device": "cpu", "compile": "off", "progress": False}
    fit(pair, data, TraceEnum_ELBO(), steps=200, learning_rate=1e-2, **options)
    x, c = data.test_batch()
    assert evaluation.classification_error(pair, x, c).value < 0.25
    none = torch.full_like(c, UNLABELLED)
    assert evaluation.bound(pair, TraceEnum_ELBO(), x, none, seed=0).mean() > -33


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classification": -0.1}, "classification: got -0.1, expected a weight, 0 or more"),
        ({"classification": math.nan}, "classification: got nan"),
        ({"classification": math.inf}, "classification: got inf"),
        ({"likelihood": "mse"}, "likelihood: got 'mse', expected one of bernoulli"),
        ({"classes": 0}, "classes: got 0, expected a whole number of at least 1"),
        ({"latent_dim": 0}, "latent_dim: got 0"),
        ({"hidden": (5, 0)}, r"hidden: got \(5, 0\)"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        SemiSupervisedVAE(SHAPE, **{"classes": K, **options})
