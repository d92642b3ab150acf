"""What a guide has computed is handed to the model once, and only where it would compute the same."""

import copy
import pickle

import pytest
import torch
from torch import nn

from ppl_vae.nn import Rollout


@pytest.fixture
def net() -> nn.Module:
    return nn.Linear(2, 2)


class Counted:
    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        return torch.zeros(())


def run(rollout: Rollout, net: nn.Module, z: torch.Tensor, compute: Counted, keep: bool) -> torch.Tensor:
    rollout.begin(net, keep=keep)
    return rollout.once("step 1", (z,), compute)


def test_handed_over_once(net):
    rollout, z, compute = Rollout(), torch.zeros(2), Counted()
    kept = run(rollout, net, z, compute, keep=True)
    assert run(rollout, net, z, compute, keep=False) is kept and compute.calls == 1
    assert run(rollout, net, z, compute, keep=False) is not kept and compute.calls == 2


def test_a_guide_never_takes(net):
    rollout, z, compute = Rollout(), torch.zeros(2), Counted()
    assert run(rollout, net, z, compute, keep=True) is not run(rollout, net, z, compute, keep=True)


@torch.no_grad()
def optimiser_step(net: nn.Module, z: torch.Tensor) -> torch.Tensor:
    next(net.parameters()).add_(1.0)
    return z


def frozen(net: nn.Module, z: torch.Tensor) -> torch.Tensor:
    net.requires_grad_(False)
    return z


def in_place(net: nn.Module, z: torch.Tensor) -> torch.Tensor:
    return z.add_(1.0)


def evaluation(net: nn.Module, z: torch.Tensor) -> torch.Tensor:
    net.eval()
    return z


CHANGES = [optimiser_step, frozen, in_place, evaluation, lambda net, z: z.clone(), lambda net, z: z.detach()]


@pytest.mark.parametrize("change", CHANGES)
def test_computed_anew_where_anything_differs(net, change):
    rollout, z, compute = Rollout(), torch.zeros(2), Counted()
    run(rollout, net, z, compute, keep=True)
    run(rollout, net, change(net, z), compute, keep=False)
    assert compute.calls == 2


def test_nothing_is_kept_without_gradients(net):
    rollout, z, compute = Rollout(), torch.zeros(2), Counted()
    with torch.no_grad():
        run(rollout, net, z, compute, keep=True)
        assert not rollout._kept
        run(rollout, net, z, compute, keep=False)
    assert compute.calls == 2


def test_with_and_without_gradients_are_two_things(net):
    rollout, z, compute = Rollout(), torch.zeros(2), Counted()
    run(rollout, net, z, compute, keep=True)
    with torch.no_grad():
        run(rollout, net, z, compute, keep=False)
    assert compute.calls == 2


def test_neither_copied_nor_saved(net):
    rollout, z = Rollout(), torch.zeros(2, requires_grad=True)
    rollout.begin(net, keep=True)
    rollout.once("step 1", (z,), lambda: 2 * z)  # a tensor that torch refuses to copy
    for twin in (copy.deepcopy(rollout), pickle.loads(pickle.dumps(rollout))):
        assert not twin._kept
