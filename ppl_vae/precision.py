"""Train with products in bfloat16 and everything else in float32.

What costs time in a network are its products and convolutions. They alone are computed in bfloat16, inside of the
modules that hold their weights; what such a module returns is float32 again. So the activations, heads,
distributions and log-probabilities of any pair are float32, and the pair knows nothing of it.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode

__all__ = ["Precision", "precision"]

Precision = Literal["float32", "bf16"]

_MODULES = (nn.Linear, nn.Bilinear, _ConvNd)

_PRODUCTS = {
    F.linear,
    F.bilinear,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
}


@contextmanager
def precision(pair: nn.Module, how: Precision) -> Iterator[None]:
    """Within, the products of a pair are computed in this precision; at the end all is put back.

    With "bf16" inputs, weights and biases of `nn.Linear`, `nn.Bilinear`, convolutions and transposed convolutions
    are rounded to bfloat16 (8 significant bits) and multiplied, and the result is float32 again. The same goes for
    classes derived from these: their other operations stay float32. Recurrent networks, embeddings, attention
    (`nn.MultiheadAttention` multiplies by itself) and calls of `F.linear` outside of these modules stay float32.
    Parameters, gradients and the optimiser's state are float32 throughout.

    A recorded or captured step keeps the precision that it was recorded in: make the `SVI` inside and use it there
    alone. Modules that join the pair inside stay float32, and so do copies made inside. Inside of itself it changes
    nothing.

    Args:
        pair: its modules are changed in place: not to be used by another thread meanwhile.
        how: "float32" leaves everything as it is; "bf16" is meant for GPUs and CPUs that multiply bfloat16
            in hardware; it needs no loss scaling.

    Raises:
        ValueError: an unknown precision, or "bf16" for weights that are not float32.

    Example:
        >>> layer = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(layer.weight, 1 / 3)
        >>> with precision(layer, "bf16"):
        ...     layer(torch.ones(2)).item(), layer(torch.ones(2)).dtype
        (0.66796875, torch.float32)
        >>> round(layer(torch.ones(2)).item(), 6)
        0.666667
    """
    if how not in get_args(Precision):
        raise ValueError(f"precision: got {how!r}, expected one of {get_args(Precision)}")
    if how == "float32":
        yield
        return
    _check_dtypes(pair)
    changed = [module for module in pair.modules() if isinstance(module, _MODULES)]
    before = [vars(m).get("forward") for m in changed]
    try:
        for module in changed:
            module.forward = _InBfloat16(module.forward)
        yield
    finally:
        for module, own in zip(changed, before, strict=True):
            vars(module).pop("forward", None)
            if own is not None:
                module.forward = own


class _InBfloat16:
    """A module's `forward` with its products in bfloat16."""

    def __init__(self, plain: Callable[..., Any]) -> None:
        self.plain = plain

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        with _Rounded():
            return self.plain(*inputs, **options)

    def __reduce__(self) -> tuple[Any, ...]:
        # Nobody puts back a copy's forward: copies, by copy.deepcopy and by pickle, get the plain one.
        return _itself, (self.plain,)


class _Rounded(TorchFunctionMode):
    """Computes products in bfloat16, and makes their results float32 again.

    Not torch.autocast: which operations that rounds depends on the device, and it would leave the result in bfloat16
    to whatever else a derived class does with it.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func not in _PRODUCTS:
            return func(*args, **kwargs)
        return func(*(_rounded(a) for a in args), **{n: _rounded(a) for n, a in kwargs.items()}).float()


def _rounded(value: Any) -> Any:
    return value.bfloat16() if isinstance(value, Tensor) and value.dtype == torch.float32 else value


def _itself(value: Any) -> Any:
    return value


def _check_dtypes(pair: nn.Module) -> None:
    for path, module in pair.named_modules():
        for name, parameter in module.named_parameters(recurse=False) if isinstance(module, _MODULES) else ():
            if parameter.dtype != torch.float32:
                where = f"{path}.{name}" if path else name
                raise ValueError(
                    f"precision: got 'bf16' for {where} of {parameter.dtype}, expected torch.float32, of which bf16 "
                    "is a rounding; convert the pair (pair.float()) or use 'float32', which leaves it as it is"
                )
