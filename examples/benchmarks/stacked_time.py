"""Time of a step of S runs at once (`fit_stacked`), beside one run alone and S runs in worker processes.

The pair is Burda's with one layer (784-200-200-50), batch 20, at several numbers of particles. All are trained for
`--warm-steps` first and then timed in turn, a block of steps of each in a new order every round. A step: the
minibatches, the noise, loss and gradients (compiled), Adam. Printed: the median over the blocks of milliseconds a step
[quartiles], and the median over the rounds of the ratio to one run alone: below S, S runs stacked are faster than
S runs one after the other. Writes stacked_time_DEVICE.json.

    python examples/benchmarks/stacked_time.py --device cuda --out results
"""

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timing
import torch
from contestants import Step
from torch import Tensor
from workloads import WORKLOADS, Workload, load_images

from ppl_vae import SVI, Pair, report
from ppl_vae.data import Minibatches
from ppl_vae.heap import keep_freed_memory
from ppl_vae.stacked.loss import StackedLoss
from ppl_vae.stacked.steps import StackedSteps
from ppl_vae.steps import CapturedSteps, Steps

BURST = 10
"""Steps of one call: as many as one run on CUDA takes with one launch."""

Options = dict[str, Any]


def main() -> None:
    args = arguments()
    torch.set_flush_denormal(True)  # before the thread pool starts: the threads inherit it
    keep_freed_memory()
    torch.set_num_threads(args.threads)
    images, about = load_images(None)
    images = images.to(args.device)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    result: dict[str, Any] = {
        "config": settings | {"data": about, "batch": 20, "learning_rate": 1e-3},
        "environment": report.environment(args.device),
        "particles": {},
    }
    path = args.out / f"stacked_time_{args.device}.json"
    for k in args.particles:
        result["particles"][str(k)] = rows = measure(replace(WORKLOADS["burda1"], k=k), images, args)
        print(table(k, rows), flush=True)
        report.write_json(result, path)
    print(f"written: {path}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4, 8], help="numbers of runs, S")
    parser.add_argument("--particles", nargs="+", type=int, default=[1, 5, 50])
    parser.add_argument("--processes", nargs="*", type=int, default=[2], help="worker processes, one thread each")
    parser.add_argument("--compile", default="inductor", choices=["off", "inductor", "cudagraph"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--bursts", type=int, default=2, help="a block is so many times ten steps")
    parser.add_argument("--warm-steps", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of this process")
    return parser.parse_args()


def measure(workload: Workload, images: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """All contestants at one number of particles."""
    entries = {"alone": timing.Entry(step=alone(workload, images, args.compile, 0))}
    for size in args.sizes:
        entries[f"stacked-{size}"] = timing.Entry(step=stacked(workload, images, args.compile, size))
    with ExitStack() as stack:
        for size in args.processes:
            start = partial(processes, workload.k, args.device, args.compile, size)
            entries[f"processes-{size}"] = timing.Entry(step=stack.enter_context(start()))
        for entry in entries.values():
            assert entry.step is not None
            for _ in range(-(-args.warm_steps // BURST)):
                entry.step()
        timing.interleave(entries, args.rounds, args.bursts, images.device)
    for entry in entries.values():
        entry.blocks = [ms / BURST for ms in entry.blocks]
    return {name: entry.as_dict(entries["alone"]) for name, entry in entries.items()}


def alone(workload: Workload, images: Tensor, compile: Any, seed: int) -> Step:
    """Ten steps of one run, as `fit` takes them."""
    pair = fresh(workload, images.device, seed)
    optim = torch.optim.Adam(pair.parameters(), lr=1e-3, fused=True)
    svi = SVI(pair, optim, workload.objective(), compile=compile)
    several: Callable[..., Steps] = Steps
    if images.is_cuda and compile != "off":
        several = partial(CapturedSteps, longest=BURST)
    steps = several(svi, Minibatches((images,), workload.batch, seed))
    return lambda: steps.take(BURST)


def stacked(workload: Workload, images: Tensor, compile: Any, size: int) -> Step:
    """Ten steps of so many runs, as `fit_stacked` takes them."""
    seeds, objective = range(size), workload.objective()
    modules = [objective(fresh(workload, images.device, seed)) for seed in seeds]
    batches = [Minibatches((images,), workload.batch, seed) for seed in seeds]
    loss = StackedLoss(modules, batches, seeds, inductor=compile == "inductor")
    optim = torch.optim.Adam(loss.trained, lr=1e-3, fused=True)
    steps = StackedSteps(loss, batches, seeds, optim, capture=compile != "off")

    def step() -> None:
        for _ in range(BURST):
            steps.take()

    return step


@contextmanager
def processes(k: int, device: str, compile: str, size: int) -> Iterator[Step]:
    """Ten steps of so many runs, each in a process of its own: over when all have taken theirs."""
    context = multiprocessing.get_context("spawn")
    ends = [context.Pipe() for _ in range(size)]
    workers = [
        context.Process(target=work, args=(theirs, k, device, compile, seed), daemon=True)
        for seed, (_, theirs) in enumerate(ends)
    ]
    for worker in workers:
        worker.start()
    try:
        yield lambda: together([ours for ours, _ in ends])
    finally:
        for ours, _ in ends:
            ours.send(False)
        for worker in workers:
            worker.join()


def together(ends: Sequence[Connection]) -> None:
    for end in ends:
        end.send(True)
    for end in ends:
        end.recv()


def work(end: Connection, k: int, device: str, compile: str, seed: int) -> None:
    """Take ten steps of a run each time that it is asked for."""
    torch.set_flush_denormal(True)
    keep_freed_memory()
    torch.set_num_threads(1)
    images = load_images(None)[0].to(device)
    step = alone(replace(WORKLOADS["burda1"], k=k), images, compile, seed)
    while end.recv():
        step()
        timing.finish(None, images.device)
        end.send(True)


def fresh(workload: Workload, device: torch.device, seed: int) -> Pair:
    torch.manual_seed(seed)
    return workload.pair().to(device)


def table(k: int, rows: dict[str, Any]) -> str:
    """One line for each contestant."""
    lines = [f"k = {k}", f"  {'':14} {'ms per step [quartiles]':28} ratio to one run alone [quartiles]"]
    for name, row in rows.items():
        if row["status"] != "ok":
            lines.append(f"  {name:14} {row['status']}")
            continue
        ms, ratio = row["ms_per_step"], row["ratio"]
        times = f"{ms['median']:8.3f} [{ms['q1']:.3f}, {ms['q3']:.3f}]"
        lines.append(f"  {name:14} {times:28} {ratio['median']:6.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}]")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
