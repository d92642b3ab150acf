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
