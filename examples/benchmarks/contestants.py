"""Who is timed: each contestant makes, from a task, a function that takes one training step.

A step: next batch (in memory already), zero gradients, loss on fresh noise, backward, Adam at 1e-3. It returns the
loss summed over the batch, maybe still on its way. All start from the same weights and see the same batches.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import pyro
import pyro.infer
import torch
from pyro.optim import PyroOptim
from torch import Tensor
from workloads import Hand, Task, UnavailableError

from ppl_vae import SVI
from ppl_vae.denormals import set_on_pool

MODES = {"cpu": ("off", "inductor"), "cuda": ("off", "inductor", "cudagraph")}
"""The ways in which `ppl_vae.SVI` compiles, on each kind of device."""

Step = Callable[[], Any]
_names = itertools.count()


def stock(task: Task, *, jit: bool = False, validate: bool = True, flush: bool = True) -> Step:
    """Pyro's own SVI, ELBO and Adam, in its tutorial's way: the model registers the decoder, the guide the encoder.

    Pyro's defaults, as users run it: they validate every sample site at every step; `validate=False` turns that off.
    `flush=False` computes with denormal numbers, as a process does by default (0.1 ms of a step go into changing it).
    """
    pair, elbo, name = task.pair(), _stock_elbo(task.workload.k, jit), next(_names)
    above = {f"{name}.{n}": m for n, m in pair.named_children() if n in ("decoder", "down")}
    below = {f"{name}.{n}": m for n, m in pair.named_children() if n in ("encoder", "up")}

    def model(x: Tensor) -> None:
        for key, module in above.items():
            pyro.module(key, module)
        pair.model(x)

    def guide(x: Tensor) -> None:
        for key, module in below.items():
            pyro.module(key, module)
        pair.guide(x)

    adam = PyroOptim(torch.optim.Adam, {"lr": task.learning_rate})  # what pyro.optim.Adam is
    svi = pyro.infer.SVI(model, guide, adam, elbo)
    batches = _cycle(task)

    def step() -> Any:
        with pyro.validation_enabled(validate), nullcontext() if flush else denormals():
            return svi.step(next(batches))

    return step


@contextmanager
def denormals() -> Iterator[None]:
    """Within, denormal numbers are computed with, on all threads."""
    set_on_pool(False)
    try:
        yield
    finally:
        set_on_pool(True)


def _stock_elbo(k: int, jit: bool) -> pyro.infer.ELBO:
    if k == 1:
        return pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True) if jit else pyro.infer.Trace_ELBO()
    if jit:
        raise UnavailableError("Pyro compiles no RenyiELBO: k = 1 alone")
    return pyro.infer.RenyiELBO(alpha=0, num_particles=k, max_plate_nesting=1, vectorize_particles=True)


def hand(task: Task, *, compile: bool = False) -> Step:
    """Hand-written PyTorch with one fused Adam, eager, or with its loss through `torch.compile`."""
    model, batches = task.hand(), _cycle(task)
    optim = torch.optim.Adam(model.parameters(), lr=task.learning_rate, fused=True)
    loss = torch.compile(model.loss, dynamic=False) if compile else model.loss
    return lambda: _torch_step(loss, optim, next(batches))


def hand_cudagraph(task: Task) -> Step:
    """The hand-written step, optimiser included, captured once in a CUDA graph; a step copies its batch and replays."""
    if task.device.type != "cuda":
        raise UnavailableError("needs CUDA")
    model, batches = task.hand(), _cycle(task)
    optim = torch.optim.Adam(model.parameters(), lr=task.learning_rate, fused=True, capturable=True)
    x = next(batches).clone()
    _before_capture(model, optim, x)
    graph = torch.cuda.CUDAGraph()
    optim.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss = model.loss(x)
        loss.backward()
        optim.step()

    def step() -> Tensor:
        x.copy_(next(batches))
        graph.replay()
        return loss.detach()

    return step


def _before_capture(model: Hand, optim: torch.optim.Optimizer, x: Tensor) -> None:
    """Some steps on another stream, as CUDA graphs ask for."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            _torch_step(model.loss, optim, x)
    torch.cuda.current_stream().wait_stream(stream)


def _torch_step(loss_of: Callable[[Tensor], Tensor], optim: torch.optim.Optimizer, x: Tensor) -> Tensor:
    optim.zero_grad(set_to_none=True)
    loss = loss_of(x)
    loss.backward()
    optim.step()
    return loss.detach()


def with_numpyro(task: Task) -> Step:
    """NumPyro's SVI, its update jitted; weights, layers and batches are those of the others."""
    try:
        import numpyro_rival
    except ImportError as error:
        raise UnavailableError(f"not installed ({error})") from error
    return numpyro_rival.make(task)


def ours(task: Task, *, mode: Any) -> Step:
    """`ppl_vae.SVI.update` with one fused Adam."""
    pair, batches = task.pair(), _cycle(task)
    optim = torch.optim.Adam(pair.parameters(), lr=task.learning_rate, fused=True)
    svi = SVI(pair, optim, task.workload.objective(), compile=mode)
    return lambda: svi.update(next(batches))


def _cycle(task: Task) -> Iterator[Tensor]:
    return itertools.cycle(task.batches.unbind())


def contestants(device: str) -> dict[str, Callable[[Task], Step]]:
    """All of them, by name, for a kind of device."""
    return {
        "stock": stock,
        "stock-denormals": partial(stock, flush=False),
        "stock-no-validation": partial(stock, validate=False),
        "stock-jit": partial(stock, jit=True),
        "hand": hand,
        "hand-compile": partial(hand, compile=True),
        "hand-cudagraph": hand_cudagraph,
        "numpyro": with_numpyro,
        **{f"ours-{mode}": partial(ours, mode=mode) for mode in MODES[device]},
    }
