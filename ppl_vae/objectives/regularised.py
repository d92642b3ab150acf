"""The ELBO with another price for the KL term: beta, free bits, capacity. The bound reported is the ELBO itself."""

import math
from functools import reduce
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.objectives.base import Objective, Program
from ppl_vae.objectives.elbo import Trace_ELBO
from ppl_vae.objectives.schedules import Schedule, check_weight
from ppl_vae.sites import Site
from ppl_vae.terms import Terms

__all__ = ["BetaELBO", "CapacityELBO", "FreeBits"]


class BetaELBO(Trace_ELBO):
    """E_q[log p(x | z)] - beta KL(q(z | x) || p(z)): `Trace_ELBO` with a constant KL weight.

    Args:
        beta: the weight, at least 0.
        num_particles, max_plate_nesting, vectorize_particles: as for `Trace_ELBO`.

    References:
        beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, Higgins et al. 2017, eq. 4.
    """

    def __init__(
        self,
        beta: float = 4.0,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        check_weight("beta", beta)
        super().__init__(num_particles, max_plate_nesting, vectorize_particles, kl_weight=beta)


class FreeBits(Objective):
    """E_q[log p(x | z)] - sum_j max(nats, KL_j): the first `nats` of each group j cost nothing.

    KL_j is the mean over particles and minibatch of log q - log p, of a latent site or of each of its dimensions.
    A group below the threshold gets no gradient from its KL term, so that the decoder can come to use it.

    Args:
        nats: the threshold of each group, at least 0.
        per: groups: "site", or "dim" for each dimension of each site (sites must then be `.to_event`
            distributions of independent dimensions, in model and guide).
        num_particles, max_plate_nesting, vectorize_particles, kl_weight: as for `Objective`; the weight multiplies
            the sum over the groups.

    Raises:
        ValueError: negative nats, an unknown `per`; a site that is not reparameterised; with "dim", a site without
            independent dimensions, or masked.

    References:
        Improved Variational Inference with Inverse Autoregressive Flow, Kingma et al. 2016, eq. 15.
    """

    def __init__(
        self,
        nats: float = 0.5,
        per: Literal["site", "dim"] = "site",
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
    ) -> None:
        if not (math.isfinite(nats) and nats >= 0):
            raise ValueError(f"nats: got {nats}, expected a finite number of at least 0")
        if per not in ("site", "dim"):
            raise ValueError(f"per: got {per!r}, expected 'site' or 'dim'")
        super().__init__(num_particles, max_plate_nesting, vectorize_particles, kl_weight=kl_weight)
        self.nats, self.per = nats, per

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """The ELBO, mean_k log w_k, (B,)."""
        return terms.log_weight(kl_weight, factors).mean(0)

    def differentiable_loss(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of the batch: its size times the mean cost per datum."""
        terms = self.terms(model, guide, *batch)
        terms.require_reparameterised(type(self).__name__)
        groups = [self._kl(terms, name) for name in terms.log_q]
        cost = reduce(torch.add, [kl.clamp(min=self.nats).sum() for kl in groups])
        return _loss(terms, self.current_kl_weight * cost)

    def _kl(self, terms: Terms, name: str) -> Tensor:
        """The KL of each group of a site, averaged over particles and data: () or (*event)."""
        if self.per == "site":
            return _mean_kl(terms, name)
        ratios = [_by_dim(d.guide[name]) - (_by_dim(d.model[name]) if name in d.model else 0.0) for d in terms.draws]
        event = len(terms.draws[0].guide[name].fn.event_shape)
        return torch.stack([r.flatten(end_dim=-event - 1).mean(0) for r in ratios]).mean(0)


class CapacityELBO(Objective):
    """E_q[log p(x | z)] - gamma |KL - C|: the KL term is held at a capacity C, which may grow with the steps.

    KL is the mean over particles and minibatch of log q - log p, over all latent sites.

    Args:
        capacity: C in nats: a number, or a schedule such as LinearWarmup(10_000, end=25.0).
        gamma: the price of a deviation, at least 0.
        num_particles, max_plate_nesting, vectorize_particles: as for `Objective`.

    Raises:
        ValueError: a negative gamma or capacity; a guide site is not reparameterised.

    References:
        Understanding Disentangling in beta-VAE, Burgess et al. 2018, eq. 8.
    """

    def __init__(
        self,
        capacity: float | Schedule,
        gamma: float = 1000.0,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if not (math.isfinite(gamma) and gamma >= 0):
            raise ValueError(f"gamma: got {gamma}, expected a finite number of at least 0")
        check_weight("capacity", capacity)
        # The capacity takes the place of the KL weight: what an objective schedules is one number.
        super().__init__(num_particles, max_plate_nesting, vectorize_particles, kl_weight=capacity)
        self.gamma = gamma

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """The ELBO, mean_k log w_k, (B,)."""
        return terms.log_weight(1.0, factors).mean(0)

    def differentiable_loss(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss of the batch: its size times the mean cost per datum."""
        terms = self.terms(model, guide, *batch)
        terms.require_reparameterised(type(self).__name__)
        kl = reduce(torch.add, [_mean_kl(terms, name) for name in terms.log_q])
        return _loss(terms, self.gamma * (kl - self.current_kl_weight).abs())


def _loss(terms: Terms, cost: Tensor) -> Tensor:
    """scale * sum over the batch of (cost - mean_k log p(x | z_k)); cost in nats per datum."""
    likelihood = terms.log_likelihood(factors=True).mean(0)
    return terms.scale * (len(likelihood) * cost - likelihood.sum())


def _mean_kl(terms: Terms, name: str) -> Tensor:
    ratio = terms.log_q[name] - terms.log_p[name] if name in terms.latent else terms.log_q[name]
    return ratio.mean()


def _by_dim(site: Site) -> Tensor:
    """The log density of each dimension, with the site's batch and event shape."""
    fn = site.fn
    if not isinstance(fn, dist.Independent) or fn.base_dist.event_dim or site.mask is not None:
        raise ValueError(
            f"site {site.name!r}: got {type(fn).__name__}{', masked' if site.mask is not None else ''}, expected "
            "independent dimensions, dist.Normal(...).to_event(1) say, for free bits per dimension; use per='site'"
        )
    return fn.base_dist.log_prob(site.value)
