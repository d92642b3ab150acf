"""A divergence that adapts to the tail of the importance weights: particles are weighted by their ranks."""

import math

import torch
from torch import Tensor

from ppl_vae.objectives.path import loss_weights
from ppl_vae.objectives.renyi import IWAE
from ppl_vae.objectives.schedules import Schedule
from ppl_vae.terms import Terms

__all__ = ["TailAdaptive"]


class TailAdaptive(IWAE):
    """L_K = log mean_k w_k for the model; for the guide a tail-adaptive f-divergence between p(z | x) and q(z | x).

    The guide's gradient is sum_k rho~_k (d log w_k / d z_k) (d z_k / d phi), with log q's own parameters held
    constant, and rho~_k = F(w_k)^beta / sum_j F(w_j)^beta, where F(w_k) = #{j : w_j >= w_k} / K is the empirical tail
    probability among the datum's K particles. For beta < 0 large weights count more, so that the guide covers the
    posterior's mass rather than one mode of it; only their ranks matter, so that heavy-tailed weights cannot blow up.
    The model's gradient, and the bound that is reported, are those of L_K.

    A KL weight b is in log w and so in ranks and paths: the guide is drawn to p(z) p(x | z)^(1/b), normalised.

    Args:
        num_particles: K >= 2.
        beta: the power, finite, at most 0. For 0 all particles count alike: the ELBO's gradient along the paths.
        max_plate_nesting, vectorize_particles, kl_weight: as for `IWAE`.

    Raises:
        ValueError: num_particles < 2; beta is positive or not finite; a guide site is not reparameterised, or the
            guide is no method of a Pair.

    References:
        Variational Inference with Tail-adaptive f-Divergence, Wang, Liu & Liu 2018, Algorithm 1. There the target is
        fixed; that the model follows L_K is ours.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> pair, x = VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8)
        >>> TailAdaptive(num_particles=5).bound(pair.model, pair.guide, x).shape
        torch.Size([3])
    """

    gradient = "path"

    def __init__(
        self,
        num_particles: int = 50,
        beta: float = -1.0,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        *,
        kl_weight: float | Schedule = 1.0,
    ) -> None:
        if num_particles < 2:
            raise ValueError(
                f"num_particles: got {num_particles}, expected at least 2: a rank is one among others; "
                "for one particle use STL"
            )
        if not (math.isfinite(beta) and beta <= 0):
            raise ValueError(f"beta: got {beta}, expected a finite number of at most 0; the paper's choice is -1")
        super().__init__(num_particles, max_plate_nesting, vectorize_particles, kl_weight=kl_weight)
        self.beta = beta

    def surrogate(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """L_K in value, with the two gradients as above."""
        terms.require_reparameterised(type(self).__name__)
        log_weight = terms.log_weight(kl_weight, factors=True)
        weight = loss_weights(terms, log_weight, tail_weights(log_weight, self.beta))
        weighted = (weight * log_weight).sum(0)
        return self.per_datum(terms, kl_weight, factors=True).detach() + weighted - weighted.detach()


def tail_weights(log_weight: Tensor, beta: float) -> Tensor:
    """rho~_k = F(w_k)^beta / sum_j F(w_j)^beta with F(w_k) = #{j : w_j >= w_k} / K, (K, B), without gradient."""
    count = len(log_weight)
    ordered, order = log_weight.detach().sort(0)
    place = torch.arange(count, device=log_weight.device).unsqueeze(-1)
    # The number of smaller weights is the place of the first of a weight's equals. (Place 0 is 0 either way.)
    smaller = (place * (ordered != ordered.roll(1, 0))).cummax(0).values
    tail = torch.zeros_like(ordered).scatter(0, order, (count - smaller).to(ordered.dtype) / count)
    # A power of 1 / K could overflow; a softmax of its logarithm cannot.
    return torch.softmax(beta * tail.log(), 0)
