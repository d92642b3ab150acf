"""Bounds whose gradient needs no reparameterisation: VIMCO, and the thermodynamic variational objective.

The samples are constants here, and all gradient is in the terms at those samples: guides with discrete sites
are welcome.
"""

import math
from collections.abc import Sequence
from functools import reduce
from itertools import pairwise

import torch
from torch import Tensor

from ppl_vae.objectives.base import Objective
from ppl_vae.objectives.schedules import Schedule
from ppl_vae.terms import Terms

__all__ = ["VIMCO", "ThermodynamicELBO"]


class VIMCO(Objective):
    """L_K = log mean_k w_k with a score-function gradient whose baseline comes from the other particles.

    grad = sum_k w~_k grad log w_k + sum_k (L_K - L_K^(-k)) grad log q(z_k | x), where L_K^(-k) has log w_k replaced
    by the mean of the other particles' log weights. Unbiased for guides of any kind.

    Args:
        num_particles: K >= 2.
        max_plate_nesting, vectorize_particles, kl_weight: as for `Objective`.

    Raises:
        ValueError: num_particles < 2.

    References:
        Variational Inference for Monte Carlo Objectives, Mnih & Rezende 2016, eq. 7 to 10.
    """

    gradient = "score"

    def __init__(
        self,
        num_particles: int = 50,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
    ) -> None:
        if num_particles < 2:
            raise ValueError(f"num_particles: got {num_particles}, expected at least 2: each is the others' baseline")
        super().__init__(num_particles, max_plate_nesting, vectorize_particles, kl_weight=kl_weight)

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """logsumexp_k log w_k - log K, (B,)."""
        return torch.logsumexp(terms.log_weight(kl_weight, factors), 0) - math.log(terms.num_particles)

    def surrogate(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """The bound, plus a term of value 0 with the score-function gradient."""
        bound = self.per_datum(terms, kl_weight, factors=True)
        log_q = terms.sum_log_q(factors=True)
        gain = bound.detach() - left_out(terms.log_weight(kl_weight, factors=True).detach())
        return bound + (gain * (log_q - log_q.detach())).sum(0)


def left_out(log_weight: Tensor) -> Tensor:
    """L_K^(-k) for each k, (K, B): log w_k replaced by the mean of the others' log weights (Mnih & Rezende, eq. 10)."""
    count = len(log_weight)
    others = (log_weight.sum(0) - log_weight) / (count - 1)
    # One (K, K, B) table rather than log(sum - w_k), which cancels where one weight dominates.
    table = log_weight.unsqueeze(0).expand(count, -1, -1)
    diagonal = torch.eye(count, dtype=torch.bool, device=log_weight.device).unsqueeze(-1)
    return torch.logsumexp(torch.where(diagonal, others.unsqueeze(0), table), 1) - math.log(count)


class ThermodynamicELBO(Objective):
    """sum_j (b_{j+1} - b_j) E_{pi_j}[log w], with pi_b proportional to q^(1-b) p^b and 0 = b_0 < ... < b_J = 1.

    The left Riemann sum of the path integral of log p(x), a lower bound that is tighter than the ELBO (one
    interval). Expectations under pi_j use self-normalised weights w^(b_j), so that the estimate is biased, by
    O(1 / K). The gradient is the covariance form, E[grad log w] + Cov[grad log pi~_j, log w] at fixed samples.

    Args:
        num_particles: K >= 2.
        betas: b_1, ..., b_{J-1}, increasing, in (0, 1).
        max_plate_nesting, vectorize_particles, kl_weight: as for `Objective`.

    Raises:
        ValueError: num_particles < 2; betas do not increase within (0, 1).

    References:
        The Thermodynamic Variational Objective, Masrani, Le & Wood 2019, eq. 7, 10 and 12.
    """

    gradient = "score"

    def __init__(
        self,
        num_particles: int = 50,
        betas: Sequence[float] = (0.1, 0.3, 0.6),
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
    ) -> None:
        if num_particles < 2:
            # A covariance over one particle is 0: the guide would get no signal.
            raise ValueError(f"num_particles: got {num_particles}, expected at least 2; for one use Trace_ELBO")
        super().__init__(num_particles, max_plate_nesting, vectorize_particles, kl_weight=kl_weight)
        self.betas = tuple(betas)
        grid = (0.0, *self.betas, 1.0)
        if any(low >= high for low, high in pairwise(grid)):
            raise ValueError(f"betas: got {self.betas}, expected increasing numbers in (0, 1)")

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """sum_j (b_{j+1} - b_j) sum_k w~_k^(b_j) log w_k, (B,)."""
        log_weight = terms.log_weight(kl_weight, factors)
        parts = [width * (weight * log_weight).sum(0) for width, _, weight in self._intervals(log_weight)]
        return reduce(torch.add, parts)

    def surrogate(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """The bound's value with the covariance form of its gradient."""
        log_weight, log_q = terms.log_weight(kl_weight, factors=True), terms.sum_log_q(factors=True)
        total = torch.zeros_like(log_weight[0])
        for width, beta, weight in self._intervals(log_weight):
            centred = log_weight.detach() - (weight * log_weight.detach()).sum(0)
            # log pi~ = log q + b log w; what is added has the value 0.
            path = log_q + beta * log_weight
            total = total + width * (weight * (log_weight + centred * (path - path.detach()))).sum(0)
        return total

    def _intervals(self, log_weight: Tensor) -> list[tuple[float, float, Tensor]]:
        """For each interval its width, its left end b, and the normalised weights w~^b, (K, B)."""
        ends = pairwise((0.0, *self.betas, 1.0))
        return [(high - low, low, torch.softmax(low * log_weight.detach(), 0)) for low, high in ends]
