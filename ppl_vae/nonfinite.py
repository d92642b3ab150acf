"""Which site made the loss NaN or infinite."""

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.objectives import PairLoss
from ppl_vae.terms import Site

__all__ = ["NonFiniteError", "explain", "first_bad_gradient"]


class NonFiniteError(ArithmeticError):
    """The loss is NaN or infinite; names the step and the first bad parameter, input or site."""


def explain(loss: PairLoss, *batch: object) -> str:
    """Name the first non-finite parameter, input or site, in the order in which they enter the loss.

    The pair is run once more: where the cause was a rare draw, this run may be clean, and it says so.
    """
    for name, parameter in loss.owners.named_parameters():
        if not parameter.isfinite().all():
            return f"parameter {name.split('.', 1)[1]!r} is already non-finite: an earlier gradient overflowed"
    for index, value in enumerate(batch):
        if isinstance(value, Tensor) and value.is_floating_point() and not value.isfinite().all():
            return f"argument {index} of the batch holds NaN or infinite values"
    with torch.no_grad(), pyro.validation_enabled(False):
        terms = loss.elbo.terms(loss.model, loss.guide, *batch)
    for draw in terms.draws:
        for program, sites in (("guide", draw.guide), ("model", draw.model)):
            for site in sites.values():
                if what := _bad(site):
                    return f"site {site.name!r} of the {program}: {what}"
    return "a rare draw: running the batch once more gave finite terms at every site"


def first_bad_gradient(module: nn.Module) -> str:
    """Name the first parameter whose gradient is NaN or infinite."""
    bad = [n for n, p in module.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return f"the gradient of parameter {bad[0]!r} is non-finite" if bad else "the norm of the gradient is non-finite"


def _bad(site: Site) -> str:
    fn = site.fn
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    for name in getattr(fn, "arg_constraints", {}):
        value = fn.__dict__.get(name)
        if isinstance(value, Tensor) and not value.isfinite().all():
            return f"{type(fn).__name__}'s parameter {name!r} is non-finite"
    if site.value.is_floating_point() and not site.value.isfinite().all():
        return "its value is non-finite"
    if not site.log_prob.isfinite().all():
        return f"its log-probability under {type(fn).__name__} is non-finite"
    return ""
