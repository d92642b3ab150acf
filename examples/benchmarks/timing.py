"""Time contestants in turn: a block of steps of each, in a new order each round."""

import random
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from contestants import Step
from workloads import Task, UnavailableError


@dataclass
class Entry:
    """One contestant of one workload: whether it runs, and its times.

    Args:
        status: "ok", or why there is no time.
        step: takes one step.
        blocks: milliseconds of a step, one number for each block.
        startup_seconds: until three steps were taken: building, tracing, compiling.
        bound: nats per datum, mean over the last steps before timing.
        warnings: what was warned of meanwhile.
    """

    status: str = "ok"
    step: Step | None = None
    blocks: list[float] = field(default_factory=list)
    startup_seconds: float | None = None
    bound: float | None = None
    warnings: list[str] = field(default_factory=list)

    def as_dict(self, reference: "Entry | None") -> dict[str, Any]:
        """Plain values; `ratio` is to the reference's block of the same round."""
        if self.status != "ok":
            return {"status": self.status, "warnings": self.warnings}
        result: dict[str, Any] = {"status": "ok", "ms_per_step": quartiles(self.blocks), "blocks_ms": self.blocks}
        if reference is not None and reference.status == "ok":
            result["ratio"] = quartiles([a / b for a, b in zip(self.blocks, reference.blocks, strict=True)])
        return result | {
            "bound_before_timing": self.bound,
            "startup_seconds": self.startup_seconds,
            "warnings": self.warnings,
        }


def forget_compiled() -> None:
    """Drop what `torch.compile` has cached, as far as it was used: importing it takes seconds."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()


def quartiles(values: list[float]) -> dict[str, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3
    return {"q1": low, "median": median, "q3": high}


def prepare(make: Callable[[Task], Step], task: Task, warm_steps: int) -> Entry:
    """Build a contestant and train it for so many steps; a failure is its status."""
    entry = Entry()
    torch.manual_seed(1)  # PyTorch's contestants draw the same noise, as far as they draw it in the same order
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            start = time.perf_counter()
            entry.step = make(task)
            for _ in range(3):
                finish(entry.step(), task.device)
            entry.startup_seconds = time.perf_counter() - start
            for _ in range(max(0, warm_steps - 3)):
                entry.step()
            last = [float(entry.step()) for _ in range(min(20, max(1, warm_steps)))]
            entry.bound = -statistics.fmean(last) / task.workload.batch
        except UnavailableError as error:
            entry.status = str(error)
        except Exception as error:
            entry.status = failure(error)
    entry.warnings = sorted({str(w.message).splitlines()[0][:300] for w in caught})
    if gave_up := [w for w in entry.warnings if w.startswith("ppl_vae:")]:
        entry.status = f"failed: {gave_up[0]}"  # it would go on eagerly under the name of a compiled mode
    return entry


def interleave(entries: Mapping[str, Entry], rounds: int, block: int, device: torch.device) -> None:
    """Rounds of one block of each contestant that runs; the device is waited for around blocks alone.

    The first step of a block is not timed: the threads of the contestant before go to sleep, caches fill.
    """
    shuffle = random.Random(0)
    for _ in range(rounds):
        order = [entry for entry in entries.values() if entry.status == "ok"]
        shuffle.shuffle(order)
        for entry in order:
            assert entry.step is not None
            try:
                finish(entry.step(), device)
                entry.blocks.append(block_ms(entry.step, block, device))
            except Exception as error:
                entry.status = failure(error)


def block_ms(step: Step, block: int, device: torch.device) -> float:
    """Milliseconds of one step, the mean over a block."""
    start = time.perf_counter()
    for _ in range(block - 1):
        step()
    finish(step(), device)
    return 1e3 * (time.perf_counter() - start) / block


def finish(loss: Any, device: torch.device) -> None:
    """Wait until the step that gave this loss is over."""
    if hasattr(loss, "block_until_ready"):
        loss.block_until_ready()
    elif device.type == "cuda":
        torch.cuda.synchronize(device)


def gflops(multiply: Step, operations: int, device: torch.device) -> float:
    """10^9 floating-point operations a second of a matrix product: how fast a library's kernels are on this machine."""
    finish(multiply(), device)
    return 1e-6 * operations / statistics.median(block_ms(multiply, 20, device) for _ in range(9))


def failure(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"failed: {type(error).__name__}: {lines[0][:300] if lines else ''}"
