"""What a guide says of data taken together: how much of x its z tells, KL, and units that are not asleep."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae import terms
from ppl_vae.pair import Pair
from ppl_vae.quiet import undisturbed
from ppl_vae.terms import Site, Terms

__all__ = ["Aggregate", "aggregate", "mean_or_value"]

ACTIVE = 0.01
"""A unit is active whose mean varies by more than this between data."""


@dataclass(frozen=True)
class Aggregate:
    """Of N data.

    Args:
        kl: E_q[log q(z | x) - log p(z)], all latent sites, nats per datum: one sample for each.
        mutual_information: I = E[log q(z | x) - log q(z)] with q(z) = mean_n q(z | x_n), of the guide's first site, in
            nats, at most log N.
        active_units: of that site, how many have Var_x(E_q[z | x]) > 0.01.
    """

    kl: float
    mutual_information: float
    active_units: int


def aggregate(pair: Pair, batches: Sequence[tuple[Any, ...]], seed: int | None = 0) -> Aggregate | None:
    """KL, mutual information and active units of some data, in batches; None for a guide without latent sites.

    The mutual information is that of Hoffman & Johnson's q(z | n) 1 / N, estimated by one sample of each: what the data
    at hand, as many as they are, could be told apart by. Of several latent sites the one that the guide draws first
    counts, whose law depends on x alone.

    Args:
        pair: any pair whose sites are per datum.
        batches: the data, each the arguments of the programs.
        seed: of a private random stream; None draws from the global one.

    References:
        ELBO surgery, Hoffman & Johnson 2016, eq. 6 to 8.
        Lagging inference networks and posterior collapse in variational autoencoders, He et al. 2019, section 4.2.
        Importance weighted autoencoders, Burda et al. 2016, section 5.3: active units.
    """
    with undisturbed(pair, seed):
        drawn = [terms.draw(pair.model, pair.guide, *batch, particles=pair.particles) for batch in batches]
        if not drawn[0].latent:
            return None
        kl = torch.cat([-part.log_ratio().double().squeeze(0) for part in drawn]).mean().item()
        firsts = [_first(part) for part in drawn]
        means = torch.cat([mean_or_value(site).flatten(1) for site in firsts]).double()
        active = (means.var(0) > ACTIVE).sum().item() if len(means) > 1 else 0
        return Aggregate(kl, _mutual_information(firsts), int(active))


def _first(drawn: Terms) -> Site:
    guide = drawn.draws[0].guide
    return next(site for name, site in guide.items() if name in drawn.latent)


def mean_or_value(site: Site) -> Tensor:
    """The mean of a site's law, or its value where the law knows none."""
    try:
        mean = site.fn.mean
    except NotImplementedError:
        return site.value
    # Some distributions have a mean that is not a number, Categorical for one.
    return torch.where(mean.isnan(), site.value, mean)


def _mutual_information(sites: Sequence[Site]) -> float:
    number = sum(len(site.value) for site in sites)
    total = 0.0
    for site in sites:
        z = site.value.unsqueeze(1)
        each = torch.cat([other.fn.log_prob(z).double() for other in sites], 1)  # log q(z_i | x_j), (B, N)
        log_q = each.logsumexp(1) - torch.tensor(number, dtype=torch.float64).log()
        total += (site.log_prob.double() - log_q).sum().item()
    return total / number
