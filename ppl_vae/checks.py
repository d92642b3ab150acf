"""`check_batch`: refuse a batch that a pair could only misread, before any work is done on it."""

import inspect
from typing import Any

import torch
from torch import Tensor

from ppl_vae.pair import Pair

__all__ = ["check_batch"]


def check_batch(pair: Pair, *batch: Any) -> None:
    """Check the tensors of a batch against each other and against the pair's parameters.

    Integer tensors pass (labels, tokens, counts), but for a uint8 first one: those are images as they
    are stored. A pair without floating-point parameters takes any dtype and device.

    Args:
        pair: its parameters say which dtypes and which device to expect.
        batch: the arguments of `pair.model`; each tensor is (N, ...), or 0-dimensional.

    Raises:
        ValueError: no tensor, no rows, or unequal numbers of rows; other arguments than `pair.model` takes; a
            non-finite value; a floating dtype that no parameter has; uint8 pixels; another device.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> check_batch(VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8, dtype=torch.uint8))
        Traceback (most recent call last):
        ValueError: batch[0]: got torch.uint8, expected torch.float32 as the pair's parameters; convert: x.float() / 255
    """
    tensors = {i: b for i, b in enumerate(batch) if isinstance(b, Tensor)}
    _check_rows(batch, tensors)
    _check_arguments(pair, batch)
    parameters = [p for p in pair.parameters() if p.is_floating_point()]
    if parameters:
        first = min(tensors)
        _check_pixels(f"batch[{first}]", tensors[first], parameters[0].dtype)
        for i, value in tensors.items():
            _check_place(f"batch[{i}]", value, {p.dtype for p in parameters}, parameters[0].device)
    for i, value in tensors.items():
        _check_finite(f"batch[{i}]", value)


def _check_rows(batch: tuple[Any, ...], tensors: dict[int, Tensor]) -> None:
    rows = {i: len(b) for i, b in tensors.items() if b.dim()}
    if not rows:
        kinds = ", ".join(type(b).__name__ for b in batch) or "nothing"
        raise ValueError(f"batch: got {kinds}, expected at least one tensor of shape (N, ...); pass the data")
    if 0 in rows.values():
        raise ValueError("batch: got 0 rows, expected at least 1; check how the data were cut")
    if len(set(rows.values())) > 1:
        raise ValueError(
            f"batch: got tensors of {', '.join(map(str, rows.values()))} rows, expected one number; cut them alike, "
            "and keep what is not per datum in the pair (register_buffer)"
        )


def _check_arguments(pair: Pair, batch: tuple[Any, ...]) -> None:
    taken = inspect.signature(pair.model)
    try:
        taken.bind(*batch)
    except TypeError:
        names = [p.replace(annotation=p.empty) for p in taken.parameters.values()]
        raise ValueError(
            f"batch: got {len(batch)} argument{'s' if len(batch) > 1 else ''}, expected those of "
            f"{type(pair).__name__}.model{inspect.Signature(names)}; pass data that have them"
        ) from None


def _check_pixels(name: str, value: Tensor, dtype: torch.dtype) -> None:
    # Networks take floats and index tensors are int64: bytes are neither, but images are kept in them.
    if value.dtype == torch.uint8:
        raise ValueError(
            f"{name}: got torch.uint8, expected {dtype} as the pair's parameters; convert: x.float() / 255"
        )


def _check_place(name: str, value: Tensor, dtypes: set[torch.dtype], device: torch.device) -> None:
    if value.is_floating_point() and value.dtype not in dtypes:
        expected = " or ".join(sorted(map(str, dtypes)))
        raise ValueError(
            f"{name}: got {value.dtype}, expected {expected} as the pair's parameters; convert the batch "
            f"(x.to({expected})) or the pair (pair.to({value.dtype}))"
        )
    if value.dim() and value.device != device:
        raise ValueError(
            f"{name}: got a tensor on {value.device}, expected {device} as the pair's parameters; move the batch: "
            f"x.to({str(device)!r})"
        )


def _check_finite(name: str, value: Tensor) -> None:
    if not value.is_floating_point() or bool(value.isfinite().all()):
        return
    bad = ~value.isfinite()
    rows = bad.flatten(1).any(1).sum() if value.dim() > 1 else bad.sum()
    raise ValueError(
        f"{name}: got {int(bad.sum())} non-finite values (NaN or infinity) in {int(rows)} rows, expected finite "
        "numbers; drop these rows, or fill them in and mask them in the model"
    )
