"""Gradient steps in a row: what `fit` repeats between two points of the learning curve."""

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from ppl_vae.capture import WARM_UP, Capture, cuda_graph, make_capturable, on_side_stream
from ppl_vae.data import LoadedMinibatches, Minibatches
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.optimisers import set_rates
from ppl_vae.svi import SVI

__all__ = ["CapturedSteps", "Steps"]

B = TypeVar("B", bound=Minibatches | LoadedMinibatches)
Rate = Callable[[int], float]

BURST = 10
"""Steps of one launch."""

NAMED = 5
"""Skipped steps that are explained, each in a warning; further ones are counted."""


def never() -> bool:
    return False


class Steps(Generic[B]):
    """Takes steps on minibatches, one after the other.

    Args:
        svi: takes a step on a batch.
        batches: without end.
        schedule: from the step to a factor on the optimiser's learning rates.
        after: called after each step (and captured with it).
        around: makes what each step is taken in, its batch drawn too; not of captured steps.

    Attributes:
        total: the sum of the losses since the last `collect`, 0-dim, in nats; steps left out count as 0.
    """

    def __init__(
        self,
        svi: SVI,
        batches: B,
        schedule: Rate | None = None,
        after: Callable[[], None] | None = None,
        around: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.svi, self.batches, self.schedule, self.after, self.around = svi, batches, schedule, after, around
        self.rates = [float(group["lr"]) for group in svi.optim.param_groups]
        self.total = torch.zeros((), device=batches.device)
        self._rows: tuple[Tensor, ...] = ()
        self._explained = 0
        svi.on_skip = self._warn

    def take(self, count: int, until: Callable[[], bool] = never) -> int:
        """Take so many steps, or fewer: `until` is asked after each. How many were taken.

        Raises:
            NonFiniteError: see `SVI.update`; names the batch's rows.
        """
        for taken in range(1, count + 1):
            self._set_rate()
            with self.around():
                loss = self._update()
            self._count(loss)
            if until():
                return taken
        return count

    def _update(self) -> Tensor:
        batch = self.batches.next()
        assert self.batches.indices is not None
        # A gradient that overflows is noticed one step later: keep the rows of two steps.
        self._rows = (*self._rows[-1:], self.batches.indices.clone())
        try:
            return self.svi.update(*batch)
        except NonFiniteError as error:
            raise NonFiniteError(f"{error} {self._where()}") from None

    def collect(self) -> float:
        """The sum of the losses since the last call, in nats.

        Raises:
            NonFiniteError: it is NaN or infinite; names the site in the last batch.
        """
        total = self.total.item()
        if not math.isfinite(total):
            self.svi.refuse(self.total, *self.batches.again())
        self.total.zero_()
        return total

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly here, but for the pair's weights and the random stream."""
        return {
            "optimiser": self.svi.optimiser_state(),
            "objective": self.svi.objective.state_dict(self.svi.pair),
            "batches": self.batches.state_dict(),
            "rates": list(self.rates),
            "total": self.total.clone(),
            "skipped": self.svi.skipped.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the source of `state` stood.

        Raises:
            ValueError: it had another optimiser, another number of data or another batch size.
        """
        self.batches.load_state_dict(state["batches"])
        self.svi.load_optimiser(state["optimiser"])
        self.svi.objective.load_state_dict(state["objective"], self.svi.pair)
        self.rates = list(state["rates"])
        self.total.copy_(state["total"])
        self.svi.skipped.copy_(state["skipped"])

    def _count(self, loss: Tensor) -> None:
        """Add to the sum of the losses, and call what is to be called after a step."""
        if self.svi.on_nonfinite == "skip":
            loss = torch.where(loss.isfinite(), loss, 0.0)
        self.total += loss
        if self.after is not None:
            self.after()

    def _set_rate(self) -> None:
        if self.schedule is not None:
            set_rates(self.svi.optim, self.rates, self.schedule(self.svi.objective.step))

    def _warn(self, explanation: str) -> None:
        self._explained += 1
        if self._explained <= NAMED:
            last = " Further ones are counted." if self._explained == NAMED else ""
            warnings.warn(f"ppl_vae: skipped {explanation} {self._where()}{last}", stacklevel=2)

    def _where(self) -> str:
        *before, last = (f"{rows[:10].tolist()}{' ...' if len(rows) > 10 else ''}" for rows in self._rows)
        return f"Rows of the batch: {last}" + (f"; of the one before: {before[0]}." if before else ".")


class CapturedSteps(Steps[Minibatches]):
    """The same steps as a CUDA graph: drawing the batch, the gradient, the optimiser and the sum of the losses.

    Several steps are one launch, and nothing waits for the device: learning rates and KL weights of the steps to
    come are put into tables there, and each step takes its own by a counter that it then moves on.

    Args:
        svi, batches, schedule, after: as for `Steps`; all tensors on one device.
        longest: the most steps that `take` is asked for.
        capture: `cuda_graph`.
    """

    def __init__(
        self,
        svi: SVI,
        batches: Minibatches,
        schedule: Rate | None = None,
        after: Callable[[], None] | None = None,
        *,
        longest: int,
        capture: Capture = cuda_graph,
    ) -> None:
        super().__init__(svi, batches, schedule, after)
        device = batches.device
        make_capturable(svi.optim, device)
        self.capture, self.failed, self.warm = capture, False, 0
        self.position, self.slot = (torch.zeros(1, dtype=torch.int64, device=device) for _ in range(2))
        self.factors, self.kl_weights = torch.ones(2, longest, device=device)
        self._launch: dict[int, Callable[[], Any]] = {}

    def take(self, count: int, until: Callable[[], bool] = never) -> int:
        """Take so many steps, or fewer: `until` is asked after each launch. How many were taken."""
        self._prepare(count)
        taken = 0
        while taken < count and not self.failed:
            if self.batches.left == 0:
                self.batches.new_pass()
                self.position.zero_()
            done = self._run(min(count - taken, self.batches.left))
            self.batches.skip(done)
            self.svi.objective.step += done
            taken += done
            if done and until():
                return taken
        return taken + (super().take(count - taken, until) if taken < count else 0)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the source of `state` stood; raises as `Steps.load_state_dict`."""
        super().load_state_dict(state)
        make_capturable(self.svi.optim, self.total.device)

    def _prepare(self, count: int) -> None:
        """Fill the tables for the steps to come and set the counters."""
        objective, steps = self.svi.objective, range(self.svi.objective.step, self.svi.objective.step + count)
        if self.schedule is not None:
            self.factors[:count] = torch.tensor([self.schedule(step) for step in steps])
        if callable(objective.kl_weight):
            self.kl_weights[:count] = torch.tensor([float(objective.kl_weight(step)) for step in steps])
        self.slot.zero_()
        self.position.fill_(self.batches.position)

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
            set_rates(self.svi.optim, self.rates, factor)
        kl_weight = self.kl_weights.index_select(0, self.slot).squeeze(0)
        with self.svi.objective.at_kl_weight(kl_weight):
            self._count(self.svi.advance(*self.batches.gather(self.position)))
        self.position += 1
        self.slot += 1
        return self.total
