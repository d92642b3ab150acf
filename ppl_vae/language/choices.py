"""Ways to choose the next word from its law."""

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from ppl_vae.nn import as_size

__all__ = ["Choose", "greedy", "probabilities", "sampled"]

Choose = Callable[[Tensor], Tensor]
"""Logits (..., C) -> an index each, (...)."""


def greedy(logits: Tensor) -> Tensor:
    """The likeliest, (...), for logits (..., C); of several the first.

    Example:
        >>> greedy(torch.tensor([[0.0, 2.0, 1.0]]))
        tensor([1])
    """
    return logits.argmax(-1)


def sampled(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> Choose:
    """A choice by chance, with the probabilities of `probabilities`.

    Args:
        temperature: above 0; below 1 it favours the likely ones, and towards 0 that is `greedy`.
        top_k: none but the k likeliest.
        top_p: none but the fewest that together have this probability.

    Raises:
        ValueError: a temperature that is not above 0, k below 1, p outside (0, 1].

    Example:
        >>> sampled(top_k=1)(torch.tensor([[0.0, 2.0, 1.0]]))
        tensor([1])
    """
    _check(temperature, top_k, top_p)

    def choose(logits: Tensor) -> Tensor:
        # Not torch.multinomial: before each draw it waits for the device, to look at the values.
        up_to = _probabilities(logits, temperature, top_k, top_p).cumsum(-1)
        # Of 53 bits and below 1: never beyond the last, and never one of probability 0.
        u = torch.rand(*logits.shape[:-1], 1, dtype=up_to.dtype, device=up_to.device)
        return (up_to <= u * up_to[..., -1:]).sum(-1)

    return choose


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> Tensor:
    """softmax(logits / temperature), of which some are left out and the others add up to 1, (..., C) float64.

    First the k likeliest are kept, then, of their law, the fewest whose probabilities reach p: one at least. Of equally
    likely ones those that come first.

    Args:
        logits: (..., C); -inf has probability 0.
        temperature, top_k, top_p: as for `sampled`.

    Raises:
        ValueError: as for `sampled`.

    References:
        top_k: Hierarchical neural story generation, Fan, Lewis & Dauphin 2018, section 5.
        top_p: The curious case of neural text degeneration, Holtzman et al. 2020, section 3.1.

    Example:
        >>> probabilities(torch.tensor([0.5, 0.25, 0.25]).log(), top_p=0.7).round(decimals=3).tolist()
        [0.667, 0.333, 0.0]
    """
    _check(temperature, top_k, top_p)
    return _probabilities(logits, temperature, top_k, top_p)


def _probabilities(logits: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    # The largest becomes 0: a low temperature would make inf of it, and NaN of all.
    p = ((logits.double() - logits.double().amax(-1, keepdim=True)) / temperature).softmax(-1)
    if top_k is None and top_p is None:
        return p
    ranked, order = p.sort(stable=True, dim=-1, descending=True)
    if top_k is not None:
        ranked = _normalised(ranked * (torch.arange(p.shape[-1], device=p.device) < top_k))
    if top_p is not None:
        ranked = _normalised(ranked * (ranked.cumsum(-1) - ranked < top_p))
    return torch.zeros_like(p).scatter(-1, order, ranked)


def _normalised(p: Tensor) -> Tensor:
    return p / p.sum(-1, keepdim=True)


def _check(temperature: Any, top_k: Any, top_p: Any) -> None:
    if not _is_number(temperature) or not 0 < temperature < math.inf:
        raise ValueError(f"temperature: got {temperature!r}, expected a number above 0; for 0 take greedy")
    if top_k is not None:
        as_size(top_k, "top_k")
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise ValueError(f"top_p: got {top_p!r}, expected a probability above 0 and up to 1; None keeps all words")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
