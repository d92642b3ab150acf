"""Annealed paths from a simple density to p(x, z), and Hamiltonian Monte Carlo along them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import pyro
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import constraints
from tqdm import tqdm

from ppl_vae import terms
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.evaluation.estimate import check_prior
from ppl_vae.pair import Pair
from ppl_vae.paths import frozen_guide
from ppl_vae.quiet import undisturbed
from ppl_vae.sites import GivenValues, NotPerDatumError, Site, density_sites
from ppl_vae.terms import Draw, Terms

__all__ = [
    "AnnealedPath",
    "AnnealingSettings",
    "Batch",
    "Chains",
    "Start",
    "anneal",
    "density_sites_of",
    "leapfrog",
    "num_rows",
    "parts_of",
    "pilot_step_sizes",
    "quiet_run",
    "sigmoid_schedule",
    "transition",
]

Batch = tuple[Any, ...]
Start = Literal["guide", "prior"]
Gradient = Callable[[Tensor], Tensor]

ACCEPTANCE = 0.65
"""Acceptance rate that the step sizes are tuned to (Wu et al. 2017, section 4.2)."""
PILOTS, WARM_UP, FIRST_STEP = 4, 30, 0.1
"""Pilot chains of a datum, the transitions that they make before the first temperature, and their first step size."""


def sigmoid_schedule(num_steps: int, sharpness: float = 4.0) -> Tensor:
    """beta_t = (s_t - s_0) / (s_T - s_0) with s_t = sigmoid(sharpness * (2 t / T - 1)), (T + 1,) float64.

    Increases from 0 to 1, slowly near both ends.

    Example:
        >>> sigmoid_schedule(4).round(decimals=3).tolist()
        [0.0, 0.105, 0.5, 0.895, 1.0]
    """
    s = torch.sigmoid(sharpness * torch.linspace(-1, 1, num_steps + 1, dtype=torch.float64))
    return (s - s[0]) / (s[-1] - s[0])


def leapfrog(gradient: Gradient, z: Tensor, v: Tensor, step: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
    """Hamiltonian motion of position z and velocity v under log pi(z) - v^2 / 2, for the time num_steps * step.

    Keeps volumes, runs back when v is turned round, and keeps the energy to O(step^2).

    Args:
        gradient: of log pi, from z to z's shape; asked for num_steps + 1 times, first at the start, last at the end.
        z: (..., D).
        v: like z.
        step: broadcasts with z.
        num_steps: at least 1.
    """
    v = v + step / 2 * gradient(z)
    for _ in range(num_steps - 1):
        z = z + step * v
        v = v + step * gradient(z)
    z = z + step * v
    return z, v + step / 2 * gradient(z)


@dataclass(frozen=True)
class AnnealingSettings:
    """How to run: chains of each datum, temperatures, leapfrog steps, where to start, and data at once."""

    chains: int
    steps: int
    leapfrogs: int
    start: Start
    batch_size: int

    def __post_init__(self) -> None:
        names = ("num_chains", "num_steps", "leapfrog_steps", "batch_size")
        for name, value in zip(names, (self.chains, self.steps, self.leapfrogs, self.batch_size), strict=True):
            require_positive(name, value)
        if self.start not in ("guide", "prior"):
            raise ValueError(f"start: got {self.start!r}, expected 'guide' or 'prior'")

    def bar(self, batch: Batch, runs: int) -> "tqdm[Any]":
        """A progress bar over the temperatures of all parts; none for 0 runs of each."""
        parts = len(parts_of(batch, self.batch_size))
        return tqdm(total=parts * runs * self.steps, disable=not runs, unit="step")


class Chains(NamedTuple):
    """log w, (C, B) float64, and the share of accepted proposals, (B,)."""

    log_w: Tensor
    acceptance: Tensor


class Point(NamedTuple):
    """log pi_t and log p(x, z) - log q0(z) at z, (C, B), and the gradient of log pi_t, (C, B, D)."""

    log_target: Tensor
    log_ratio: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class AnnealedPath:
    """The densities pi_t of one part of the data, for z of shape (C, B, D): all latent sites side by side."""

    pair: Pair
    batch: Batch
    start: Start
    chains: int
    nesting: int

    @classmethod
    def of(cls, pair: Pair, batch: Batch, settings: AnnealingSettings) -> "AnnealedPath":
        """Check the sites, and set up as many chains as asked for."""
        nesting = terms.guess_plate_nesting(pair.model, pair.guide, *batch)
        path = cls(pair, batch, settings.start, settings.chains, nesting)
        _check_sites(path.layout, settings.start)
        return path

    @cached_property
    def layout(self) -> Draw:
        """A draw of guide and model, which tells how the values of a site are laid out; validated."""
        with pyro.validation_enabled(True):
            drawn = self._draw(self.pair.guide)
        got, expected = drawn.log_likelihood().shape[1], num_rows(self.batch)
        if got != expected:
            raise NotPerDatumError(
                f"plate {drawn.draws[0].data_plate.name!r}: got {got} rows for {expected} data, expected as many; take "
                'its size from the batch, pyro.plate("data", len(x)), without subsampling'
            )
        return drawn.draws[0]

    def initial(self) -> Tensor:
        """z ~ q0, (C, B, D)."""
        observed = [name for name, site in self.layout.model.items() if site.observed]
        prior = poutine.block(poutine.uncondition(self.pair.model), hide=observed)
        drawn = self._draw(self.pair.guide if self.start == "guide" else prior).draws[0]
        return self.pack({name: site.value for name, site in drawn.guide.items()})

    def log_terms(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """log q0(z) and log p(x, z) - log q0(z), (C, B)."""
        with GivenValues(self.unpack(z)):
            drawn = self._draw(self.pair.guide)
        if self.start == "guide":
            return drawn.sum_log_q(), drawn.log_weight()
        return torch.stack([drawn.log_p[name] for name in drawn.latent]).sum(0), drawn.log_likelihood()

    def point(self, z: Tensor, beta: float) -> Point:
        """The density at temperature beta and its gradient."""
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            log_q, log_ratio = self.log_terms(z)
            log_target = log_q + beta * log_ratio
            (gradient,) = torch.autograd.grad(log_target.sum(), z)
        return Point(log_target.detach(), log_ratio.detach(), gradient)

    def pack(self, values: dict[str, Tensor]) -> Tensor:
        """The latent sites' values side by side, (C, B, D)."""
        moved = [self._to_front(values[name], site.fn.event_dim) for name, site in self._latent.items()]
        return torch.cat([value.reshape(*value.shape[:2], -1) for value in moved], -1)

    def unpack(self, z: Tensor) -> dict[str, Tensor]:
        """The latent sites' values as the programs have them."""
        shapes = {n: self._to_front(site.value, site.fn.event_dim).shape for n, site in self._latent.items()}
        parts = z.split([shape[2:].numel() for shape in shapes.values()], -1)
        return {
            name: self._to_place(part.reshape(shapes[name]), site.fn.event_dim)
            for part, (name, site) in zip(parts, self._latent.items(), strict=True)
        }

    @property
    def _latent(self) -> dict[str, Site]:
        return {name: site for name, site in self.layout.model.items() if not site.observed}

    def _places(self, event_dim: int) -> tuple[int, int]:
        """Where a value has its chains and its data; without a plate, the chains are split off the data's left."""
        data = self.layout.data_plate.dim
        assert data is not None
        return (data - 1 if self.layout.dim is None else self.layout.dim) - event_dim, data - event_dim

    def _to_front(self, value: Tensor, event_dim: int) -> Tensor:
        places = self._places(event_dim)
        if self.layout.dim is None:
            value = value.unflatten(places[1], (self.chains, -1))
        return value.movedim(places, (0, 1))

    def _to_place(self, value: Tensor, event_dim: int) -> Tensor:
        places = self._places(event_dim)
        value = value.movedim((0, 1), places)
        return value.flatten(*places) if self.layout.dim is None else value

    def _draw(self, guide: Callable[..., Any]) -> Terms:
        return terms.draw(
            self.pair.model,
            guide,
            *self.batch,
            num_particles=self.chains,
            max_plate_nesting=self.nesting,
            particles=self.pair.particles,
        )


def transition(
    path: AnnealedPath, z: Tensor, beta: float, step: Tensor, leapfrogs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """One HMC transition with step sizes (B,): the new z, log p(x, z) - log q0(z) there, and acceptance (C, B)."""
    points: list[Point] = []

    def gradient(at: Tensor) -> Tensor:
        points[1:] = [path.point(at, beta)]  # the first and the last are needed
        return points[-1].gradient

    v = torch.randn_like(z)
    new_z, new_v = leapfrog(gradient, z, v, step.unsqueeze(-1), leapfrogs)
    old, new = points[0], points[-1]
    log_accept = new.log_target - old.log_target - (new_v.square() - v.square()).sum(-1) / 2
    # A motion that diverges ends in NaN: it is refused.
    probability = torch.where(log_accept.isnan(), 0.0, log_accept.clamp(max=0.0).exp())
    accept = torch.rand_like(probability) < probability
    z = torch.where(accept.unsqueeze(-1), new_z, z)
    return z, torch.where(accept, new.log_ratio, old.log_ratio), probability


def anneal(path: AnnealedPath, z: Tensor, betas: Tensor, steps: Tensor, leapfrogs: int, bar: "tqdm[Any]") -> Chains:
    """log w of chains that start at z and visit the temperatures in this order, forwards or backwards."""
    log_ratio = path.log_terms(z)[1]
    log_w, acceptance = torch.zeros_like(log_ratio, dtype=torch.float64), torch.zeros_like(steps[0])
    for t, width in enumerate(betas.diff().abs().tolist()):
        if t > 0:
            z, log_ratio, accepted = transition(path, z, betas[t].item(), steps[t], leapfrogs)
            acceptance += accepted.mean(0)
        log_w += width * log_ratio.double()
        bar.update()
    return Chains(log_w, acceptance / (len(betas) - 2))  # 0 / 0 where there was no transition


def pilot_step_sizes(path: AnnealedPath, betas: Tensor, leapfrogs: int, bar: "tqdm[Any]") -> Tensor:
    """Step sizes for each temperature and datum, (T + 1, B), from chains that adapt them and then are left behind."""
    path = replace(path, chains=min(PILOTS, path.chains))
    z = path.initial()
    step = torch.full_like(z[0, :, 0], FIRST_STEP)
    steps = step.repeat(len(betas), 1)
    if len(betas) == 2:
        return steps  # one step of importance sampling makes no transition

    def adapted(step: Tensor, accepted: Tensor, factor: float) -> Tensor:
        # In proportion to what is missing: with the sign alone, the median acceptance would be as wanted.
        return step * factor ** ((accepted.mean(0) - ACCEPTANCE) / (1 - ACCEPTANCE))

    for _ in range(WARM_UP):
        z, _ratio, accepted = transition(path, z, betas[1].item(), step, leapfrogs)
        step = adapted(step, accepted, 1.2)
    # A factor of 1.02 (Wu et al.) follows the narrowing densities over a thousand steps; fewer need a larger one.
    factor = 1 + min(0.2, max(0.02, 20 / len(betas)))
    for t in range(1, len(betas) - 1):
        z, _ratio, accepted = transition(path, z, betas[t].item(), step, leapfrogs)
        steps[t] = step
        step = adapted(step, accepted, factor)
        bar.update()
    return steps


def density_sites_of(trace: Trace) -> dict[str, Site]:
    """The sites of a trace with their log densities, `pyro.factor` left out."""
    sites = {name: Site.of(name, node, "model") for name, node in density_sites(trace).items()}
    return {name: site for name, site in sites.items() if not site.factor}


def _check_sites(layout: Draw, start: Start) -> None:
    latent = {name: site for name, site in layout.model.items() if not site.observed}
    if not latent:
        raise ValueError(f"the model has no latent site: got {list(layout.model)}; its log p(x) is log_likelihood's")
    for name, site in latent.items():
        check_prior(name, site.fn)
    guide = {name: site for name, site in layout.guide.items() if not site.factor}
    for site in [*latent.values(), *(guide.values() if start == "guide" else [])]:
        if site.name not in latent:
            raise ValueError(
                f"site {site.name!r}: got an auxiliary site of the guide, expected sites of the model alone: its "
                "density given z is not known; start='prior' needs none"
            )
        support = site.fn.support
        while isinstance(support, constraints.independent):
            support = support.base_constraint
        if support is not constraints.real:
            raise ValueError(
                f"site {site.name!r}: got {type(site.fn).__name__} with values in {support}, expected all real values, "
                "where Hamiltonian dynamics can move; use importance_sampling"
            )


@contextmanager
def quiet_run(pair: Pair, seed: int | None) -> Iterator[None]:
    """Nothing of the pair is changed or recorded, and nothing validated: motions that diverge are refused later."""
    torch.set_flush_denormal(True)
    with undisturbed(pair, seed), frozen_guide(pair.guide), pyro.validation_enabled(False):
        yield


def num_rows(batch: Batch) -> int:
    """N."""
    return next(len(b) for b in batch if isinstance(b, Tensor) and b.dim())


def parts_of(batch: Batch, rows: int) -> list[Batch]:
    """The batch cut along its rows; what has no rows goes into every part."""

    def cut(value: Any, i: int) -> Any:
        return value[i : i + rows] if isinstance(value, Tensor) and value.dim() else value

    return [tuple(cut(b, i) for b in batch) for i in range(0, num_rows(batch), rows)]
