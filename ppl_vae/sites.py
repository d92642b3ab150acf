"""A sample site of a trace, reduced to what an objective needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

__all__ = [
    "PARTICLES",
    "GivenValues",
    "NotPerDatumError",
    "Site",
    "density_sites",
    "is_subsample",
    "plates_of",
    "sample_sites",
]

PARTICLES = "_particles"
"""Name of the plate that the particles are drawn in."""


class NotPerDatumError(ValueError):
    """The pair does not give one log weight per datum; names the site and the fix."""


@dataclass(frozen=True)
class Site:
    """One sample site of a trace, reduced to what an objective needs.

    Args:
        name: the site's name.
        fn: its distribution.
        value: its value.
        log_prob: masked, *unscaled* log density, with the batch shape of the site (nats).
        scale: the product of the plates' subsampling scales and of `poutine.scale`.
        mask: the boolean mask already applied to `log_prob`, or None.
        frames: the plates it sits in, the particle plate among them.
        observed: whether its value was given.
        factor: whether it is a `pyro.factor`, a regulariser that evaluation never counts.
    """

    name: str
    fn: Any
    value: Tensor
    log_prob: Tensor
    scale: float | Tensor
    mask: Any
    frames: tuple[CondIndepStackFrame, ...]
    observed: bool
    factor: bool

    @property
    def reparameterised(self) -> bool:
        """Whether gradients flow through the value (`fn.has_rsample`)."""
        return bool(getattr(self.fn, "has_rsample", False))

    @classmethod
    def of(cls, name: str, node: dict[str, Any], program: str) -> "Site":
        """Compute the log density of a trace's node."""
        if node["is_observed"]:
            _check_support(name, node["fn"], node["value"])
        try:
            log_prob = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
        except ValueError as error:
            raise ValueError(f"site {name!r} of the {program}: {error}") from error
        log_prob = scale_and_mask(log_prob, 1.0, node["mask"])
        factor = isinstance(getattr(node["fn"], "base_dist", node["fn"]), Unit)
        given = (node["scale"], node["mask"], tuple(node["cond_indep_stack"]), node["is_observed"], factor)
        site = cls(name, node["fn"], node["value"], log_prob, *given)
        site._check_shape(program)
        return site

    def _check_shape(self, program: str) -> None:
        declared = {f.dim for f in self.frames}
        for dim in range(-self.log_prob.dim(), 0):
            if self.log_prob.shape[dim] != 1 and dim not in declared:
                raise NotPerDatumError(
                    f"site {self.name!r} of the {program}: its log-probability has shape "
                    f"{tuple(self.log_prob.shape)}, but dimension {dim} belongs to no plate that the "
                    f"{program} declares there ({plates_of(self.frames)}). Put the site in a "
                    "pyro.plate (the same one in model and guide), or call .to_event(n) on its distribution."
                )


def sample_sites(trace: Trace) -> dict[str, dict[str, Any]]:
    """The sample sites of a trace in program order, without the plates' own bookkeeping sites."""
    nodes: dict[str, Any] = dict(trace.nodes)
    return {name: node for name, node in nodes.items() if node["type"] == "sample" and not is_subsample(node)}


def density_sites(trace: Trace) -> dict[str, dict[str, Any]]:
    """The sample sites that have a density: a `pyro.deterministic` has none, and may stand outside every plate."""
    return {n: node for n, node in sample_sites(trace).items() if not node["infer"].get("_deterministic")}


def is_subsample(node: Any) -> bool:
    """Whether a node holds the indices that a plate picked; the class is private to Pyro."""
    return type(node["fn"]).__name__ == "_Subsample"


def plates_of(frames: Sequence[CondIndepStackFrame]) -> str:
    """The plates of a site in words."""
    named = [f for f in frames if f.name != PARTICLES]
    if not named:
        return "no plate"
    kinds = [f"{f.name!r} (dim={f.dim}, size={f.size})" if f.vectorized else f"{f.name!r} (sequential)" for f in named]
    return "plate " + ", ".join(kinds)


def _check_support(name: str, fn: Any, value: Tensor) -> None:
    base = fn
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if not getattr(base, "_validate_args", False):
        return
    try:
        inside = fn.support.check(value)
    except (NotImplementedError, RuntimeError, AttributeError):
        return  # no support, or shapes that do not fit: log_prob says what is wrong
    if inside.all():
        return
    outside = value[~base.support.check(value)].flatten()
    hint = (
        " Binarise the data, or score grey values with another likelihood: 'normal', 'discretised-logistic', or "
        "'grey-bernoulli', which is not a log-likelihood."
        if isinstance(base, torch.distributions.Bernoulli)
        else " Rescale the data, or choose a likelihood that allows its values."
    )
    raise ValueError(
        f"site {name!r}: got {outside.numel()} of {value.numel()} values outside the support of {type(base).__name__} "
        f"({outside[0].item():.4g}, for one), expected {base.support}.{hint}"
    )


class GivenValues(Messenger):
    """An effect handler that gives latent sites these values, by name, each (*batch, *event)."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"], msg["done"] = self.values[msg["name"]], True
