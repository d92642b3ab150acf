"""What a guide says of data together: mutual information between its extremes and against an integral."""

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae import Pair
from ppl_vae.aggregate import aggregate
from ppl_vae.pairs import VAE, LadderVAE, PixelCNN

Z_LIMIT = 4.42
"""Two-sided failure rate 1e-5."""


class Line(Pair):
    """p(z) = N(0, 1), p(x | z) = N(z, 1); q(z | x) = N(slope x, sigma^2)."""

    def __init__(self, slope: float, sigma: float) -> None:
        super().__init__()
        self.slope, self.sigma = nn.Parameter(torch.tensor(slope)), sigma

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x, self.sigma).to_event(1))


def looked_at(pair: Pair, x: Tensor, parts: int = 4):
    found = aggregate(pair, [(part,) for part in x.chunk(parts)])
    assert found is not None
    return found


def test_a_guide_that_does_not_look_tells_nothing():
    found = looked_at(Line(0.0, 1.0), torch.randn(40, 1))
    assert abs(found.mutual_information) < 1e-6 and found.active_units == 0 and abs(found.kl) < 1e-6


def test_a_guide_that_tells_all_apart_tells_log_n():
    x = torch.arange(40.0)[:, None]
    found = looked_at(Line(1.0, 1e-3), x)
    assert math.isclose(found.mutual_information, math.log(40), rel_tol=1e-6) and found.active_units == 1


def test_between_them_it_is_the_integral():
    x, sigma = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0)), 0.7
    found = looked_at(Line(1.0, sigma), x)
    # E[log q(z | x)] - E[log q(z)] over the mixture of 2,000 normals, on a grid.
    grid = torch.linspace(-8, 8, 8001, dtype=torch.float64)
    log_q = (dist.Normal(x.double(), sigma).log_prob(grid).logsumexp(0)) - math.log(2000)
    entropy = -(log_q.exp() * log_q).sum() * 16 / 8000
    exact = entropy - 0.5 * math.log(2 * math.pi * math.e * sigma**2)
    # One sample for each of 2,000 data; both logarithms vary by less than 1 nat each.
    assert abs(found.mutual_information - exact.item()) < Z_LIMIT * 1.2 / math.sqrt(2000)
    kl = math.log(1 / sigma) + (sigma**2 + x.square().mean().item()) / 2 - 0.5
    assert abs(found.kl - kl) < Z_LIMIT * 2 / math.sqrt(2000)


def test_units_are_counted_that_vary_between_data():
    pair, x = VAE((1, 8, 8), latent_dim=5), torch.rand(200, 1, 8, 8).round()
    mean = pair.encoder(x).mean
    assert looked_at(pair, x).active_units == int((mean.var(0) > 0.01).sum())


def test_the_first_site_of_several_counts():
    pair, x = LadderVAE((1, 8, 8), latent_dims=(3, 2), hidden=((8,), (8,))), torch.rand(20, 1, 8, 8).round()
    found = looked_at(pair, x)
    assert 0 <= found.active_units <= 3 and found.mutual_information <= math.log(20) + 1e-6


def test_without_latent_sites_there_is_nothing_to_tell():
    assert aggregate(PixelCNN((1, 4, 4), hidden=2, layers=1), [(torch.zeros(3, 1, 4, 4),)]) is None


def test_it_leaves_no_trace():
    pair, x = VAE((1, 8, 8), latent_dim=2), torch.zeros(8, 1, 8, 8)
    before = torch.get_rng_state()
    looked_at(pair.train(), x)
    assert pair.training and torch.equal(before, torch.get_rng_state())
