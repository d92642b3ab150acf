"""The state of a torch optimiser, for a run that goes on later, and its learning rates."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

__all__ = ["load_state", "set_rates", "state_of"]


def state_of(optim: Optimizer) -> dict[str, Any]:
    """The optimiser's class and state."""
    return {"class": type(optim).__name__, **optim.state_dict()}


def load_state(optim: Optimizer, state: dict[str, Any], device: torch.device) -> None:
    """Go on with the state of an earlier optimiser.

    Args:
        optim: over as many parameters, of the same shapes.
        state: from `state_of`.
        device: of learning rates that are tensors.

    Raises:
        ValueError: it was another optimiser.
    """
    state, expected = dict(state), type(optim).__name__
    if (got := state.pop("class")) != expected:
        raise ValueError(f"optim: got a state of {got}, expected one of {expected}; go on with that optimiser")
    # A copy: what was read may be a file mapped into memory.
    optim.load_state_dict(copy.deepcopy(state))
    for group in optim.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"] = group["lr"].to(device)


def set_rates(optim: Optimizer, rates: Sequence[float], factor: float | Tensor) -> None:
    """Learning rates of the groups, times a factor; in place where they are tensors, which a captured step reads."""
    for group, rate in zip(optim.param_groups, rates, strict=True):
        value = rate * factor
        if not isinstance(group["lr"], Tensor):
            group["lr"] = value
        elif isinstance(value, Tensor):
            group["lr"].copy_(value)
        else:
            group["lr"].fill_(value)  # a copy would wait for the device
