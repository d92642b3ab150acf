"""Dreams: data and latent values drawn from the model, for the guide to learn from."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.paths import PathWeight
from ppl_vae.sites import Site, density_sites, sample_sites
from ppl_vae.terms import Draw

__all__ = ["dream_log_q"]

Program = Callable[..., Any]


def dream_log_q(model: Program, guide: Program, batch: Sequence[Any], observed: dict[str, Tensor]) -> Tensor:
    """log q(z | x) of one pair (x, z) ~ p(x, z) for each row of the batch: (B,), with the guide's gradient.

    Args:
        model: its observed values are ignored; what it conditions on is used as given.
        guide: gets the batch with the dreamed data in place of the observed ones.
        batch: the arguments of both.
        observed: the model's observed values by site, as they were when it ran on this batch.

    Raises:
        ValueError: an observed value is not an argument of the model as it stands, so that the dream can't take its
            place.
    """
    with torch.no_grad():
        dream = poutine.trace(poutine.uncondition(model)).get_trace(*batch)
    values = {name: node["value"] for name, node in sample_sites(dream).items()}
    dreamed = list(batch)
    for name, value in observed.items():
        places = [i for i, argument in enumerate(batch) if argument is value]
        if not places:
            raise ValueError(
                f"site {name!r}: its observed value is not an argument of the model, so the guide can't be given a "
                "dreamed one; write obs=x with x as it is passed, and reshape in the networks"
            )
        for i in places:
            dreamed[i] = values[name]
    trace = poutine.trace(poutine.replay(guide, trace=dream)).get_trace(*dreamed)
    sites = {n: Site.of(n, node, "guide") for n, node in density_sites(trace).items()}
    draw = Draw({}, sites, 1, None, PathWeight())
    return torch.stack([draw.per_datum(site.log_prob).squeeze(0) for site in sites.values()]).sum(0)
