"""log p(x) by importance sampling (or annealed), and the training bounds over any amount of data."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_vae.evaluation.annealing import annealed_importance_sampling
from ppl_vae.evaluation.chunks import Settings, chunked
from ppl_vae.evaluation.estimate import check_prior, standard_error
from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair
from ppl_vae.terms import Terms

__all__ = ["ImportanceSampling", "bound", "importance_sampling", "log_likelihood"]


@dataclass(frozen=True)
class ImportanceSampling:
    """Estimates of log p(x) from K weights w_k = p(x, z_k) / q(z_k | x) of each datum.

    Args:
        log_likelihood: log mean_k w_k, (N,) float64, nats.
        ess: effective sample size (sum_k w_k)^2 / sum_k w_k^2, (N,), between 1 and K. Where it is
            small, log p(x) is underestimated; 0 where all weights are 0.
        num_particles: K.
    """

    log_likelihood: Tensor
    ess: Tensor
    num_particles: int

    @property
    def mean(self) -> float:
        """Mean log-likelihood of the data, nats."""
        return self.log_likelihood.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over the data, nats: what other data would change; NaN for one datum."""
        return standard_error(self.log_likelihood)

    @classmethod
    def of(cls, log_sums: Tensor, num_particles: int) -> "ImportanceSampling":
        """From (log sum_k w_k, log sum_k w_k^2), shape (2, N)."""
        first, second = log_sums
        ess = torch.where(first == -math.inf, 0.0, (2 * first - second).exp())
        return cls(first - math.log(num_particles), ess, num_particles)


def importance_sampling(
    pair: Pair,
    *batch: Any,
    num_particles: int = 5000,
    memory: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> ImportanceSampling:
    """log p(x) ~ log mean_k w_k with w_k = p(x, z_k) / q(z_k | x), for each datum.

    A lower bound in expectation, tighter with every particle. `pyro.factor` sites do not enter it. Of a guide that
    leaves nothing to chance one particle is drawn: without latent sites that is log p(x), and with `Delta` sites
    log p(x, z) of a point, a lower bound that no particle makes tighter (a two-part code).
    Sums are kept in float64, and neither N nor K changes how much memory a run takes.

    Args:
        pair: any pair whose sites are per datum; discrete latent sites are welcome.
        batch: the data; each tensor has N rows.
        num_particles: K.
        memory: upper limit of the bytes of tensors alive at once; 256 MiB by default (2 GiB on an
            accelerator). Smaller chunks are chosen where they are faster.
        batch_size: data run at once; chosen for speed by default.
        seed: of a private random stream; the global one by default.
        progress: show a progress bar.

    Raises:
        ValueError: a bad batch (see `check_batch`), num_particles < 1, or memory too small for one
            particle of one datum; a latent site without a prior.
        NotPerDatumError: a site is not per datum.

    References:
        Importance Weighted Autoencoders, Burda et al. 2015, section 5 (with K = 5000).
        Monte Carlo theory, methods and examples, Owen 2013, eq. 9.13: the effective sample size.

    Example:
        >>> from ppl_vae.testing import LinearGaussian
        >>> pair, x = LinearGaussian(5, 2).double(), torch.ones(3, 5).double()
        >>> pair.set_guide_to_posterior()
        >>> result = importance_sampling(pair, x, num_particles=10)
        >>> torch.allclose(result.log_likelihood, pair.log_likelihood(x)), result.ess.round().tolist()
        (True, [10.0, 10.0, 10.0])
    """
    settings = Settings(memory, batch_size, seed, progress)
    with chunked(pair, batch, num_particles, _add_proper, settings, once=True) as chunks:
        log_sums = torch.cat(chunks.map(chunks.fold), dim=1)
    return ImportanceSampling.of(log_sums, chunks.num_particles)


def log_likelihood(
    pair: Pair,
    *batch: Any,
    method: Literal["is", "ais"] = "is",
    num_particles: int | None = None,
    num_steps: int | None = None,
    memory: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Tensor:
    """log p(x) of each datum in nats, (N,) float64, by one of two methods; both are too low in expectation.

    Args:
        pair: any pair whose sites are per datum.
        batch: the data; each tensor has N rows.
        method: "is", `importance_sampling` from the guide; "ais", `annealed_importance_sampling` from the guide, for
            guides too far from the posterior (continuous latent sites alone, and much slower).
        num_particles: K particles, 5000 by default; for "ais" as many chains, 16 by default.
        num_steps: temperatures of "ais", 500 by default.
        memory: as for `importance_sampling`; the memory of "ais" is set by batch_size.
        batch_size, seed, progress: as for either method.

    Raises:
        ValueError: another method; num_steps with "is", or memory with "ais"; what the method raises.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> log_likelihood(VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8), num_particles=10).shape
        torch.Size([3])
    """
    if method not in ("is", "ais"):
        raise ValueError(f"method: got {method!r}, expected 'is' (importance sampling) or 'ais' (annealed)")
    if method == "ais" and memory is not None:
        raise ValueError(f"memory: got {memory} with method='ais', whose memory is set by batch_size")
    if method == "is" and num_steps is not None:
        raise ValueError(f"num_steps: got {num_steps} with method='is', which has no temperatures; use method='ais'")
    count = "num_particles" if method == "is" else "num_chains"
    given = {count: num_particles, "num_steps": num_steps, "memory": memory, "batch_size": batch_size}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    run = importance_sampling if method == "is" else annealed_importance_sampling
    return run(pair, *batch, **settings, seed=seed, progress=progress).log_likelihood


def bound(
    pair: Pair,
    objective: Objective,
    *batch: Any,
    memory: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Tensor:
    """The bound of an objective for each datum, in nats, (N,): `objective.bound` in chunks of data.

    Args:
        pair: any pair whose sites are per datum.
        objective: says how many particles; all those of a datum are in one chunk.
        batch: the data; each tensor has N rows.
        memory, batch_size, seed, progress: as for `importance_sampling`.

    Raises:
        TypeError: the objective is not one of `ppl_vae.objectives`.
        ValueError: a bad batch, a joint objective, or memory too small for one datum.

    Example:
        >>> from ppl_vae.objectives import IWAE
        >>> from ppl_vae.pairs import VAE
        >>> bound(VAE((1, 8, 8), latent_dim=2), IWAE(num_particles=5), torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3])
    """
    if not isinstance(objective, Objective):
        raise TypeError(f"objective: got {type(objective).__name__}, expected one of ppl_vae.objectives")
    if objective.joint:
        raise ValueError(
            "objective: got joint=True, whose bound is that of a whole batch, expected one per datum; call "
            "objective.bound(pair.model, pair.guide, *batch)"
        )
    settings, particles = Settings(memory, batch_size, seed, progress), objective.num_particles
    with chunked(pair, batch, particles, add_weights, settings, split=False) as chunks:
        return torch.cat(chunks.map(lambda part: objective.bound(pair.model, pair.guide, *part)))


def _add_proper(log_sums: Tensor | None, terms: Terms) -> Tensor:
    for name in terms.latent if log_sums is None else ():
        check_prior(name, terms.draws[0].model[name].fn)
    return add_weights(log_sums, terms)


def add_weights(log_sums: Tensor | None, terms: Terms) -> Tensor:
    """(log sum_k w_k, log sum_k w_k^2) with the particles of `terms` added, (2, B) float64."""
    log_w = terms.log_weight().double()
    new = torch.stack([torch.logsumexp(log_w, 0), torch.logsumexp(2 * log_w, 0)])
    return new if log_sums is None else torch.logaddexp(log_sums, new)
