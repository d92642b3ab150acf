"""Trace Pyro away: loss and gradients of a pair as one pure function of (parameters, noise, batch), compiled.

`torch.compile` on a Pyro program breaks at every effect handler. Here the handlers run once, under
`make_fx`, which records the tensor operations alone, those of the backward pass with them (so that what an
objective does to its gradients is in the record too); what is compiled is that record.
"""

import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, fx
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.kernels import FASTER
from ppl_vae.objectives import PairLoss

__all__ = ["CompiledBackward", "Recorded", "eager_backward", "loss_state", "record"]

aten = torch.ops.aten

# Samplers that overwrite their tensor argument or read its shape alone. Their draws depend on neither
# parameters nor data, so they are made outside of the graph and passed in: the graph becomes a pure
# function, and eager and compiled losses agree on shared noise. Other samplers stay in the graph.
_LIFTED = {
    aten.normal_.default,
    aten.uniform_.default,
    aten.exponential_.default,
    aten.bernoulli_.float,
    aten.randn_like.default,
    aten.rand_like.default,
}

MAX_SHAPES = 4
"""So many batch shapes are compiled; batches of further shapes go through the eager loss."""


MAX_OPERATIONS = 10_000
"""Longer records, of recurrences in many steps, stay eager: compiling took minutes for 6,000 of them, and gains
little where the operations themselves are what takes time."""


@dataclass(frozen=True)
class Recorded:
    """A pure function: `graph(*state, kl_weight, *batch, *noise)` is (loss, *gradients).

    Args:
        graph: the recorded operations. `state` are the parameters, then the buffers, of the `PairLoss`.
        trained: names of the parameters that get a gradient, in the order of the gradients.
        samplers: draw the noise, one tensor for each random operation lifted out, in program order.
    """

    graph: fx.GraphModule
    trained: Sequence[str]
    samplers: Sequence[Callable[[], Tensor]]

    def noise(self) -> list[Tensor]:
        """Fresh noise from the global random state, drawn in the order in which the eager loss draws it."""
        return [sample() for sample in self.samplers]


def record(loss: PairLoss, *batch: Tensor, faster: Mapping[Any, Callable[..., Any]] = FASTER) -> Recorded:
    """Record loss and gradients for a batch; only its shapes and dtypes matter.

    Args:
        loss: of a pair.
        batch: of the shapes.
        faster: decompositions; an empty table leaves torch's own operations, which `torch.vmap` knows.

    Raises:
        Exception: whatever the tracer refuses: data-dependent control flow, an unknown operation.
    """
    state, wanted = loss_state(loss), [n for n, p in loss.named_parameters() if p.requires_grad]
    size, trained = len(state), []

    def pure(*args: Tensor) -> tuple[Tensor, ...]:
        values = {n: a.detach().requires_grad_(n in wanted) for n, a in zip(state, args[:size], strict=True)}
        with loss.elbo.at_kl_weight(args[size]), torch.enable_grad():
            value = functional_call(loss, values, tuple(args[size + 1 :]))
        gradients = torch.autograd.grad(value, [values[n] for n in wanted], allow_unused=True)
        trained[:] = [n for n, g in zip(wanted, gradients, strict=True) if g is not None]
        return (value.detach(), *(g for g in gradients if g is not None))

    # The plates' nesting is found by a run of its own, which must not end up in the record.
    loss.elbo.prepare(loss.model, loss.guide, *batch)
    kl_weight = torch.ones((), device=_place(batch))
    with pyro.validation_enabled(False), _without_fused_lstm():
        graph = make_fx(pure, decomposition_table=faster, tracing_mode="fake")(*state.values(), kl_weight, *batch)
    return Recorded(graph, trained, _lift_noise(graph))


@contextmanager
def _without_fused_lstm() -> Iterator[None]:
    """Within, an LSTM on a CPU is its steps: oneDNN's operator for all of them can be recorded but not run again."""
    before = torch.backends.mkldnn.enabled
    torch.backends.mkldnn.enabled = False
    try:
        yield
    finally:
        torch.backends.mkldnn.enabled = before


def loss_state(loss: PairLoss) -> dict[str, Tensor]:
    """Parameters, then buffers, by name."""
    return {**dict(loss.named_parameters()), **dict(loss.named_buffers())}


def _places(loss: PairLoss) -> dict[str, tuple[dict[str, Any], str]]:
    """Where each tensor of `loss_state` is kept: to walk through all modules at every step would take longer."""
    places = {}
    for name in loss_state(loss):
        owner, _, own_name = name.rpartition(".")
        module = loss.get_submodule(owner)
        kept = module._parameters if own_name in module._parameters else module._buffers
        places[name] = (kept, own_name)
    return places


def eager_backward(loss: PairLoss, *batch: Any) -> Tensor:
    """Run the loss and its backward pass; the loss without gradient."""
    value = loss(*batch)
    value.backward()
    return value.detach()


class CompiledBackward:
    """`backward(*batch)` sets the gradients and returns the loss, through Inductor, compiled once per batch shape.

    Where recording or compiling fails (data-dependent control flow, an operation that the tracer
    refuses, no C++ compiler), one warning names the site, the line and the reason, and the eager loss
    serves from then on.

    Args:
        loss: the loss of a pair, `objective(pair)`.
    """

    def __init__(self, loss: PairLoss) -> None:
        self.loss = loss
        self.failed = False
        self._places = _places(loss)
        self._compiled: dict[Any, tuple[Recorded, Callable[..., Sequence[Tensor]]]] = {}

    def __call__(self, *batch: Any) -> Tensor:
        """Add to `grad` of the parameters that the loss depends on; the loss, 0-dim, without gradient."""
        key = (self.loss.training, *((b.shape, b.stride(), b.dtype, b.device) for b in batch if isinstance(b, Tensor)))
        if self.failed or (key not in self._compiled and len(self._compiled) >= MAX_SHAPES):
            return eager_backward(self.loss, *batch)
        site = _LastSite()
        try:
            if key not in self._compiled:
                with site:
                    recorded = record(self.loss, *batch)
                _check_length(recorded)
                self._compiled[key] = (recorded, self._compile(recorded, *batch))
            value, *gradients = self._run(*self._compiled[key], *batch)
        except Exception as error:
            self.failed = True
            reason = _reason(error, site.name)
            warnings.warn(f"ppl_vae: this pair can't be compiled and goes on eagerly ({reason})", stacklevel=2)
            return eager_backward(self.loss, *batch)
        for name, gradient in zip(self._compiled[key][0].trained, gradients, strict=True):
            owner, own_name = self._places[name]
            parameter = owner[own_name]
            # As autograd does: added to what is there, in the parameter's layout, which fused optimisers rely on.
            total = gradient if parameter.grad is None else parameter.grad + gradient
            same = total.stride() == parameter.stride()
            parameter.grad = total if same else torch.empty_like(parameter).copy_(total)
        return value

    @torch.no_grad()
    def _compile(self, recorded: Recorded, *batch: Tensor) -> Callable[..., Sequence[Tensor]]:
        from torch._inductor import compile  # not before it is needed: 1 second

        place = _place(batch)
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            examples = self._inputs(recorded, *batch)
        # Not torch.compile, whose guards would look at every input at every step: the key has seen to the batch.
        # Samplers that stay in the graph draw what they draw eagerly.
        return cast(Any, compile)(recorded.graph, examples, options={"fallback_random": True})

    @torch.no_grad()
    def _run(self, recorded: Recorded, graph: Callable[..., Sequence[Tensor]], *batch: Tensor) -> Sequence[Tensor]:
        return graph(*self._inputs(recorded, *batch))

    def _inputs(self, recorded: Recorded, *batch: Tensor) -> list[Tensor]:
        state = [owner[name].detach() for owner, name in self._places.values()]
        dtype, current = torch.get_default_dtype(), self.loss.elbo.current_kl_weight
        kl_weight = torch.as_tensor(current, dtype=dtype, device=_place(batch))
        return [*state, kl_weight, *batch, *recorded.noise()]


class _LastSite(Messenger):
    """Remembers the name of the last sample site that ran inside."""

    name: str | None = None

    def _pyro_sample(self, msg: Any) -> None:
        self.name = msg["name"]


def _check_length(recorded: Recorded) -> None:
    if (length := len(recorded.graph.graph.nodes)) > MAX_OPERATIONS:
        raise RuntimeError(f"{length:,} operations, of at most {MAX_OPERATIONS:,}: compiling them would take too long")


def _reason(error: Exception, site: str | None) -> str:
    """What to say of a failure: its first line, and where in the user's programs it came up."""
    said = str(error).strip().partition("\n")[0][:300]
    text = f"{type(error).__name__}: {said}" if said else type(error).__name__
    lines = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_LIBRARIES)]
    # Recording runs the user's programs; compiling runs none, and then there is no line to name.
    if not lines:
        return text
    after = f", after site {site!r}" if site else ""
    return f"{text}{after} at {Path(lines[-1].filename).name}:{lines[-1].lineno}, `{lines[-1].line}`"


_LIBRARIES = (*(str(Path(str(m.__file__)).parent) for m in (torch, pyro, traceback)), str(Path(__file__).parent), "<")


def _place(batch: Sequence[Any]) -> torch.device:
    return next((b.device for b in batch if isinstance(b, Tensor)), torch.device("cpu"))


def _lift_noise(graph: fx.GraphModule) -> list[Callable[[], Tensor]]:
    """Turn the random operations of the graph into inputs, behind its last one; how to draw each of them."""
    samplers: list[Callable[[], Tensor]] = []
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][-1]
    for node in list(graph.graph.nodes):
        if node.target not in _LIFTED:
            continue
        samplers.append(_sampler(node))
        with graph.graph.inserting_after(last):
            last = graph.graph.placeholder(f"noise_{len(samplers)}")
        last.meta = dict(node.meta)
        node.replace_all_uses_with(last)
        graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return samplers


def _sampler(node: fx.Node) -> Callable[[], Tensor]:
    like, scalars = node.meta["val"], node.args[1:]
    target = cast(Callable[..., Tensor], node.target)

    def sample() -> Tensor:
        return target(torch.empty(tuple(like.shape), dtype=like.dtype, device=like.device), *scalars)

    return sample
