"""A function over tensors that stay where they are, captured in a CUDA graph: one launch replays all its kernels."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["WARM_UP", "Capture", "CapturedUpdate", "cuda_graph", "make_capturable"]

Capture = Callable[[Callable[[], None]], Callable[[], Any]]
"""Turns a function into one that does the same; `cuda_graph`, or the identity where there is no GPU to test on."""

WARM_UP = 3
"""Calls made before a capture: libraries are initialised, and optimisers make their state, at first use."""


def cuda_graph(function: Callable[[], None]) -> Callable[[], Any]:
    """Capture a function on the current device; its result runs the same kernels on the same tensors.

    Random numbers come from the device's default generator and are fresh at each replay.

    Args:
        function: must not synchronise with the host; whatever it decides in Python is decided for ever. It is not
            run by the capture, and must have run `WARM_UP` times before.

    Raises:
        RuntimeError: the function does what can't be captured.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return graph.replay


def on_side_stream(function: Callable[[], Tensor], device: torch.device) -> Tensor:
    """Run outside of the default stream, as a capture's warm-up must."""
    if device.type != "cuda":
        return function()
    side, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
    side.wait_stream(current)
    with torch.cuda.stream(side):
        result = function()
    current.wait_stream(side)
    return result


def make_capturable(optim: torch.optim.Optimizer, device: torch.device) -> None:
    """Let an optimiser run inside a capture: its learning rates become tensors, its step counts move to the device."""
    for group in optim.param_groups:
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device)
        if device.type == "cuda" and "capturable" in group:
            group["capturable"] = True
    for state in optim.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device)


class CapturedUpdate:
    """`update(*batch)` of one batch shape, captured once: batches are copied into tensors that stay.

    Args:
        update: `update(*batch)` takes a gradient step and returns the loss, 0-dim.
        batch: of the shape; the first calls, `WARM_UP` of them, run `update` as it is.
        capture: `cuda_graph`.
    """

    def __init__(self, update: Callable[..., Tensor], *batch: Any, capture: Capture = cuda_graph) -> None:
        self.update, self.capture = update, capture
        self.batch = tuple(b.clone() if isinstance(b, Tensor) else b for b in batch)
        self.loss: Tensor | None = None
        self._calls = 0
        self._replay: Callable[[], Any] | None = None

    def __call__(self, *batch: Any) -> Tensor:
        """Take a step; the loss, which later steps leave as it is."""
        for kept, new in zip(self.batch, batch, strict=True):
            if isinstance(kept, Tensor):
                kept.copy_(new)
        self._calls += 1
        if self._calls <= WARM_UP:
            return on_side_stream(lambda: self.update(*self.batch), _device(self.batch))
        if self._replay is None:
            self._replay = self.capture(self._run)
        self._replay()
        assert self.loss is not None
        return self.loss.clone()

    def _run(self) -> None:
        self.loss = self.update(*self.batch)


def _device(batch: tuple[Any, ...]) -> torch.device:
    return next(b.device for b in batch if isinstance(b, Tensor))
