"""What the guide has computed of the model need not be computed again by the model."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["Rollout"]

T = TypeVar("T")


class Rollout:
    """Hands the model's states, which a guide has followed step by step, to the model that runs after it.

    A guide that looks at what the model has painted so far (DRAW) runs the model's recurrence; the model, replayed
    with the guide's samples, would run it once more: the same function of the same tensors. A result is handed over
    where its arguments are the *same objects*, unchanged since, under the same parameters, and gradients are recorded.
    (Where they are not, as in an evaluation, keeping all states would cost more memory than it saves time.) Whatever
    differs, a detached sample, frozen parameters, another batch, is computed anew. Each result is handed over once,
    so that nothing is kept for long, and none is copied or saved with a module.

    Example:
        >>> rollout, z, linear = Rollout(), torch.zeros(3), nn.Linear(1, 1)
        >>> for program in ("guide", "model", "model"):
        ...     rollout.begin(linear, keep=program == "guide")
        ...     _ = rollout.once("step 1", (z,), lambda: print(program, "computes"))
        guide computes
        model computes
    """

    def __init__(self) -> None:
        self._keeps = False
        self._conditions: tuple[Any, ...] = ()
        self._kept: dict[str, tuple[tuple[Any, ...], Any]] = {}

    def begin(self, module: nn.Module, *, keep: bool) -> None:
        """A program begins.

        Args:
            module: whose parameters its steps use.
            keep: it is the guide, which keeps results; otherwise the model, which takes them.
        """
        states = ((p, p._version, p.requires_grad) for p in module.parameters())
        conditions = (torch.is_grad_enabled(), module.training, *(value for state in states for value in state))
        if keep or not _same(conditions, self._conditions):
            self._kept = {}
        self._conditions, self._keeps = conditions, keep and torch.is_grad_enabled()

    def once(self, name: str, inputs: tuple[Any, ...], compute: Callable[[], T]) -> T:
        """compute(), or what the guide was given under this name for these very inputs (tensors, or such results)."""
        inputs = tuple(part for x in inputs for part in (x, x._version if isinstance(x, torch.Tensor) else 0))
        before = self._kept.pop(name, None)
        if not self._keeps and before is not None and _same(before[0], inputs):
            return before[1]
        result = compute()
        if self._keeps:
            self._kept[name] = (inputs, result)
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "Rollout":
        return Rollout()

    def __reduce__(self) -> tuple[type["Rollout"], tuple[()]]:
        return Rollout, ()


def _same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(x is y or (isinstance(x, int) and x == y) for x, y in zip(a, b, strict=True))
