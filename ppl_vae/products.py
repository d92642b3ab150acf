"""Matrix products through oneDNN, which is at least as fast on a CPU as the default library, and twice as on some.

The default library (MKL) takes slower paths on processors of other makers; oneDNN does not ask who made them.
"""

import torch
from torch import Tensor, fx

__all__ = ["through_onednn"]

aten = torch.ops.aten

SMALLEST = 1e6
"""Products of fewer multiplications stay where they are: calling costs more than computing."""

# Inductor refuses oneDNN's own operator for weights that change; an operator of our own it calls as it is.
_library = torch.library.Library("ppl_vae", "DEF")
_library.define("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def _linear_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(len(x), len(weight))


_library.impl("linear", _linear, "CPU")
torch.library.register_fake("ppl_vae::linear", _linear_shape, lib=_library)


def through_onednn(graph: fx.GraphModule) -> None:
    """Let the large float32 products of a recorded graph be computed by oneDNN; nothing where torch lacks it."""
    if not torch.backends.mkldnn.is_available():
        return
    for node in list(graph.graph.nodes):
        if node.target in (aten.mm.default, aten.addmm.default) and _is_large(node):
            *bias, x, y = node.args
            with graph.graph.inserting_before(node):
                weight = graph.graph.call_function(aten.t.default, (y,))
                weight.meta["val"] = y.meta["val"].t()
                if not x.meta["val"].is_contiguous():
                    # oneDNN would copy it; Inductor writes it in this order to begin with.
                    x = graph.graph.call_function(aten.clone.default, (x,), {"memory_format": torch.contiguous_format})
                linear = torch.ops.ppl_vae.linear.default
                product = graph.graph.call_function(linear, (x, weight, bias[0] if bias else None))
            product.meta = dict(node.meta)
            node.replace_all_uses_with(product)
            graph.graph.erase_node(node)
    graph.recompile()


def _is_large(node: fx.Node) -> bool:
    *bias, x, y = (argument.meta["val"] for argument in node.args if isinstance(argument, fx.Node))
    is_plain = not node.kwargs and all(b.dim() == 1 for b in bias)
    on_cpu = x.device.type == "cpu" and x.dtype == torch.float32
    return is_plain and on_cpu and x.shape[0] * x.shape[1] * y.shape[1] >= SMALLEST
