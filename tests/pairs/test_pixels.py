"""Pairs without latent variables: the bound is the log-likelihood; they draw where others show means."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch

from ppl_vae import evaluation, fit, generation
from ppl_vae.data import load
from ppl_vae.objectives import IWAE, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.pairs import MADE, VAE, PixelCNN, PixelRNN
from ppl_vae.pairs.pixels import ElementByElement
from ppl_vae.testing import check_pair

PAIRS: dict[str, Callable[[], ElementByElement]] = {
    "gated": lambda: PixelCNN((1, 3, 3), 6, 2, features=6),
    "masked": lambda: PixelCNN((1, 3, 3), 6, 1, features=6, stack="masked"),
    "row": lambda: PixelRNN((1, 3, 3), 4, 2, order="row", features=6),
    "diagonal": lambda: PixelRNN((1, 3, 3), 4, 2, features=6),
    "made": lambda: MADE((1, 3, 3), (11,)),
    "belief net": lambda: MADE((9,), ()),
    "colours": lambda: PixelCNN((3, 2, 2), 6, 2, features=6, likelihood="categorical", levels=3),
    "plus": lambda: PixelCNN(
        (3, 2, 2), 4, 1, stack="plus", scales=2, dropout=0.0, likelihood="logistic-mixture", levels=5
    ),
    "mixture": lambda: PixelCNN((3, 2, 2), 4, 2, features=6, likelihood="logistic-mixture", levels=5),
    "logistic": lambda: PixelCNN((1, 3, 2), 6, 2, features=6, likelihood="discretised-logistic", levels=5),
}


@pytest.mark.parametrize("name", PAIRS)
def test_contract(name: str) -> None:
    pair = PAIRS[name]()
    levels = getattr(pair.network.head, "levels", 2)
    x = torch.randint(levels, (5, *pair.data_shape)) / (levels - 1)
    check_pair(pair, x).raise_if_failed()
    expected = pair.law(x).log_prob(x)
    for objective in (Trace_ELBO(), TraceMeanField_ELBO(), IWAE(4)):
        torch.testing.assert_close(objective.bound(pair.model, pair.guide, x), expected)
    torch.testing.assert_close(evaluation.log_likelihood(pair, x, num_particles=3, progress=False), expected.double())


@pytest.mark.parametrize("name", ["gated", "masked", "row", "diagonal", "made", "belief net"])
def test_all_images_together_have_probability_one(name: str) -> None:
    pair = PAIRS[name]().double()
    x = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9)), dtype=torch.float64).view(-1, *pair.data_shape)
    total = evaluation.log_likelihood(pair, x, num_particles=1, progress=False).exp().sum().item()
    assert total == pytest.approx(1.0, abs=1e-10)


def test_the_output_starts_at_the_mean_pixel() -> None:
    pair, mean = PAIRS["gated"](), torch.rand(1, 3, 3)
    for parameter in pair.network.trunk.parameters():
        torch.nn.init.zeros_(parameter)
    pair.set_output_mean(mean)
    got = pair.network(torch.zeros(1, 1, 3, 3)).mean
    torch.testing.assert_close(got, mean.mean().expand(1, 1, 3, 3))


def test_it_learns_and_draws() -> None:
    """The entropy of independent pixels is beaten on digits after 100 steps."""
    digits = load("digits", binarisation="static")
    pair = PixelCNN(digits.shape, 16, 3, features=16)
    pair.set_output_mean(digits.pixel_means)
    fit(pair, digits, steps=100, learning_rate=5e-3, device="cpu", progress=False)
    x, p = digits.test_batch(), digits.pixel_means.clamp(1e-3, 1 - 1e-3)
    alone = -(x * p.log() + (1 - x) * (1 - p).log()).flatten(1).sum(1).mean()
    assert -evaluation.log_likelihood(pair, x, num_particles=1, progress=False).mean() < alone - 2
    drawn = generation.samples(pair, num=3)
    assert drawn.shape == (3, 1, 8, 8) and set(drawn.unique().tolist()) == {0.0, 1.0}
    with pytest.raises(ValueError, match="knows its mean"):
        generation.samples(pair, num=3, mean=True)
    with pytest.raises(ValueError, match="PixelCNN: got no latent variables"):
        generation.reconstructions(pair, x[:2])


def test_completions_keep_what_is_given() -> None:
    pair, x = PAIRS["colours"](), torch.randint(3, (4, 3, 2, 2)) / 2
    given = torch.tensor([[True, True], [False, False]]).expand(3, 2, 2)
    drawn = generation.completions(pair, x, given=given, num=5)
    assert drawn.shape == (4, 5, 3, 2, 2) and drawn[..., 0, :].eq(x[:, None, :, 0]).all() and drawn[..., 1, :].std() > 0
    assert torch.equal(drawn, generation.completions(pair, x, given=given, num=5))
    with pytest.raises(ValueError, match=r"given: got \(2, 2\) torch.bool, expected \(3, 2, 2\) torch.bool"):
        generation.completions(pair, x, given=given[0])
    with pytest.raises(ValueError, match="'x': got Independent, expected Autoregressive"):
        generation.completions(VAE((1, 2, 2), 2, (3,)), x[:, :1], given=given[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stack": "wavenet"}, "stack: got 'wavenet', expected one of gated, masked, plus"),
        ({"likelihood": "mse"}, "likelihood: got 'mse'"),
        ({"order": "spiral"}, "order: got 'spiral', expected one of diagonal, row"),
        ({"data_shape": (8, 8)}, r"data_shape: got \(8, 8\), expected \(channels, height, width\)"),
        ({"hidden": 0}, "hidden: got 0"),
        ({"kernel": 2}, "kernel: got 2"),
        ({"stack": "plus"}, "got a BernoulliHead with joint=False and a PixelCNNPlus with joint=True"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made: dict[str, Any] = {"data_shape": (1, 8, 8), **options}
        (PixelRNN if "order" in options else PixelCNN)(**made)


CONDITIONED: dict[str, Callable[..., ElementByElement]] = {
    "gated": lambda **told: PixelCNN((1, 3, 3), 6, 2, features=6, **told),
    "masked": lambda **told: PixelCNN((1, 3, 3), 6, 1, features=6, stack="masked", **told),
    "plus": lambda **told: PixelCNN(
        (1, 2, 2), 4, 1, stack="plus", scales=2, dropout=0.0, likelihood="logistic-mixture", levels=3, **told
    ),
    "row": lambda **told: PixelRNN((1, 3, 3), 4, 2, order="row", features=6, **told),
    "diagonal": lambda **told: PixelRNN((1, 3, 3), 4, 2, features=6, **told),
    "made": lambda **told: MADE((1, 3, 3), (11,), **told),
    "belief net": lambda **told: MADE((9,), (), **told),
}


@pytest.mark.parametrize("name", CONDITIONED)
def test_given_a_class_all_images_have_probability_one(name: str) -> None:
    pair = CONDITIONED[name](classes=3).double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.normal_(0, 0.5, generator=torch.Generator().manual_seed(parameter.numel()))
    levels = getattr(pair.network.head, "levels", 2)
    size = torch.Size(pair.data_shape).numel()
    values = torch.tensor(list(itertools.product(range(levels), repeat=size))).double() / (levels - 1)
    x = values.view(-1, *pair.data_shape)
    by_class = [pair.law(x, torch.full((len(x),), label)).log_prob(x).exp() for label in range(3)]
    for probabilities in by_class:
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-9)
    assert not torch.allclose(by_class[0], by_class[1])


@pytest.mark.parametrize("name", CONDITIONED)
def test_a_class_is_its_unit_vector(name: str) -> None:
    by_class, by_vector = CONDITIONED[name](classes=3), CONDITIONED[name](context_dim=3)
    by_vector.load_state_dict(by_class.state_dict())
    levels = getattr(by_class.network.head, "levels", 2)
    x, c = torch.randint(levels, (5, *by_class.data_shape)) / (levels - 1), torch.tensor([0, 2, 1, 1, 0])
    vectors = torch.eye(3)[c]
    check_pair(by_class, x, c).raise_if_failed()
    assert torch.equal(by_class.law(x, c).log_prob(x), by_vector.law(x, vectors).log_prob(x))
    drawn = [generation.samples(pair, x, given) for pair, given in ((by_class, c), (by_vector, vectors))]
    assert torch.equal(*drawn)


def test_a_class_is_learnt() -> None:
    # Of class k every pixel is 1 with probability (k + 1) / 4: the likelihood is that of nine coins.
    c = torch.arange(3).repeat(400)
    x = torch.bernoulli(((c + 1) / 4).view(-1, 1, 1, 1).expand(-1, 1, 3, 3), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    pair = MADE((1, 3, 3), (), classes=3)
    fit(pair, (x, c), Trace_ELBO(), steps=600, batch_size=100, learning_rate=2e-2, progress=False)
    means = torch.stack(
        [generation.samples(pair, torch.zeros(3000, 1, 3, 3), torch.full((3000,), k)).mean() for k in range(3)]
    )
    # Standard error of a share of 27,000 dependent pixels below 0.006, of the weights' about 0.01: four of them.
    assert torch.allclose(means, torch.tensor([0.25, 0.5, 0.75]), atol=0.05)


def test_what_is_given_is_checked() -> None:
    with pytest.raises(ValueError, match="got classes=3 and context_dim=2, expected one of them"):
        PixelCNN((1, 3, 3), classes=3, context_dim=2)
    with pytest.raises(ValueError, match=r"got x alone, expected .x, c.: the pair is told 3 numbers or classes"):
        MADE((4,), classes=3).law(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"classes: got torch.float32, expected torch.int64"):
        MADE((4,), classes=3).law(torch.zeros(2, 4), torch.zeros(2)).log_prob(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"context: got .2, 3., expected None"):
        MADE((4,)).law(torch.zeros(2, 4), torch.zeros(2, 3)).log_prob(torch.zeros(2, 4))
