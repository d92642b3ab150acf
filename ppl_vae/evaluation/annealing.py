"""log p(x) by annealed importance sampling, and how tight it is: chains from a simple density to the posterior.

Shapes: C chains, B data at once (N in all), T temperatures, D the size of all latent sites of a datum together.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.checks import check_batch
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.evaluation.estimate import Estimate, standard_error
from ppl_vae.evaluation.hmc import (
    AnnealedPath,
    AnnealingSettings,
    Batch,
    Start,
    anneal,
    density_sites_of,
    parts_of,
    pilot_step_sizes,
    quiet_run,
    sigmoid_schedule,
)
from ppl_vae.pair import Pair

__all__ = ["BDMC", "AnnealedSampling", "annealed_importance_sampling", "bidirectional_monte_carlo"]


@dataclass(frozen=True)
class AnnealedSampling:
    """Estimates of log p(x) from C annealed weights of each datum.

    Args:
        log_likelihood: log mean_c w_c, (N,) float64, nats; a lower bound in expectation.
        ess: effective sample size (sum_c w_c)^2 / sum_c w_c^2, (N,), between 1 and C; 0 where all weights are 0.
        acceptance: share of the proposals that were accepted, (N,); NaN for one step, which proposes nothing.
        num_chains: C.
        num_steps: T.
    """

    log_likelihood: Tensor
    ess: Tensor
    acceptance: Tensor
    num_chains: int
    num_steps: int

    @property
    def mean(self) -> float:
        """Mean log-likelihood of the data, nats."""
        return self.log_likelihood.mean().item()

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over the data, nats: what other data would change; NaN for one datum."""
        return standard_error(self.log_likelihood)


@dataclass(frozen=True)
class BDMC:
    """log p(x) of simulated data between two stochastic bounds.

    Args:
        lower: log mean_c w_c of the chains towards the posterior, (N,) float64, nats: too low in expectation.
        upper: -log mean_c 1 / w_c of the chains away from it, (N,) float64, nats: too high in expectation.
        acceptance: share of accepted proposals in both directions, (N,).
    """

    lower: Tensor
    upper: Tensor
    acceptance: Tensor

    @property
    def lower_mean(self) -> Estimate:
        """The lower bound over the data."""
        return Estimate.of(self.lower)

    @property
    def upper_mean(self) -> Estimate:
        """The upper bound over the data."""
        return Estimate.of(self.upper)

    @property
    def gap(self) -> Estimate:
        """Upper minus lower bound: in expectation no less than what either misses."""
        return Estimate.of(self.upper - self.lower)


def annealed_importance_sampling(
    pair: Pair,
    *batch: Any,
    num_chains: int = 16,
    num_steps: int = 500,
    leapfrog_steps: int = 10,
    start: Start = "guide",
    batch_size: int = 100,
    seed: int | None = None,
    progress: bool = False,
) -> AnnealedSampling:
    """log p(x) ~ log mean_c w_c with w = prod_t [p(x, z_t) / q0(z_t)]^(beta_(t+1) - beta_t), t = 0, ..., T - 1.

    z_0 ~ q0; z_t comes from z_(t-1) by one Hamiltonian Monte Carlo transition, which leaves
    pi_t(z) ~ q0(z)^(1 - beta_t) p(x, z)^beta_t as it is. E[w] = p(x) holds exactly for any number of steps, because
    the step sizes of each datum come from a few pilot chains, before the chains that count. With one step
    it is importance sampling. A run costs some num_steps * (leapfrog_steps + 1) * (num_chains + 4) gradients of
    log p(x, z) for each datum; `pyro.factor` sites do not enter it.

    Args:
        pair: any pair whose sites are per datum and whose latent sites take all real values.
        batch: the data; each tensor has N rows.
        num_chains: C.
        num_steps: T; they grow with `sigmoid_schedule`.
        leapfrog_steps: of each transition.
        start: q0, the guide q(z | x), close to the posterior; or the prior p(z), which owes nothing to the guide.
        batch_size: data run at once; memory grows with batch_size * num_chains alone.
        seed: of a private random stream; the global one by default.
        progress: show a progress bar.

    Raises:
        ValueError: a bad batch (see `check_batch`); a number below 1, or another start; no latent site, a latent
            site of other values than the reals, or an auxiliary site where the guide is the start.
        NotPerDatumError: a site is not per datum.

    References:
        Annealed Importance Sampling, Neal 2001.
        On the Quantitative Analysis of Decoder-Based Generative Models, Wu et al. 2017, sections 2.3 and 4.2.

    Example:
        >>> from ppl_vae.testing import LinearGaussian
        >>> pair, x = LinearGaussian(5, 2).double(), torch.ones(3, 5).double()
        >>> result = annealed_importance_sampling(pair, x, num_chains=20, num_steps=50, seed=0)
        >>> torch.allclose(result.log_likelihood, pair.log_likelihood(x), atol=0.3)
        True
    """
    settings = AnnealingSettings(num_chains, num_steps, leapfrog_steps, start, batch_size)
    check_batch(pair, *batch)
    log_w, acceptance = [], []
    betas = sigmoid_schedule(num_steps)
    with quiet_run(pair, seed), settings.bar(batch, 2 * progress) as bar:
        for part in parts_of(batch, batch_size):
            path = AnnealedPath.of(pair, part, settings)
            steps = pilot_step_sizes(path, betas, leapfrog_steps, bar)
            chains = anneal(path, path.initial(), betas, steps, leapfrog_steps, bar)
            log_w.append(chains.log_w)
            acceptance.append(chains.acceptance)
    sums, squares = torch.cat(log_w, 1).logsumexp(0), (2 * torch.cat(log_w, 1)).logsumexp(0)
    ess = torch.where(sums == -math.inf, 0.0, (2 * sums - squares).exp())
    return AnnealedSampling(sums - math.log(num_chains), ess, torch.cat(acceptance), num_chains, num_steps)


def bidirectional_monte_carlo(
    pair: Pair,
    *batch: Any,
    num_data: int = 100,
    num_chains: int = 16,
    num_steps: int = 500,
    leapfrog_steps: int = 10,
    start: Start = "guide",
    batch_size: int = 100,
    seed: int | None = None,
    progress: bool = False,
) -> BDMC:
    """Data (x, z) ~ p(x, z) of the model, with bounds from chains to the posterior and from its exact sample z.

    E[w] = p(x) makes log mean_c w_c too low in expectation. The same chains in reverse, all from the z that x was made
    from, have E[1 / w] = 1 / p(x): -log mean_c 1 / w_c is too high. The gap bounds the error of both, on data of the
    model; how far the same number of steps can be trusted on other data is a guess from there.

    Args:
        pair: as for `annealed_importance_sampling`.
        batch: the values of what the model observes are replaced by simulated ones, what it conditions on is used
            as given. Not needed where the model takes x alone and the pair says its `data_shape`.
        num_data: N, instead of a batch.
        num_chains: C, in each direction.
        num_steps, leapfrog_steps, start, batch_size, seed, progress: as for `annealed_importance_sampling`.

    Raises:
        ValueError: no batch and no `data_shape`; an observed value that is not an argument of the model as it
            stands; what `annealed_importance_sampling` raises.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo, Grosse, Ghahramani & Adams 2015.

    Example:
        >>> from ppl_vae.testing import LinearGaussian
        >>> pair = LinearGaussian(5, 2).double()
        >>> pair.set_guide_to_posterior()
        >>> result = bidirectional_monte_carlo(pair, torch.zeros(4, 5).double(), num_chains=2, num_steps=3)
        >>> abs(result.gap.mean) < 1e-6
        True
    """
    settings = AnnealingSettings(num_chains, num_steps, leapfrog_steps, start, batch_size)
    batch = batch or (_blank(pair, num_data),)
    check_batch(pair, *batch)
    parts: list[tuple[Tensor, ...]] = []
    betas, log_c = sigmoid_schedule(num_steps), math.log(num_chains)
    with quiet_run(pair, seed), settings.bar(batch, 3 * progress) as bar:
        for part in parts_of(batch, batch_size):
            simulated, values = _simulate(pair, part)
            path = AnnealedPath.of(pair, simulated, settings)
            z = replace(path, chains=1).pack(values).expand(num_chains, -1, -1)
            steps = pilot_step_sizes(path, betas, leapfrog_steps, bar)
            up = anneal(path, path.initial(), betas, steps, leapfrog_steps, bar)
            down = anneal(path, z, betas.flip(0), steps.flip(0), leapfrog_steps, bar)
            lower, upper = up.log_w.logsumexp(0) - log_c, log_c - (-down.log_w).logsumexp(0)
            parts.append((lower, upper, (up.acceptance + down.acceptance) / 2))
    return BDMC(*(torch.cat(values) for values in zip(*parts, strict=True)))


def _simulate(pair: Pair, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    """(x, z) ~ p(x, z): the batch with x in its place, and the values of the latent sites."""
    given = density_sites_of(poutine.trace(pair.model).get_trace(*batch))
    drawn = density_sites_of(pair.generate(*batch))
    simulated = list(batch)
    for name in [name for name, site in given.items() if site.observed]:
        places = [i for i, argument in enumerate(batch) if argument is given[name].value]
        if not places:
            raise ValueError(
                f"site {name!r}: its observed value is not an argument of the model, so a simulated one can't take its "
                "place; write obs=x with x as it is passed, and reshape in the networks"
            )
        for i in places:
            simulated[i] = drawn[name].value
    return tuple(simulated), {name: site.value for name, site in drawn.items() if not given[name].observed}


def _blank(pair: Pair, num: int) -> Tensor:
    require_positive("num_data", num)
    shape = getattr(pair, "data_shape", None)
    if shape is None:
        raise ValueError(
            f"{type(pair).__name__}: got no batch and no attribute data_shape, expected either; pass a batch of the "
            "right shape (its observed values are ignored)"
        )
    return pair.reference().new_zeros(num, *shape)
