"""Endless minibatches of tensors that already live where the training does."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor


class Minibatches:
    """Shuffled minibatches without end, by `index_select` on the device of the data.

    Data sets of this library fit into memory, so no worker processes: one permutation a pass is drawn on the
    CPU (the same for every device), moved once, and each batch is one gather. The incomplete last batch of a
    pass is dropped, so shapes never change (compiled steps rely on it); the next pass leaves out others.

    Args:
        tensors: of one length N and on one device, each (N, ...).
        batch_size: B, at most N.
        seed: of the order of the data.
        transform: maps the batch of the first tensor, (B, ...) -> (B, ...), e.g. `dataset.draw`.
        part: (r, n): each batch is the r-th of n equal parts of the batch of B rows, the same for all r.

    Attributes:
        steps_per_pass: N // B.
        indices: rows of the last batch (part), (B / n,) int64 on the device; None before the first.

    Raises:
        ValueError: no tensors, different lengths or devices, a batch size below 1, above N or no multiple of n.

    Example:
        >>> batches = Minibatches((torch.arange(6.0),), batch_size=2, seed=0)
        >>> sorted(torch.cat([batches.next()[0] for _ in range(batches.steps_per_pass)]).tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(
        self,
        tensors: tuple[Tensor, ...],
        batch_size: int,
        seed: int = 0,
        transform: Callable[[Tensor], Tensor] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        _check(tensors, batch_size, part)
        self.tensors = tensors
        self.batch_size = batch_size
        self.transform = transform
        self.steps_per_pass = len(tensors[0]) // batch_size
        self.indices: Tensor | None = None
        self._generator = torch.Generator().manual_seed(seed)
        self._epoch = 0
        device = tensors[0].device
        # One tensor for all passes: a captured step reads where it was captured.
        self._order = torch.empty(len(tensors[0]), dtype=torch.int64, device=device)
        index, number = part
        self._rows = torch.arange(batch_size, device=device).chunk(number)[index]
        self._first = index * (batch_size // number)
        self._shuffle()

    def _shuffle(self) -> None:
        self._start_of_pass = self._generator.get_state()  # enough to draw this permutation again
        self._order.copy_(torch.randperm(len(self.tensors[0]), generator=self._generator))
        self._position = 0  # batches of this pass already given out

    def next(self) -> tuple[Tensor, ...]:
        """The next batch, each tensor (B, ...), the first through `transform`."""
        if self.left == 0:
            self.new_pass()
        self._position += 1
        return self.again()

    @property
    def left(self) -> int:
        """Batches of this pass that are still to come."""
        return self.steps_per_pass - self._position

    @property
    def position(self) -> int:
        """Batches of this pass already given out."""
        return self._position

    def new_pass(self) -> None:
        """Shuffle the data anew and begin with the first batch."""
        self._epoch += 1
        self._shuffle()

    def gather(self, position: Tensor) -> tuple[Tensor, ...]:
        """The batch at a position of this pass, (1,) int64 on the device; the count of batches stays as it is.

        For a captured step, which finds its place by a tensor; `skip` keeps the count.
        """
        return self._gather(self._order.index_select(0, position * self.batch_size + self._rows))

    def skip(self, count: int) -> None:
        """Count so many batches of this pass as given out."""
        self._position += count

    def again(self) -> tuple[Tensor, ...]:
        """The rows of the last batch once more, through a fresh `transform`."""
        start = (self._position - 1) * self.batch_size + self._first
        return self._gather(self._order[start : start + len(self._rows)])

    def _gather(self, indices: Tensor) -> tuple[Tensor, ...]:
        self.indices = indices
        first, *others = (x.index_select(0, indices) for x in self.tensors)
        return (first if self.transform is None else self.transform(first), *others)

    def __next__(self) -> tuple[Tensor, ...]:
        return self.next()

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly where this stands, but for the random stream of `transform`."""
        return {
            "epoch": self._epoch,
            "position": self._position,
            "generator": self._start_of_pass.clone(),
            "num_data": len(self.tensors[0]),
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the source of `state` stood.

        Raises:
            ValueError: that source had another number of data or batch size.
        """
        got = state["num_data"], state["batch_size"]
        expected = len(self.tensors[0]), self.batch_size
        if got != expected:
            raise ValueError(
                f"got a state of (number of data, batch size) {got}; expected {expected}; resume with the "
                "data and the batch size of the first run"
            )
        self._generator.set_state(state["generator"].cpu())
        self._shuffle()
        self._epoch, self._position = state["epoch"], state["position"]
        self.indices = None


def _check(tensors: tuple[Tensor, ...], batch_size: int, part: tuple[int, int]) -> None:
    if not tensors:
        raise ValueError("got no tensors; expected a tuple of at least one, such as (dataset.train,)")
    places = {(len(x), x.device) for x in tensors}
    if len(places) != 1:
        found = [f"{tuple(x.shape)} on {x.device}" for x in tensors]
        raise ValueError(f"got tensors {found}; expected one length and one device; cut or move them")
    if not 1 <= batch_size <= len(tensors[0]):
        raise ValueError(
            f"got batch_size={batch_size}; expected 1 to {len(tensors[0])}, the number of data; "
            "choose a smaller batch or load more data"
        )
    if batch_size % part[1]:
        raise ValueError(
            f"got batch_size={batch_size} for {part[1]} processes; expected a multiple, so that each has as many rows"
        )
