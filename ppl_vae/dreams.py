"""Dreams: data and latent values drawn from the model, for the guide to learn from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Unit
from torch import Tensor

from ppl_vae.paths import PathWeight
from ppl_vae.sites import Site, density_sites, sample_sites
from ppl_vae.terms import Draw

__all__ = ["dream_log_q"]

Program = Callable[..., Any]


def dream_log_q(model: Program, guide: Program, batch: Sequence[Any]) -> Tensor:
    """log q(z | x) of one pair (x, z) ~ p(x, z) for each row of the batch: (B,), with the guide's gradient.

    Args:
        model: its observed values are ignored; what it conditions on is used as given.
        guide: gets the batch with the dreamed data in place of the observed ones.
        batch: the arguments of both.

    Raises:
        ValueError: an observed value is not an argument of the model as it stands, so that the dream can't take its
            place.
    """
    with torch.no_grad():
        dream = poutine.trace(poutine.uncondition(model)).get_trace(*batch)
    dreamed = list(batch)
    for name, node in sample_sites(dream).items():
        factor = isinstance(getattr(node["fn"], "base_dist", node["fn"]), Unit)
        if factor or not node["infer"].get("was_observed"):
            continue
        places = [i for i, argument in enumerate(batch) if argument is node["infer"]["obs"]]
        if not places:
            raise ValueError(
                f"site {name!r}: its observed value is not an argument of the model, so the guide can't be given a "
                "dreamed one; write obs=x with x as it is passed, and reshape in the networks"
            )
        for i in places:
            dreamed[i] = node["value"]
    trace = poutine.trace(poutine.replay(guide, trace=dream)).get_trace(*dreamed)
    sites = {n: Site.of(n, node, "guide") for n, node in density_sites(trace).items()}
    draw = Draw({}, sites, 1, None, PathWeight())
    return torch.stack([draw.per_datum(site.log_prob).squeeze(0) for site in sites.values()]).sum(0)
