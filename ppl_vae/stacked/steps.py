"""Gradient steps of several runs at once."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from ppl_vae.capture import WARM_UP, make_capturable, on_side_stream
from ppl_vae.data import Minibatches
from ppl_vae.nonfinite import NonFiniteError, explain
from ppl_vae.optimisers import load_state, set_rates, state_of
from ppl_vae.stacked.loss import StackedLoss, Streams, draw

__all__ = ["StackedSteps"]


class StackedSteps:
    """Takes steps of S runs at once, within `private_stream`.

    Args:
        loss: of all runs.
        batches: of each run, of equal sizes.
        seeds: of the noise of each run.
        optim: over `loss.trained`.
        schedule: from the step to a factor on the learning rates.
        capture: on CUDA, launch each step as one graph.

    Attributes:
        total: the sums of the losses since the last `collect`, (S,), in nats.
    """

    def __init__(
        self,
        loss: StackedLoss,
        batches: Sequence[Minibatches],
        seeds: Sequence[int],
        optim: torch.optim.Optimizer,
        schedule: Callable[[int], float] | None = None,
        *,
        capture: bool = False,
    ) -> None:
        self.loss, self.batches, self.seeds, self.optim, self.schedule = loss, batches, seeds, optim, schedule
        self.objective = loss.modules[0].elbo
        self.rates = [float(group["lr"]) for group in optim.param_groups]
        device = batches[0].tensors[0].device
        self.streams = Streams(seeds, device)
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.kl_weight = torch.ones((), device=device)
        self.total = torch.zeros(len(seeds), device=device)
        self._capture, self._warm = capture and device.type == "cuda", 0
        self._replay: Callable[[], Any] | None = None
        if self._capture:
            make_capturable(optim, device)

    def take(self) -> None:
        """Take one step.

        Raises:
            NonFiniteError: on a CPU, before the parameters change, if a loss is NaN or infinite.
        """
        if self.batches[0].left == 0:
            for batches in self.batches:
                batches.new_pass()
        self.position.fill_(self.batches[0].position)
        self.kl_weight.fill_(float(self.objective.current_kl_weight))
        self._set_rate()
        self._launch()
        for batches in self.batches:
            batches.skip(1)
        self.objective.step += 1

    def collect(self) -> list[float]:
        """The sums of the losses since the last call, in nats.

        Raises:
            NonFiniteError: one is NaN or infinite.
        """
        if not self.total.isfinite().all():
            self._refuse(self.total)
        totals = self.total.tolist()
        self.total.zero_()
        return totals

    def norms(self) -> list[float]:
        """The norm of each run's last gradient."""
        parts = [p.grad.reshape(len(p), -1).norm(dim=1) for p in self.loss.trained if p.grad is not None]
        return torch.stack(parts).norm(dim=0).tolist()

    def check_weights(self) -> None:
        """Keep out of a checkpoint what an overflowing gradient has spoilt, which the next loss would show.

        Raises:
            NonFiniteError: a weight is NaN or infinite.
        """
        spoilt = torch.stack([~p.reshape(len(p), -1).isfinite().all(1) for p in self.loss.trained]).any(0)
        if spoilt.any():
            self._refuse(torch.where(spoilt, math.nan, 0.0))

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly here."""
        return {
            "tensors": {name: value.detach() for name, value in self.loss.state.items()},
            "optimiser": state_of(self.optim),
            "step": self.objective.step,
            "batches": [batches.state_dict() for batches in self.batches],
            "streams": self.streams.state(),
            "rates": list(self.rates),
            "total": self.total.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the source of `state` stood.

        Raises:
            ValueError: it had other pairs, another optimiser, another number of data or another batch size.
        """
        got, expected = ({n: tuple(v.shape) for n, v in s.items()} for s in (state["tensors"], self.loss.state))
        if got != expected:
            raise ValueError(f"resume: got a checkpoint of tensors {got}, expected {expected}; use pairs like those")
        for batches, before in zip(self.batches, state["batches"], strict=True):
            batches.load_state_dict(before)
        load_state(self.optim, state["optimiser"], self.total.device)
        if self._capture:
            make_capturable(self.optim, self.total.device)
        with torch.no_grad():
            for name, value in self.loss.state.items():
                value.copy_(state["tensors"][name])
        self.objective.step, self.rates = state["step"], list(state["rates"])
        self.streams.load(state["streams"])
        self.total.copy_(state["total"])

    def _launch(self) -> None:
        if self._capture and self._warm < WARM_UP:
            self._warm += 1
            on_side_stream(self._step, self.total.device)
            return
        if self._capture and self._replay is None:
            try:
                self._replay = self._captured()
            except RuntimeError as error:
                self._capture = False
                reason = str(error).strip().partition("\n")[0][:300]
                warnings.warn(f"ppl_vae: this step can't be captured and goes on eagerly ({reason})", stacklevel=2)
        (self._replay or self._step)()

    def _captured(self) -> Callable[[], Any]:
        """One launch for the whole step, as `cuda_graph`, but for the random streams of the runs."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.streams.generators:
            cast(Any, graph).register_generator_state(generator)
        with torch.cuda.graph(graph):
            self._step()
        return graph.replay

    def _step(self) -> Tensor:
        losses = self.loss(self.kl_weight, *draw(self.batches, self.loss.recorded, self.streams, self.position))
        # On a CPU the values are at hand; elsewhere reading them would wait for the device at every step.
        if losses.device.type == "cpu" and not losses.isfinite().all():
            self._refuse(losses)
        self.optim.step()
        self.total += losses
        return losses

    def _set_rate(self) -> None:
        if self.schedule is not None:
            set_rates(self.optim, self.rates, self.schedule(self.objective.step))

    def _refuse(self, losses: Tensor) -> NoReturn:
        run = int((~losses.isfinite()).nonzero()[0])
        self.loss.write()
        cause = explain(self.loss.modules[run], *self.batches[run].gather(self.position))
        raise NonFiniteError(
            f"step {self.objective.step}, pairs[{run}], seed {self.seeds[run]}: got a loss of {losses[run].item()}, "
            f"expected a finite number; {cause}. Try a smaller learning rate, a softplus scale with a floor, or "
            "bounded inputs."
        )
