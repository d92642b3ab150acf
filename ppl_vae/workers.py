"""Run jobs side by side in worker processes of one thread each, with their progress reported as it happens.

Small networks leave a second core idle, and on a busy machine threads that wait for each other at every
operation are many times slower than one; runs that know nothing of each other share nothing and scale.
"""

import multiprocessing
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

import torch

__all__ = ["Advance", "run_jobs"]

T = TypeVar("T")
Advance = Callable[[int], object]
"""Called with a number of steps just done."""

_queue: Any = None


def run_jobs(jobs: Sequence[Callable[[Advance], T]], workers: int, advance: Advance) -> Iterator[T]:
    """The results of all jobs, in their order; one after the other here, or in worker processes.

    Args:
        jobs: called with a function that takes the number of steps done. With workers > 1 they and their
            results must be picklable, and the main module must guard its own work with
            `if __name__ == "__main__"`, because each worker imports it.
        workers: how many processes; 1 runs everything in this one.
        advance: called here with the steps that any job reports.

    Raises:
        ValueError: workers < 1.
        Exception: what a job raised; the others are given up.
    """
    if workers < 1:
        raise ValueError(f"workers: got {workers}, expected at least 1")
    if workers == 1:
        yield from (job(advance) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    reports = context.Queue()
    pool = ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_begin, initargs=(reports,))
    try:
        futures = [pool.submit(_call, job) for job in jobs]
        for future in futures:
            _follow(future, futures, reports, advance)
            yield future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(reports: Any) -> None:
    global _queue
    _queue = reports
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    """A worker whose parent was killed would go on, and hold the folder that it writes to."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _call(job: Callable[[Advance], T]) -> T:
    return job(partial(_report, _queue))


def _report(reports: Any, steps: int) -> None:
    reports.put(steps)


def _follow(future: "Future[Any]", futures: "Sequence[Future[Any]]", reports: Any, advance: Advance) -> None:
    """Pass reports on until the future is done, or any other has failed."""
    while not future.done():
        wait([future], timeout=0.2, return_when=FIRST_COMPLETED)
        while True:
            try:
                advance(reports.get_nowait())
            except queue.Empty:
                break
        failed = next((f for f in futures if f.done() and f.exception() is not None), None)
        if failed is not None:
            failed.result()
