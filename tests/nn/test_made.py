"""MADE against logistic regressions by hand, the sum over all vectors, and exact Jacobians."""

import itertools

import pytest
import torch

from ppl_vae.distributions import Autoregressive
from ppl_vae.nn import MADE, BernoulliHead, CategoricalHead, CausalNetwork
from tests.nn.test_causal import influence


@pytest.mark.parametrize("hidden", [(), (30,), (20, 30)])
@pytest.mark.parametrize("shape", [(6,), (2, 3), (3, 2, 2)])
def test_nothing_at_or_after_an_element_moves_its_parameters(hidden: tuple[int, ...], shape: tuple[int, ...]) -> None:
    trunk = MADE((2, *shape), hidden, torch.nn.Tanh, context_dim=3).double()
    size = torch.Size(shape).numel()
    expected = torch.ones(size, size, dtype=torch.bool).tril(-1)
    assert torch.equal(influence(trunk, torch.randn(3, dtype=torch.float64)), expected)
    x, context = torch.rand(shape, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    told = torch.autograd.functional.jacobian(lambda c: trunk(x, c), context)
    assert isinstance(told, torch.Tensor) and (told != 0).any(-1).all(), "the first element too"


@pytest.mark.parametrize("hidden", [(), (9,)])
def test_probabilities_of_all_vectors_sum_to_one(hidden: tuple[int, ...]) -> None:
    head = CategoricalHead((4,), 3)
    p = Autoregressive(CausalNetwork(MADE(head.raw_shape, hidden), head).double())
    x = torch.tensor(list(itertools.product((0, 0.5, 1), repeat=4)), dtype=torch.float64)
    assert p.log_prob(x).exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    assert p.sample((5,)).shape == (5, 4)


def test_without_hidden_layers_it_is_a_logistic_regression_on_what_came_before() -> None:
    trunk = MADE((1, 4), ()).double()
    w, b = (part.detach() for part in trunk.layers[0].parameters())
    x = torch.rand(4, dtype=torch.float64)
    expected = [b[i] + sum(w[i, j] * x[j] for j in range(i)) for i in range(4)]
    torch.testing.assert_close(trunk(x)[0], torch.stack([torch.as_tensor(e) for e in expected]))


def test_the_output_starts_where_it_is_told() -> None:
    """In the order of an image's elements: channels last."""
    head = BernoulliHead((3, 2, 2))
    trunk, mean = MADE(head.raw_shape, (5,)), torch.rand(3, 2, 2)
    for parameter in trunk.parameters():
        torch.nn.init.zeros_(parameter)
    trunk.set_output_bias(head.bias_for_mean(mean))
    torch.testing.assert_close(CausalNetwork(trunk, head)(torch.rand(3, 2, 2)).mean, mean.clamp(0.001, 0.999))
