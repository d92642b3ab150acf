"""The one mechanism behind all bounds: a formula over the (K, B) log terms of a pair."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pyro.infer
import torch
from pyro.infer.elbo import ELBOModule
from pyro.infer.enum import get_importance_trace
from torch import Tensor, nn

from ppl_vae import terms
from ppl_vae.objectives.schedules import Schedule, check_weight
from ppl_vae.pair import Pair
from ppl_vae.paths import Gradient
from ppl_vae.terms import Particles, Terms

__all__ = ["Objective", "PairLoss"]

Program = Callable[..., Any]

_NOT_RECORDED = ("max_plate_nesting", "vectorize_particles", "retain_graph", "strict_enumeration_warning")
"""Settings that change how a number is computed, not which."""


class Objective(pyro.infer.ELBO):
    """A lower bound (or its like) on log p(x), and the loss that trains a pair for it.

    A subclass gives `per_datum`, the formula of the bound, and, where the gradient is not the
    bound's own, `surrogate`. Everything else is shared: `bound` reports, `loss` and
    `differentiable_loss` train, and `objective(pair)` is a module.

    Args:
        num_particles: K >= 1.
        max_plate_nesting: how deep the pair's plates nest; found by one run where not given.
        vectorize_particles: True draws all particles in one trace under an outer plate (or in one
            tiled batch, where the pair says so); False runs the pair K times. Pyro's default is False.
        retain_graph: passed to `backward` by `loss_and_grads`.
        kl_weight: the weight of log p(z) - log q(z | x) in the *loss*: a number, or a schedule
            from the step to a number. The reported bound always has weight 1.
        joint: one weight for the whole batch, on purpose.

    Raises:
        ValueError: num_particles < 1, a kl_weight that is negative or not finite (or is so at step 0), or a
            max_plate_nesting that is no number.
    """

    is_bound: bool = True
    """Whether `bound` is a lower bound on log p(x) in expectation."""

    gradient: Gradient = "full"
    """How the loss's gradient reaches the guide's parameters; see `ppl_vae.paths`."""

    def __init__(
        self,
        num_particles: int = 1,
        max_plate_nesting: float = math.inf,
        vectorize_particles: bool = True,
        retain_graph: bool | None = None,
        *,
        kl_weight: float | Schedule = 1.0,
        joint: bool = False,
    ) -> None:
        if isinstance(num_particles, bool) or not isinstance(num_particles, int) or num_particles < 1:
            raise ValueError(f"num_particles: got {num_particles!r}, expected a whole number of at least 1")
        if not isinstance(max_plate_nesting, int | float) or not max_plate_nesting >= 0:
            raise ValueError(f"max_plate_nesting: got {max_plate_nesting!r}, expected a whole number, or infinity")
        check_weight("kl_weight", kl_weight)
        # The base class counts its own particle plate into the nesting; ours stands apart.
        super().__init__(num_particles=num_particles, retain_graph=retain_graph)
        self.max_plate_nesting = max_plate_nesting
        self.vectorize_particles = vectorize_particles
        self.kl_weight = kl_weight
        self.joint = joint
        self.step = 0
        self._nesting: dict[Any, int] = {}
        self._kl_weight: Tensor | None = None

    @abstractmethod
    def per_datum(self, terms: Terms, kl_weight: float | Tensor = 1.0, factors: bool = False) -> Tensor:
        """The bound of each datum from terms of shape (K, B): (B,), nats, differentiable."""

    def surrogate(self, terms: Terms, kl_weight: float | Tensor) -> Tensor:
        """What training maximises, (B,): the bound, with the KL weight and the `pyro.factor` regularisers."""
        return self.per_datum(terms, kl_weight, factors=True)

    def bound(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The bound in nats per datum, without gradient: (B,), or (1,) for the whole batch if joint.

        `pyro.factor` sites, scales and the KL weight do not enter it: it bounds log p(x).
        """
        with torch.no_grad():
            return self.per_datum(self.terms(model, guide, *batch))

    def differentiable_loss(self, model: Program, guide: Program, *batch: Any) -> Tensor:
        """The loss whose gradient trains the pair: a scalar, in nats, summed over the batch and scaled."""
        drawn = self.terms(model, guide, *batch)
        return -drawn.scale * self.surrogate(drawn, self.current_kl_weight).sum()

    def loss(self, model: Program, guide: Program, *batch: Any) -> float:
        """The value of the loss, as `pyro.infer.SVI.evaluate_loss` asks for it."""
        with torch.no_grad():
            return self.differentiable_loss(model, guide, *batch).item()

    def loss_and_grads(self, model: Program, guide: Program, *batch: Any) -> float:
        """One backward pass for a stock `pyro.infer.SVI`; counts as a step of the schedule."""
        loss = self.differentiable_loss(model, guide, *batch)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        self.step += 1
        return loss.item()

    def __call__(self, model: Any, guide: Any = None) -> "PairLoss":
        """`objective(pair)` or `objective(model, guide)`: a module whose forward is the loss of a batch."""
        if isinstance(model, Pair):
            model, guide = model.model, model.guide
        return PairLoss(model, guide, self)

    @property
    def current_kl_weight(self) -> float | Tensor:
        """The weight of the KL term at the current step."""
        if not callable(self.kl_weight):
            return self.kl_weight
        return self.kl_weight(self.step) if self._kl_weight is None else self._kl_weight

    @contextmanager
    def at_kl_weight(self, weight: Tensor) -> Iterator[None]:
        """Within, a scheduled KL weight is this 0-dim tensor: a recorded loss takes it as an input."""
        before, self._kl_weight = self._kl_weight, weight
        try:
            yield
        finally:
            self._kl_weight = before

    def describe(self) -> dict[str, Any]:
        """Class and settings, to be recorded with every number."""
        given = ["num_particles", *inspect.signature(type(self).__init__).parameters]
        settings = {name: getattr(self, name) for name in given if name not in _NOT_RECORDED and hasattr(self, name)}
        return {"class": type(self).__name__, **{k: repr(v) if callable(v) else v for k, v in settings.items()}}

    def state_dict(self, pair: Pair) -> dict[str, Any]:
        """What training a pair has left here, of plain values and tensors: the step, and a subclass's averages."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any], pair: Pair) -> None:
        """Go on where `state_dict` was called."""
        self.step = state["step"]

    def prepare(self, model: Program, guide: Program, *batch: Any) -> None:
        """Find out once what the loss needs to know of the pair (how deep its plates nest)."""
        self._plate_nesting(model, guide, batch)

    def terms(self, model: Program, guide: Program, *batch: Any) -> Terms:
        """Draw K particles: the log terms that the formula is written over."""
        # Without gradients all ways of drawing give the same terms, and "full" takes one run of the guide.
        gradient = self.gradient if torch.is_grad_enabled() else "full"
        return terms.draw(
            model,
            guide,
            *batch,
            num_particles=self.num_particles,
            max_plate_nesting=self._plate_nesting(model, guide, batch),
            particles=self._particles(model),
            joint=self.joint,
            gradient=gradient,
        )

    def _get_trace(self, model: Program, guide: Program, args: Any, kwargs: Any) -> tuple[Any, Any]:
        # The base class asks for it; nothing here goes through Pyro's pairs of traces.
        return get_importance_trace("flat", self.max_plate_nesting, model, guide, args, kwargs)

    def _particles(self, model: Program) -> Particles:
        if not self.vectorize_particles:
            return "loop"
        return getattr(getattr(model, "__self__", None), "particles", "plate")

    def _plate_nesting(self, model: Program, guide: Program, batch: tuple[Any, ...]) -> int:
        if self.num_particles == 1 or not self.vectorize_particles:
            return 0
        if math.isfinite(self.max_plate_nesting):
            return int(self.max_plate_nesting)
        # The plates are those of the program's text: one run for each function or method suffices.
        key = getattr(model, "__func__", model)
        if key not in self._nesting:
            self._nesting[key] = terms.guess_plate_nesting(model, guide, *batch)
        return self._nesting[key]


class PairLoss(ELBOModule):
    """The loss of a pair as a `torch.nn.Module`: for torch optimisers, hooks and data-parallel wrappers.

    Its parameters are those of the pair (or of whatever modules the two programs belong to).
    """

    elbo: Objective

    def __init__(self, model: Program, guide: Program, objective: Objective) -> None:
        super().__init__(cast(Any, model), cast(Any, guide), objective)
        owners = {id(o): o for p in (model, guide) if isinstance(o := getattr(p, "__self__", None), nn.Module)}
        self.owners = nn.ModuleList(owners.values())
