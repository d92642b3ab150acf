"""`SVI`: a `pyro.infer.SVI` over a pair and one torch optimiser for all of its parameters."""

from typing import Any

import pyro
import pyro.infer
import torch
from pyro.infer.abstract_infer import TracePosterior
from torch import Tensor

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

    Raises:
        TypeError: the optimiser is not a torch optimiser (for `pyro.optim`, use `pair.pyro_svi`), or
            the loss is not one of `ppl_vae.objectives`.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> pair, x = VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8)
        >>> svi = SVI(pair, torch.optim.Adam(pair.parameters(), lr=1e-3))
        >>> svi.step(x) > svi.step(x) - 100.0
        True
    """

    def __init__(self, pair: Pair, optim: torch.optim.Optimizer, loss: Objective | None = None) -> None:
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
        self.loss_module = loss(pair)
        self._validated: set[tuple[Any, ...]] = set()

    def update(self, *batch: Any) -> Tensor:
        """One gradient step; the loss (nats, summed over the batch) as a 0-dim tensor on the device."""
        self.optim.zero_grad(set_to_none=True)
        loss = self.differentiable_loss(*batch)
        loss.backward()
        self.optim.step()
        self.objective.step += 1
        return loss.detach()

    def step(self, *batch: Any) -> float:
        """One gradient step; the loss in nats, summed over the batch, as Pyro's `SVI.step`."""
        return self.update(*batch).item()

    def differentiable_loss(self, *batch: Any) -> Tensor:
        """The loss of a batch; supports and shapes are validated on the first batch of each shape alone."""
        shapes = tuple(tuple(b.shape) if isinstance(b, Tensor) else b for b in batch)
        with pyro.validation_enabled(shapes not in self._validated):
            loss = self.loss_module(*batch)
        self._validated.add(shapes)
        return loss
