"""How far importance weights can be trusted: effective sample size, KL divergence from uniform, tail shape.

Shapes: K particles, B data at once (N in all), M weights in the tail.
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from ppl_vae.evaluation.chunks import Settings, chunked
from ppl_vae.pair import Pair
from ppl_vae.terms import Terms

__all__ = ["WeightDiagnostics", "WeightSums", "add_weight_sums", "pareto_k", "tail_size", "weight_diagnostics"]

FEWEST_PARTICLES = 25
"""With fewer particles no tail is fitted."""

FEWEST_EXCEEDANCES = 5

# Log weights up to so many eps |log w| apart are taken for equal. With the posterior for a guide, the tails of float32
# and float64 weights spanned up to 2 (LinearGaussian of 5 to 784 dimensions). Where cancelling terms make it more, the
# k-hat of Gaussian noise comes out, about 0; a generous limit would hide true tails.
ROUNDING = 8


@dataclass(frozen=True)
class WeightDiagnostics:
    """What K weights w_k = p(x, z_k) / q(z_k | x) of each datum tell of the estimate log mean_k w_k.

    With w~_k = w_k / sum_j w_j and the entropy H(w~). A weight that was not drawn tells nothing: where the guide
    misses a part of the posterior altogether, all three may look fine.

    Args:
        ess: effective sample size (sum_k w_k)^2 / sum_k w_k^2, (N,) float64, between 1 and K; 0 where all weights
            are 0.
        kl_from_uniform: KL(w~ || uniform) = log K - H(w~), (N,) float64, nats, between 0 and log K (also where all
            weights are 0). As K grows it tends to KL(p(z | x) || q(z | x)); close to log K, it is too low.
        pareto_k: k-hat, (N,) float64, see `pareto_k`: the weights' moments exist up to the order 1 / k, so the
            variance of the estimate below 1/2, its mean below 1.
        num_particles: K.

    References:
        Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao & Gabry 2024, equation 13: the threshold.
        The sample size required in importance sampling, Chatterjee & Diaconis 2018, theorem 1.1: about exp(KL).
    """

    ess: Tensor
    kl_from_uniform: Tensor
    pareto_k: Tensor
    num_particles: int

    @property
    def threshold(self) -> float:
        """min(1 - 1 / log10 K, 0.7): with a k-hat above it, K particles are too few; NaN for K < 25."""
        if self.num_particles < FEWEST_PARTICLES:
            return math.nan
        return min(1 - 1 / math.log10(self.num_particles), 0.7)

    @property
    def unreliable(self) -> float:
        """Share of the data whose k-hat is above the threshold; NaN for K < 25."""
        return self.share_above(self.threshold)

    def share_above(self, k: float) -> float:
        """Share of the data whose k-hat is above k, among those that have one; NaN where none has."""
        known = self.pareto_k[~self.pareto_k.isnan()]
        return (known > k).double().mean().item()

    @classmethod
    def of(cls, sums: "WeightSums", num_particles: int) -> "WeightDiagnostics":
        """From the sums over all K particles."""
        first, second, moment = sums.scaled
        nothing = first == 0
        ess = torch.where(nothing, 0.0, first.square() / second)
        entropy = torch.where(nothing, 0.0, first.log() - moment / first)
        most = math.log(num_particles)
        # Rounding alone leads out of the range.
        kl = (most - entropy).clamp(0.0, most)
        return cls(ess, kl, _shape_of_top(sums.top, num_particles), num_particles)

    @classmethod
    def join(cls, parts: "list[WeightDiagnostics]") -> "WeightDiagnostics":
        """Those of all data, given those of its parts."""
        ess, kl, k = (torch.cat([getattr(p, n) for p in parts]) for n in ("ess", "kl_from_uniform", "pareto_k"))
        return cls(ess, kl, k, parts[0].num_particles)


register_dataclass(WeightDiagnostics)  # its tensors are found, and shelved


def weight_diagnostics(
    pair: Pair,
    *batch: Any,
    num_particles: int = 1000,
    memory: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> WeightDiagnostics:
    """Effective sample size, KL(w~ || uniform) and tail shape k-hat of the K importance weights of each datum.

    The weights are those of `importance_sampling`, without `pyro.factor` sites. Of a datum three sums and the M + 1
    greatest log weights are kept, M being at most 3 sqrt(K), so that neither N nor K changes much of the memory that a
    run takes.

    Args:
        pair: any pair whose sites are per datum; discrete latent sites are welcome.
        batch: the data; each tensor has N rows.
        num_particles: K; at least 25 for k-hat.
        memory, batch_size, seed, progress: as for `importance_sampling`.

    Raises:
        ValueError: a bad batch (see `check_batch`), num_particles < 1, or memory too small for one
            particle of one datum.
        NotPerDatumError: a site is not per datum.

    Example:
        >>> from ppl_vae.testing import LinearGaussian
        >>> pair, x = LinearGaussian(5, 2).double(), torch.ones(3, 5).double()
        >>> pair.set_guide_to_posterior()
        >>> result = weight_diagnostics(pair, x, num_particles=100)
        >>> result.ess.round().tolist(), result.pareto_k.tolist(), result.unreliable
        ([100.0, 100.0, 100.0], [-inf, -inf, -inf], 0.0)
        >>> bool((result.kl_from_uniform < 1e-12).all())
        True
    """
    settings = Settings(memory, batch_size, seed, progress)
    step = partial(add_weight_sums, num_particles=num_particles)
    with chunked(pair, batch, num_particles, step, settings) as chunks:
        parts = chunks.map(lambda part: WeightDiagnostics.of(chunks.fold(part), num_particles))
    return WeightDiagnostics.join(parts)


@torch.no_grad()
def pareto_k(log_weights: Tensor) -> Tensor:
    """The shape k-hat of the generalised Pareto distribution fitted to the tail of each datum's weights.

    P(w > u + x) / P(w > u) ~ (1 + k x / sigma)^(-1 / k) for the M = ceil(min(K / 5, 3 sqrt(K))) greatest weights, u
    being the next one. A heavy tail has k > 0, an exponential one k = 0, bounded weights k <= 0. The estimate is
    drawn to 1/2 as by 10 more exceedances x with that shape. Weights no greater than u up to rounding, which
    discrete latent sites bring about, are no exceedances. The result is

    - NaN for K < 25;
    - -inf, no tail at all, where the M + 1 greatest weights are equal up to rounding (the guide is the posterior);
    - inf where fewer than 5 weights are not 0;
    - NaN where otherwise 1 to 4 weights exceed u, too few for a fit; or where one is infinite or not a number.

    Args:
        log_weights: log w, (K, B), nats; -inf is a weight of 0. Their dtype says how finely they are rounded.

    Returns:
        k-hat, (B,) float64.

    Raises:
        ValueError: log_weights is not a (K, B) tensor of floating-point numbers, or K = 0.

    References:
        Pareto Smoothed Importance Sampling, Vehtari, Simpson, Gelman, Yao & Gabry 2024 (arXiv:1507.02646); appendix H
            for M.
        A New and Efficient Estimation Method for the Generalized Pareto Distribution, Zhang & Stephens 2009.

    Example:
        >>> log_w = torch.randn(10000, 3, dtype=torch.float64) ** 2 * torch.tensor([0.1, 0.3, 0.5])
        >>> k = pareto_k(log_w)  # 0.2, 0.6 and 1, for infinite K
        >>> bool((k[0] < k[1]) & (k[1] < k[2]))
        True
    """
    if log_weights.dim() != 2 or not len(log_weights) or not log_weights.is_floating_point():
        got = f"{tuple(log_weights.shape)} of {str(log_weights.dtype).removeprefix('torch.')}"
        raise ValueError(f"log_weights: got {got}, expected (K, B) of floating-point numbers with K >= 1")
    num_particles = len(log_weights)
    top = log_weights.topk(min(tail_size(num_particles) + 1, num_particles), dim=0).values
    return _shape_of_top(top, num_particles)


def tail_size(num_particles: int) -> int:
    """M = ceil(min(K / 5, 3 sqrt(K))), in whole numbers: 0.2 * 35 is above 7.

    Example:
        >>> tail_size(25), tail_size(35), tail_size(1000), tail_size(10**6)
        (5, 7, 95, 3000)
    """
    return min((num_particles + 4) // 5, math.isqrt(9 * num_particles - 1) + 1)


class WeightSums(NamedTuple):
    """What is kept of the weights of B data.

    Args:
        peak: the greatest log weight, (B,) float64; the lowest finite number where all weights are 0.
        scaled: sum_k v_k, sum_k v_k^2 and sum_k v_k log v_k, with v = w / exp(peak), (3, B) float64. Unlike
            sum_k w_k log w_k, they lose no digits where log w is far from 0.
        top: the M + 1 greatest log weights in descending order, in their own dtype, (M + 1, B); -inf where there
            are fewer.
    """

    peak: Tensor
    scaled: Tensor
    top: Tensor

    @classmethod
    def empty(cls, log_w: Tensor, size: int) -> "WeightSums":
        """Of no weights yet, but of full size: so the first step, whose cost is measured, costs as much as any."""
        # Not a peak of -inf: where all weights are 0, -inf - -inf would be NaN.
        peak = torch.full_like(log_w[0], torch.finfo(torch.float64).min, dtype=torch.float64)
        return cls(peak, peak.new_zeros(3, len(peak)), log_w.new_full((size, len(peak)), -math.inf))


def add_weight_sums(state: WeightSums | None, terms: Terms, *, num_particles: int) -> WeightSums:
    """The sums with the particles of `terms` added; `num_particles` are those of the whole run, K."""
    log_w = terms.log_weight()
    if state is None:
        state = WeightSums.empty(log_w, tail_size(num_particles) + 1)
    top = torch.cat([state.top, log_w]).topk(len(state.top), dim=0).values
    peak = torch.maximum(state.peak, log_w.amax(0).double())
    scaled = _lowered(state.scaled, state.peak - peak) + _scaled_sums(log_w.double() - peak)
    return WeightSums(peak, scaled, top)


def _scaled_sums(log_v: Tensor) -> Tensor:
    """sum v, sum v^2 and sum v log v over the first dimension, (3, B)."""
    # exp(-800) is 0: nothing is lost, and 0 * -inf = NaN is avoided.
    log_v = log_v.clamp(min=-800.0)
    v = log_v.exp()
    return torch.stack([v.sum(0), v.square().sum(0), (v * log_v).sum(0)])


def _lowered(scaled: Tensor, by: Tensor) -> Tensor:
    """The sums (3, B) of v exp(by) in place of v."""
    by = by.clamp(min=-800.0)
    first, second, moment = scaled
    return torch.stack([first * by.exp(), second * (2 * by).exp(), (moment + by * first) * by.exp()])


def _shape_of_top(top: Tensor, num_particles: int) -> Tensor:
    """k-hat from the M + 1 greatest log weights of each datum, in descending order: (M + 1, B) -> (B,)."""
    if num_particles < FEWEST_PARTICLES:
        return torch.full(top.shape[1:], math.nan, dtype=torch.float64, device=top.device)
    log_x, n = _log_exceedances(top)
    k = (n * _profile_shape(log_x, n) + 10 * 0.5) / (n + 10)
    zeros = top[-1] == -math.inf
    k = torch.where(n < FEWEST_EXCEEDANCES, torch.where(zeros, math.inf, math.nan), k)
    k = torch.where((n == 0) & ~zeros, -math.inf, k)
    return torch.where(top[0].isnan() | (top[0] == math.inf), math.nan, k)


def _log_exceedances(top: Tensor) -> tuple[Tensor, Tensor]:
    """log(w - u), (M, B) float64, -inf where w exceeds u by no more than rounding, and how many do exceed it, (B,)."""
    log_w, cutoff = top[:-1].double(), top[-1].double()
    rounding = ROUNDING * torch.finfo(top.dtype).eps * log_w[0].abs().clamp(min=1.0)
    exceeds = log_w > cutoff + rounding
    # A logarithm throughout: weights may span more than the 700 nats of a float64.
    return torch.where(exceeds, log_w + (-torch.expm1(cutoff - log_w)).log(), -math.inf), exceeds.sum(0)


def _profile_shape(log_x: Tensor, n: Tensor) -> Tensor:
    """Zhang & Stephens' estimate of k from the first n rows of log x, (M, B), in descending order; the rest is -inf.

    With theta = -k / sigma the likelihood at its best k is n [log(-theta / k) - k - 1], k(theta) = mean log(1 -
    theta x): an integral over theta, taken on a grid theta_j = 1 / max(x) - c_j / x*, x* being the lower quartile
    and c_j = (sqrt(m / (j - 1/2)) - 1) / 3 for j = 1, ..., m = 30 + floor(sqrt(n)) (the paper has 20), weighs the
    grid by likelihood, and the estimate is k at the mean theta. Here c stands for theta: it is of order 1.
    """
    n = n.clamp(min=1)
    quartile = n - ((n + 2) // 4).clamp(min=1)
    log_star = log_x.gather(0, quartile.unsqueeze(0)).squeeze(0)
    least = (log_star - log_x[0]).exp()
    size = 30 + n.double().sqrt().floor()
    # One grid point at a time: all at once would take 30 to 90 times the memory of the tail.
    grid, likelihood = [], []
    for j in range(1, int(size.max()) + 1):
        c = ((size / (j - 0.5)).sqrt() - 1).clamp(min=0.0) / 3
        # Next to theta = 0 the quotient theta / k is 0 / 0, and its limit as good as any value nearby.
        c = torch.where((c - least).abs() < 1e-7 * c, c * (1 + 1e-6), c)
        k = _shape_at(c, log_x, log_star, n)
        grid.append(c)
        likelihood.append(torch.where(j <= size, n * (((c - least) / k).log() - k), -math.inf))
    mean = (torch.stack(likelihood).softmax(0) * torch.stack(grid)).sum(0)
    return _shape_at(mean, log_x, log_star, n)


def _shape_at(c: Tensor, log_x: Tensor, log_star: Tensor, n: Tensor) -> Tensor:
    """k = mean_i log(1 - theta x_i) = mean_i log(1 - x_i / max(x) + c x_i / x*), (B,)."""
    # In place, for the sake of memory.
    value = (c.log() - log_star) + log_x
    # Above 600 nats the logarithm of x_i / x* is that of the sum.
    beyond = (value - 600.0).clamp_(min=0.0)
    value.clamp_(max=600.0).exp_().sub_((log_x - log_x[0]).exp_())
    return value.log1p_().add_(beyond).sum(0) / n
