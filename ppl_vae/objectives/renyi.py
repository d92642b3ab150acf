"""Bounds from K importance weights per datum: Rényi's, and the importance-weighted bound."""

import math
from numbers import Real

import torch
from torch import Tensor

from ppl_vae.objectives.base import Objective
from ppl_vae.objectives.schedules import Schedule
from ppl_vae.terms import Terms

__all__ = ["IWAE", "RenyiELBO"]


class RenyiELBO(Objective):
    """L_alpha = 1 / (1 - alpha) log mean_k w_k^(1 - alpha), per datum, with w = p(x, z) / q(z | x).

    alpha = 0 is the importance-weighted bound L_K; alpha -> 1 is the ELBO. For alpha < 0 it is *not*
    a lower bound (`is_bound` is False). The logarithm is taken per datum; the scale of the minibatch
    is applied outside of it. The gradient is sum_k w~_k grad log w_k with w~ the normalised weights
    w^(1 - alpha), so every guide site must be reparameterised.

    Args:
        alpha: the order, not 1.
        num_particles: K >= 1.
        max_plate_nesting: how deep the pair's plates nest; found by one run where not given.
        vectorize_particles: one trace for all particles (default), or one trace each.
        strict_enumeration_warning: accepted for Pyro's signature; nothing is enumerated here.
        kl_weight: the weight of log p(z) - log q(z | x) inside log w, in the loss alone.
        joint: one weight for the whole batch, on purpose.

    Raises:
        ValueError: alpha = 1; a guide site is not reparameterised.
        NotPerDatumError: a site is not per datum, or the sites' scales differ.

    References:
        Rényi Divergence Variational Inference, Li & Turner 2016, eq. 13.
        Importance Weighted Autoencoders, Burda et al. 2015, eq. 8.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> pair, x = VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8)
        >>> RenyiELBO(num_particles=5).bound(pair.model, pair.guide, x).shape
        torch.Size([3])
    """

    def __init__(
        self,
        alpha: float = 0.0,
        num_particles: int = 2,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        strict_enumeration_warning: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
        joint: bool = False,
    ) -> None:
        if not isinstance(alpha, Real) or not math.isfinite(alpha) or alpha == 1:
            raise ValueError(
                f"alpha: got {alpha!r}, expected a finite number other than 1; for alpha = 1 use Trace_ELBO"
            )
        super().__init__(num_particles, max_plate_nesting, vectorize_particles, kl_weight=kl_weight, joint=joint)
        self.strict_enumeration_warning = strict_enumeration_warning
        self.alpha = alpha
        self.is_bound = alpha >= 0

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """1 / (1 - alpha) [logsumexp_k (1 - alpha) log w_k - log K], (B,)."""
        power = 1.0 - self.alpha
        log_weight = terms.log_weight(kl_weight, factors)
        return (torch.logsumexp(power * log_weight, 0) - math.log(terms.num_particles)) / power

    def surrogate(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """The bound itself; refuses guide sites that would get no gradient from it."""
        terms.require_reparameterised(type(self).__name__)
        return self.per_datum(terms, kl_weight, factors=True)


class IWAE(RenyiELBO):
    """L_K = log mean_k w_k: the importance-weighted bound, `RenyiELBO` with alpha = 0.

    Args:
        num_particles: K >= 1; K = 1 is the ELBO.
        max_plate_nesting: how deep the pair's plates nest; found by one run where not given.
        vectorize_particles: one trace for all particles (default), or one trace each.
        kl_weight: the weight of log p(z) - log q(z | x) inside log w, in the loss alone.
        joint: one weight for the whole batch, on purpose.

    References:
        Importance Weighted Autoencoders, Burda et al. 2015, eq. 8 and 14.
    """

    def __init__(
        self,
        num_particles: int = 50,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
        joint: bool = False,
    ) -> None:
        super().__init__(0.0, num_particles, max_plate_nesting, vectorize_particles, kl_weight=kl_weight, joint=joint)
