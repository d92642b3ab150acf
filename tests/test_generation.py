"""Pictures of a linear pair against its closed forms; the random stream; errors."""

import doctest
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor, nn

from ppl_vae import Pair, generation
from ppl_vae.generation import (
    blank,
    decode,
    interpolation,
    manifold,
    posterior,
    reconstructions,
    samples,
    traversal,
    unit_square,
)
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.sites import GivenValues

W = torch.tensor([[1.0, 0.0], [2.0, -1.0], [0.5, 3.0]])  # (3, 2)
V = torch.tensor([[1.0, -1.0, 2.0], [0.0, 1.0, 1.0]])  # (2, 3)
X = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]])


class Linear(Pair):
    """p(z) = N(1, 2^2 I);  p(x | z) = N(W z, I / 4);  q(z | x) = N(V x, s^2 I)."""

    data_shape = (3,)

    def __init__(self, s: float = 1e-4) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.s = s

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_ones(2), 2.0).to_event(1))
            pyro.sample("x", dist.Normal(self.dropout(z) @ W.T, 0.5).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ V.T, self.s).to_event(1))


class Chain(Pair):
    """p(c) p(z2) p(z1 | z2) p(y | z1) p(x | z1, c, y), with every kind of site, in the model's order."""

    def model(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(x.new_full((), 0.5)))
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(10 * z2, 1.0))
            y = pyro.sample("y", dist.Normal(z1, 1.0), obs=y)
            pyro.factor("regulariser", -z1.square())
            pyro.sample("x", dist.Normal(torch.stack([z1, z2, c, y], -1), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            helper = pyro.sample("helper", dist.Normal(x[:, 0], 1.0), infer={"is_auxiliary": True})
            pyro.sample("c", dist.Bernoulli(torch.full_like(helper, 0.5)))
            z1 = pyro.sample("z1", dist.Normal(helper, 1.0))
            pyro.sample("z2", dist.Normal(z1 / 2, 1.0))


class Other(Chain):
    """The same, of which pictures are of y."""

    data_site = "y"


class Undrawable(dist.Normal):
    """Its draws fail: to prove that none is made."""

    def sample(self, *args: Any, **kwargs: Any) -> Tensor:
        raise AssertionError("drawn")

    rsample = sample

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Undrawable":
        return Undrawable(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class Meanless(dist.Normal):
    """It does not know its mean."""

    mean = property(lambda self: (_ for _ in ()).throw(NotImplementedError))  # type: ignore[assignment]

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Meanless":
        return Meanless(self.loc.expand(batch_shape), self.scale.expand(batch_shape))


class Odd(Pair):
    """p(z) = N(0, 1) per datum, then a likelihood of any class; q(z | x) likewise."""

    data_shape = ()

    def __init__(self, likelihood: Callable[..., Any] = dist.Normal, latent: Callable[..., Any] = dist.Normal) -> None:
        super().__init__()
        self.likelihood, self.latent = likelihood, latent

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.latent(x.new_zeros(()), 1.0))
            pyro.sample("x", self.likelihood(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.latent(x, 1.0))


class Planar(Pair):
    """p(z) = two Student's t, whose inverse CDF is not known;  p(x | z) = N(z, I)."""

    data_shape = (2,)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.StudentT(3.0, x.new_zeros(2)).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def test_decode_is_the_models_conditional() -> None:
    z = torch.randn(4, 2)
    fn = decode(Linear(), {"z": z}, torch.zeros(4, 3))
    torch.testing.assert_close(fn.mean, z @ W.T)
    torch.testing.assert_close(fn.variance, torch.full((4, 3), 0.25))


def test_decode_takes_values_with_particles() -> None:
    z = torch.randn(7, 4, 2)
    torch.testing.assert_close(decode(Linear(), {"z": z}, torch.zeros(4, 3)).mean, z @ W.T)


def test_samples_show_the_decoder_mean_of_prior_draws() -> None:
    torch.manual_seed(7)
    z = 1 + 2 * torch.randn(5, 2)
    torch.testing.assert_close(samples(Linear(), num=5, seed=7), z @ W.T)
    torch.testing.assert_close(samples(Linear(), torch.full((5, 3), 9.0), seed=7), z @ W.T)


def test_drawn_samples_have_the_marginal_moments() -> None:
    n = 40_000
    x = samples(Linear(), num=n, mean=False)
    covariance = 4 * W @ W.T + 0.25 * torch.eye(3)
    error = (x.mean(0) - W.sum(1)) / (covariance.diag() / n).sqrt()
    assert error.abs().max() < 4.7  # a failure rate of 1e-5
    # The variance of a sample covariance of Normals is (c_ii c_jj + c_ij^2) / n.
    sd = ((torch.outer(covariance.diag(), covariance.diag()) + covariance**2) / n).sqrt()
    assert ((x.T.cov() - covariance) / sd).abs().max() < 5.0  # six two-sided tests: 4e-6


def test_reconstructions_go_through_the_guide() -> None:
    torch.testing.assert_close(reconstructions(Linear(), X), X @ V.T @ W.T, atol=5e-3, rtol=0)
    torch.manual_seed(3)
    z = X @ V.T + 2.0 * torch.randn(2, 2)
    torch.testing.assert_close(reconstructions(Linear(s=2.0), X, seed=3), z @ W.T)


def test_latents_that_are_not_kept_are_drawn_by_the_model() -> None:
    """z2 of the guide alone: z1 follows it. Other seeds draw other z1, unless all latents are kept."""
    torch.manual_seed(0)
    pair, x = HierarchicalVAE((1, 8, 8), (4, 2), ((16,), (8,))), torch.rand(3, 1, 8, 8).round()
    kept = reconstructions(pair, x, latents=("z2",), seed=3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        found: dict[str, Any] = dict(poutine.trace(pair.guide).get_trace(x).nodes)
        guided = GivenValues({"z2": found["z2"]["value"]})(pair.model)
        nodes: dict[str, Any] = dict(poutine.trace(poutine.uncondition(guided)).get_trace(x).nodes)
    torch.testing.assert_close(kept, nodes["x"]["fn"].mean)
    assert not torch.allclose(kept, reconstructions(pair, x, seed=3))
    with pytest.raises(ValueError, match="latents: got 'z3', expected some of z1, z2; name those"):
        reconstructions(pair, x, latents=("z2", "z3"))


def test_posterior_means_are_chained_and_auxiliary_sites_left_out() -> None:
    x, y = torch.tensor([[4.0, 0, 0, 0]]), torch.zeros(1)
    z = posterior(Chain(), x, y, at_means=True)
    assert set(z) == {"c", "z1", "z2"} and z["c"].item() in (0.0, 1.0)
    assert (z["z1"].item(), z["z2"].item()) == (4.0, 2.0)
    assert posterior(Chain(), x, y)["z1"].item() != 4.0


def test_unit_square_is_laid_out_as_a_plot() -> None:
    u = unit_square(4)
    assert u[0, 0].tolist() == [0.125, 0.875] and u[3, 0].tolist() == [0.125, 0.125]
    assert u[0, 3].tolist() == [0.875, 0.875] and u[1, 2].tolist() == [0.625, 0.625]


@pytest.mark.parametrize("batch", [(), (torch.zeros(1, 3),)])
def test_manifold_is_the_inverse_cdf_of_the_prior_at_cell_centres(batch: tuple[Tensor, ...]) -> None:
    z = 1 + 2 * torch.special.ndtri(unit_square(5)).float()
    torch.testing.assert_close(manifold(Linear(), *batch, size=5), z @ W.T)


def test_interpolation_is_a_line_between_the_reconstructions_at_posterior_means() -> None:
    start, end = X @ V.T @ W.T, X.flip(0) @ V.T @ W.T
    path = interpolation(Linear(s=3.0), X, X.flip(0), steps=5)
    assert path.shape == (2, 5, 3)
    expected = torch.stack([start + t * (end - start) for t in (0, 0.25, 0.5, 0.75, 1)], 1)
    torch.testing.assert_close(path, expected)


def test_interpolation_of_some_sites_lets_the_others_follow() -> None:
    pair, y = Chain(), torch.zeros(1)
    a, b = torch.tensor([[2.0, 0, 0, 0]]), torch.tensor([[6.0, 0, 0, 0]])
    path = interpolation(pair, (a, y), (b, y), 3, latents=["z2"])[0]
    assert path[:, 1].tolist() == [1.0, 2.0, 3.0]  # z2 at q's means
    assert path[:, 0].tolist() == [10.0, 20.0, 30.0]  # z1 = 10 z2 follows
    assert path[:, 3].tolist() == [10.0, 20.0, 30.0]  # and the other observed site
    both = interpolation(pair, (a, y), (b, y), 3, latents=["z1", "z2"])[0]
    assert both[:, 0].tolist() == [2.0, 4.0, 6.0]


def test_traversal_moves_one_unit_at_a_time() -> None:
    result = traversal(Linear(s=3.0), X, low=-1.0, high=1.0, steps=3)
    assert result.shape == (2, 2, 3, 3)
    for unit in range(2):
        for step, value in enumerate((-1.0, 0.0, 1.0)):
            z = X @ V.T
            z[:, unit] = value
            torch.testing.assert_close(result[:, unit, step], z @ W.T)
    torch.testing.assert_close(traversal(Linear(), X, units=[1], steps=3, low=-1, high=1)[:, 0], result[:, 1])


def test_traversal_keeps_earlier_sites_and_lets_later_ones_follow() -> None:
    batch = torch.tensor([[4.0, 0, 0, 0]]), torch.zeros(1)
    upper = traversal(Chain(), *batch, latent="z2", low=0.0, high=1.0, steps=2)[0, 0]
    assert upper[:, :2].tolist() == [[0.0, 0.0], [10.0, 1.0]]
    lower = traversal(Chain(), *batch, latent="z1", low=0.0, high=1.0, steps=2)[0, 0]
    assert lower[:, :2].tolist() == [[0.0, 2.0], [1.0, 2.0]]


def test_observed_sites_can_be_given_and_are_otherwise_free() -> None:
    x, y = torch.zeros(3, 4), torch.full((3,), 100.0)
    z = {"z1": torch.ones(3), "z2": torch.zeros(3)}
    assert decode(Chain(), z, x, y, at_means=True).mean[:, 3].tolist() == [1.0, 1.0, 1.0]
    assert decode(Chain(), z | {"y": y}, x, y).mean[:, 3].tolist() == [100.0, 100.0, 100.0]
    assert samples(Chain(), x, y).shape == (3, 4)
    assert samples(Chain(), x, y, site="y").shape == samples(Other(), x, y).shape == (3,)
    assert samples(Other(), x, y, site="x").shape == (3, 4)


@pytest.mark.parametrize("pair", [VAE((1, 8, 8), 2, (16,)), HierarchicalVAE((1, 8, 8), (4, 2), ((16,), (8,)))])
def test_shapes_of_shipped_pairs(pair: VAE | HierarchicalVAE) -> None:
    x = torch.rand(3, 1, 8, 8).round()
    assert samples(pair, num=6).shape == (6, 1, 8, 8) and samples(pair).shape == (64, 1, 8, 8)
    assert set(samples(pair, num=6, mean=False).unique().tolist()) <= {0.0, 1.0}
    assert reconstructions(pair, x).shape == x.shape
    assert interpolation(pair, x, x.flip(0), 4).shape == (3, 4, 1, 8, 8)
    name = "z" if isinstance(pair, VAE) else "z2"
    assert traversal(pair, x, latent=name, steps=4).shape == (3, 2, 4, 1, 8, 8)


def test_the_site_asked_for_is_not_drawn() -> None:
    assert samples(Odd(Undrawable), num=4).shape == (4,)
    assert traversal(Odd(Undrawable), torch.zeros(1), steps=3).shape == (1, 1, 3)


PICTURES = {
    "samples": lambda pair, seed: samples(pair, num=4, mean=False, seed=seed),
    "reconstructions": lambda pair, seed: reconstructions(pair, X, mean=False, seed=seed),
    "manifold": lambda pair, seed: manifold(pair, size=2, mean=False, seed=seed),
    "interpolation": lambda pair, seed: interpolation(pair, X, X, 2, at_means=False, seed=seed),
    "traversal": lambda pair, seed: traversal(pair, X, steps=2, at_means=False, seed=seed),
    "posterior": lambda pair, seed: posterior(pair, X, seed=seed)["z"],
    "decode": lambda pair, seed: decode(pair, {}, X, seed=seed).mean,
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_private_stream(name: str) -> None:
    picture, pair = PICTURES[name], Linear(s=1.0)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = picture(pair, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    assert torch.equal(picture(pair, 1), first) and not torch.equal(picture(pair, 2), first)
    torch.manual_seed(1)
    assert torch.equal(picture(pair, None), first)
    assert not torch.equal(picture(pair, None), first)


def test_modules_are_put_back_even_after_an_error() -> None:
    pair = Linear().train()
    pair.dropout.eval()
    x = torch.zeros(2, 3, requires_grad=True)
    assert not reconstructions(pair, x).requires_grad
    with pytest.raises(ValueError, match="no site"):
        decode(pair, {"w": X}, X)
    assert pair.training and not pair.dropout.training and torch.is_grad_enabled()


def test_errors_say_what_to_do() -> None:
    chain, batch = Chain(), (torch.zeros(1, 4), torch.zeros(1))
    pair = Linear()
    with pytest.raises(ValueError, match=r"no site 'w': got \['z', 'x'\]"):
        decode(pair, {"w": X}, X)
    with pytest.raises(ValueError, match="no site 'y'"):
        samples(pair, num=2, site="y")
    with pytest.raises(ValueError, match=r"'z': got a value of shape \(3, 2\), expected \(2, 2\)"):
        decode(pair, {"z": torch.zeros(3, 2)}, X)
    with pytest.raises(ValueError, match="data_shape"):
        blank(chain, 3)
    with pytest.raises(ValueError, match="num=3"):
        samples(pair, X, num=3)
    with pytest.raises(ValueError, match=r"\{'z': \(5,\)\}, expected one of \(2,\)"):
        manifold(VAE((1, 8, 8), 5, (8,)))
    with pytest.raises(ValueError, match=r"'z2': \(2,\), 'z1': \(2,\)"):
        manifold(HierarchicalVAE((1, 8, 8), (2, 2), ((8,), (8,))))
    with pytest.raises(ValueError, match=r"'z': got StudentT, expected a prior with an inverse CDF"):
        manifold(Planar())
    with pytest.raises(ValueError, match="2 rows, expected one row"):
        manifold(pair, X)
    with pytest.raises(ValueError, match="at least 2"):
        interpolation(pair, X, X, 1)
    with pytest.raises(ValueError, match="2 rows in x0 and 1 in x1"):
        interpolation(pair, X, X[:1])
    with pytest.raises(ValueError, match="'c': got Bernoulli, which is discrete"):
        interpolation(chain, batch, batch)
    with pytest.raises(ValueError, match="guide has no site 'z3'"):
        interpolation(chain, batch, batch, latents=["z3"])
    with pytest.raises(ValueError, match="expected one; name it"):
        traversal(chain, *batch)
    with pytest.raises(ValueError, match="units: got 2, expected 0 to 1"):
        traversal(pair, X, units=[2])


def test_a_distribution_without_a_mean_can_be_drawn() -> None:
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=r"'x': got Meanless.*mean=False"):
        samples(Odd(Meanless), num=2, mean=True)
    assert samples(Odd(Meanless), num=2, mean=False).shape == samples(Odd(Meanless), num=2).shape == (2,)
    with pytest.raises(ValueError, match=r"'z': got Meanless.*at_means=False"):
        interpolation(Odd(latent=Meanless), x, x)
    assert interpolation(Odd(latent=Meanless), x, x, 3, at_means=False).shape == (2, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_private_stream_on_the_gpu() -> None:
    pair, x = VAE((1, 8, 8), 2, (8,)).cuda(), torch.zeros(2, 1, 8, 8, device="cuda")
    state = torch.cuda.get_rng_state(), torch.get_rng_state()
    first = reconstructions(pair, x, mean=False)
    assert first.is_cuda and torch.equal(first, reconstructions(pair, x, mean=False))
    assert torch.equal(torch.cuda.get_rng_state(), state[0]) and torch.equal(torch.get_rng_state(), state[1])
    assert manifold(pair, size=3).shape == (3, 3, 1, 8, 8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda pair: samples(pair, num=0), "num: got 0"),
        (lambda pair: samples(pair, num=10**30), "num: got 1000"),
        (lambda pair: blank(pair, -1), "num: got -1"),
        (lambda pair: manifold(pair, size=0), "size: got 0"),
        (lambda pair: manifold(pair, size=10**9), "size: got 1000000000"),
        (lambda pair: samples(pair, seed=2**64), "seed: got 18446744073709551616"),
        (lambda pair: samples(pair, seed=1.5), "seed: got 1.5"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_numbers_out_of_range_are_refused_by_name(call: Callable[[Pair], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(VAE((1, 4, 4), 2, (3,)))


def test_docstring_examples() -> None:
    result = doctest.testmod(generation)
    assert result.attempted > 0 and result.failed == 0
