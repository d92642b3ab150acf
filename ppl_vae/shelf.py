"""Many small results, kept where they don't break up the memory that the work between them needs."""

from typing import Any, Generic, TypeVar, cast

from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

__all__ = ["Shelf"]

R = TypeVar("R")


class Shelf(Generic[R]):
    """Results of one structure, one after the other; their tensors are copied into a few large ones.

    A small tensor that outlives the work it came from lies in the middle of the memory which that work gives back, and
    the next large tensor finds no room there: with five of them for each of 10,000 data an evaluation that needs 0.3 GB
    took more than 20.

    Args:
        number: of results, at most.

    Example:
        >>> import torch
        >>> shelf = Shelf(2)
        >>> shelf.put({"x": torch.ones(2)}), shelf.put({"x": torch.zeros(2)})
        (None, None)
        >>> shelf.all()
        [{'x': tensor([1., 1.])}, {'x': tensor([0., 0.])}]
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self._tensors: dict[int, Tensor] = {}
        self._others: list[dict[int, Any]] = []
        """Of each result what is not in those, by its place: no tensors, or of another shape."""
        self._spec: TreeSpec | None = None

    def put(self, result: R) -> None:
        """Keep one more."""
        leaves, spec = tree_flatten(result)
        if self._spec is None:
            self._spec = spec
            self._tensors = {i: x.new_empty(self.number, *x.shape) for i, x in enumerate(leaves) if _is_plain(x)}
        assert spec == self._spec
        row, others = len(self._others), {}
        for i, leaf in enumerate(leaves):
            if i in self._tensors and _is_plain(leaf) and leaf.shape == self._tensors[i].shape[1:]:
                self._tensors[i][row] = leaf
            else:
                others[i] = leaf
        self._others.append(others)

    def all(self) -> list[R]:
        """All of them, their tensors views of the large ones."""
        if (spec := self._spec) is None:
            return []
        return [cast(R, tree_unflatten(self._leaves(row), spec)) for row in range(len(self._others))]

    def _leaves(self, row: int) -> list[Any]:
        kept = {i: x[row] for i, x in self._tensors.items()} | self._others[row]
        return [kept[i] for i in range(len(kept))]


def _is_plain(x: Any) -> bool:
    return isinstance(x, Tensor) and not x.requires_grad
