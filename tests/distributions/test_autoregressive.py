"""Autoregressive against enumeration and against its own draws; as a site of a pair."""

import itertools
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_vae import Pair
from ppl_vae.distributions import Autoregressive, GreyLevels
from ppl_vae.nn import MLP, BernoulliHead, CategoricalHead, CausalNetwork, GatedPixelCNN, PixelCNN
from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.testing import check_pair

SHAPE = (1, 2, 3)
IMAGES = torch.tensor(list(itertools.product((0.0, 1.0), repeat=6)), dtype=torch.float64).view(-1, *SHAPE)


def network(context_dim: int | None = None) -> CausalNetwork:
    head = BernoulliHead(SHAPE)
    made = CausalNetwork(GatedPixelCNN(head.raw_shape, 6, 2, features=6, context_dim=context_dim), head).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, 0, 0.5)  # laws far from a half
    return made


def test_log_prob_is_the_chain_rule() -> None:
    """Each factor from a network that is told nothing of what follows."""
    made, x = network(), IMAGES[37]
    expected = 0.0
    for i in range(6):
        cut = torch.where(torch.arange(6).view(SHAPE) < i, x, torch.rand(SHAPE))
        logit = made.trunk(cut[None])[0, 0].flatten()[i]
        expected += dist.Bernoulli(logits=logit).log_prob(x.flatten()[i]).item()
    assert Autoregressive(made).log_prob(x).item() == pytest.approx(expected, abs=1e-12)


def test_draws_have_the_probabilities_of_all_images() -> None:
    """Chi-squared over the 64 images, for two contexts; fails once in 1e5 runs by chance."""
    torch.manual_seed(0)
    p, number = Autoregressive(network(2), torch.randn(2, 2, dtype=torch.float64)), 20_000
    drawn = p.sample((number,))
    assert drawn.shape == (number, 2, *SHAPE)
    codes = (drawn.flatten(2) @ (2.0 ** torch.arange(5, -1, -1, dtype=torch.float64))).long()
    probabilities = p.log_prob(IMAGES.unsqueeze(1)).exp()
    for column in range(2):
        counts = torch.bincount(codes[:, column], minlength=64).double()
        expected = number * probabilities[:, column]
        common = expected >= 5
        statistic = ((counts - expected) ** 2 / expected)[common].sum().item()
        assert stats.chi2.sf(statistic, int(common.sum()) - 1) > 1e-5 / 2


def test_completions_have_the_law_of_the_rest_given_what_comes_first() -> None:
    """Chi-squared over the 16 images with two given pixels, for two contexts; fails once in 1e5 runs by chance."""
    torch.manual_seed(0)
    p, number, first = (
        Autoregressive(network(2), torch.randn(2, 2, dtype=torch.float64)),
        20_000,
        torch.tensor([1.0, 0.0]),
    )
    x = torch.cat([first.double(), torch.full((4,), torch.nan, dtype=torch.float64)]).view(SHAPE)
    given = (torch.arange(6) < 2).view(SHAPE)
    drawn = p.complete(x, given, (number,))
    assert drawn.shape == (number, 2, *SHAPE) and drawn.flatten(2)[..., :2].eq(first).all()
    images = IMAGES[(IMAGES.flatten(1)[:, :2] == first).all(1)]
    joint = p.log_prob(images.unsqueeze(1))
    probabilities = (joint - joint.logsumexp(0)).exp()
    codes = (drawn.flatten(2)[..., 2:] @ (2.0 ** torch.arange(3, -1, -1, dtype=torch.float64))).long()
    for column in range(2):
        counts = torch.bincount(codes[:, column], minlength=16).double()
        expected = number * probabilities[:, column]
        common = expected >= 5
        statistic = ((counts - expected) ** 2 / expected)[common].sum().item()
        assert stats.chi2.sf(statistic, int(common.sum()) - 1) > 1e-5 / 2


def test_shapes_and_expansion() -> None:
    p = Autoregressive(network())
    assert p.batch_shape == () and p.event_shape == SHAPE and p.sample((4, 2)).shape == (4, 2, *SHAPE)
    wide = p.expand((5,))
    assert wide.sample().shape == (5, *SHAPE) and wide.log_prob(IMAGES[0]).shape == (5,)
    assert wide.mask(True).log_prob(IMAGES[:5]).shape == (5,)
    context = torch.randn(3, 2, dtype=torch.float64)
    told = Autoregressive(network(2), context)
    assert told.batch_shape == (3,) and told.expand((7, 3)).sample((2,)).shape == (2, 7, 3, *SHAPE)
    torch.testing.assert_close(told.expand((7, 3)).log_prob(IMAGES[0])[4], told.log_prob(IMAGES[0]))
    assert Autoregressive(network(2), context[0]).support.check(IMAGES[:2]).all()  # pyright: ignore


def test_values_outside_the_support_are_refused() -> None:
    p = Autoregressive(network(), validate_args=True)
    with pytest.raises(ValueError, match="support"):
        p.log_prob(torch.full(SHAPE, 0.5, dtype=torch.float64))
    head = CategoricalHead(SHAPE, 3)
    levels = Autoregressive(CausalNetwork(PixelCNN(head.raw_shape, 2, 1, 2), head))
    base = levels.support.base_constraint  # pyright: ignore
    assert isinstance(base, GreyLevels) and base.levels == 3
    with pytest.raises(ValueError, match="batch_shape: got"):
        Autoregressive(network(2), torch.zeros(3, 2), batch_shape=(3,))
    with pytest.raises(NotImplementedError):
        _ = p.mean


class Alone(Pair):
    """p(x): no latent variables."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels = network()

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", Autoregressive(self.pixels), obs=x)


class Decoder(Pair):
    """p(z) = N(0, I); p(x | z) = prod p(x_i | x_<i, z); q(z | x) = N(MLP(x), 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.encoder = network(2), MLP(SHAPE, 2, hidden=(4,)).double()

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", Autoregressive(self.pixels, z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), 1.0).to_event(1))


def test_alone_the_bound_is_the_log_likelihood_and_generation_draws() -> None:
    pair = Alone()
    expected = Autoregressive(pair.pixels).log_prob(IMAGES)
    torch.testing.assert_close(Trace_ELBO().bound(pair.model, pair.guide, IMAGES), expected)
    torch.testing.assert_close(IWAE(3).bound(pair.model, pair.guide, IMAGES), expected)
    check_pair(pair, IMAGES).raise_if_failed()
    nodes: dict[str, Any] = dict(pair.generate(IMAGES[:7]).nodes)
    assert nodes["x"]["value"].shape == (7, *SHAPE)


def test_as_a_decoder_the_bound_is_below_the_sum_over_z() -> None:
    """IWAE's bound with many particles against a grid of z: log p(x) within 5 standard errors of it and the grid."""
    torch.manual_seed(0)
    pair = Decoder()
    check_pair(pair, IMAGES[:5]).raise_if_failed()
    line = torch.linspace(-6, 6, 81, dtype=torch.float64)
    z = torch.cartesian_prod(line, line)
    with torch.no_grad():
        prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + 2 * (line[1] - line[0]).log()
        log_p = torch.stack([(prior + Autoregressive(pair.pixels, z).log_prob(x)).logsumexp(0) for x in IMAGES[:3]])
        bounds = torch.stack([IWAE(500).bound(pair.model, pair.guide, IMAGES[:3]) for _ in range(20)])
    assert ((bounds.mean(0) - log_p).abs() < 5 * bounds.std(0) / 20**0.5 + 1e-3).all()
