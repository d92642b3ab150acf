"""`evaluate`: all numbers of one pair on one data set, from one pass of importance sampling."""

import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.evaluation.chunks import Settings, chunked
from ppl_vae.evaluation.latents import ActiveUnits, Moments, Spread, activity, add_kl, add_means, spread_of
from ppl_vae.evaluation.likelihood import ImportanceSampling, add_weights, bound
from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair
from ppl_vae.terms import Terms

__all__ = ["GREY", "LOG_LIKELIHOOD", "RECONSTRUCTION", "TWO_PART", "Evaluation", "evaluate"]

LOG_LIKELIHOOD = "log-likelihood"
GREY = "not a log-likelihood (grey pixels under a Bernoulli)"
RECONSTRUCTION = "reconstruction, not a log-likelihood (no prior)"
TWO_PART = "two-part code, an upper bound of -log p(x)"


@dataclass(frozen=True)
class Evaluation:
    """The numbers of one pair on one data set, means per datum, in nats.

    Args:
        nll: -log p(x), by importance sampling with `num_particles` particles; too high, if anything.
        nll_se: its standard error over the data; NaN for one datum.
        ess: mean effective sample size, in particles.
        bound: mean of the objective's bound, or None.
        objective: name of the objective and its particles, or None.
        active_units: of each latent site; empty where there are fewer than 2 data or particles.
        kl: E_q[log q(z_l | .) - log p(z_l | .)] of each latent site.
        num_data: N.
        num_dims: numbers that one datum's observed sites have.
        num_particles: K; 1 where the guide leaves nothing to chance.
        seconds: wall time.
        label: "log-likelihood", or what to call `nll` and `bound` where an observed site's density is
            not normalised, or where the guide is a point.
        seed: of the private random stream, or None.
    """

    nll: float
    nll_se: float
    ess: float
    bound: float | None
    objective: str | None
    active_units: dict[str, ActiveUnits]
    kl: dict[str, float]
    num_data: int
    num_dims: int
    num_particles: int
    seconds: float
    label: str
    seed: int | None = None

    @property
    def ess_fraction(self) -> float:
        """Mean effective sample size as a fraction of K, in (0, 1]."""
        return self.ess / self.num_particles

    @property
    def bits_per_dim(self) -> float | None:
        """-log2 p(x) per observed number; None where `nll` is no log-likelihood."""
        counts = self.label in (LOG_LIKELIHOOD, TWO_PART)
        return self.nll / (math.log(2) * self.num_dims) if counts else None

    def as_dict(self) -> dict[str, Any]:
        """Numbers and strings that `json` takes; what is not finite becomes None."""
        units = {
            n: {"count": u.count, "total": u.total, "threshold": u.threshold} for n, u in self.active_units.items()
        }
        plain = {**vars(self), "ess_fraction": self.ess_fraction, "bits_per_dim": self.bits_per_dim}
        return _finite({**plain, "active_units": units})


def evaluate(
    pair: Pair,
    *batch: Any,
    objective: Objective | None = None,
    num_particles: int = 5000,
    threshold: float = 0.01,
    memory: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> Evaluation:
    """Log-likelihood, effective sample size, KL terms and active units from the same K particles, and a bound.

    Args:
        pair: any pair whose sites are per datum.
        batch: the data; each tensor has N rows.
        objective: also report its bound.
        num_particles: K.
        threshold: of active units.
        memory, batch_size, seed, progress: as for `importance_sampling`.

    Raises:
        ValueError: a bad batch (see `check_batch`), num_particles < 1, or too little memory.
        NotPerDatumError: a site is not per datum.

    References:
        Importance Weighted Autoencoders, Burda et al. 2015, section 5: NLL with K = 5000, and active units.

    Example:
        >>> from ppl_vae.objectives import IWAE
        >>> from ppl_vae.pairs import VAE
        >>> pair, x = VAE((1, 8, 8), latent_dim=2), torch.rand(20, 1, 8, 8).round()
        >>> result = evaluate(pair, x, objective=IWAE(num_particles=5), num_particles=10, seed=0)
        >>> result.label, result.objective, list(result.kl), result.num_dims
        ('log-likelihood', 'IWAE(num_particles=5)', ['z'], 64)
        >>> result.nll == evaluate(pair, x, num_particles=10, seed=0).nll
        True
    """
    start = time.perf_counter()
    settings = Settings(memory, batch_size, seed, progress)
    with chunked(pair, batch, num_particles, _add, settings, once=True) as chunks:
        num_particles = chunks.num_particles
        parts = chunks.map(lambda part: _reduced(chunks.fold(part)))
    sampled = ImportanceSampling.of(torch.cat([p.log_sums for p in parts], dim=1), num_particles)
    bounds = None
    if objective is not None:
        bounds = bound(pair, objective, *batch, memory=memory, batch_size=batch_size, seed=seed, progress=progress)
    num_data = len(sampled.ess)
    return Evaluation(
        nll=-sampled.mean,
        nll_se=sampled.standard_error,
        ess=sampled.ess.mean().item(),
        bound=None if bounds is None else bounds.double().mean().item(),
        objective=objective and f"{type(objective).__name__}(num_particles={objective.num_particles})",
        active_units=activity([p.spread for p in parts], threshold) if min(num_data, num_particles) > 1 else {},
        kl={n: sum(p.kl[n].item() for p in parts) / (num_data * num_particles) for n in parts[0].kl},
        num_data=num_data,
        num_dims=parts[0].num_dims,
        num_particles=num_particles,
        seconds=time.perf_counter() - start,
        label=TWO_PART
        if chunks.has_point_guide and parts[0].kl and parts[0].label == LOG_LIKELIHOOD
        else parts[0].label,
        seed=seed,
    )


class _State(NamedTuple):
    """What is kept of the particles of one part of the data."""

    log_sums: Tensor
    kl: dict[str, Tensor]
    means: dict[str, Moments]
    label: str
    num_dims: int


class _Part(NamedTuple):
    """What is kept of a part of the data after its last particle."""

    log_sums: Tensor
    kl: dict[str, Tensor]
    spread: dict[str, Spread]
    label: str
    num_dims: int


def _add(state: _State | None, terms: Terms) -> _State:
    log_sums, kl, means = (None, None, None) if state is None else state[:3]
    added = add_weights(log_sums, terms), add_kl(kl, terms), add_means(means, terms)
    return _State(*added, *(_describe(terms) if state is None else state[3:]))


def _reduced(state: _State) -> _Part:
    kl = {n: v.sum() for n, v in state.kl.items()}
    return _Part(state.log_sums, kl, spread_of(state.means), state.label, state.num_dims)


def _describe(terms: Terms) -> tuple[str, int]:
    """What to call the estimate, and how many numbers are observed of one datum."""
    (draw,) = terms.draws
    observed = [s for s in draw.model.values() if s.observed and not s.factor]
    num_dims = sum(s.value.numel() for s in observed) // draw.data_plate.size
    if not all(_normalised(draw.model[name].fn) for name in terms.latent):
        return RECONSTRUCTION, num_dims
    return LOG_LIKELIHOOD if all(_normalised(s.fn) for s in observed) else GREY, num_dims


def _normalised(fn: Any) -> bool:
    """Whether a distribution, and those it is built on, integrate to 1: `normalised = False` says not."""
    inner = (getattr(fn, name, None) for name in ("base_dist", "component_distribution"))
    return getattr(fn, "normalised", True) and all(_normalised(d) for d in inner if d is not None)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
