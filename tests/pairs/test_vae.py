"""The VAE: its sites and densities by hand, and its starting point."""

import pyro.distributions as dist
import pytest
import torch

from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.pairs import VAE
from ppl_vae.terms import draw
from tests.helpers import generate

SHAPE = (2, 5, 7)
CONFIGURATIONS = {
    "mlp": {"hidden": (8, 6)},
    "conv": {"hidden": (3, 4), "trunk": "conv", "activation": torch.nn.ReLU},
    "grey": {"hidden": (8,), "likelihood": "grey-bernoulli"},
    "normal": {"hidden": (8,), "likelihood": "normal"},
    "constant variance": {"hidden": (8,), "likelihood": "normal", "variance": 0.5},
    "discretised logistic": {"hidden": (8,), "likelihood": "discretised-logistic"},
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_terms_by_hand(name):
    pair, x = VAE(SHAPE, 3, **CONFIGURATIONS[name]), torch.rand(4, *SHAPE).round()
    terms = draw(pair.model, pair.guide, x, num_particles=5)
    assert list(terms.log_p) == ["z", "x"] and list(terms.log_q) == ["z"]
    z = terms.draws[0].guide["z"].value
    assert z.shape == (5, 4, 3)
    torch.testing.assert_close(terms.log_p["z"], dist.Normal(0.0, 1.0).log_prob(z).sum(-1))
    torch.testing.assert_close(terms.log_q["z"], pair.encoder(x).log_prob(z))
    torch.testing.assert_close(terms.log_p["x"], pair.decoder(z).log_prob(x))


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_generate(name):
    pair = VAE(SHAPE, 3, **CONFIGURATIONS[name])
    nodes = generate(pair, torch.zeros(6, *SHAPE))
    assert nodes["z"]["value"].shape == (6, 3) and nodes["x"]["value"].shape == (6, *SHAPE)
    assert nodes["x"]["fn"].batch_shape == (6,) and nodes["x"]["fn"].event_shape == SHAPE


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_output_starts_at_the_pixel_means(name):
    pair, mean = VAE(SHAPE, 3, **CONFIGURATIONS[name]), 0.2 + 0.6 * torch.rand(SHAPE)
    for parameter in pair.decoder.parameters():
        parameter.detach().zero_()
    pair.set_output_mean(mean)
    torch.testing.assert_close(pair.decoder(torch.randn(4, 3)).mean, mean.expand(4, *SHAPE), rtol=1e-4, atol=1e-4)


def test_defaults_are_the_one_layer_model_of_burda_et_al():
    pair = VAE((1, 28, 28))
    sizes = [tuple(p.shape) for p in pair.parameters() if p.dim() == 2]
    assert sizes == [(200, 784), (200, 200), (100, 200), (200, 50), (200, 200), (784, 200)]


@pytest.mark.parametrize("objective", [Trace_ELBO(3), IWAE(3)])
def test_every_parameter_learns(objective):
    pair, x = VAE(SHAPE, 3, hidden=(8,)), torch.rand(4, *SHAPE).round()
    objective(pair)(x).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in pair.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trunk": "resnet"}, "trunk: got 'resnet', expected one of mlp, conv"),
        ({"likelihood": "mse"}, "likelihood: got 'mse', expected one of bernoulli"),
        ({"variance": 0.1}, "variance: got 0.1 with likelihood 'bernoulli'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        VAE(SHAPE, 3, **options)


def test_convolutions_need_images():
    with pytest.raises(ValueError, match=r"trunk 'conv': got data of shape \(784,\)"):
        VAE((784,), 3, trunk="conv")
