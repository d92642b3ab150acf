"""Time of one training step: ours beside stock Pyro, PyTorch by hand, torch.compile, CUDA graphs and NumPyro.

All contestants of a workload are built first, each trained for `--warm-steps` steps (denormal numbers and other
signs of age appear as training goes on), and then timed in turn, a block of steps of each in a new order every
round. A step: zero gradients, loss on fresh noise, backward, Adam; its batch of binary images is in memory already.
Printed: the median over the blocks of the milliseconds of a step [quartiles], and the median over the rounds of the
ratio to PyTorch by hand, eager. Writes step_time_DEVICE.json and step_time_DEVICE.png (scaling).

    python examples/benchmarks/step_time.py --data-root FOLDER_WITH_MNIST --out results
    python examples/benchmarks/step_time.py --quick
"""

import argparse
import importlib
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import contestants
import numpy as np
import pyro
import pyro.infer
import scaling
import timing
import torch
from contestants import MODES, Step
from torch import Tensor
from workloads import WORKLOADS, Task, UnavailableError, agreement, load_images

from ppl_vae import report
from ppl_vae.heap import keep_freed_memory

NOTES = [
    "All contestants of a workload have the same layers, start from the same weights and see the same batches.",
    "stock is Pyro with Pyro's defaults, its validation of every sample site at every step included; "
    "stock-no-validation is the same under pyro.validation_enabled(False).",
    "stock and stock-jit wait for the loss at every step, as pyro.infer.SVI.step does; ours on a CPU too (a check that "
    "it is finite); the others, and ours on CUDA, wait at the end of a block.",
    "Denormals are flushed to zero for all contestants (XLA does so by itself) but stock-denormals: it is stock as a "
    "process runs it by default.",
    "Freed memory stays with the process for all contestants, as ppl_vae.fit sets it: glibc would hand it back to the "
    "system and fault it in again at every step.",
    "gflops: a matrix product of burda1's decoder in torch and in jax; where they differ, so will NumPyro.",
    "startup_seconds: building, tracing, compiling (without caches from earlier runs) and three steps; the first "
    "contestant to compile also imports the compiler.",
    "bound_before_timing: nats per datum, the mean over the last 20 steps before timing; PyTorch's contestants start "
    "from one seed, and all agree within noise.",
]


def main() -> None:
    args = arguments()
    torch.set_flush_denormal(True)  # before the thread pool starts: the threads inherit it
    keep_freed_memory()
    limit_threads(args.threads)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # what was compiled before must not shorten startup_seconds
        run(args)


def run(args: argparse.Namespace) -> None:
    images, data = load_images(args.data_root)
    images = images.to(args.device)
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    environment = {**report.environment(args.device), **{n: version(n) for n in ("numpyro", "jax", "jaxlib")}}
    config = {**settings, "data": data, "images": len(images), "learning_rate": 1e-3, "modes": MODES[args.device]}
    result: dict[str, Any] = {
        "config": config | {"pyro_validates_by_default": bool(pyro.infer.is_validation_enabled())},
        "notes": NOTES,
        "environment": environment,
        "workloads": {},
    }
    environment["gflops"] = rates(args)
    path = args.out / f"step_time_{args.device}.json"
    print(f"{environment['gpu'] or environment['cpu']}, {environment['threads']} threads; {data}")
    print("GFLOP/s of a matrix product:", ", ".join(f"{n} {r:.0f}" for n, r in environment["gflops"].items()))
    for name in args.workloads:
        result["workloads"][name] = compare(name, images, args)
        print(table(name, result["workloads"][name]), flush=True)
        report.write_json(result, path)
    if args.scaling:
        result["scaling"] = scale(result, images, args)
        report.write_json(result, path)
        scaling.plot(result["scaling"], path.with_suffix(".png"), f"{environment['gpu'] or environment['cpu']}")
    print(f"written: {path}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--data-root", help="folder with MNIST; scikit-learn's digits, enlarged, otherwise")
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    every = list(dict.fromkeys(name for device in MODES for name in contestants.contestants(device)))
    parser.add_argument("--contestants", nargs="+", choices=every, help="all by default")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--block", type=int, help="steps of a block; 10 on a CPU, 50 on CUDA by default")
    parser.add_argument("--warm-steps", type=int, default=500)
    parser.add_argument("--threads", type=int, help="CPU threads of every contestant (Linux: by affinity)")
    parser.add_argument("--scaling", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--quick", action="store_true", help="3 rounds of 2 steps: does it run?")
    args = parser.parse_args()
    args.contestants = args.contestants or list(contestants.contestants(args.device))
    args.block = args.block or (50 if args.device == "cuda" else 10)
    if args.quick:
        args.rounds, args.block, args.warm_steps = 3, 2, 3
    return args


def limit_threads(threads: int | None) -> None:
    """Give every library's thread pool so many CPUs; before any of them starts."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # jax would take most of the GPU's memory
    if threads is None:
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)


def compare(name: str, images: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """All contestants on one workload."""
    timing.forget_compiled()
    pyro.clear_param_store()
    workload = WORKLOADS[name]
    task = Task.of(workload, images)
    check = agreement(workload, images[:8].cpu()) | numpyro_check(task, args)
    makers = contestants.contestants(args.device)
    entries = {}
    for contestant in args.contestants:
        make = makers.get(contestant, not_here)
        entries[contestant] = timing.prepare(make, task, args.warm_steps)
    timing.interleave(entries, args.rounds, args.block, task.device)
    rows = {key: entry.as_dict(entries.get("hand")) for key, entry in entries.items()}
    return {**workload.describe(), "check": check, "contestants": rows}


def rates(args: argparse.Namespace) -> dict[str, float]:
    """GFLOP/s of the product (1000, 200) (200, 784), the largest of burda1: each library has kernels of its own."""
    a, b = torch.randn(1000, 200, device=args.device), torch.randn(200, 784, device=args.device)
    makers: dict[str, Callable[[], Step]] = {"torch": lambda: lambda: a @ b}
    if "numpyro" in args.contestants:
        makers["jax"] = lambda: importlib.import_module("numpyro_rival").matrix_product(a, b)
    found = {}
    for name, make in makers.items():
        with suppress(ImportError, UnavailableError):
            found[name] = timing.gflops(make(), 2 * 1000 * 200 * 784, a.device)
    return found


def not_here(task: Task) -> Step:
    raise UnavailableError(f"not for {task.device.type}")


def numpyro_check(task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """The loss of the first batch at the starting weights, by NumPyro and by hand: means over fresh noise."""
    if "numpyro" not in args.contestants:
        return {}
    try:
        theirs = np.array(importlib.import_module("numpyro_rival").losses(task, 50))
    except (ImportError, UnavailableError):
        return {}
    model, x = task.hand(), task.batches[0]
    with torch.no_grad():
        by_hand = np.array([model.loss(x).item() for _ in range(len(theirs))])
    error = float(np.hypot(theirs.std(ddof=1), by_hand.std(ddof=1)) / len(theirs) ** 0.5)
    difference = float(theirs.mean() - by_hand.mean())
    return {"numpyro_minus_hand": {"loss": float(by_hand.mean()), "difference": difference, "standard_error": error}}


def scale(result: dict[str, Any], images: Tensor, args: argparse.Namespace) -> dict[str, Any]:
    """The sweeps, in the mode of ours that was fastest, over the workloads' ratios to the fastest of them."""
    rows = [w["contestants"] for w in result["workloads"].values()]
    modes = [m for m in MODES[args.device] if all(r.get(f"ours-{m}", {}).get("status") == "ok" for r in rows)]
    mode = min(modes, key=lambda m: sum(r[f"ours-{m}"]["ms_per_step"]["median"] for r in rows), default="off")
    print(f"scaling: ours-{mode}")
    return scaling.measure(
        images,
        mode,
        rounds=max(3, args.rounds // 4),
        block=args.block,
        warm_steps=args.warm_steps,
        quick=args.quick,
        say=lambda line: print(line, flush=True),
    )


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def table(name: str, workload: dict[str, Any]) -> str:
    """One line for each contestant."""
    check = workload["check"]
    same = abs(check["loss"]["ours"] / check["loss"]["hand"] - 1)
    lines = [
        f"\n{name}: {workload['about']}; batch {workload['batch']}, {workload['bound']}",
        f"  ours and by hand: {check['parameters']['ours']:,} and {check['parameters']['hand']:,} parameters, "
        f"losses equal to {same:.0e}, gradients to {check['largest_relative_difference_of_gradients']:.0e}",
    ]
    if vs := check.get("numpyro_minus_hand"):
        lines.append(f"  NumPyro's loss minus by hand: {vs['difference']:+.2f} ({vs['standard_error']:.2f})")
    lines.append(f"  {'':20} {'ms per step [quartiles]':28} {'ratio':>6}  {'bound':>8}  {'startup':>8}")
    for contestant, row in workload["contestants"].items():
        if row["status"] != "ok":
            lines.append(f"  {contestant:20} {row['status']}")
            continue
        ms, ratio = row["ms_per_step"], row.get("ratio", {}).get("median", float("nan"))
        times = f"{ms['median']:8.3f} [{ms['q1']:.3f}, {ms['q3']:.3f}]"
        startup = f"{row['startup_seconds']:.1f} s"
        lines.append(f"  {contestant:20} {times:28} {ratio:6.2f}  {row['bound_before_timing']:8.2f}  {startup:>8}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
