"""Gradients through the samples alone: sticking the landing, and doubly reparameterised gradients."""

import torch
from torch import Tensor

from ppl_vae.objectives.renyi import IWAE, RenyiELBO
from ppl_vae.objectives.schedules import Schedule
from ppl_vae.terms import Terms

__all__ = ["STL", "DReG"]


class STL(IWAE):
    """L_K = log mean_k w_k, with the guide's score function left out of the gradient: sticking the landing.

    The guide's gradient is sum_k w~_k (d log w_k / d z_k) (d z_k / d phi), the model's is the bound's own.
    Unbiased for K = 1, where the score has expectation 0, and then of zero variance once q(z | x) = p(z | x).
    Biased for K > 1; `DReG` is not.

    Args:
        num_particles: K >= 1; K = 1 is the ELBO.
        max_plate_nesting, vectorize_particles, kl_weight, joint: as for `IWAE`.

    Raises:
        ValueError: a guide site is not reparameterised, or the guide is no method of a Pair.

    References:
        Sticking the Landing: Simple, Lower-Variance Gradient Estimators for Variational Inference,
        Roeder, Wu & Duvenaud 2017, eq. 8.
    """

    gradient = "path"


class DReG(RenyiELBO):
    """L_alpha with the doubly reparameterised gradient.

    For alpha = 0 the guide's gradient is sum_k w~_k^2 (d log w_k / d z_k) (d z_k / d phi). The score function in
    the gradient of the bound is itself reparameterised, so the gradient is unbiased, and the signal-to-noise ratio
    of the guide's gradient grows with K instead of falling. For other orders, with v~ = w~^(1 - alpha) normalised,
    a particle's path has the weight v~ (1 - (1 - alpha)(1 - v~)), and with a KL weight beta it has
    v~ (1 - beta (1 - alpha)(1 - v~)). The model's gradient is the bound's own.

    Args:
        num_particles: K >= 1; K = 1 is `STL`.
        alpha: the order, not 1.
        max_plate_nesting, vectorize_particles, kl_weight, joint: as for `RenyiELBO`.

    Raises:
        ValueError: alpha = 1; a guide site is not reparameterised, or the guide is no method of a Pair.

    References:
        Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives, Tucker et al. 2019, eq. 8.
    """

    gradient = "path"

    def __init__(
        self,
        num_particles: int = 50,
        alpha: float = 0.0,
        max_plate_nesting: float = float("inf"),
        vectorize_particles: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
        joint: bool = False,
    ) -> None:
        super().__init__(alpha, num_particles, max_plate_nesting, vectorize_particles, kl_weight=kl_weight, joint=joint)

    def surrogate(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """The bound, whose paths are weighted on the way back."""
        power = 1.0 - self.alpha
        normalised = torch.softmax(power * terms.log_weight(kl_weight, factors=True).detach(), 0)
        terms.weight_paths(1.0 - kl_weight * power * (1.0 - normalised))
        return super().surrogate(terms, kl_weight)


FLOOR = 1e-20
"""Least weight of a particle in a loss whose gradient is weighted anew on its way to the samples."""


def loss_weights(terms: Terms, log_weight: Tensor, sample_weight: Tensor) -> Tensor:
    """Weights c_k = w~_k for a loss over log p, whose gradient reaches the samples with other weights d_k, (K, B).

    On its way to a sample the gradient is multiplied by d_k / c_k. A c_k of 0 would lose it, so c_k is at least
    1e-20: the gradient at the sample is exact, the model's changes by less than the rounding of its largest part,
    and float32 still has 18 orders of magnitude below for what a network makes of c_k.

    Args:
        terms: drawn with gradient="path" or "split".
        log_weight: log w_k, (K, B).
        sample_weight: d_k, (K, B).
    """
    weight = torch.softmax(log_weight.detach(), 0).clamp(min=FLOOR)
    terms.weight_paths(sample_weight / weight)
    return weight
