"""The evidence lower bound: by sampling (`Trace_ELBO`) and with analytic KL terms (`TraceMeanField_ELBO`)."""

import math
from functools import reduce
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import MultiFrameTensor
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae.objectives.base import Objective, Program
from ppl_vae.objectives.schedules import Schedule
from ppl_vae.terms import Draw, Site, Terms

__all__ = ["TraceMeanField_ELBO", "Trace_ELBO"]


class Trace_ELBO(Objective):
    """ELBO = E_q[log p(x, z) - log q(z | x)], estimated by the mean of K particles.

    Value and gradient are those of `pyro.infer.Trace_ELBO`: sites that are not reparameterised get
    the score-function gradient; global sites (outside the data plate) and any scales are allowed in
    the loss. `bound` needs a pair that is per datum.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling 2013, eq. 2 and 6.
        Black Box Variational Inference, Ranganath et al. 2013, eq. 2 (score function).

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> pair, x = VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8)
        >>> Trace_ELBO(num_particles=4).bound(pair.model, pair.guide, x).shape
        torch.Size([3])
    """

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """mean_k log w_k, (B,)."""
        return terms.log_weight(kl_weight, factors).mean(0)

    def differentiable_loss(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """-ELBO, summed over the batch; differentiable also where sites are discrete or global."""
        drawn = self.terms(model, guide, *batch)
        return -reduce(torch.add, [self._surrogate(d) for d in drawn.draws]) / drawn.num_particles

    def _surrogate(self, draw: Draw) -> Tensor:
        kl_weight = self.current_kl_weight
        parts = [_scaled(s).sum() for s in draw.model.values() if s.observed]
        parts += [-_pathwise(s).sum() for s in draw.guide.values() if s.observed]
        parts += [kl_weight * part for part in self._latent(draw)]
        if not all(s.reparameterised for s in draw.guide.values()):
            parts.append(_score_term(draw, kl_weight))
        return reduce(torch.add, parts)

    def _latent(self, draw: Draw) -> list[Tensor]:
        """The parts of log p(z) - log q(z | x), summed over the batch."""
        parts = [_scaled(s).sum() for s in draw.model.values() if not s.observed]
        return parts + [-_pathwise(s).sum() for s in draw.guide.values() if not s.observed]


class TraceMeanField_ELBO(Trace_ELBO):
    """ELBO = E_q[log p(x | z)] - sum_l KL(q(z_l | .) || p(z_l | .)), with analytic KL terms.

    A KL term without a closed form is sampled. A closed form is right only if no latent site that
    p(z_l | .) may depend on is drawn after z_l in the guide: a bottom-up guide of a top-down model
    breaks this, and what `pyro.infer.TraceMeanField_ELBO` then reports is not a bound.

    Args:
        fallback: sample the KL terms whose site order forbids the closed form, instead of refusing.

    Raises:
        ValueError: a site's order forbids its analytic KL term, or a site is not reparameterised.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling 2013, eq. 3 and 7, appendix B.
    """

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
        *,
        kl_weight: float | Schedule = 1.0,
        joint: bool = False,
        fallback: bool = False,
    ) -> None:
        super().__init__(
            num_particles,
            max_plate_nesting,
            vectorize_particles,
            retain_graph,
            kl_weight=kl_weight,
            joint=joint,
        )
        self.fallback = fallback

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """mean_k [log p(x | z_k) - sum_l KL_l(z_k)], (B,)."""
        terms.require_reparameterised(type(self).__name__)
        bound = terms.log_likelihood(factors)
        for name, site in terms.draws[0].guide.items():
            if factors or not site.factor:
                bound = bound - kl_weight * terms.stack(lambda d, n=name: self._kl(d, n))
        return bound.mean(0)

    def _latent(self, draw: Draw) -> list[Tensor]:
        Terms([draw]).require_reparameterised(type(self).__name__)
        drawn = [s for s in draw.guide.values() if not s.observed]
        return [-_times(self._kl(draw, s.name), s.scale).sum() for s in drawn]

    def _kl(self, draw: Draw, name: str) -> Tensor:
        """KL(q || p) of one site with the site's batch shape: in closed form, or sampled."""
        guide = draw.guide[name]
        if name not in draw.model:
            return guide.log_prob
        model = draw.model[name]
        if later := _drawn_later(draw, name):
            if not self.fallback:
                raise ValueError(
                    f"site {name!r}: the model draws {later!r} before it, the guide after it, so its KL term has no "
                    "closed form given the particle. Use Trace_ELBO, or pass fallback=True to sample this term."
                )
            return guide.log_prob - model.log_prob
        try:
            return scale_and_mask(kl_divergence(guide.fn, model.fn), 1.0, guide.mask)
        except NotImplementedError:
            return guide.log_prob - model.log_prob


def _drawn_later(draw: Draw, name: str) -> str | None:
    """A site that the model draws before `name` and the guide after it."""
    model, guide = list(draw.model), list(draw.guide)
    before, after = model[: model.index(name)], guide[guide.index(name) + 1 :]
    return next((n for n in before if n in after), None)


def _score_term(draw: Draw, kl_weight: float | Tensor) -> Tensor:
    """sum (log p - log q) * grad log q of the sites that are not reparameterised; its value is 0.

    Each site is credited with the terms of its own plates' rows alone (Rao-Blackwellised), as Pyro's are.
    """
    log_r = MultiFrameTensor()
    for site in draw.model.values():
        ratio = _scaled(site)
        if not site.observed:
            ratio = kl_weight * (ratio - _scaled(draw.guide[site.name]))
        log_r.add((site.frames, ratio.detach()))
    for site in draw.guide.values():
        # Auxiliary sites too are part of log q; Pyro leaves them out here, and its gradient is then biased.
        if site.name not in draw.model:
            log_r.add((site.frames, -(1.0 if site.observed else kl_weight) * _scaled(site).detach()))
    drawn = [s for s in draw.guide.values() if not s.reparameterised]
    return reduce(torch.add, [(log_r.sum_to(s.frames) * (s.log_prob - s.log_prob.detach())).sum() for s in drawn])


def _pathwise(site: Site) -> Tensor:
    """log q of a guide site; where it is not reparameterised, all of its gradient is in the score-function term."""
    return _scaled(site) if site.reparameterised else _scaled(site).detach()


def _scaled(site: Site) -> Tensor:
    return _times(site.log_prob, site.scale)


def _times(log_prob: Tensor, scale: float | Tensor) -> Tensor:
    return log_prob if isinstance(scale, float) and scale == 1.0 else log_prob * scale
