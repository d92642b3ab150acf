"""The order in which a run goes through its data."""

from typing import Any

import torch
from torch import Tensor


class Order:
    """A shuffled order of N rows, in batches without end, that can be saved and taken up again.

    One permutation a pass is drawn on the CPU (the same for every device). The incomplete last batch of a pass is
    dropped, so shapes never change (compiled steps rely on it); the next pass leaves out others.

    Args:
        num_data: N.
        batch_size: B, at most N.
        seed: of the permutations.
        part: (r, n): each batch is the r-th of n equal parts of the batch of B rows, the same for all r.
        device: where the permutation is kept.

    Attributes:
        permutation: of this pass, (N,) int64; one tensor for all passes: a captured step reads where it was captured.
        steps_per_pass: N // B.
        epoch: passes begun before this one.
        position: batches of this pass already given out.

    Raises:
        ValueError: a batch size below 1, above N or no multiple of n.

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
    ) -> None:
        _check(num_data, batch_size, part)
        self.num_data, self.batch_size, self.part = num_data, batch_size, part
        self.steps_per_pass = num_data // batch_size
        self.epoch = 0
        self.permutation = torch.empty(num_data, dtype=torch.int64, device=device)
        self._generator = torch.Generator().manual_seed(seed)
        self._shuffle()

    def _shuffle(self) -> None:
        self._start_of_pass = self._generator.get_state()  # enough to draw this permutation again
        self.permutation.copy_(torch.randperm(self.num_data, generator=self._generator))
        self.position = 0

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
        return {
            "epoch": self.epoch,
            "position": self.position,
            "generator": self._start_of_pass.clone(),
            "num_data": self.num_data,
            "batch_size": self.batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the source of `state` stood.

        Raises:
            ValueError: that source had another number of data or batch size.
        """
        got = state["num_data"], state["batch_size"]
        expected = self.num_data, self.batch_size
        if got != expected:
            raise ValueError(
                f"got a state of (number of data, batch size) {got}; expected {expected}; resume with the "
                "data and the batch size of the first run"
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
