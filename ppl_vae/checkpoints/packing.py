"""A run's state as what torch's restricted reader gives back exactly, and back."""

import mmap
import sys
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["CheckpointError", "packed", "unpacked"]

FORMAT, VERSION = "ppl_vae checkpoint", 1
DEEPEST = 100  # levels of containers; a state that contains itself has more than any number
LONGEST = 2039  # bits of an int: torch's restricted reader knows those of at most 255 bytes

_SCALARS = (int, float, str, bool, type(None))


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, foreign or unreadable, or can't be written."""


def packed(state: dict[str, Any], step: int) -> dict[str, Any]:
    """What a file holds: the state's values in new containers, tensors without gradient.

    Tensors that fill their storages, together with others of the state or alone, are no copies; other views are, so
    that a file is as large as what is in it.

    Raises:
        CheckpointError: the state holds something that could not be read back exactly without running code.
    """
    if type(state) not in (dict, OrderedDict):
        raise CheckpointError(f"state: got {type(state).__name__}, expected a dict")
    views: dict[Any, dict[Any, Tensor]] = {}

    def plain(value: Any, path: str) -> Any:
        if type(value) not in (Tensor, nn.Parameter):
            return _scalar(value, path, "a tensor, ")
        if value.layout is not torch.strided or value.is_meta or value.is_nested:
            got = f"a tensor of {value.layout} on {value.device}"
            raise CheckpointError(f"{path}: got {got}, expected a dense one that has values; convert it")
        value = value.detach().resolve_conj().resolve_neg()
        views.setdefault(_storage(value), {})[_view(value)] = value
        return value

    values = _each(state, plain)
    for own in views.values():
        size = next(iter(own.values())).untyped_storage().nbytes()
        # torch saves a storage for one dtype alone.
        if size > sum(view.nbytes for view in own.values()) or len({view.dtype for view in own.values()}) > 1:
            own.update({key: view.to("cpu", copy=True) for key, view in own.items()})
    values = _each(values, lambda v, _: views[_storage(v)][_view(v)] if isinstance(v, Tensor) else v)
    return {"format": FORMAT, "version": VERSION, "step": step, "state": values}


def unpacked(path: Path, step: int) -> dict[str, Any]:
    """The state in a file; its tensors are read when they are first touched, and changes to them leave it alone.

    Raises:
        CheckpointError: the file is not a checkpoint, or not one of this version or step.
    """
    # Private, whatever torch was told elsewhere; there is no other way on Windows.
    private = nullcontext if sys.platform == "win32" else torch.serialization.set_default_mmap_options
    try:
        with private(getattr(mmap, "MAP_PRIVATE", 0)):
            found = torch.load(path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise CheckpointError(
            f"checkpoint: {path} is foreign: got a file that can't be read without running code or is no archive "
            f"({reason}), expected a checkpoint"
        ) from error
    expected = {"format": FORMAT, "version": VERSION, "step": step, "state": dict}
    got = type(found)
    if got is dict:
        got = {key: found.get(key) for key in expected} | {"state": type(found.get("state"))}
    if repr(got) != repr(expected):  # True is not 1 here, and tensors have no say in it
        raise CheckpointError(
            f"checkpoint: {path} is foreign, renamed or of another ppl_vae: got {repr(got)[:300]}, expected {expected}"
        )
    return found["state"]


def _each(value: Any, change: Callable[[Any, str], Any], path: str = "state", depth: int = 0) -> Any:
    """New containers of the same kinds, with `change(value, path)` of each value that is none."""
    if depth > DEEPEST:
        raise CheckpointError(
            f"{path[:80]}...: got over {DEEPEST} levels, expected fewer; flatten it, or take out what contains itself"
        )
    if type(value) in (list, tuple):
        return type(value)([_each(v, change, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)])
    if type(value) in (dict, OrderedDict):
        keys = [_scalar(key, f"a key of {path}") for key in value]
        return {key: _each(value[key], change, f"{path}[{key!r}]", depth + 1) for key in keys}
    return change(value, path)


def _scalar(value: Any, path: str, otherwise: str = "") -> Any:
    """The value, if it is a plain one; `otherwise` is what else is expected."""
    bits = value.bit_length() if type(value) is int else 0
    if type(value) not in _SCALARS or bits > LONGEST:
        got = f"int of {bits} bits" if bits else type(value).__name__
        expected = f"expected {otherwise}int of at most {LONGEST} bits, float, str, bool or None"
        raise CheckpointError(f"{path}: got {got}, {expected}; convert it, or leave it out")
    return value


def _storage(tensor: Tensor) -> Any:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _view(tensor: Tensor) -> Any:
    return tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()
