"""Gradient steps in a row: what `fit` repeats between two points of the learning curve."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ppl_vae.capture import WARM_UP, Capture, cuda_graph, make_capturable, on_side_stream
from ppl_vae.data import Minibatches
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.svi import SVI

__all__ = ["CapturedSteps", "Steps"]

Rate = Callable[[int], float]

BURST = 10
"""Steps of one launch."""


class Steps:
    """Takes steps on minibatches, one after the other.

    Args:
        svi: takes a step on a batch.
        batches: without end.
        schedule: from the step to a factor on the optimiser's learning rates.
    """

    def __init__(self, svi: SVI, batches: Minibatches, schedule: Rate | None = None) -> None:
        self.svi, self.batches, self.schedule = svi, batches, schedule
        self.rates = [float(group["lr"]) for group in svi.optim.param_groups]

    def take(self, count: int) -> Tensor:
        """Take so many steps; the sum of their losses, 0-dim, in nats.

        Raises:
            NonFiniteError: see `SVI.update`; names the batch's rows.
        """
        total = torch.zeros((), device=self.batches.tensors[0].device)
        for _ in range(count):
            self._set_rate()
            batch = self.batches.next()
            try:
                total += self.svi.update(*batch)
            except NonFiniteError as error:
                raise NonFiniteError(f"{error} {self._rows()}") from None
        return total

    def check(self, loss: float) -> None:
        """Refuse the last loss if it is NaN or infinite, naming the site in the last batch."""
        if not math.isfinite(loss):
            self.svi.refuse(torch.tensor(loss), *self.batches.again())

    def _set_rate(self) -> None:
        if self.schedule is None:
            return
        factor = self.schedule(self.svi.objective.step)
        for group, rate in zip(self.svi.optim.param_groups, self.rates, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def _rows(self) -> str:
        assert self.batches.indices is not None
        return f"Rows of the batch: {self.batches.indices[:10].tolist()} ..."


class CapturedSteps(Steps):
    """The same steps as a CUDA graph: drawing the batch, the gradient, the optimiser and the sum of the losses.

    Several steps are one launch, and nothing waits for the device: learning rates and KL weights of the steps to
    come are put into tables there, and each step takes its own by a counter that it then moves on.

    Args:
        svi, batches, schedule: as for `Steps`; all tensors on one device.
        longest: the most steps that `take` is asked for.
        capture: `cuda_graph`.
    """

    def __init__(
        self,
        svi: SVI,
        batches: Minibatches,
        schedule: Rate | None = None,
        *,
        longest: int,
        capture: Capture = cuda_graph,
    ) -> None:
        super().__init__(svi, batches, schedule)
        device = batches.tensors[0].device
        make_capturable(svi.optim, device)
        self.capture, self.failed, self.warm = capture, False, 0
        self.position, self.slot = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self.factors, self.kl_weights = torch.ones(2, longest, device=device)
        self.total = torch.zeros((), device=device)
        self._launch: dict[int, Callable[[], Any]] = {}

    def take(self, count: int) -> Tensor:
        """Take so many steps; the sum of their losses, 0-dim, in nats, left on the device."""
        self._prepare(count)
        left = count
        while left > 0 and not self.failed:
            if self.batches.left == 0:
                self.batches.new_pass()
                self.position.zero_()
            done = self._run(min(left, self.batches.left))
            self.batches.skip(done)
            self.svi.objective.step += done
            left -= done
        return self.total + super().take(left) if left else self.total.clone()

    def _prepare(self, count: int) -> None:
        """Fill the tables for the steps to come and set the counters."""
        objective, steps = self.svi.objective, range(self.svi.objective.step, self.svi.objective.step + count)
        if self.schedule is not None:
            self.factors[:count] = torch.tensor([self.schedule(step) for step in steps])
        if callable(objective.kl_weight):
            self.kl_weights[:count] = torch.tensor([float(objective.kl_weight(step)) for step in steps])
        self.slot.zero_()
        self.total.zero_()

    def _run(self, count: int) -> int:
        """Take up to so many steps within one pass over the data; how many were taken."""
        if self.warm < WARM_UP:
            self.warm += 1
            on_side_stream(self._step, self.total.device)
            return 1
        size = BURST if count >= BURST else 1
        if size not in self._launch:
            try:
                self._launch[size] = self.capture(lambda: self._several(size))
            except RuntimeError as error:
                self.failed = True
                reason = str(error).strip().partition("\n")[0][:300]
                warnings.warn(f"ppl_vae: this step can't be captured and goes on eagerly ({reason})", stacklevel=2)
                return 0
        self._launch[size]()
        return size

    def _several(self, count: int) -> None:
        for _ in range(count):
            self._step()

    def _step(self) -> Tensor:
        factor = self.factors.index_select(0, self.slot).squeeze(0)
        if self.schedule is not None:
            for group, rate in zip(self.svi.optim.param_groups, self.rates, strict=True):
                group["lr"].copy_(rate * factor)
        kl_weight = self.kl_weights.index_select(0, self.slot).squeeze(0)
        with self.svi.objective.at_kl_weight(kl_weight):
            self.total += self.svi.advance(*self.batches.gather(self.position))
        self.position += 1
        self.slot += 1
        return self.total
