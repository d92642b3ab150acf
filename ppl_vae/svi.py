"""`SVI`: a `pyro.infer.SVI` over a pair and one torch optimiser for all of its parameters."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, NoReturn, get_args

import pyro
import pyro.infer
import torch
from pyro.infer.abstract_infer import TracePosterior
from torch import Tensor, nn

from ppl_vae.capture import CapturedUpdate, make_capturable
from ppl_vae.compile import CompiledBackward, eager_backward
from ppl_vae.nonfinite import NonFiniteError, explain
from ppl_vae.objectives import Objective, Trace_ELBO
from ppl_vae.pair import Pair

__all__ = ["SVI", "Compile"]

Compile = Literal["auto", "off", "inductor", "cudagraph"]

COMPILE_AFTER, CAPTURE_AFTER = 2000, 20
"""Steps after which "auto" compiles on a CPU, or captures on CUDA: what it costs is then soon made up for."""


class SVI(pyro.infer.SVI):
    """Stochastic variational inference for a pair: `SVI(pair, torch.optim.Adam(pair.parameters()), loss).step(x)`.

    Unlike its base class it keeps one torch optimiser for all parameters (Pyro makes one for each),
    leaves Pyro's parameter store alone, and returns from `update` without waiting for the device.

    Args:
        pair: the model and the guide.
        optim: a torch optimiser over `pair.parameters()`.
        loss: the objective; `Trace_ELBO()` by default.
        compile: "off" runs Pyro at every step. "inductor": Pyro runs once per batch shape and is traced away, and
            what it did is compiled (some 10 seconds). "cudagraph", on CUDA alone: the step is captured once per
            batch shape and replayed ("inductor" on CUDA is captured as well). "auto" begins with "off" and changes
            to "inductor" after 2,000 steps, or on CUDA to "cudagraph" after 20.
        clip_norm: scale the gradient of all parameters together down to this norm where it is larger.

    Raises:
        ValueError: an unknown way to compile, or one that the device doesn't have; clip_norm is not above 0.
        TypeError: the optimiser is not a torch optimiser (for `pyro.optim`, use `pair.pyro_svi`), or
            the loss is not one of `ppl_vae.objectives`.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> pair, x = VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8)
        >>> svi = SVI(pair, torch.optim.Adam(pair.parameters(), lr=1e-3))
        >>> svi.step(x) > svi.step(x) - 100.0
        True
    """

    def __init__(
        self,
        pair: Pair,
        optim: torch.optim.Optimizer,
        loss: Objective | None = None,
        *,
        compile: Compile = "auto",
        clip_norm: float | None = None,
    ) -> None:
        if not isinstance(optim, torch.optim.Optimizer):
            raise TypeError(
                f"optim: got {type(optim).__name__}, expected a torch.optim.Optimizer over pair.parameters(); "
                "for a pyro.optim optimiser use pair.pyro_svi(optim, loss)"
            )
        loss = Trace_ELBO() if loss is None else loss
        if not isinstance(loss, Objective):
            raise TypeError(
                f"loss: got {type(loss).__name__}, expected one of ppl_vae.objectives; for pyro.infer's own ELBOs "
                "use pair.pyro_svi(optim, loss)"
            )
        # The base class insists on a Pyro optimiser; its constructor does nothing else than what follows.
        TracePosterior.__init__(self)
        self.pair, self.objective = pair, loss
        self.model, self.guide, self.optim = pair.model, pair.guide, optim
        self.num_steps = self.num_samples = 0
        self.loss, self.loss_and_grads = loss.loss, loss.loss_and_grads
        if compile not in get_args(Compile):
            raise ValueError(f"compile: got {compile!r}, expected one of {get_args(Compile)}")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm: got {clip_norm}, expected a number above 0")
        self.compile: Compile = compile
        self.clip_norm = clip_norm
        self.loss_module = loss(pair)
        self.compiled = CompiledBackward(self.loss_module)
        self._validated: set[tuple[Any, ...]] = set()
        self._captured: dict[tuple[Any, ...], CapturedUpdate] = {}
        self._kl_weight: Tensor | None = None

    def update(self, *batch: Any) -> Tensor:
        """One gradient step; the loss (nats, summed over the batch) as a 0-dim tensor on the device.

        Raises:
            NonFiniteError: on a CPU, before the parameters change, if the loss is NaN or infinite.
        """
        with self._scheduled(batch):
            loss = self._capture(*batch) if self._mode(batch) != "off" and _on_cuda(batch) else self.advance(*batch)
        self.objective.step += 1
        return loss

    def advance(self, *batch: Any) -> Tensor:
        """The part of `update` that the device does: gradients and optimiser, but no count of steps.

        Raises:
            NonFiniteError: as `update`.
        """
        self.optim.zero_grad(set_to_none=True)
        loss = self._backward(*batch)
        # On a CPU the value is at hand; elsewhere reading it would wait for the device at every step.
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self.refuse(loss, *batch)
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.pair.parameters(), self.clip_norm, foreach=True)
        self.optim.step()
        return loss

    def step(self, *batch: Any) -> float:
        """One gradient step; the loss in nats, summed over the batch, as Pyro's `SVI.step`."""
        return self.update(*batch).item()

    def refuse(self, loss: Tensor, *batch: Any) -> NoReturn:
        """Raise `NonFiniteError` for a loss that is NaN or infinite, naming the step and the first bad site."""
        cause = explain(self.loss_module, *batch)
        raise NonFiniteError(
            f"step {self.objective.step}: got a loss of {loss.item()}, expected a finite number; {cause}. "
            "Try a smaller learning rate, a softplus scale with a floor, or bounded inputs."
        )

    def _backward(self, *batch: Any) -> Tensor:
        """Set the gradients; supports and shapes are validated on the first batch of each shape alone."""
        shapes = _shapes(batch)
        if shapes not in self._validated:
            with pyro.validation_enabled(True):
                loss = eager_backward(self.loss_module, *batch)
            self._validated.add(shapes)  # not before: a batch that was refused is refused again
            return loss
        run = self.compiled if self._mode(batch) == "inductor" else partial(eager_backward, self.loss_module)
        with pyro.validation_enabled(False):
            return run(*batch)

    def _mode(self, batch: tuple[Any, ...]) -> Compile:
        """How to run the step on this batch."""
        on_cuda = _on_cuda(batch)
        if self.compile == "cudagraph" and not on_cuda:
            raise ValueError("compile: got 'cudagraph' for a batch that is not on a CUDA device; use 'inductor'")
        if self.compile != "auto":
            return self.compile
        if self.objective.step < (CAPTURE_AFTER if on_cuda else COMPILE_AFTER):
            return "off"
        return "cudagraph" if on_cuda else "inductor"

    def _capture(self, *batch: Any) -> Tensor:
        shapes = _shapes(batch)
        if shapes not in self._captured:
            make_capturable(self.optim, _device(batch))
            self._captured[shapes] = CapturedUpdate(self.advance, *batch)
        return self._captured[shapes](*batch)

    def _scheduled(self, batch: tuple[Any, ...]) -> AbstractContextManager[None]:
        """Within, a scheduled KL weight is a tensor that stays where it is: a recorded or captured step reads it."""
        if not callable(self.objective.kl_weight):
            return nullcontext()
        if self._kl_weight is None:
            self._kl_weight = torch.zeros((), device=_device(batch))
        self._kl_weight.fill_(float(self.objective.kl_weight(self.objective.step)))
        return self.objective.at_kl_weight(self._kl_weight)


def _shapes(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((tuple(b.shape), b.dtype) if isinstance(b, Tensor) else type(b) for b in batch)


def _device(batch: tuple[Any, ...]) -> torch.device:
    return next((b.device for b in batch if isinstance(b, Tensor)), torch.device("cpu"))


def _on_cuda(batch: tuple[Any, ...]) -> bool:
    return _device(batch).type == "cuda"
