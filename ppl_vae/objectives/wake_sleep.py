"""Wake-sleep: the guide learns from weighted samples of its own, or from the model's dreams."""

import math
from typing import Any

import torch
from torch import Tensor

from ppl_vae.dreams import dream_log_q
from ppl_vae.objectives.base import Objective, Program
from ppl_vae.terms import Terms

__all__ = ["ReweightedWakeSleep", "WakeSleep"]


class ReweightedWakeSleep(Objective):
    """Wake-theta: sum_k w~_k grad log p(x, z_k); wake-phi: sum_k w~_k grad log q(z_k | x); sleep-phi: dreams.

    The samples are constants, so guides of any kind are welcome. Model and guide follow objectives of their own:
    the model's is L_K = log mean_k w_k (which is the bound reported), the guide's is KL(p(z | x) || q(z | x)) over
    data (wake) or over the model's dreams (sleep). Self-normalised weights make both wake gradients biased, by
    O(1 / K). Per datum: Pyro's class of this name normalises the weights of the whole batch.

    Args:
        num_particles: K >= 2.
        insomnia: the share of wake-phi in the guide's loss; the rest is sleep-phi. 1 is wake only; with 0.5 both count
            alike, as in the experiments of Bornschein & Bengio.
        max_plate_nesting, vectorize_particles: as for `Objective`.

    Raises:
        ValueError: num_particles < 2; insomnia is not in [0, 1].

    References:
        Reweighted Wake-Sleep, Bornschein & Bengio 2015, eq. 5 to 9.
        Revisiting Reweighted Wake-Sleep for Models with Stochastic Control Flow, Le et al. 2019.
    """

    gradient = "score"

    def __init__(
        self,
        num_particles: int = 2,
        insomnia: float = 1.0,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
    ) -> None:
        if num_particles < 2:
            raise ValueError(f"num_particles: got {num_particles}, expected at least 2; for one use WakeSleep")
        if not 0 <= insomnia <= 1:
            raise ValueError(f"insomnia: got {insomnia}, expected a number in [0, 1]")
        super().__init__(num_particles, max_plate_nesting, vectorize_particles)
        self.insomnia = insomnia

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """L_K = logsumexp_k log w_k - log K, (B,)."""
        return torch.logsumexp(terms.log_weight(kl_weight, factors), 0) - math.log(terms.num_particles)

    def differentiable_loss(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """A scalar with the value -L_K summed over the batch, and the gradients of the phases."""
        terms = self.terms(model, guide, *batch)
        log_q, log_weight = terms.sum_log_q(factors=True), terms.log_weight(factors=True)
        weight = torch.softmax(log_weight.detach(), 0)
        wake = (weight * (log_weight + log_q)).sum(0) + self.insomnia * (weight * log_q).sum(0)
        phases = wake if self.insomnia == 1 else wake + (1 - self.insomnia) * dream_log_q(model, guide, batch)
        bound = self.per_datum(terms, factors=True).detach()
        return -terms.scale * (bound + phases - phases.detach()).sum()


class WakeSleep(Objective):
    """Wake: the model learns log p(x, z), z ~ q(z | x). Sleep: the guide learns log q(z | x) of the model's dreams.

    The model's objective is the ELBO, which is the bound reported; the guide's gradient is that of no bound on
    log p(x), and the two need not agree.

    Args:
        num_particles: K >= 1 samples of the wake phase.
        max_plate_nesting, vectorize_particles: as for `Objective`.

    References:
        The Wake-Sleep Algorithm for Unsupervised Neural Networks, Hinton, Dayan, Frey & Neal 1995.
    """

    gradient = "score"

    def __init__(
        self, num_particles: int = 1, max_plate_nesting: float = math.inf, vectorize_particles: bool = True
    ) -> None:
        super().__init__(num_particles, max_plate_nesting, vectorize_particles)

    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """mean_k log w_k, (B,)."""
        return terms.log_weight(kl_weight, factors).mean(0)

    def differentiable_loss(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """A scalar with the value -ELBO summed over the batch, and the gradients of the two phases."""
        terms = self.terms(model, guide, *batch)
        log_p = (terms.log_weight(factors=True) + terms.sum_log_q(factors=True)).mean(0)
        phases = log_p + dream_log_q(model, guide, batch)
        bound = self.per_datum(terms, factors=True).detach()
        return -terms.scale * (bound + phases - phases.detach()).sum()
