"""Endless minibatches of tensors that already live where the training does."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data.order import Order


class Minibatches:
    """Shuffled minibatches without end, by `index_select` on the device of the data.

    For data that fit into memory, so no worker processes: the permutation of a pass is moved to the device once,
    and each batch is one gather. Larger data: `LoadedMinibatches`, in the same order.

    Args:
        tensors: of one length N and on one device, each (N, ...).
        batch_size: B, at most N.
        seed: of the order of the data (see `Order`).
        transform: maps the batch of the first tensor, (B, ...), to one or several tensors of B rows: `dataset.draw`;
            with groups it is given the batch's group too, a number that the host knows without asking the device.
        part: (r, n): each batch is the r-th of n equal parts of the batch of B rows, the same for all r.
        groups: of each row, (N,) whole numbers: each batch is of one (see `Order`). Batches of different groups may
            differ in shape: by the width of their captions, say.

    Attributes:
        num_data: N.
        steps_per_pass: N // B; with groups the sum of N_g // B.
        unused: rows that are never given out, since their group is smaller than B.
        is_uniform: whether all batches have one shape, so that a step that draws its batch can be captured.
        device: of the batches.
        indices: rows of the last batch (part), (B / n,) int64 on the device; None before the first.

    Raises:
        ValueError: no tensors, different lengths or devices, a batch size below 1, above N or no multiple of n, or
            above all groups; groups of another form.

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
        transform: Callable[..., Tensor | tuple[Tensor, ...]] | None = None,
        part: tuple[int, int] = (0, 1),
        groups: Tensor | Sequence[int] | None = None,
    ) -> None:
        _check(tensors)
        self.tensors = tensors
        self.batch_size = batch_size
        self.transform = transform
        self.num_data, self.device = len(tensors[0]), tensors[0].device
        self.indices: Tensor | None = None
        self._order = Order(self.num_data, batch_size, seed, part, self.device, groups)
        self.steps_per_pass, self.unused = self._order.steps_per_pass, self._order.unused
        self.is_uniform = self._order.is_uniform
        self._rows = torch.arange(batch_size, device=self.device)[self._order.part_rows]

    def next(self) -> tuple[Tensor, ...]:
        """The next batch, each tensor (B, ...), the first through `transform`."""
        return self._gather(self._order.next())

    def again(self) -> tuple[Tensor, ...]:
        """The rows of the last batch once more, through a fresh `transform`."""
        return self._gather(self._order.again())

    @property
    def left(self) -> int:
        """Batches of this pass that are still to come."""
        return self._order.left

    @property
    def position(self) -> int:
        """Batches of this pass already given out."""
        return self._order.position

    def new_pass(self) -> None:
        """Shuffle the data anew and begin with the first batch."""
        self._order.new_pass()

    def gather(self, position: Tensor) -> tuple[Tensor, ...]:
        """The batch at a position of this pass, (1,) int64 on the device; the count of batches stays as it is.

        For a captured step, which finds its place by a tensor; `skip` keeps the count.

        Raises:
            ValueError: batches are of several groups, and which is this one's only the device could tell.
        """
        if not self.is_uniform:
            raise ValueError("got batches of several groups; expected those of one shape; take them by next()")
        rows = position * self.batch_size + self._rows
        return self._gather(self._order.permutation.index_select(0, rows))

    def skip(self, count: int) -> None:
        """Count so many batches of this pass as given out."""
        self._order.position += count

    def _gather(self, indices: Tensor) -> tuple[Tensor, ...]:
        self.indices = indices
        first, *others = (x.index_select(0, indices) for x in self.tensors)
        if self.transform is not None:
            group = self._order.group
            first = self.transform(first) if group is None else self.transform(first, group)
        return (*as_batch(first), *others)

    def close(self) -> None:
        """Nothing to end here, other than for `LoadedMinibatches`."""

    def __next__(self) -> tuple[Tensor, ...]:
        return self.next()

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly where this stands, but for the random stream of `transform`."""
        return self._order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the source of `state` stood.

        Raises:
            ValueError: that source had another number of data, batch size or groups.
        """
        self._order.load_state_dict(state)
        self.indices = None


def as_batch(x: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The arguments of a pair's programs: one tensor, or several."""
    return x if isinstance(x, tuple) else (x,)


def _check(tensors: tuple[Tensor, ...]) -> None:
    if not tensors:
        raise ValueError("got no tensors; expected a tuple of at least one, such as (dataset.train,)")
    places = {(len(x), x.device) for x in tensors}
    if len(places) != 1:
        found = [f"{tuple(x.shape)} on {x.device}" for x in tensors]
        raise ValueError(f"got tensors {found}; expected one length and one device; cut or move them")
