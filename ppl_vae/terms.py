"""K particles of a pair -> log p and log q per site and per datum, in one trace.

Every bound, metric and picture of the package is a few lines over the `Terms` made here.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial, reduce
from typing import Any, Literal

import pyro
import torch
from pyro import poutine
from pyro.poutine.indep_messenger import CondIndepStackFrame
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from ppl_vae.paths import Gradient, PathWeight, constant, frozen_guide, with_values
from ppl_vae.quiet import unnoticed
from ppl_vae.sites import PARTICLES, NotPerDatumError, Site, density_sites, is_subsample, plates_of

__all__ = ["Draw", "NotPerDatumError", "Particles", "Site", "Terms", "check_match", "draw", "guess_plate_nesting"]

Particles = Literal["plate", "tile", "loop"]
Program = Callable[..., Any]
Run = Callable[[Program, Program, Sequence[Any], int, int | None], "Draw"]


@dataclass(frozen=True)
class Draw:
    """The sites of one run of guide and model, with `size` particles along `dim`.

    `dim` is the particle plate's dimension; None when there is one particle, or a tiled batch. `path` weights
    the gradient through the samples, where they were drawn with gradient="path".
    """

    model: dict[str, Site]
    guide: dict[str, Site]
    size: int
    dim: int | None
    path: PathWeight

    @property
    def sites(self) -> list[Site]:
        """All sites, the guide's first: the order in which they were run."""
        return [*self.guide.values(), *self.model.values()]

    @cached_property
    def data_plate(self) -> CondIndepStackFrame:
        """The plate that every site sits in: its rows are the data."""
        common: dict[str, CondIndepStackFrame] | None = None
        for site in self.sites:
            frames = {f.name: f for f in site.frames if f.vectorized and f.name != PARTICLES}
            kept = frames if common is None else {n: f for n, f in common.items() if frames.get(n) == f}
            if not kept:
                raise NotPerDatumError(_outside(site, list((common or {}).values())))
            common = kept
        assert common
        if len(common) > 1 and "data" not in common:
            raise NotPerDatumError(
                f"every site sits in {len(common)} plates ({', '.join(map(repr, common))}), and it is not clear "
                "which one indexes the data. Name that plate 'data'."
            )
        return common.get("data", next(iter(common.values())))

    def per_datum(self, log_prob: Tensor) -> Tensor:
        """Sum all dimensions but particles and data: (size, B)."""
        rows = self.data_plate.size
        total = _sum_all_but(log_prob, self.dim, self.data_plate.dim)
        if self.dim is not None:
            return total.expand(self.size, rows)
        return total.expand(rows).view(self.size, rows // self.size)

    def jointly(self, log_prob: Tensor) -> Tensor:
        """Sum all dimensions but the particles: (size, 1)."""
        return _sum_all_but(log_prob, self.dim).expand(self.size).unsqueeze(-1)


@dataclass(frozen=True)
class Terms:
    """The log terms of K particles, each of shape (K, B), in nats.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> pair, x = VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8)
        >>> terms = draw(pair.model, pair.guide, x, num_particles=5)
        >>> terms.log_weight().shape
        torch.Size([5, 3])

    Args:
        draws: the runs that the particles come from (one, or K when they are drawn in a loop).
        joint: one weight for the whole batch, on purpose: every term then has shape (K, 1).
    """

    draws: Sequence[Draw]
    joint: bool = False

    def stack(self, log_prob: Callable[[Draw], Tensor]) -> Tensor:
        """One quantity of every draw, reduced to (K, B)."""
        parts = [draw.jointly(log_prob(draw)) if self.joint else draw.per_datum(log_prob(draw)) for draw in self.draws]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @cached_property
    def num_particles(self) -> int:
        """K."""
        return sum(draw.size for draw in self.draws)

    @cached_property
    def latent(self) -> list[str]:
        """Names of the model's latent sites, in its order."""
        return [name for name, site in self.draws[0].model.items() if not site.observed]

    @cached_property
    def log_p(self) -> dict[str, Tensor]:
        """log p of every model site, observed and latent: name -> (K, B)."""
        return {n: self.stack(lambda d, n=n: d.model[n].log_prob) for n in self.draws[0].model}

    @cached_property
    def log_q(self) -> dict[str, Tensor]:
        """log q of every guide site: name -> (K, B)."""
        return {n: self.stack(lambda d, n=n: d.guide[n].log_prob) for n in self.draws[0].guide}

    def log_likelihood(self, factors: bool = False) -> Tensor:
        """log p(x | z): the observed sites (and, if asked for, the `pyro.factor` regularisers), (K, B)."""
        model = self.draws[0].model
        given = [n for n, site in model.items() if site.observed and (factors or not site.factor)]
        return self._sum([self.log_p[n] for n in given])

    def sum_log_q(self, factors: bool = False) -> Tensor:
        """log q(z | x), the sum over the guide's sites, (K, B)."""
        guide = self.draws[0].guide
        return self._sum([self.log_q[n] for n, site in guide.items() if factors or not site.factor])

    def log_ratio(self, factors: bool = False) -> Tensor:
        """log p(z) - log q(z | x), (K, B)."""
        return self._sum([self.log_p[n] for n in self.latent]) - self.sum_log_q(factors)

    def _sum(self, parts: list[Tensor]) -> Tensor:
        if not parts:
            return torch.zeros_like(next(iter(self.log_p.values())))
        return reduce(torch.add, parts)

    def log_weight(self, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """log w = log p(x | z) + kl_weight * [log p(z) - log q(z | x)], unscaled, (K, B)."""
        ratio = self.log_ratio(factors)
        if not (isinstance(kl_weight, float) and kl_weight == 1.0):
            ratio = kl_weight * ratio
        return self.log_likelihood(factors) + ratio

    @cached_property
    def scale(self) -> float:
        """The one scale that all sites share, to be applied *outside* the logarithm.

        Raises:
            NotPerDatumError: the sites' scales differ, or are tensors.
        """
        sites = self.draws[0].sites
        for site in sites:
            if isinstance(site.scale, Tensor) or not math.isclose(float(site.scale), float(sites[0].scale)):
                raise NotPerDatumError(
                    f"site {site.name!r} has scale {site.scale}, site {sites[0].name!r} has {sites[0].scale}: a scale "
                    "inside the log weight is not a bound. Put model and guide under one subsampling plate or one "
                    "poutine.scale with a number; weight the KL term with the objective's kl_weight instead."
                )
        return float(sites[0].scale)

    def weight_paths(self, weight: Tensor) -> None:
        """Multiply the gradient through each particle's samples by `weight`, (K, B), without gradient of its own.

        Only of use where the terms were drawn with gradient="path" or "split".
        """
        for draw, part in zip(self.draws, weight.detach().split([d.size for d in self.draws]), strict=True):
            draw.path.set(part, draw.dim, *([] if self.joint else [draw.data_plate.dim]))

    def require_reparameterised(self, objective: str) -> None:
        """Refuse guide sites through whose value no gradient flows.

        Raises:
            ValueError: names the site and what to use instead.
        """
        for name, site in self.draws[0].guide.items():
            if not site.reparameterised and not site.factor:
                raise ValueError(
                    f"guide site {name!r}: got {type(site.fn).__name__}, which is not reparameterised; {objective} "
                    "would give it no gradient. Use VIMCO or Trace_ELBO (score functions), or sum "
                    "the site out with TraceEnum_ELBO."
                )


def draw(
    model: Program,
    guide: Program,
    *batch: Any,
    num_particles: int = 1,
    max_plate_nesting: int = 1,
    particles: Particles = "plate",
    joint: bool = False,
    gradient: Gradient = "full",
) -> Terms:
    """Run guide and model on one batch with K particles.

    Args:
        model: `model(*batch)`, a Pyro program.
        guide: `guide(*batch)`, a Pyro program.
        batch: its tensors have B rows.
        num_particles: K.
        max_plate_nesting: the particle plate stands to the left of so many plates.
        particles: "plate": one trace under an outer plate (the encoder runs once per datum);
            "tile": one trace of a batch repeated K times; "loop": K traces.
        joint: sum over the data as well, so that each particle has one weight.
        gradient: how it reaches the guide's parameters: "full", "path", "score" or "split" (see `ppl_vae.paths`).

    Raises:
        NotPerDatumError: a site is not per datum.
        ValueError: the sites of model and guide do not match.
    """
    if joint and particles == "tile":
        raise ValueError("joint=True needs particles drawn by a plate or a loop, got 'tile'")
    run = partial(_run, gradient=gradient, owner=guide)
    if particles == "loop" and num_particles > 1:
        return Terms(_loop(run, model, guide, batch, num_particles), joint)
    if particles == "tile" and num_particles > 1:
        return Terms([_tiled(run, model, guide, batch, num_particles)], joint)
    dim = None if num_particles == 1 else -max_plate_nesting - 1
    return Terms([run(model, guide, batch, num_particles, dim)], joint)


def guess_plate_nesting(model: Program, guide: Program, *batch: Any) -> int:
    """How deep the plates of a pair nest, found by one run that leaves no trace."""
    with unnoticed(model, guide, device=_device(batch)), poutine.block():
        sites = _run(model, guide, batch, 1, None).sites
    return max((-f.dim for s in sites for f in s.frames if f.dim is not None), default=0)


def _run(
    model: Program,
    guide: Program,
    batch: Sequence[Any],
    size: int,
    dim: int | None,
    *,
    gradient: Gradient = "full",
    owner: Program | None = None,
) -> Draw:
    def plate() -> Any:
        return nullcontext() if dim is None else pyro.plate(PARTICLES, size, dim=dim)

    path = PathWeight()
    with plate(), torch.no_grad() if gradient == "score" else nullcontext():
        guide_trace = poutine.trace(guide).get_trace(*batch)
    if gradient in ("path", "score"):
        # Scored anew: a site's parameters may depend on the samples before it.
        again = with_values(guide_trace, constant if gradient == "score" else path.on)
        with plate(), frozen_guide(owner or guide) if gradient == "path" else nullcontext():
            guide_trace = poutine.trace(poutine.replay(guide, trace=again)).get_trace(*batch)
    given = with_values(guide_trace, path.on) if gradient == "split" else guide_trace
    with plate():
        model_trace = poutine.trace(poutine.replay(model, trace=given)).get_trace(*batch)
    model_nodes, guide_nodes = density_sites(model_trace), density_sites(guide_trace)
    check_match(model_nodes, guide_nodes)
    # The guide's first: a value that it drew in a wrong shape is the guide's fault, though the model scores it too.
    guide_sites = {n: Site.of(n, node, "guide") for n, node in guide_nodes.items()}
    return Draw({n: Site.of(n, node, "model") for n, node in model_nodes.items()}, guide_sites, size, dim, path)


def _loop(run: Run, model: Program, guide: Program, batch: Sequence[Any], num_particles: int) -> list[Draw]:
    first_guide, first_model = poutine.trace(guide), poutine.trace(model)
    draws = [run(first_model, first_guide, batch, 1, None)]
    # All particles must see the same minibatch: the first run's subsamples are replayed to the others.
    keep = Trace()
    nodes: dict[str, Any] = {**first_model.trace.nodes, **first_guide.trace.nodes}
    for name, node in nodes.items():
        if node["type"] == "sample" and is_subsample(node):
            keep.add_node(name, **node)
    model, guide = poutine.replay(model, trace=keep), poutine.replay(guide, trace=keep)
    return draws + [run(model, guide, batch, 1, None) for _ in range(num_particles - 1)]


def _tiled(run: Run, model: Program, guide: Program, batch: Sequence[Any], num_particles: int) -> Draw:
    rows = next(len(b) for b in batch if isinstance(b, Tensor) and b.dim())

    def tile(value: Any) -> Any:
        if not (isinstance(value, Tensor) and value.dim() and len(value) == rows):
            return value
        return value.expand(num_particles, *value.shape).flatten(0, 1)

    result = run(model, guide, [tile(b) for b in batch], num_particles, None)
    if result.data_plate.size != rows * num_particles:
        raise NotPerDatumError(
            f"plate {result.data_plate.name!r} has size {result.data_plate.size} for {rows * num_particles} tiled "
            'rows: a pair with particles="tile" takes its plate\'s size from the batch, pyro.plate("data", len(x)).'
        )
    return result


def check_match(model: dict[str, Any], guide: dict[str, Any]) -> None:
    """Refuse programs whose latent sites, name -> node of a trace, are not the same but for auxiliary ones.

    Raises:
        ValueError: names the site and what to do.
    """
    if not model:
        raise ValueError('the model has no sample sites, expected an observed one: pyro.sample("x", ..., obs=x)')
    wanted = [name for name, node in model.items() if not node["is_observed"]]
    given = [name for name, node in guide.items() if not node["is_observed"]]
    auxiliary = {name for name in given if guide[name]["infer"].get("is_auxiliary")}
    if missing := [name for name in wanted if name not in given]:
        raise ValueError(
            f"the guide has no site {missing[0]!r}: got guide sites {given}, expected {wanted}. "
            "Sample it in the guide, or observe it in the model."
        )
    if extra := [name for name in given if name not in wanted and name not in auxiliary]:
        raise ValueError(
            f"the model has no latent site {extra[0]!r} that the guide samples: got model sites {wanted}. "
            "Add it to the model, or mark it infer={'is_auxiliary': True} in the guide."
        )


def _outside(site: Site, expected: list[CondIndepStackFrame]) -> str:
    got = [f for f in site.frames if f.name != PARTICLES]
    wanted = f"the plate {expected[0].name!r} that other sites sit in" if expected else 'pyro.plate("data", len(x))'
    return (
        f"site {site.name!r} is not per datum: got {plates_of(got)}, expected {wanted}. Put every site of model and "
        "guide in one vectorised plate of one name; for one weight for the whole batch pass joint=True; for global "
        "latent sites use Trace_ELBO."
    )


def _sum_all_but(log_prob: Tensor, *keep: int | None) -> Tensor:
    extra = [d for d in range(-log_prob.dim(), 0) if d not in keep]
    return log_prob.sum(extra) if extra else log_prob


def _device(batch: Sequence[Any]) -> torch.device:
    return next((b.device for b in batch if isinstance(b, Tensor)), torch.device("cpu"))
