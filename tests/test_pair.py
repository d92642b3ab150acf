"""Pairs: the bridge to stock Pyro, generation, and state that no two instances share."""

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch

from ppl_vae import SVI, Pair
from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.testing import LinearGaussian
from tests.helpers import assert_same, generate, linear, pyro_adam, seeded_loss, steps, stock_loss, vectors


def ours(pair):
    return SVI(pair, torch.optim.Adam(pair.parameters(), lr=0.05), IWAE(5))


STOCK = {
    "elbo": lambda: pyro.infer.Trace_ELBO(),
    "mean field": lambda: pyro.infer.TraceMeanField_ELBO(),
    "renyi": lambda: pyro.infer.RenyiELBO(num_particles=5),
    "renyi vectorised": lambda: pyro.infer.RenyiELBO(num_particles=5, vectorize_particles=True),
    "ours": lambda: IWAE(5),
}
ROUTES = {
    "SVI": ours,
    **{name: lambda pair, make=make: pair.pyro_svi(pyro_adam(0.05), make()) for name, make in STOCK.items()},
}


@pytest.mark.parametrize("route", ROUTES)
def test_two_instances_learn_in_one_process(route):
    x = vectors(50) + 3.0
    for _ in range(2):
        svi = ROUTES[route](linear())
        losses = steps(svi, [x], 40)
        assert sum(losses[-5:]) / 5 < losses[0] - 5 * len(x)


def test_instances_trained_in_turns_are_those_trained_alone():
    x = vectors(50)

    def train(*pairs):
        optimisers = [pair.pyro_svi(pyro_adam(0.05), pyro.infer.Trace_ELBO()) for pair in pairs]
        for step in range(3):
            for svi in optimisers:
                torch.manual_seed(step)
                svi.step(x)
        return [pair.state_dict() for pair in pairs]

    first, second = linear(), linear()
    copies = linear(), linear()
    copies[0].load_state_dict(first.state_dict())
    copies[1].load_state_dict(second.state_dict())
    together = train(first, second)
    torch.testing.assert_close(together, train(copies[0]) + train(copies[1]))
    assert not torch.equal(together[0]["W"], together[1]["W"])


def test_our_svi_leaves_the_parameter_store_alone():
    steps(ours(linear()), [vectors()], 2)
    assert not list(pyro.get_param_store().keys())


def test_stock_svi_gets_a_name_for_each_instance():
    x = vectors()
    for _ in range(2):
        steps(linear().pyro_svi(pyro_adam(0.1), pyro.infer.Trace_ELBO()), [x], 1)
    names = {name.split("$$$")[0] for name in pyro.get_param_store().keys()}  # noqa: SIM118 (not a dict)
    assert len(names) == 2 and all(name.startswith("LinearGaussian.") for name in names)


def test_a_pair_with_a_tiled_batch_is_tiled_through_stock_svi_too():
    class Tiled(LinearGaussian):
        particles = "tile"

        def decode(self, z):
            assert z.dim() == 2
            return super().decode(z)

    pair, x = linear(Tiled), vectors()
    assert_same(stock_loss(pair, IWAE(4), x), seeded_loss(pair, IWAE(4), x))


def test_generate_draws_as_many_rows_and_ignores_the_data():
    pair, x = linear(), vectors(7)
    torch.manual_seed(0)
    nodes = generate(pair, x)
    torch.manual_seed(0)
    other = generate(pair, torch.zeros_like(x))
    assert nodes["z"]["value"].shape == (7, 2) and nodes["x"]["value"].shape == (7, 4)
    torch.testing.assert_close(nodes["x"]["value"], other["x"]["value"])
    torch.testing.assert_close(nodes["x"]["fn"].mean, pair.decode(nodes["z"]["value"]).mean.detach())
    assert not nodes["x"]["value"].requires_grad


def test_generated_data_have_the_models_moments():
    pair = linear()
    x = generate(pair, vectors(40_000))["x"]["value"]
    covariance = (pair.W @ pair.W.T + (2 * pair.log_s).exp() * torch.eye(4)).detach()
    # The variance of an entry of the sample covariance is (c_ii c_jj + c_ij^2) / n; 10 entries differ,
    # so that 5.2 standard errors are exceeded with a probability of at most 1e-5 (by all of them together).
    error = ((covariance.diagonal().outer(covariance.diagonal()) + covariance**2) / len(x)).sqrt()
    assert ((x.T.cov() - covariance).abs() < 5.2 * error).all()


def test_without_a_guide_the_elbo_is_the_log_likelihood():
    class Coin(Pair):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Bernoulli(0.25), obs=x)

    pair, x = Coin(), torch.tensor([1.0, 0.0])
    torch.testing.assert_close(Trace_ELBO().bound(pair.model, pair.guide, x), torch.tensor([0.25, 0.75]).log())


def test_a_pair_without_a_model_says_so():
    with pytest.raises(NotImplementedError, match="Pair has no model"):
        Pair().model(torch.zeros(2))


def test_reference_is_a_floating_point_parameter():
    assert linear().reference().dtype == torch.float64
    assert Pair().reference().dtype == torch.float32
