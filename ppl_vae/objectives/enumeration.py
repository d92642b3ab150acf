"""Sums over the states of discrete sites: which sites have them, and the expectation that Pyro's factors make."""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.infer.util import Dice
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.einsum import contract
from pyro.ops.rings import LogRing
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.paths import PathWeight
from ppl_vae.sites import Site, density_sites, is_subsample
from ppl_vae.terms import Draw

__all__ = ["Enumerate", "expected", "expected_rows", "is_latent", "plain"]

Program = Callable[..., Any]

MAX_STATES = 2**16
"""A site of independent discrete dimensions, which has the product of their supports, may have so many states."""

PYRO_PARTICLES = "num_particles_vectorized"
"""Pyro's name of the plate that its estimators draw particles in."""


class Enumerate(Messenger):
    """Marks discrete latent sites to be enumerated, unless the program says how to treat them.

    Without argument it is for the guide, and keeps the names of its sites; with the guide's it is for the model.
    """

    def __init__(self, guide: "Enumerate | None" = None) -> None:
        super().__init__()
        self.guide, self.names = guide, set[str]()

    def leaves_out(self, msg: Any) -> bool:
        """Whether a site is discrete, and the program that has been run does not have it."""
        return msg["name"] not in self.names and _enumerable(msg["fn"])

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg):
            return
        self.names.add(msg["name"])
        asked = msg["infer"].get("enumerate") and msg["infer"].get("num_samples") is None
        if asked and _has_states(msg["fn"]) and not _enumerable(msg["fn"]):
            raise ValueError(
                f"site {msg['name']!r}: got {type(msg['fn']).__name__}, which is reparameterised, to be enumerated; "
                "expected one of the two: leave infer={'enumerate': ...} out, or take a discrete law without gradient"
            )
        if self.guide is not None and msg["name"] in self.guide.names:
            # Its value comes from the guide: Pyro would make another dimension for it, and not use it.
            msg["infer"] = {**msg["infer"], "enumerate": None}
        elif _enumerable(msg["fn"]):
            msg["infer"] = {"enumerate": "parallel", **msg["infer"]}
            if msg["infer"]["enumerate"] and not msg["fn"].has_enumerate_support:
                msg["fn"] = _product(msg["name"], msg["fn"])


class _Product(dist.Independent):
    """Independent discrete dimensions, with the product of their supports: `Bernoulli(...).to_event(1)`, say."""

    @property
    def has_enumerate_support(self) -> bool:
        """True: what Pyro and torch deny to independent dimensions."""
        return True

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values: (S, *batch, *event) if expand, else (S, 1, ..., 1, *event)."""
        base = self.base_dist.enumerate_support(expand=False)
        base = base.reshape(len(base), *self.base_dist.event_shape)
        own = self.base_dist.batch_shape[len(self.batch_shape) :]
        digits = itertools.product(range(len(base)), repeat=own.numel())
        index = torch.tensor(list(digits), dtype=torch.long, device=base.device)
        values = base[index].reshape(-1, *[1] * len(self.batch_shape), *self.event_shape)
        return values.expand(-1, *self.batch_shape, *self.event_shape) if expand else values


class _Plain(Messenger):
    """Takes the scales off all sites."""

    def _pyro_sample(self, msg: Any) -> None:
        msg["scale"] = 1.0


def plain(program: Program) -> Program:
    """The program without scales and `pyro.factor` sites: what a bound on log p(x) is made of."""
    return poutine.block(_Plain()(program), hide_fn=_is_factor)


def expected(model_trace: Any, guide_trace: Any, keep: str = "") -> Tensor:
    """E_q of the terms of the ELBO: summed over all dimensions, or over all but the one of the symbol `keep`."""
    costs, ordering = _costs(model_trace, guide_trace)
    dice, parts = Dice(guide_trace, ordering), []
    for ordinal, terms_here in costs.items():
        factors = dice._get_log_factors(ordinal)
        repeated = math.exp(sum(f for f in factors if not isinstance(f, Tensor)))
        weights = [packed.exp(f) for f in factors if isinstance(f, Tensor)]
        parts += [repeated * _sum_all_but(_weighted(cost, weights), cost._pyro_dims, keep) for cost in terms_here]
    return reduce(torch.add, parts)


def expected_rows(model_trace: Any, guide_trace: Any) -> Tensor:
    """E_q of the terms of each datum, (B,)."""
    sites = [{n: _site(n, node) for n, node in density_sites(t).items()} for t in (model_trace, guide_trace)]
    plate = Draw(sites[0], sites[1], 1, None, PathWeight()).data_plate
    # Packed tensors have no dimensions of size 1: the rows of a batch of one are a scalar.
    return expected(model_trace, guide_trace, model_trace.plate_to_symbol[plate.name]).expand(plate.size)


def _costs(model_trace: Any, guide_trace: Any) -> tuple[dict[Any, list[Any]], Any]:
    """The terms of log p - log q by the plates they sit in, with the sites that the guide leaves out summed out."""
    costs, factors, ordering, summed, scale = _compute_model_factors(model_trace, guide_trace)
    if factors:
        sizes = {d: n for part in factors.values() for f in part for d, n in zip(f._pyro_dims, f.shape, strict=True)}
        marginal = contract_tensor_tree(factors, summed, ring=LogRing(dim_to_size=sizes))
        for ordinal, part in marginal.items():
            costs.setdefault(ordinal, []).extend(packed.scale_and_mask(f, scale=scale) for f in part)
    for name, node in guide_trace.nodes.items():
        if node["type"] == "sample":
            costs.setdefault(ordering[name], []).append(packed.neg(node["packed"]["log_prob"]))
    return costs, ordering


def _weighted(cost: Any, weights: Sequence[Any]) -> Tensor:
    """The cost times the probability of each of its entries. Pyro's `Dice` reads values here, and can't be recorded."""
    if not weights:
        return cost
    dims = ",".join([*(w._pyro_dims for w in weights), cost._pyro_dims]) + "->" + cost._pyro_dims
    chance = contract(dims, *weights, torch.ones_like(cost), backend="torch")
    # What never happens costs nothing, though its log density be infinite.
    return chance * torch.where(chance > 0, cost, torch.zeros_like(cost))


def _site(name: str, node: Any) -> Site:
    frames = tuple(f for f in node["cond_indep_stack"] if f.name != PYRO_PARTICLES)
    return Site(name, node["fn"], node["value"], node["log_prob"], 1.0, None, frames, node["is_observed"], False)


def _sum_all_but(value: Tensor, dims: str, keep: str) -> Tensor:
    summed = [i for i, d in enumerate(dims) if d != keep]
    return value.sum(summed) if summed else value


def _product(name: str, fn: Any) -> _Product:
    base, dims = fn.base_dist, fn.reinterpreted_batch_ndims
    while isinstance(base, torch.distributions.Independent):
        base, dims = base.base_dist, dims + base.reinterpreted_batch_ndims
    product = _Product(base, dims)
    number = product.event_shape[:dims].numel()
    states = len(base.enumerate_support(expand=False))
    if number * math.log(states) > math.log(MAX_STATES):
        raise ValueError(
            f"site {name!r}: got {number} dimensions of {states} states each, {states}^{number} in all, expected at "
            f"most {MAX_STATES} to sum over. Sample it, with infer={{'enumerate': None}} in the guide, or use VIMCO; "
            "or split it into several sites that do not depend on each other."
        )
    return product


def _has_states(fn: Any) -> bool:
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return bool(getattr(fn, "has_enumerate_support", False))


def _enumerable(fn: Any) -> bool:
    # Of a reparameterised site (straight-through samples) Pyro would sum the states without their probabilities.
    return _has_states(fn) and not getattr(fn, "has_rsample", False)


def is_latent(msg: Any) -> bool:
    """Whether a message is of a sample site that is neither observed nor a plate's subsample."""
    return msg["type"] == "sample" and not msg["is_observed"] and not is_subsample(msg)


def _is_factor(msg: Any) -> bool:
    return msg["type"] == "sample" and isinstance(getattr(msg["fn"], "base_dist", msg["fn"]), dist.Unit)
