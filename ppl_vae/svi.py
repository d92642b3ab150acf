"""`SVI`: a `pyro.infer.SVI` over a pair and one torch optimiser for all of its parameters."""

import math
from typing import Any, Literal, NoReturn

import pyro
import pyro.infer
import torch
from pyro.infer.abstract_infer import TracePosterior
from torch import Tensor

from ppl_vae.compile import CompiledBackward, eager_backward
from ppl_vae.nonfinite import NonFiniteError, explain
from ppl_vae.objectives import Objective, Trace_ELBO
from ppl_vae.pair import Pair

__all__ = ["SVI"]


class SVI(pyro.infer.SVI):
    """Stochastic variational inference for a pair: `SVI(pair, torch.optim.Adam(pair.parameters()), loss).step(x)`.

    Unlike its base class it keeps one torch optimiser for all parameters (Pyro makes one for each),
    leaves Pyro's parameter store alone, and returns from `update` without waiting for the device.

    Args:
        pair: the model and the guide.
        optim: a torch optimiser over `pair.parameters()`.
        loss: the objective; `Trace_ELBO()` by default.
        compile: "off", or "inductor": Pyro runs once per batch shape and is traced away
            (10 to 20 seconds; pays for runs of more than some thousand steps).

    Raises:
        ValueError: an unknown way to compile.
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
        compile: Literal["off", "inductor"] = "off",
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
        if compile not in ("off", "inductor"):
            raise ValueError(f"compile: got {compile!r}, expected 'off' or 'inductor'")
        self.loss_module = loss(pair)
        self.compiled = CompiledBackward(self.loss_module) if compile == "inductor" else None
        self._validated: set[tuple[Any, ...]] = set()

    def update(self, *batch: Any) -> Tensor:
        """One gradient step; the loss (nats, summed over the batch) as a 0-dim tensor on the device.

        Raises:
            NonFiniteError: on a CPU, before the parameters change, if the loss is NaN or infinite.
        """
        self.optim.zero_grad(set_to_none=True)
        loss = self._backward(*batch)
        # On a CPU the value is at hand; elsewhere reading it would wait for the device at every step.
        if loss.device.type == "cpu" and not math.isfinite(loss.item()):
            self.refuse(loss, *batch)
        self.optim.step()
        self.objective.step += 1
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
        shapes = tuple(tuple(b.shape) if isinstance(b, Tensor) else type(b) for b in batch)
        if shapes not in self._validated:
            with pyro.validation_enabled(True):
                loss = eager_backward(self.loss_module, *batch)
            self._validated.add(shapes)  # not before: a batch that was refused is refused again
            return loss
        with pyro.validation_enabled(False):
            return eager_backward(self.loss_module, *batch) if self.compiled is None else self.compiled(*batch)
