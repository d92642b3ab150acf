"""A frozen network: the same output as a constant, and nothing of it moves."""

import pytest
import torch
from torch import Tensor, nn

from ppl_vae.nn import BatchNorm, Frozen


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def test_the_output_is_the_networks_own_without_gradient() -> None:
    network, x = nn.Bilinear(3, 4, 2), (torch.randn(5, 3, requires_grad=True), torch.randn(5, 4))
    found = Frozen(network)(*x)
    assert not found.requires_grad and torch.equal(found, network(*x))
    assert network(*x).requires_grad


def test_what_stands_behind_it_has_the_gradient() -> None:
    below, above = nn.Linear(3, 4), nn.Linear(4, 2)
    stack = nn.Sequential(Frozen(below), above)
    before = snapshot(below)
    stack(torch.randn(5, 3)).square().sum().backward()
    assert all(p.grad is None for p in below.parameters())
    assert all(torch.equal(value, before[name]) for name, value in below.state_dict().items())
    assert all(p.grad is not None for p in above.parameters())
    # It is frozen here alone.
    below(torch.randn(5, 3)).sum().backward()
    assert all(p.requires_grad and p.grad is not None for p in below.parameters())


def test_it_has_the_networks_state_and_goes_where_it_goes() -> None:
    network = nn.Linear(3, 2)
    frozen = Frozen(network)
    assert [id(p) for p in frozen.parameters()] == [id(p) for p in network.parameters()]
    assert list(frozen.state_dict()) == ["network.weight", "network.bias"]
    assert frozen.double()(torch.zeros(5, 3, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("norm", [BatchNorm, nn.BatchNorm1d])
def test_running_averages_stay(norm: type[nn.Module]) -> None:
    network = nn.Sequential(nn.Linear(3, 4), norm(4))
    before = snapshot(network)
    Frozen(network).train()(torch.randn(50, 3))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
