"""What a worker process does for a run: fetch batches of any map-style data set, and outlive signals."""

import random
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as MapStyle

from ppl_vae.data.dataset import DataError
from ppl_vae.data.files import unread

GRACE = 30
"""Seconds that a worker goes on after SIGTERM: what systems leave a job between SIGTERM and SIGKILL."""

HELD = (signal.SIGINT, signal.SIGTERM)
"""Signals that a worker is started without."""

Task = tuple[int, list[int]]
"""Which batch of the run, and its rows."""


class Fetch(MapStyle[Any]):
    """Batches of a data set by their tasks; an error is handed over as one line, not as a worker's traceback."""

    def __init__(self, dataset: Any, seed: int, part: int) -> None:
        self.dataset, self.seed, self.part = dataset, seed, part

    def __getitem__(self, task: Task) -> tuple[Tensor, ...] | DataError:
        number, rows = task
        try:
            with random_streams(self.seed, number, self.part):
                fetch = getattr(self.dataset, "__getitems__", None)
                return _tensors(fetch(rows) if fetch else [self.dataset[row] for row in rows], len(rows))
        except Exception as error:
            where = (
                f"on fetching rows {rows[:10]}{' ...' if len(rows) > 10 else ''} of the {type(self.dataset).__name__}"
            )
            remedy = "expected items that can be read and stacked; mend the data set, or leave those rows out"
            told = f"{error} ({where})" if isinstance(error, DataError) else f"got {unread(error)} {where}; {remedy}"
            failure = DataError(told)
            failure.__cause__ = error  # lost on the way from a worker
            return failure


def _tensors(items: Any, number: int) -> tuple[Tensor, ...]:
    """Items as one tensor for each of their parts, of `number` rows.

    Not `default_collate`: it makes float64 of numbers, and in a worker its error for unequal shapes is a riddle.
    """
    if len(items) != number:
        raise DataError(f"got {len(items)} items; expected {number}, as many as asked for")
    if isinstance(items, Tensor):
        return (items,)
    columns = zip(*map(_parts, items), strict=True)
    return tuple(torch.stack([torch.as_tensor(x) for x in column]) for column in columns)


def _parts(item: Any) -> Sequence[Any]:
    parts = list(item.values()) if isinstance(item, Mapping) else item if isinstance(item, tuple | list) else [item]
    if not parts or not all(isinstance(x, Tensor | np.ndarray | np.generic | int | float) for x in parts):
        kinds = [type(x).__name__ for x in parts]
        raise DataError(f"got an item of {kinds}; expected tensors or numbers; choose or convert its columns")
    return parts


@contextmanager
def random_streams(seed: int, number: int, part: int) -> Iterator[None]:
    """Within, random numbers of torch (on the CPU), numpy and Python belong to one batch; then all is put back."""
    numpys, pythons = np.random.get_state(), random.getstate()
    seeds = np.random.SeedSequence((seed, number, part)).generate_state(4, np.uint64)
    with torch.random.fork_rng(devices=[]), ExitStack() as restore:
        restore.callback(np.random.set_state, numpys)
        restore.callback(random.setstate, pythons)
        torch.default_generator.manual_seed(int(seeds[0]))
        np.random.seed(int(seeds[1]) % 2**32)
        random.seed(int(seeds[2]))
        yield


def outlive_signals(worker: int) -> None:
    """In a worker: signals that are sent to all processes of a run are for the main one, which still needs batches."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, _end_later)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)


def _end_later(number: int, frame: FrameType | None) -> None:
    signal.alarm(GRACE)
