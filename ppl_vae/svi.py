"""`SVI`: a `pyro.infer.SVI` over a pair and one torch optimiser for all of its parameters."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, NoReturn, get_args

import pyro
import pyro.infer
import torch
from pyro.infer.abstract_infer import TracePosterior
from torch import Tensor, nn

from ppl_vae import optimisers
from ppl_vae.capture import CapturedUpdate, make_capturable
from ppl_vae.compile import CompiledBackward, eager_backward
from ppl_vae.nonfinite import NonFiniteError, explain, first_bad_gradient
from ppl_vae.objectives import Objective, Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.parallel import Ranks

__all__ = ["SVI", "Compile", "OnNonFinite"]

Compile = Literal["auto", "off", "inductor", "cudagraph"]
OnNonFinite = Literal["stop", "skip"]

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
        accumulate: the batch goes through the pair in so many parts, one after the other, whose gradients are added:
            the same loss in less memory. Its rows must be a multiple of it.
        on_nonfinite: what a NaN or infinite loss or gradient does: "stop" raises (a gradient alone is noticed in the
            next step's loss), "skip" leaves out the step, warns, and counts it in `skipped`.
        ranks: the processes that train this pair together, each giving `update` its part of the batch; this one alone
            by default.

    Attributes:
        skipped: steps left out, a 0-dim tensor on the device of the pair.
        gradient_norm: of the last step, before clipping, where clipping or skipping needed it; None otherwise.

    Raises:
        ValueError: an unknown way to compile or to meet non-finite numbers, a way to compile that the device doesn't
            have; clip_norm is not above 0; accumulate is below 1, or meant for an objective with one weight for the
            whole batch.
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
        accumulate: int = 1,
        on_nonfinite: OnNonFinite = "stop",
        ranks: Ranks | None = None,
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
        _check(compile, clip_norm, accumulate, on_nonfinite, loss)
        if on_nonfinite == "skip" and pair.reference().is_cuda and not hasattr(optim, "_step_supports_amp_scaling"):
            raise ValueError("on_nonfinite: got 'skip' on CUDA, expected a fused optimiser: Adam(..., fused=True)")
        self.compile: Compile = compile
        self.clip_norm, self.accumulate = clip_norm, accumulate
        self.on_nonfinite: OnNonFinite = on_nonfinite
        self.skipped = torch.zeros((), dtype=torch.int64, device=pair.reference().device)
        self.on_skip: Callable[[str], None] = lambda what: warnings.warn(f"ppl_vae: skipped {what}", stacklevel=2)
        self.gradient_norm: Tensor | None = None
        self.loss_module = loss(pair)
        self.compiled = CompiledBackward(self.loss_module)
        self.ranks = ranks or Ranks(together=False)
        self.validate = True
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
        loss = self.ranks.add(self._gradient(*batch), self.pair)
        # On a CPU the value is at hand; elsewhere reading it would wait for the device at every step.
        if self.on_nonfinite == "stop" and loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self.refuse(loss, *batch)
        if self.clip_norm is not None or self.on_nonfinite == "skip":
            self.gradient_norm = norm = self.norm()
            if self.clip_norm is not None:
                nn.utils.clip_grads_with_norm_(self.pair.parameters(), self.clip_norm, norm, foreach=True)
        if self.on_nonfinite == "skip":
            self._step_if_finite(loss, *batch)
        else:
            self.optim.step()
        return loss

    def norm(self) -> Tensor:
        """The norm of the whole gradient, a 0-dim tensor."""
        gradients = [p.grad for p in self.pair.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients, foreach=True)

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

    def _gradient(self, *batch: Any) -> Tensor:
        """Set the gradients, by parts of the batch where it is accumulated; the loss."""
        if self.accumulate == 1:
            return self._backward(*batch)
        losses = [self._backward(*part) for part in _parts(batch, self.accumulate)]
        return torch.stack(losses).sum()

    def _step_if_finite(self, loss: Tensor, *batch: Any) -> None:
        assert self.gradient_norm is not None
        bad = ~(loss.isfinite() & self.gradient_norm.isfinite())
        self.skipped += bad
        if bad.device.type != "cpu":
            self._step_unless(bad)
        elif not bad:
            self.optim.step()
        else:
            cause = first_bad_gradient(self.pair) if loss.isfinite() else explain(self.loss_module, *batch)
            self.on_skip(f"step {self.objective.step}, loss {loss.item()}: {cause}.")

    def _step_unless(self, bad: Tensor) -> None:
        """Take the optimiser's step unless `bad`, without asking the host: as a gradient scaler does."""
        optim: Any = self.optim
        optim.grad_scale, optim.found_inf = None, bad.to(torch.float32)
        try:
            optim.step()
        finally:
            del optim.grad_scale, optim.found_inf

    def _backward(self, *batch: Any) -> Tensor:
        """Set the gradients; supports and shapes are validated on the first batch of each shape alone."""
        shapes = _shapes(batch)
        if self.validate and shapes not in self._validated:
            with pyro.validation_enabled(True):
                loss = eager_backward(self.loss_module, *batch)
            self._validated.add(shapes)  # not before: a batch that was refused is refused again
            return loss
        run = self.compiled if self._mode(batch) == "inductor" else partial(eager_backward, self.loss_module)
        with pyro.validation_enabled(False):
            return run(*batch)

    def optimiser_state(self) -> dict[str, Any]:
        """The optimiser's class and state."""
        return optimisers.state_of(self.optim)

    def load_optimiser(self, state: dict[str, Any]) -> None:
        """Go on with the optimiser's state of an earlier run, whose batches have been validated.

        Raises:
            ValueError: it was another optimiser.
        """
        optimisers.load_state(self.optim, state, self.skipped.device)
        self.validate = False

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


def _check(compile: str, clip_norm: float | None, accumulate: int, on_nonfinite: str, loss: Objective) -> None:
    if compile not in get_args(Compile):
        raise ValueError(f"compile: got {compile!r}, expected one of {get_args(Compile)}")
    if clip_norm is not None and not clip_norm > 0:
        raise ValueError(f"clip_norm: got {clip_norm}, expected a number above 0")
    if on_nonfinite not in get_args(OnNonFinite):
        raise ValueError(f"on_nonfinite: got {on_nonfinite!r}, expected one of {get_args(OnNonFinite)}")
    if accumulate < 1 or (accumulate > 1 and loss.joint):
        raise ValueError(
            f"accumulate: got {accumulate}, expected at least 1, and 1 for an objective with joint=True: each "
            "part of a batch would have a weight of its own"
        )


def _parts(batch: tuple[Any, ...], number: int) -> Iterator[tuple[Any, ...]]:
    """The batch in so many parts of equal size; what is not a tensor goes into each."""
    rows = {len(b) for b in batch if isinstance(b, Tensor)}
    if any(n % number for n in rows):
        raise ValueError(f"accumulate: got a batch of {max(rows)} rows, expected a multiple of {number}")
    for index in range(number):
        yield tuple(b.chunk(number)[index] if isinstance(b, Tensor) else b for b in batch)


def _shapes(batch: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple((tuple(b.shape), b.dtype) if isinstance(b, Tensor) else type(b) for b in batch)


def _device(batch: tuple[Any, ...]) -> torch.device:
    return next((b.device for b in batch if isinstance(b, Tensor)), torch.device("cpu"))


def _on_cuda(batch: tuple[Any, ...]) -> bool:
    return _device(batch).type == "cuda"
