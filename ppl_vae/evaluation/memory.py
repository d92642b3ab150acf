"""How many bytes a program takes, measured on a few data, and the size of chunks that fit a budget."""

import bisect
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = ["ChunkSize", "Cost", "Meter", "plan"]


class ChunkSize(NamedTuple):
    """B data and K particles of each, run at once."""

    rows: int
    particles: int


class Meter(TorchDispatchMode):
    """Counts the bytes of the tensors that are made, and freed again, while it is on.

    What an operator allocates inside itself and frees before it returns is not seen.

    Example:
        >>> with Meter() as meter:
        ...     x = torch.ones(4).exp().sum()  # 16 bytes, 16 more, 4 while the exponentials still live
        >>> meter.made, meter.live, meter.peak
        ([16, 16, 4], [16, 32, 20], 32)
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[int] = []
        """Bytes of each new tensor, in order."""
        self.live: list[int] = []
        """Bytes alive just after each of them was made."""
        self._alive: dict[int, int] = {}

    @property
    def peak(self) -> int:
        """The most bytes alive at once."""
        return max(self.live, default=0)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True, the default, imports torch.compile's machinery (3 s) for a mode that runs a few milliseconds.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {s._cdata for s in _storages((args, kwargs))}
        for storage in _storages(result):
            if storage._cdata not in given and storage._cdata not in self._alive:
                self._count(storage)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        self._alive[storage._cdata] = storage.nbytes()
        self.made.append(storage.nbytes())
        self.live.append(sum(self._alive.values()))
        weakref.finalize(storage, self._alive.pop, storage._cdata)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    leaves = tree_leaves(values)
    return [v.untyped_storage() for v in leaves if isinstance(v, Tensor) and v.layout == torch.strided]


@dataclass(frozen=True)
class Cost:
    """bytes(B, K) = fixed + per_row B + per_particle B K, at each moment of a program and for each tensor it makes.

    The moments are kept apart because the greatest of several such lines is not one itself: a tensor
    of constant size may set the peak of a small chunk, and never that of a large one.

    Args:
        live: rows (fixed, per_row, per_particle) of the bytes alive at each moment, (3, M).
        made: the same of each tensor, (3, M).
    """

    live: Tensor
    made: Tensor

    @classmethod
    def measure(cls, run: Callable[[int, int], Any]) -> "Cost":
        """Run `run(B, K)` three times with few data and particles."""
        meters = [_metered(run, rows, particles) for rows, particles in ((1, 2), (1, 4), (2, 2))]
        if len({len(m.made) for m in meters}) > 1:
            # The program's course depends on its data: blame all that was seen on one particle of one datum.
            worst = max(m.peak for m in meters) / 2
            line = torch.tensor([[0.0], [0.0], [worst]], dtype=torch.float64)
            return cls(line, line)
        return cls(_lines([m.live for m in meters]), _lines([m.made for m in meters]))

    def peak(self, rows: int, particles: int) -> int:
        """Bytes alive at the worst moment of a chunk."""
        size = self.live.new_tensor([1.0, rows, rows * particles])
        return math.ceil((size @ self.live).max().item())

    @property
    def largest(self) -> float:
        """Bytes that each particle of each datum adds to the largest tensor, at least 1."""
        return max(1.0, self.made[2].max().item())


def _metered(run: Callable[[int, int], Any], rows: int, particles: int) -> Meter:
    with Meter() as meter:
        run(rows, particles)
    return meter


def _lines(runs: list[list[int]]) -> Tensor:
    """Solve for (fixed, per_row, per_particle), (3, M), given runs of (B, K) = (1, 2), (1, 4), (2, 2)."""
    first, more_particles, more_rows = torch.tensor(runs, dtype=torch.float64)
    per_particle = (more_particles - first) / 2
    per_row = more_rows - first - 2 * per_particle
    return torch.stack([first - per_row - 2 * per_particle, per_row, per_particle])


def plan(
    cost: Cost,
    num_data: int,
    num_particles: int,
    *,
    memory: int,
    tensor_bytes: float,
    batch_size: int | None = None,
    split: bool = True,
) -> ChunkSize:
    """The chunk size: as many particles of a datum as fit, then as many data.

    Args:
        cost: what a chunk takes.
        num_data: N.
        num_particles: K of each datum.
        memory: upper limit of the bytes alive at once.
        tensor_bytes: the largest tensor should not be larger (a wish, for speed).
        batch_size: data of a chunk, where given.
        split: whether the particles of one datum may be split over several chunks.

    Raises:
        ValueError: the smallest chunk takes more than `memory`.
    """
    rows = min(batch_size or 1, num_data)
    needed = cost.peak(rows, 1 if split else num_particles)
    if needed > memory:
        kept = f"{1 if split else num_particles} particles of {rows} data"
        advice = "raise memory, or lower batch_size" if rows > 1 else "raise memory"
        raise ValueError(f"memory: got {memory} bytes, expected at least {needed}, which {kept} take; {advice}")
    wanted = max(1, int(tensor_bytes / cost.largest))
    particles = num_particles
    if split:
        limit = min(num_particles, max(1, wanted // rows))
        particles = _even(num_particles, _most(limit, lambda k: cost.peak(rows, k) <= memory))
    if batch_size is None:
        limit = min(num_data, max(1, wanted // particles))
        rows = _even(num_data, _most(limit, lambda b: cost.peak(b, particles) <= memory))
    return ChunkSize(rows, particles)


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n in 1, ..., limit that fits; 1 is known to."""
    return max(1, bisect.bisect_left(range(1, limit + 1), True, key=lambda n: not fits(n)))


def _even(total: int, most: int) -> int:
    """The part size with as many parts as `most` needs, none of them much smaller than the others."""
    return math.ceil(total / math.ceil(total / most))
