"""The order in which a run goes through its data."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data.groups import Groups


class Order:
    """A shuffled order of N rows, in batches without end, that can be saved and taken up again.

    One permutation a pass is drawn on the CPU (the same for every device). The incomplete last batch of a pass is
    dropped, so shapes never change (compiled steps rely on it); the next pass leaves out others.

    With groups each batch is of one: rows are shuffled within their group, the incomplete last batch of each group is
    dropped, and the batches are shuffled.

    Args:
        num_data: N.
        batch_size: B, at most N.
        seed: of the permutations.
        part: (r, n): each batch is the r-th of n equal parts of the batch of B rows, the same for all r.
        device: where the permutation is kept.
        groups: of each row, (N,) whole numbers; None has no groups.

    Attributes:
        permutation: of this pass, its batches one behind the other, int64, (N,), or (steps_per_pass B,) with groups;
            one tensor for all passes: a captured step reads where it was captured.
        steps_per_pass: N // B; with groups the sum of N_g // B.
        unused: rows that are never given out, since their group is smaller than B.
        epoch: passes begun before this one.
        position: batches of this pass already given out.

    Raises:
        ValueError: a batch size below 1, above N or no multiple of n, or above all groups; groups of another form.

    Example:
        >>> order = Order(6, batch_size=2, seed=0)
        >>> sorted(torch.cat([order.next() for _ in range(order.steps_per_pass)]).tolist())
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(
        self,
        num_data: int,
        batch_size: int,
        seed: int = 0,
        part: tuple[int, int] = (0, 1),
        device: torch.device | str = "cpu",
        groups: Tensor | Sequence[int] | None = None,
    ) -> None:
        _check(num_data, batch_size, part)
        self.num_data, self.batch_size, self.part = num_data, batch_size, part
        self._groups = None if groups is None else Groups(groups, num_data, batch_size)
        self.steps_per_pass = num_data // batch_size if self._groups is None else self._groups.steps_per_pass
        self.unused = 0 if self._groups is None else self._groups.unused
        self.epoch = 0
        size = num_data if self._groups is None else self.steps_per_pass * batch_size
        self.permutation = torch.empty(size, dtype=torch.int64, device=device)
        self._generator = torch.Generator().manual_seed(seed)
        self._shuffle()

    def _shuffle(self) -> None:
        self._start_of_pass = self._generator.get_state()  # enough to draw this permutation again
        rows = torch.randperm(self.num_data, generator=self._generator)
        if self._groups is not None:
            batches = torch.randperm(self.steps_per_pass, generator=self._generator)
            rows, self._group_of = self._groups.arrange(rows, batches)
        self.permutation.copy_(rows)
        self.position = 0

    @property
    def group(self) -> int | None:
        """Of the last batch; None without groups."""
        return None if self._groups is None else self._group_of[self.position - 1]

    @property
    def is_uniform(self) -> bool:
        """Whether all batches are of one group, or there are none."""
        return self._groups is None or len(set(self._group_of)) == 1

    @property
    def seed(self) -> int:
        """Of the permutations; that of the first run where a state was loaded."""
        return self._generator.initial_seed()

    @property
    def left(self) -> int:
        """Batches of this pass that are still to come."""
        return self.steps_per_pass - self.position

    @property
    def part_rows(self) -> slice:
        """Which of the B rows of a batch belong to the part."""
        index, number = self.part
        size = self.batch_size // number
        return slice(index * size, (index + 1) * size)

    def new_pass(self) -> None:
        """Shuffle the data anew and begin with the first batch."""
        self.epoch += 1
        self._shuffle()

    def next(self) -> Tensor:
        """Rows of the next batch (part), (B / n,) int64."""
        if self.left == 0:
            self.new_pass()
        self.position += 1
        return self.again()

    def again(self) -> Tensor:
        """Rows of the last batch (part) once more."""
        start = (self.position - 1) * self.batch_size
        return self.permutation[start : start + self.batch_size][self.part_rows]

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly where this stands."""
        state = {
            "epoch": self.epoch,
            "position": self.position,
            "generator": self._start_of_pass.clone(),
            "num_data": self.num_data,
            "batch_size": self.batch_size,
        }
        return state if self._groups is None else {**state, "groups": dict(self._groups.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the source of `state` stood.

        Raises:
            ValueError: that source had another number of data, batch size or groups.
        """
        got = state["num_data"], state["batch_size"]
        expected = self.num_data, self.batch_size
        if got != expected:
            raise ValueError(
                f"got a state of (number of data, batch size) {got}; expected {expected}; resume with the "
                "data and the batch size of the first run"
            )
        got, expected = state.get("groups"), None if self._groups is None else self._groups.counts
        if got != expected:
            raise ValueError(
                f"got a state of groups with so many rows {got}; expected {expected}; resume with the data (and the "
                "buckets of captions) of the first run"
            )
        self._generator.set_state(state["generator"].cpu())
        self._shuffle()
        self.epoch, self.position = state["epoch"], state["position"]


def _check(num_data: int, batch_size: int, part: tuple[int, int]) -> None:
    if not 1 <= batch_size <= num_data:
        raise ValueError(
            f"got batch_size={batch_size}; expected 1 to {num_data}, the number of data; "
            "choose a smaller batch or load more data"
        )
    if batch_size % part[1]:
        raise ValueError(
            f"got batch_size={batch_size} for {part[1]} processes; expected a multiple, so that each has as many rows"
        )
