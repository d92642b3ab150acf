"""Several importance-weighted bounds at once: MIWAE, PIWAE, CIWAE (Rainforth et al. 2018), and VR-max."""

import math

import torch
from torch import Tensor

from ppl_vae.objectives.base import Objective
from ppl_vae.objectives.path import loss_weights
from ppl_vae.objectives.renyi import IWAE
from ppl_vae.objectives.schedules import Schedule
from ppl_vae.terms import Terms

__all__ = ["CIWAE", "MIWAE", "PIWAE", "VRMax"]


class MIWAE(Objective):
    """mean_m L_K^(m): the mean of M importance-weighted bounds of K particles each.

    Args:
        num_bounds: M >= 1.
        particles_per_bound: K >= 1; M K particles are drawn in all.
        max_plate_nesting, vectorize_particles, kl_weight: as for `Objective`.

    Raises:
        ValueError: a number below 1; a guide site is not reparameterised.

    References:
        Tighter Variational Bounds are Not Necessarily Better, Rainforth et al. 2018, eq. 12.
    """

    def __init__(
        self,
        num_bounds: int,
        particles_per_bound: int,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
    ) -> None:
        if min(num_bounds, particles_per_bound) < 1:
            raise ValueError(
                f"got num_bounds={num_bounds}, particles_per_bound={particles_per_bound}, expected at least 1 of each"
            )
        super().__init__(num_bounds * particles_per_bound, max_plate_nesting, vectorize_particles, kl_weight=kl_weight)
        self.num_bounds, self.particles_per_bound = num_bounds, particles_per_bound

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """mean_m [logsumexp_k log w_mk - log K], (B,)."""
        return self._bounds(terms.log_weight(kl_weight, factors)).mean(0)

    def surrogate(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """The bound itself; refuses guide sites that would get no gradient from it."""
        terms.require_reparameterised(type(self).__name__)
        return self.per_datum(terms, kl_weight, factors=True)

    def _bounds(self, log_weight: Tensor) -> Tensor:
        """The M bounds, (M, B)."""
        groups = log_weight.unflatten(0, (self.num_bounds, self.particles_per_bound))
        return torch.logsumexp(groups, 1) - math.log(self.particles_per_bound)


class PIWAE(MIWAE):
    """The model's gradient is that of L_MK, the guide's that of mean_m L_K^(m): partially importance weighted.

    More particles in one bound help the model and blur the guide's gradient, so each gets the bound that suits
    it. The value reported is L_MK. The gradient of one loss: a particle has the weight c_k = w~_k among all M K
    in log p, d_k = w~_k / M among its own K in log q, and d_k / c_k on the way from log p to its sample.

    Args:
        num_bounds: M >= 1.
        particles_per_bound: K >= 1.
        max_plate_nesting, vectorize_particles, kl_weight: as for `Objective`.

    References:
        Tighter Variational Bounds are Not Necessarily Better, Rainforth et al. 2018, section 5.
    """

    gradient = "split"

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """logsumexp over all M K particles - log M K, (B,)."""
        return torch.logsumexp(terms.log_weight(kl_weight, factors), 0) - math.log(terms.num_particles)

    def surrogate(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """L_MK in value; the two gradients as above."""
        terms.require_reparameterised(type(self).__name__)
        log_q = kl_weight * terms.sum_log_q(factors=True)
        log_p = terms.log_weight(kl_weight, factors=True) + log_q
        log_weight = (log_p - log_q).detach()
        groups = log_weight.unflatten(0, (self.num_bounds, self.particles_per_bound))
        own_weights = torch.softmax(groups, 1).flatten(0, 1) / self.num_bounds
        all_weights = loss_weights(terms, log_weight, own_weights)
        value = torch.logsumexp(log_weight, 0) - math.log(terms.num_particles)
        weighted = (all_weights * log_p).sum(0) - (own_weights * log_q).sum(0)
        return value + weighted - weighted.detach()


class CIWAE(IWAE):
    """beta ELBO + (1 - beta) L_K: a convex combination, both from the same K particles.

    Args:
        num_particles: K >= 1.
        beta: in [0, 1]; 0 is IWAE, 1 the ELBO.
        max_plate_nesting, vectorize_particles, kl_weight: as for `IWAE`.

    Raises:
        ValueError: beta is not in [0, 1]; a guide site is not reparameterised.

    References:
        Tighter Variational Bounds are Not Necessarily Better, Rainforth et al. 2018, eq. 13.
    """

    def __init__(
        self,
        num_particles: int = 50,
        beta: float = 0.05,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
    ) -> None:
        if not 0 <= beta <= 1:
            raise ValueError(f"beta: got {beta}, expected a number in [0, 1]")
        super().__init__(num_particles, max_plate_nesting, vectorize_particles, kl_weight=kl_weight)
        self.beta = beta

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """beta mean_k log w_k + (1 - beta) log mean_k w_k, (B,)."""
        elbo = terms.log_weight(kl_weight, factors).mean(0)
        return self.beta * elbo + (1 - self.beta) * super().per_datum(terms, kl_weight, factors)


class VRMax(IWAE):
    """max_k log w_k: Rényi's bound for alpha -> -infinity, the gradient of the best particle alone.

    *Not* a lower bound on log p(x) (`is_bound` is False): it exceeds L_K for every draw.

    References:
        Rényi Divergence Variational Inference, Li & Turner 2016, section 4.2.
    """

    is_bound = False

    def __init__(
        self,
        num_particles: int = 50,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
    ) -> None:
        super().__init__(num_particles, max_plate_nesting, vectorize_particles, kl_weight=kl_weight)
        self.is_bound = False

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """max_k log w_k, (B,)."""
        return terms.log_weight(kl_weight, factors).amax(0)
