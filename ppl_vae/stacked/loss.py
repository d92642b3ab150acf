"""The losses of several pairs of one architecture as one function: `torch.vmap` of the recorded loss."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import pyro
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.compile import Recorded, loss_state, record
from ppl_vae.data import Minibatches
from ppl_vae.objectives import PairLoss

__all__ = ["StackedLoss", "Streams", "draw"]

CLOSE = 1e-3
"""Relative difference from the eager loss up to which a stacked loss is the same one, rounded otherwise."""


class Streams:
    """The random streams of S runs on a device: stretches of torch's default generator, each from a seed of its own.

    Args:
        seeds: one for each run.
        device: where the numbers are drawn.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self._default: Any = torch.default_generator
        self._states = [torch.Generator().manual_seed(seed).get_state() for seed in seeds]
        self.generators: list[torch.Generator] = []
        if self.on_cuda:
            index = torch.cuda.current_device() if device.index is None else device.index
            self._default = torch.cuda.default_generators[index]
            # Kept, since a captured step goes on with them.
            self.generators = [self._default.clone_state().manual_seed(seed) for seed in seeds]

    def state(self) -> list[Tensor]:
        """Where each stream stands."""
        return [g.get_state() for g in self.generators] if self.on_cuda else list(self._states)

    def load(self, state: Sequence[Tensor]) -> None:
        """Go on from there."""
        self._states = [value.clone() for value in state]
        for generator, value in zip(self.generators, state, strict=self.on_cuda):
            generator.set_state(value.clone())

    @contextmanager
    def of(self, run: int) -> Iterator[None]:
        """Within, random numbers on the device are those of a run."""
        if self.on_cuda:
            before = self._default.graphsafe_get_state()
            self._default.graphsafe_set_state(self.generators[run])
            try:
                yield
            finally:
                self._default.graphsafe_set_state(before)
        else:
            self._default.set_state(self._states[run])
            yield
            self._states[run] = self._default.get_state()


class StackedLoss:
    """Losses of S pairs at once, and their gradients: the recorded loss of one, mapped over stacked parameters.

    Args:
        modules: `objective(pair)` for each pair, all of one architecture.
        batches: of each run; the first of each is evaluated, but not given out.
        seeds: of the noise of each run.
        inductor: compile what is recorded.

    Attributes:
        state: parameters and buffers by their names in a module, (S, ...) each.
        trained: the parameters that get a gradient.
        recorded: the loss of one pair; its samplers draw the noise.

    Raises:
        ValueError: the loss can't be recorded or mapped, or isn't the same for all pairs.
    """

    def __init__(
        self, modules: Sequence[PairLoss], batches: Sequence[Minibatches], seeds: Sequence[int], *, inductor: bool
    ) -> None:
        self.modules = modules
        states = [loss_state(module) for module in modules]
        self.state = {name: torch.stack([state[name].detach() for state in states]) for name in states[0]}
        device = batches[0].tensors[0].device
        position = torch.zeros(1, dtype=torch.int64, device=device)
        self.recorded = _record(modules[0], *batches[0].gather(position))
        self._inputs = [value.detach() for value in self.state.values()]
        self.trained = [self.state[name].requires_grad_() for name in self.recorded.trained]
        weight = torch.ones((), device=device)
        eager = self._one_by_one(batches, Streams(seeds, device), position, weight)
        drawn = draw(batches, self.recorded, Streams(seeds, device), position)
        self._run = self._map(inductor, weight, *drawn)
        self._check(eager, self(weight, *drawn))

    @torch.no_grad()
    def __call__(self, kl_weight: Tensor, *drawn: Tensor) -> Tensor:
        """Set the gradients; the losses, (S,), in nats.

        Args:
            kl_weight: 0-dim.
            drawn: batches, then noise, (S, ...) each.
        """
        losses, *gradients = self._run(*self._inputs, kl_weight, *drawn)
        for parameter, gradient in zip(self.trained, gradients, strict=True):
            # Adam on a CPU, fused, reads a gradient as if it lay in memory like its parameter.
            parameter.grad = gradient.contiguous()
        return losses

    @torch.no_grad()
    def write(self) -> None:
        """Give each pair its weights."""
        for run, module in enumerate(self.modules):
            for name, value in loss_state(module).items():
                value.copy_(self.state[name][run])

    @torch.no_grad()
    def _map(self, inductor: bool, *examples: Tensor) -> Callable[..., Sequence[Tensor]]:
        where = (*(0 for _ in self.state), None, *(0 for _ in examples[1:]))
        inputs = [*self._inputs, *examples]
        try:
            # Recorded once more: vmap itself would cost more at every step than small operations do.
            graph = make_fx(torch.vmap(self.recorded.graph, where), tracing_mode="fake")(*inputs)
        except Exception as error:
            raise ValueError(f"got a loss that torch.vmap refuses ({_first_line(error)}), {_ALONE}") from error
        if not inductor:
            return graph
        from torch._inductor import compile  # not before it is needed: 1 second

        return cast(Any, compile)(graph, inputs)

    def _one_by_one(self, batches: Sequence[Minibatches], streams: Streams, position: Tensor, weight: Tensor) -> Tensor:
        """The loss of each pair by itself, (S,), on the first batch; supports and shapes are validated."""
        losses = []
        for run, module in enumerate(self.modules):
            with streams.of(run), pyro.validation_enabled(True), module.elbo.at_kl_weight(weight):
                losses.append(module(*batches[run].gather(position)).detach())
        return torch.stack(losses)

    def _check(self, eager: Tensor, stacked: Tensor) -> None:
        """Pairs may differ in what no shape shows, an activation, say; their losses do then."""
        for run, (expected, got) in enumerate(zip(eager.tolist(), stacked.tolist(), strict=True)):
            if math.isfinite(expected) and not abs(got - expected) <= CLOSE * max(1.0, abs(expected)):
                raise ValueError(
                    f"pairs[{run}]: got a loss of {got} from the program of pairs[0], expected {expected}, its "
                    "own; make all pairs with the same arguments"
                )


def draw(batches: Sequence[Minibatches], recorded: Recorded, streams: Streams, position: Tensor) -> list[Tensor]:
    """The batches at a position of the pass and fresh noise, (S, ...) each; each run's from its own stream."""
    drawn = []
    for run, its in enumerate(batches):
        with streams.of(run):
            drawn.append([*its.gather(position), *recorded.noise()])
    return [torch.stack(parts) for parts in zip(*drawn, strict=True)]


def _record(module: PairLoss, *batch: Tensor) -> Recorded:
    """Record the loss of one pair; refuse what can't be mapped over several."""
    try:
        recorded = record(module, *batch, faster={})
    except Exception as error:
        raise ValueError(f"got a loss that can't be recorded ({_first_line(error)}), {_ALONE}") from error
    targets = [node.target for node in recorded.graph.graph.nodes]
    random = [t for t in targets if torch.Tag.nondeterministic_seeded in getattr(t, "tags", ())]
    if random:
        raise ValueError(f"got a loss that draws random numbers by {random[0]}, from parameters or data, {_ALONE}")
    state = loss_state(module)
    tried = {name: value.detach().clone() for name, value in state.items()}
    with torch.no_grad():
        recorded.graph(*tried.values(), torch.ones((), device=batch[0].device), *batch, *recorded.noise())
    changed = [name for name, _ in module.named_buffers() if not torch.equal(tried[name], state[name])]
    if changed:
        raise ValueError(f"got a loss that changes the buffer {_own(changed[0])!r}, {_ALONE}")
    return recorded


_ALONE = "expected one that is a pure function of parameters, batch and noise; train these pairs one by one with fit"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def _own(name: str) -> str:
    """The name of a tensor of a `PairLoss` in its pair."""
    return name.split(".", 2)[-1]
