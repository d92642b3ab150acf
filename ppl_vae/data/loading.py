"""Endless minibatches of any map-style data set, read and prepared ahead by worker processes."""

import atexit
import signal
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from ppl_vae.data.dataset import DataError
from ppl_vae.data.fetching import HELD, Fetch, Task, outlive_signals
from ppl_vae.data.files import unread
from ppl_vae.data.order import Order


class LoadedMinibatches:
    """The minibatches of `Minibatches`, in the same order, of data that need not fit into memory.

    Any map-style data set of torch will do: `Stored`, torchvision's folders, a `ConcatDataset`, or one of Hugging
    Face after `.select_columns([...]).with_format("torch")`. Batches are fetched ahead by worker processes, at most
    `prefetch` for each, without a break at the end of a pass. Only what `next` gives out counts as given out: a run
    taken up again sees the batches of the run that was never stopped. Items may be random (augmentation): the random
    streams of torch, numpy and Python in a data set follow the seed and the number of the batch, whoever fetches it;
    those of this process are left alone.

    Args:
        dataset: N items, each a tensor, a tuple or list of tensors or numbers, or a mapping, of which the values
            count; a first tensor of bytes becomes float32 by / 255. `__getitems__` is used where it is there.
        batch_size, seed, transform, part: as for `Minibatches`.
        device: of the batches; for CUDA they go through pinned memory.
        workers: processes that fetch batches; 0 fetches in this one.
        prefetch: batches that each of them is ahead.

    Attributes:
        num_data, batch_size, steps_per_pass, device: as of `Minibatches`.
        indices: rows of the last batch (part), (B / n,) int64 on the CPU; None before the first.

    Raises:
        ValueError: as `Minibatches`; fewer than 0 workers, a prefetch below 1.
        DataError: the data set has no order that could be taken up again; `next`: it can't be read.

    Example:
        >>> batches = LoadedMinibatches(torch.utils.data.TensorDataset(torch.arange(6.0)), batch_size=2)
        >>> sorted(torch.cat([batches.next()[0] for _ in range(batches.steps_per_pass)]).tolist())
        [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        seed: int = 0,
        transform: Callable[[Tensor], Tensor] | None = None,
        part: tuple[int, int] = (0, 1),
        *,
        device: torch.device | str = "cpu",
        workers: int = 0,
        prefetch: int = 2,
    ) -> None:
        if workers < 0 or prefetch < 1:
            raise ValueError(f"got workers={workers}, prefetch={prefetch}; expected at least 0 and at least 1")
        self.num_data, self.batch_size, self.transform = _length(dataset), batch_size, transform
        self.device, self.workers, self.prefetch = torch.device(device), workers, prefetch
        self.indices: Tensor | None = None
        self._dataset, self._part = dataset, part[0]
        self._order = Order(self.num_data, batch_size, seed, part)
        self.steps_per_pass = self._order.steps_per_pass
        self._state = self._order.state_dict()  # after the last batch given out; the order itself is ahead of it
        self._tasks = _Tasks(self._order)
        self._batches: Iterator[Any] | None = None
        self._last: tuple[Tensor, ...] = ()

    def next(self) -> tuple[Tensor, ...]:
        """The next batch, each tensor (B, ...) on the device, the first through `transform`.

        Raises:
            DataError: it can't be fetched; names its rows and the cause. A further call tries it again.
        """
        try:
            if self._batches is None:
                self._batches = self._start()
            batch = next(self._batches)
            if isinstance(batch, DataError):
                raise batch
        except (RuntimeError, OSError, EOFError) as error:  # what torch raises where a worker has gone
            self.close()
            raise DataError(
                f"got {unread(error)} with {self.workers} workers; expected them to live as long as the run; use "
                "fewer, or smaller batches (the system kills workers when memory, or shared memory, runs out)"
            ) from error
        except BaseException:
            self.close()
            raise
        self.indices, self._state = self._tasks.pending.popleft()
        self._last = _unit(*(x.to(self.device, non_blocking=self.device.type == "cuda") for x in batch))
        return self.again()

    def again(self) -> tuple[Tensor, ...]:
        """The last batch once more, through a fresh `transform`."""
        if not self._last:
            raise RuntimeError("got again() before next(); expected a batch given out since the state was loaded")
        first, *others = self._last
        return (first if self.transform is None else self.transform(first), *others)

    @property
    def left(self) -> int:
        """Batches of this pass that are still to come."""
        return self.steps_per_pass - self.position

    @property
    def position(self) -> int:
        """Batches of this pass already given out."""
        return self._state["position"]

    def close(self) -> None:
        """Ends the workers, and forgets what they fetched ahead; `next` starts others."""
        self._batches = None  # the last reference: torch ends the workers and waits for them
        self._tasks.pending.clear()

    def __next__(self) -> tuple[Tensor, ...]:
        return self.next()

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return self

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on exactly where this stands, but for the random stream of `transform`."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where the source of `state` stood: one of these, with any number of workers, or `Minibatches`.

        Raises:
            ValueError: that source had another number of data or batch size.
        """
        self.close()
        self._order.load_state_dict(state)
        self._state = self._order.state_dict()
        self.indices, self._last = None, ()

    def _start(self) -> Iterator[Any]:
        """An iterator over the batches from here on, for the rest of the run."""
        self._order.load_state_dict(self._state)
        _open.add(self)
        with _quiet_children():
            return iter(
                DataLoader(
                    Fetch(self._dataset, self._order.seed, self._part),
                    sampler=self._tasks,  # without batches of its own, a loader hands each of these to the data set
                    batch_size=None,
                    num_workers=self.workers,
                    prefetch_factor=self.prefetch if self.workers else None,
                    pin_memory=self.device.type == "cuda",
                    worker_init_fn=outlive_signals,
                    generator=torch.Generator(),  # else it draws from the global stream
                )
            )


class _Tasks:
    """Walks ahead of the batches given out; remembers the rows of each, and the state after it, until it is."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.pending: deque[tuple[Tensor, dict[str, Any]]] = deque()

    def __iter__(self) -> Iterator[Task]:
        return self

    def __next__(self) -> Task:
        rows = self.order.next().clone()  # the permutation is refilled in place
        self.pending.append((rows, self.order.state_dict()))
        return self.order.epoch * self.order.steps_per_pass + self.order.position, rows.tolist()


def _unit(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    if first.dtype == torch.uint8:
        # By a tensor of the device: a GPU multiplies by the reciprocal of a plain number, and rounds otherwise.
        first = first.float()
        first /= first.new_full((), 255.0)
    return (first, *others)


def _length(dataset: Any) -> int:
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"got {type(dataset).__name__}, whose items come in one order only, so that a run could not be resumed; "
            "expected a map-style data set, with __len__ and __getitem__; save its rows as .npy files, say (`Stored`)"
        )
    try:
        return len(dataset)
    except (TypeError, NotImplementedError) as error:
        raise DataError(f"got {type(dataset).__name__} without a length; expected one with __len__") from error


@contextmanager
def _quiet_children() -> Iterator[None]:
    """Within, workers are started.

    They get no signal before they know what to do with it (see `outlive_signals`). And torch is kept from raising out
    of a signal handler where a worker has died: that could be in the middle of a step, or of a checkpoint; `next`
    notices by itself, within seconds.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if before is not None:  # set by Python
            signal.signal(signal.SIGCHLD, before)


_open: "weakref.WeakSet[LoadedMinibatches]" = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """Before multiprocessing ends the workers by SIGTERM and waits for them."""
    for batches in list(_open):
        batches.close()
