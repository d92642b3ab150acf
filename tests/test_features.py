"""Features are means, handed on from site to site, with gradient; and what has none is refused."""

import copy
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae.features import Features, features
from ppl_vae.pair import Pair
from ppl_vae.pairs import MADE, VAE, Autoencoder, Classifier, HelmholtzMachine, HierarchicalVAE, SemiSupervisedVAE
from tests.helpers import gradients_of, pixels, small_hierarchy, small_vae

SHAPE = (1, 3, 4)


class Guide(Pair):
    """A guide alone: b x is the mean of what it draws."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))


class Chain(Guide):
    """q(u | x) auxiliary, q(z1 | u), q(z2 | z1), and what is no latent site."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            u = pyro.sample("u", dist.Normal(self.b * x, 1.0).to_event(1), infer={"is_auxiliary": True})
            z = pyro.sample("z1", dist.Normal(u + 1, 3.0).to_event(1))
            pyro.deterministic("double", 2 * z, event_dim=1)
            pyro.factor("regulariser", -z.square().sum(-1), has_rsample=True)
            pyro.sample("z2", dist.LogNormal(z.sum(-1), 0.5))


class Counts(Guide):
    """A class of each datum, a number from 0."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Categorical(logits=self.b * x))


class ManyCounts(Guide):
    """Several of them."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.Categorical(logits=(self.b * x).unsqueeze(-1).expand(-1, -1, 5)).to_event(1))


class Relaxed(Guide):
    """A law whose mean nobody knows."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("k", dist.RelaxedOneHotCategorical(x.new_tensor(0.5), logits=self.b * x))


class Plates(Guide):
    """A unit of each datum in a plate of its own: values (D, B)."""

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1), pyro.plate("units", x.shape[1], dim=-2):
            pyro.sample("z", dist.Normal(self.b * x.T, 1.0))


def vectors(rows: int = 5) -> Tensor:
    return torch.randn(rows, 3, dtype=torch.float64)


def test_of_a_vae_they_are_the_encoders_means() -> None:
    pair, x = small_vae(), pixels()
    assert torch.equal(features(pair, x), pair.encoder(x).mean)


def test_of_a_hierarchy_means_are_handed_on() -> None:
    pair, x = small_hierarchy(3), pixels()
    z1 = pair.encoder(x).mean
    z2 = pair.up[0](z1).mean
    expected = torch.cat([z1, z2, pair.up[1](z2).mean], -1)
    assert expected.shape == (5, 9) and torch.equal(features(pair, x), expected)


def test_of_binary_units_they_are_probabilities() -> None:
    pair, x = HelmholtzMachine(SHAPE, (4, 3)).double(), pixels()
    z1 = pair.up[0](x).mean
    assert torch.equal(features(pair, x), torch.cat([z1, pair.up[1](z1).mean], -1))
    assert bool(((z1 > 0) & (z1 < 1)).all())


def test_of_an_autoencoder_they_are_its_codes() -> None:
    pair, x = Autoencoder(SHAPE, 3, (6,)).double(), pixels()
    assert torch.equal(features(pair, x), pair.encode(x))


def test_of_one_hot_sites_they_are_probabilities() -> None:
    pair, x = SemiSupervisedVAE(SHAPE, classes=4, latent_dim=2, hidden=(5,)).double(), pixels()
    c = torch.tensor([-1, -1, 2, 0, -1])
    y = pair.classify(x).probs.clone()
    y[2], y[3] = torch.eye(4, dtype=torch.float64)[[2, 0]]
    z = pair.posterior(pair.encoder(x.flatten(1), y)).mean
    torch.testing.assert_close(features(pair, x, c), torch.cat([y, z], -1))


def test_auxiliary_sites_and_what_is_none_are_left_out() -> None:
    x = vectors()
    z1 = 2 * x + 1  # at the mean of u
    z2 = (z1.sum(-1) + 0.5**2 / 2).exp()  # of a log-normal law
    torch.testing.assert_close(features(Chain(), x).detach(), torch.cat([z1, z2[:, None]], -1))


@pytest.mark.parametrize("make", [small_vae, small_hierarchy, lambda: HelmholtzMachine(SHAPE, (4, 3)).double()])
def test_nothing_is_drawn_and_nothing_else_changes(make: Any) -> None:
    pair, x = make(), pixels()
    state, before = torch.get_rng_state(), copy.deepcopy(pair.state_dict())
    assert torch.equal(features(pair, x), features(pair, x))
    assert torch.equal(torch.get_rng_state(), state) and not pyro.get_param_store()
    assert pair.training and all(torch.equal(value, before[name]) for name, value in pair.state_dict().items())


def test_gradients_reach_the_encoder() -> None:
    pair, x, weights = small_hierarchy(2), pixels(), torch.randn(5, 7, dtype=torch.float64)
    found = gradients_of(pair, (features(pair, x) * weights).sum())
    z1 = pair.encoder(x).mean
    by_hand = (torch.cat([z1, pair.up[0](z1).mean], -1) * weights).sum()
    torch.testing.assert_close(found, gradients_of(pair, by_hand), rtol=1e-12, atol=1e-12)
    assert {name.split(".")[0] for name, gradient in found.items() if bool(gradient.any())} == {"encoder", "up"}


def test_as_a_module() -> None:
    pair, x = small_vae(), pixels()
    module = Features(pair)
    assert torch.equal(module(x), features(pair, x))
    assert [id(p) for p in module.parameters()] == [id(p) for p in pair.parameters()]


def test_a_plate_beside_the_datas() -> None:
    x = vectors()
    torch.testing.assert_close(features(Plates(), x).detach(), 2 * x)


@pytest.mark.parametrize(
    ("pair", "batch", "message"),
    [
        (Classifier((3,), 4), (torch.zeros(5, 3), torch.zeros(5).long()), "Classifier: got a guide without latent"),
        (MADE((3,), (4,)), (torch.zeros(5, 3),), "MADE: got a guide without latent sites, .* choose another pair"),
        (Counts(), (vectors(),), "site 'k': got Categorical, which has no mean, .* one-hot ones instead"),
        (ManyCounts(), (vectors(),), "site 'k': got Categorical, which has no mean"),
        (Relaxed(), (vectors(),), "site 'k': got RelaxedOneHotCategorical, which has no mean"),
    ],
)
def test_what_has_no_means_is_refused(pair: Pair, batch: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        features(pair, *batch)


def test_shapes() -> None:
    x = torch.zeros(7, 1, 8, 8)
    assert features(VAE((1, 8, 8), 3, (4, 4), trunk="conv"), x).shape == (7, 3)
    assert features(HierarchicalVAE((1, 8, 8), (4, 3), ((5,), (4,))), x).shape == (7, 7)
