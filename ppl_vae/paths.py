"""How gradients reach the guide's parameters: through the samples, through log q, or both.

full   both, as automatic differentiation has it.
path   through the samples alone: log q is scored with its parameters held constant. An objective may
       weight the gradient of each particle's samples once the weights are known.
score  through log q alone: the samples are constants.
split  both, with a weight on the gradient that reaches the samples from the model alone.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppl_vae.sites import is_subsample

__all__ = ["Gradient", "PathWeight", "constant", "frozen_guide", "with_values"]

Gradient = Literal["full", "path", "score", "split"]


class PathWeight:
    """Factor on the gradient that flows back through the samples of each particle; 1 until it is set."""

    def __init__(self) -> None:
        self.weight: Tensor | None = None
        self.dims: tuple[int, ...] = ()

    def set(self, weight: Tensor, *dims: int | None) -> None:
        """Let the weight, one number for each particle and datum, stand along these batch dimensions of a sample."""
        self.weight, self.dims = weight, tuple(d for d in dims if d is not None)

    def on(self, value: Tensor, event_dim: int) -> Tensor:
        """The same value, whose gradient will be multiplied by the weight."""
        return _Weighted.apply(value, self, event_dim)  # pyright: ignore[reportReturnType]


class _Weighted(torch.autograd.Function):
    """Identity whose backward pass multiplies by a weight that is known only after the forward pass."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, path: PathWeight, event_dim: int) -> Tensor:
        ctx.path, ctx.event_dim = path, event_dim
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        if ctx.path.weight is None:
            return gradient, None, None
        shape = [1] * gradient.dim()
        for dim in ctx.path.dims:
            shape[dim - ctx.event_dim] = gradient.shape[dim - ctx.event_dim]
        return gradient * ctx.path.weight.reshape(shape), None, None


def with_values(trace: Trace, change: Callable[[Tensor, int], Tensor]) -> Trace:
    """A trace to replay: each latent value is `change(value, event_dim)`; the plates' subsamples are kept."""
    changed, nodes = Trace(), dict[str, Any](trace.nodes)
    for name, node in nodes.items():
        if node["type"] == "sample" and not node["is_observed"]:
            value = node["value"] if is_subsample(node) else change(node["value"], node["fn"].event_dim)
            changed.add_node(name, **{**node, "value": value})
    return changed


def constant(value: Tensor, event_dim: int) -> Tensor:
    """The value without its history."""
    return value.detach()


@contextmanager
def frozen_guide(guide: Callable[..., Any]) -> Iterator[None]:
    """Within, the parameters of the module that a guide belongs to are constants.

    Raises:
        ValueError: the guide is a function without a module, so that its parameters are not known.
    """
    owner = getattr(guide, "__self__", None)
    if not isinstance(owner, nn.Module):
        raise ValueError(
            f"guide: got {type(guide).__name__} {getattr(guide, '__name__', '')!r}, expected a method of a Pair: its "
            "parameters must be known to hold them constant. Pass pair.model and pair.guide."
        )
    trained = [p for p in owner.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
