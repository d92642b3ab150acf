"""Batches of worker processes: those of `Minibatches`, bit for bit, whoever fetches them and whatever ends a run."""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset, TensorDataset

from ppl_vae.data import DataError, LoadedMinibatches, Minibatches, Stored, from_tensor

BYTES = np.random.default_rng(0).integers(0, 256, (23, 3, 4), dtype=np.uint8)
GREY = from_tensor(BYTES, test=BYTES).train


class Items:
    """A map-style data set of a function of the row."""

    def __init__(self, item: Callable[[int], Any], number: int = 23) -> None:
        self.item, self.number = item, number

    def __len__(self) -> int:
        return self.number

    def __getitem__(self, row: int) -> Any:
        return self.item(row)


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    np.save(tmp_path / "a.npy", BYTES[:10])
    np.save(tmp_path / "b.npy", BYTES[10:])
    return Stored([tmp_path / "a.npy", tmp_path / "b.npy"])


def same(batches: LoadedMinibatches, expected: Minibatches, number: int) -> bool:
    """Whether so many batches, their rows and what is counted are alike."""
    for _ in range(number):
        (x,), (y,) = batches.next(), expected.next()
        assert batches.indices is not None and expected.indices is not None
        if not (torch.equal(x, y) and torch.equal(batches.indices, expected.indices)):
            return False
        if (batches.left, batches.position) != (expected.left, expected.position):
            return False
        if str(batches.state_dict()) != str(expected.state_dict()):
            return False
    return True


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("steps", [0, 3, 4])  # in mid-pass; the end of a pass of 4
def test_the_batches_are_those_of_data_in_memory(stored: Stored, workers: int, steps: int) -> None:
    batches = LoadedMinibatches(stored, 5, seed=3, workers=workers)
    expected = Minibatches((GREY,), 5, seed=3)
    assert (batches.num_data, batches.steps_per_pass, batches.indices) == (23, 4, None)
    assert same(batches, expected, steps)
    state = batches.state_dict()
    assert same(batches, expected, 2)  # what is fetched ahead is not in the state
    resumed, again = LoadedMinibatches(stored, 5, seed=9, workers=2 - workers), Minibatches((GREY,), 5)
    for other in (resumed, batches, again):
        other.load_state_dict(state)
    assert same(resumed, again, 10)
    again.load_state_dict(state)
    assert same(batches, again, 3)
    batches.close()
    assert same(batches, again, 3)  # after a close too
    for other in (batches, resumed):
        other.close()
    assert not multiprocessing.active_children()


def test_parts_make_up_the_batch(stored: Stored) -> None:
    expected = Minibatches((GREY,), 6, seed=1)
    parts = [LoadedMinibatches(stored, 6, seed=1, part=(r, 3)) for r in range(3)]
    for _ in range(5):
        assert torch.equal(torch.cat([part.next()[0] for part in parts]), expected.next()[0])


X, LABELS = torch.from_numpy(BYTES), torch.arange(23)


class Both(TensorDataset):
    """Has items at once, as Hugging Face's data sets: a mapping each."""

    def __getitems__(self, rows: list[int]) -> list[dict[str, Tensor]]:
        return [{"image": X[row], "label": LABELS[row]} for row in rows]


@pytest.mark.parametrize(
    ("dataset", "number"),
    [
        (TensorDataset(X, LABELS), 2),
        (Items(lambda row: X[row]), 1),
        (Items(lambda row: (BYTES[row], row)), 2),
        (Items(lambda row: [X[row].float() / 255, LABELS[row]]), 2),
        (Items(lambda row: {"image": X[row], "label": row}), 2),
        (ConcatDataset([TensorDataset(X[:9], LABELS[:9]), TensorDataset(X[9:], LABELS[9:])]), 2),
        (Subset(TensorDataset(X, LABELS), range(23)), 2),
        (Subset(Both(X, LABELS), range(23)), 2),
    ],
)
def test_items_of_many_kinds(dataset: Any, number: int) -> None:
    expected = Minibatches((GREY[:, 0], LABELS), 5, seed=2, transform=lambda x: 1 - x)
    batches = LoadedMinibatches(dataset, 5, seed=2, transform=lambda x: 1 - x)
    for _ in range(3):
        assert all(torch.equal(x, y) for x, y in zip(batches.next(), expected.next()[:number], strict=True))
    assert torch.equal(batches.again()[0], expected.again()[0])


def noisy(row: int) -> Tensor:
    return torch.tensor([row, torch.rand(()), np.random.rand(), random.random()])


def test_random_items_follow_the_seed_and_the_batch_alone() -> None:
    def start(workers: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> LoadedMinibatches:
        return LoadedMinibatches(Items(noisy), 6, seed, part=part, workers=workers)

    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    loaders = [start(0), start(1), start(2)]
    expected, *others = [[batch.next()[0] for _ in range(5)] for batch in loaders]
    for drawn in others:
        assert torch.equal(torch.stack(drawn), torch.stack(expected))
    resumed = start(2, seed=7)
    first = start(0)
    for _ in range(2):
        first.next()
    resumed.load_state_dict(first.state_dict())
    assert all(torch.equal(resumed.next()[0], x) for x in expected[2:])
    noise = torch.stack(expected)[..., 1:]
    assert noise.unique().numel() == noise.numel()  # none comes twice
    halves = [start(0, part=(r, 2)).next()[0][:, 1:] for r in range(2)]
    assert not torch.equal(*halves) and not torch.equal(start(0, seed=1).next()[0][:, 1:], noise[0])
    now = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[union-attr]
    assert torch.equal(now[0], states[0]) and now[1:] == states[1:]
    for batches in (*loaders, resumed):
        batches.close()


def broken(row: int) -> Tensor:
    if row == 7:
        raise KeyError("no\nsuch row")
    return X[row]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("item", "message"),
    [
        (broken, r"got KeyError: 'no.*such row' on fetching rows \[.* \.\.\. of the Items; expected items"),
        (lambda row: "text", r"got an item of \['str'\]; expected tensors or numbers"),
        (lambda row: {"image": X[row], "name": "a"}, r"got an item of \['Tensor', 'str'\]"),
        (lambda row: torch.zeros(row), "RuntimeError: stack expects each tensor to be equal size"),
        (lambda row: [], r"got an item of \[\]"),
        (lambda row: (1, 2)[: row % 2 + 1], "ValueError: zip\\(\\) argument"),
    ],
)
def test_bad_items_are_one_line(item: Callable[[int], Any], message: str, workers: int) -> None:
    batches = LoadedMinibatches(Items(item), 23, workers=workers)
    for _ in range(2):  # a batch that failed is not given out, and fails again
        with pytest.raises(DataError, match=message) as caught:
            batches.next()
        assert batches.position == 0 and "\n" not in str(caught.value)
        assert "on fetching rows [" in str(caught.value) and "Traceback" not in str(caught.value)
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_cut_off_during_the_run(stored: Stored, workers: int) -> None:
    batches = LoadedMinibatches(stored, 5, workers=workers, prefetch=1)
    batches.next()
    os.truncate(stored.paths[1], 128 + 12 * 4)
    with pytest.raises(DataError, match=r"b.npy: got the end of the file in row \d+; .* \(on fetching rows \["):
        for _ in range(8):
            batches.next()
    batches.close()


def test_a_worker_that_is_killed(stored: Stored) -> None:
    batches = LoadedMinibatches(stored, 5, workers=1)
    expected = Minibatches((GREY,), 5)
    assert same(batches, expected, 1)
    (worker,) = multiprocessing.active_children()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()  # nothing is raised in the middle of other work
    with pytest.raises(DataError, match=r"got RuntimeError: DataLoader worker .* with 1 workers; .* use fewer"):
        for _ in range(4):  # those fetched ahead may still be there
            assert same(batches, expected, 1)
    assert same(batches, expected, 3)  # with a new worker
    batches.close()


def test_signals_to_all_processes_leave_the_workers(stored: Stored) -> None:
    batches, expected = LoadedMinibatches(stored, 5, workers=2, prefetch=1), Minibatches((GREY,), 5)
    assert same(batches, expected, 1)
    for worker in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM):
            assert worker.pid is not None
            os.kill(worker.pid, number)
    assert same(batches, expected, 10)
    batches.close()
    assert not multiprocessing.active_children()


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(X)


class Endless:
    def __getitem__(self, row: int) -> Tensor:
        return X[row]


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (Stream(), {}, "got Stream, whose items come in one order only, .*; expected a map-style data set"),
        (iter(X), {}, "got .*, whose items come in one order only"),
        (Endless(), {}, "got Endless without a length"),
        (X, {"batch_size": 24}, "got batch_size=24; expected 1 to 23"),
        (X, {"workers": -1}, "got workers=-1"),
        (X, {"prefetch": 0}, "got .*prefetch=0; expected at least 0 and at least 1"),
    ],
)
def test_what_is_refused(dataset: Any, options: dict[str, Any], message: str) -> None:
    keywords: Any = {"batch_size": 2} | options
    with pytest.raises(ValueError, match=message):
        LoadedMinibatches(dataset, **keywords)


def test_a_state_of_other_data_is_refused(stored: Stored) -> None:
    with pytest.raises(ValueError, match=r"\(23, 4\); expected \(23, 5\)"):
        LoadedMinibatches(stored, 5).load_state_dict(LoadedMinibatches(stored, 4).state_dict())


def test_again_needs_a_batch(stored: Stored) -> None:
    with pytest.raises(RuntimeError, match="before next"):
        LoadedMinibatches(stored, 5).again()


LARGER_THAN_MEMORY = """
import sys, torch
from ppl_vae.data import LoadedMinibatches, Stored

def own() -> int:  # bytes of this process's own memory; what the system caches of files is not
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) << 10

x = torch.rand(1000, 1000) @ torch.rand(1000, 1000)  # its threads are running when the workers are forked
data = Stored([sys.argv[1]])
for workers in (0, 2):
    batches = LoadedMinibatches(data, 100, workers=workers)
    batches.next()
    before = own()
    for _ in range(300):
        (x,) = batches.next()
    assert x.shape == (100, 1, 100, 100) and len(data) == 30_000
    print(own() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """300 MB, all read, in a process that ends by itself without `close`."""
    np.lib.format.open_memmap(tmp_path / "large.npy", "w+", np.uint8, (30_000, 100, 100))  # sparse: no space on disk
    command = [sys.executable, "-c", LARGER_THAN_MEMORY, str(tmp_path / "large.npy")]
    # glibc gives tensors back at once, so that what is held is seen, and not how its heap breaks up.
    environment = os.environ | {"OMP_NUM_THREADS": "4", "MALLOC_MMAP_THRESHOLD_": "65536"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment, check=False)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    assert all(int(grown) < 30 << 20 for grown in ended.stdout.split()), ended.stdout


def test_iteration(stored: Stored) -> None:
    assert [len(x) for (x,) in islice(LoadedMinibatches(stored, 5), 6)] == [5] * 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_on_a_gpu(stored: Stored, workers: int) -> None:
    for dataset in (stored, TensorDataset(torch.from_numpy(BYTES)[:, None])):
        batches = LoadedMinibatches(dataset, 5, seed=3, device="cuda", workers=workers)
        expected = Minibatches((GREY.cuda(),), 5, seed=3)
        for _ in range(6):
            (x,), (y,) = batches.next(), expected.next()
            assert x.is_cuda and batches.device == x.device.type and torch.equal(x, y)
        batches.close()
