"""What the latent sites do: active units, and the KL term of each site."""

from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_dataclass

from ppl_vae.aggregate import mean_or_value
from ppl_vae.evaluation.chunks import Settings, chunked, require_positive
from ppl_vae.pair import Pair
from ppl_vae.terms import Draw, Site, Terms

__all__ = ["ActiveUnits", "active_units", "kl_per_site"]


@dataclass(frozen=True)
class ActiveUnits:
    """The activity A_u = Var_x(E_q[u | x]) of each unit u of a latent site.

    Args:
        variance: A_u, (D,) float64; an unbiased estimate, so that an inactive unit's may be negative.
        threshold: a unit is active above it.
    """

    variance: Tensor
    threshold: float

    @property
    def count(self) -> int:
        """Number of active units."""
        return int((self.variance > self.threshold).sum())

    @property
    def total(self) -> int:
        """D, the number of units."""
        return self.variance.numel()


def active_units(
    pair: Pair,
    *batch: Any,
    num_particles: int = 100,
    threshold: float = 0.01,
    memory: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, ActiveUnits]:
    """Units u of each latent site with Var_x(E_q[u | x]) > threshold, in the order in which the guide draws them.

    E_q[u | x] is the mean over S particles of the guide's conditional mean (`fn.mean`; of the value
    where a distribution has none). Where the guide draws u given other latents that mean is noisy, and
    its variance over x too large by E_x[Var_q(mean of u | x)] / S; this bias is estimated from the same
    particles and subtracted. Without it a site of large conditional variance looks active at small S.

    Args:
        pair: any pair whose sites are per datum.
        batch: the data; each tensor has N >= 2 rows.
        num_particles: S >= 2.
        threshold: of the literature: 0.01.
        memory, batch_size, seed, progress: as for `importance_sampling`.

    Raises:
        ValueError: a bad batch, fewer than 2 data or particles, or too little memory.

    References:
        Importance Weighted Autoencoders, Burda et al. 2015, section 5.2.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> units = active_units(VAE((1, 8, 8), latent_dim=2), torch.rand(50, 1, 8, 8).round(), num_particles=2)
        >>> units["z"].variance.shape, units["z"].total
        (torch.Size([2]), 2)
    """
    require_positive("num_particles", num_particles)
    if num_particles < 2:
        raise ValueError("num_particles: got 1, expected at least 2: the bias is estimated from their spread")
    settings = Settings(memory, batch_size, seed, progress)
    with chunked(pair, batch, num_particles, add_means, settings) as chunks:
        return activity(chunks.map(lambda part: spread_of(chunks.fold(part))), threshold)


def kl_per_site(
    pair: Pair,
    *batch: Any,
    num_particles: int = 100,
    memory: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    progress: bool = False,
) -> dict[str, Tensor]:
    """E_q[log q(z_l | .) - log p(z_l | .)] of each latent site and datum, in nats: name -> (N,) float64.

    A Monte Carlo mean over K particles, never the closed form; single values can be negative, and for
    sites that the guide does not draw in the model's order the expectation can be, too. The sum over
    sites is E_q[log p(x | z)] minus the ELBO. An auxiliary site of the guide has no p, and enters with log q.

    Args:
        pair: any pair whose sites are per datum.
        batch: the data; each tensor has N rows.
        num_particles: K.
        memory, batch_size, seed, progress: as for `importance_sampling`.

    Raises:
        ValueError: a bad batch, num_particles < 1, or too little memory.

    References:
        Ladder Variational Autoencoders, Sønderby et al. 2016, section 3: KL terms by layer.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> kl_per_site(VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8))["z"].shape
        torch.Size([3])
    """
    settings = Settings(memory, batch_size, seed, progress)
    with chunked(pair, batch, num_particles, add_kl, settings) as chunks:
        parts = chunks.map(chunks.fold)
    return {name: torch.cat([p[name] for p in parts]) / num_particles for name in parts[0]}


@dataclass(frozen=True)
class Moments:
    """Count, mean and summed squared deviation of some values, mergeable without loss of digits.

    References:
        Algorithms for Computing the Sample Variance, Chan, Golub & LeVeque 1983.
    """

    count: int
    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """Of the first dimension, in float64."""
        # Around the first value: equal values then have a deviation of exactly 0.
        values, first = values.double(), values[0].double()
        mean = first + (values - first).mean(0)
        return cls(len(values), mean, (values - mean).square().sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        count, step = self.count + other.count, other.mean - self.mean
        mean = self.mean + step * (other.count / count)
        deviation = self.deviation + other.deviation + step.square() * (self.count * other.count / count)
        return Moments(count, mean, deviation)

    @property
    def variance(self) -> Tensor:
        """Unbiased."""
        return self.deviation / (self.count - 1)


@dataclass(frozen=True)
class Spread:
    """Of some data: the moments over x of E_q[u | x], and the summed bias of their variance, (D,)."""

    means: Moments
    bias: Tensor

    def __add__(self, other: "Spread") -> "Spread":
        return Spread(self.means + other.means, self.bias + other.bias)


for _kind in (Moments, Spread):
    register_dataclass(_kind)  # its tensors are found, and shelved


def add_means(state: dict[str, Moments] | None, terms: Terms) -> dict[str, Moments]:
    """The moments over particles of each latent site's conditional means, (B, D), with those of `terms` added."""
    (draw,) = terms.draws
    new = {n: Moments.of(_means(draw, site)) for n, site in draw.guide.items() if n in terms.latent}
    return new if state is None else {n: state[n] + new[n] for n in new}


def spread_of(state: dict[str, Moments]) -> dict[str, Spread]:
    """Reduce the particles' moments (B, D) of a part of the data to (D,)."""
    return {n: Spread(Moments.of(m.mean), (m.variance / m.count).sum(0)) for n, m in state.items()}


def activity(parts: list[dict[str, Spread]], threshold: float) -> dict[str, ActiveUnits]:
    """The activity of each site's units from the spreads of all parts of the data."""
    total = {n: reduce(Spread.__add__, [p[n] for p in parts]) for n in parts[0]}
    for spread in total.values():
        if spread.means.count < 2:
            raise ValueError("batch: got 1 row, expected at least 2: activity is a variance over data")
    return {n: ActiveUnits(s.means.variance - s.bias / s.means.count, threshold) for n, s in total.items()}


def add_kl(state: dict[str, Tensor] | None, terms: Terms) -> dict[str, Tensor]:
    """The sum over particles of log q - log p of each guide site, (B,) float64, with those of `terms` added."""
    guide = terms.draws[0].guide
    new = {n: _log_ratio(terms, n).double().sum(0) for n, site in guide.items() if not site.factor}
    return new if state is None else {n: state[n] + new[n] for n in new}


def _log_ratio(terms: Terms, name: str) -> Tensor:
    return terms.log_q[name] - terms.log_p[name] if name in terms.latent else terms.log_q[name]


def _means(draw: Draw, site: Site) -> Tensor:
    """The guide's conditional mean of each unit, (K, B, D); the value where there is none."""
    values = mean_or_value(site)
    # Batch dimensions stand left of the event's; units are all that is neither particle nor datum.
    wanted = [draw.data_plate.dim] if draw.dim is None else [draw.dim, draw.data_plate.dim]
    dims = [d - len(site.fn.event_shape) for d in wanted if d is not None]
    values = values[(None,) * (-min(dims) - values.dim())].movedim(dims, list(range(len(dims))))
    if draw.dim is None:
        return values.reshape(draw.size, len(values) // draw.size, -1)
    return values.expand(draw.size, draw.data_plate.size, *values.shape[2:]).reshape(
        draw.size, draw.data_plate.size, -1
    )
