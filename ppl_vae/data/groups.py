"""Rows that share a batch with their like alone: captions of one width, say."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Groups:
    """Lays a permutation of N rows out in batches of B, each of one group.

    Args:
        groups: of each row, (N,) whole numbers.
        num_data: N.
        batch_size: B.

    Attributes:
        counts: rows of each group, by ascending group.
        steps_per_pass: sum over the groups of N_g // B.
        unused: rows of groups smaller than B, which no batch has room for.

    Raises:
        ValueError: not N whole numbers, or no group of B rows.

    Example:
        >>> groups = Groups([7, 9, 7, 9, 7], num_data=5, batch_size=2)
        >>> groups.arrange(torch.tensor([4, 3, 2, 1, 0]), torch.tensor([1, 0]))
        (tensor([3, 1, 4, 2]), [9, 7])
    """

    def __init__(self, groups: Tensor | Sequence[int], num_data: int, batch_size: int) -> None:
        self._groups = torch.as_tensor(groups).cpu()
        _check(self._groups, num_data)
        names, counts = self._groups.unique(return_counts=True)
        self.counts: dict[int, int] = dict(zip(names.tolist(), counts.tolist(), strict=True))
        numbers = counts // batch_size
        self.steps_per_pass = int(numbers.sum())
        self.unused = int(counts[numbers == 0].sum())
        if not self.steps_per_pass:
            raise ValueError(
                f"got batch_size={batch_size} for groups of at most {int(counts.max())} rows; expected one that has "
                "enough for a batch; choose a smaller batch, or fewer and larger groups"
            )
        # Of each batch: its group, and where it starts among rows that are sorted by group.
        self._names = names.repeat_interleave(numbers)
        firsts = (counts.cumsum(0) - counts).repeat_interleave(numbers)
        within = torch.arange(self.steps_per_pass) - (numbers.cumsum(0) - numbers).repeat_interleave(numbers)
        self._starts = firsts + within * batch_size
        self._rows = torch.arange(batch_size)

    def arrange(self, rows: Tensor, batches: Tensor) -> tuple[Tensor, list[int]]:
        """The batches of a pass, one behind the other.

        Args:
            rows: a permutation of all rows, (N,) int64.
            batches: a permutation of the batches, (steps_per_pass,) int64.

        Returns:
            Rows, (steps_per_pass B,) int64, and the group of each batch.
        """
        by_group = rows[self._groups[rows].argsort(stable=True)]
        places = self._starts[batches].unsqueeze(1) + self._rows
        return by_group[places].flatten(), self._names[batches].tolist()


def _check(groups: Tensor, num_data: int) -> None:
    if groups.shape != (num_data,) or groups.is_floating_point() or groups.is_complex() or groups.dtype == torch.bool:
        raise ValueError(
            f"got groups {tuple(groups.shape)} {groups.dtype}; expected ({num_data},) whole numbers, one a row; "
            "number the groups"
        )
