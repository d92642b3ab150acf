"""A training step shared by several processes, against one process with as many threads, in turns.

python examples/benchmarks/rank_time.py --out results
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

from ppl_vae import fit, report
from ppl_vae.pairs import VAE
from ppl_vae.parallel import Ranks, leave, started_by_torchrun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--ranks", type=int, default=2, help="processes of one thread; or threads of one process")
    parser.add_argument("--batches", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", default="auto", choices=["auto", "off", "inductor"])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        train(args.batches[0], args.steps, args.compile, args.child)
        return
    rows = []
    for batch in args.batches:
        rounds = [(milliseconds(args, batch, True), milliseconds(args, batch, False)) for _ in range(args.rounds)]
        ranks, threads = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratio = statistics.median(r / t for r, t in rounds)
        row = {"batch": batch, "ms_ranks": ranks, "ms_threads": threads, "ratio": ratio, "rounds": rounds}
        print(
            f"batch {batch}: {args.ranks} processes {ranks:.2f} ms, {args.ranks} threads {threads:.2f} ms, {ratio:.2f}"
        )
        rows.append(row)
    result = {"environment": report.environment(), "ranks": args.ranks, "rows": rows}
    print(f"written: {report.write_json(result, args.out / 'rank_time.json')}")


def milliseconds(args: argparse.Namespace, batch: int, is_shared: bool) -> float:
    """Of one step, in processes started for it."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={args.ranks}"] if is_shared else []
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder, "ms.json")
        child = [__file__, "--child", str(found), "--batches", str(batch), "--steps", str(args.steps)]
        threads = {"OMP_NUM_THREADS": "1" if is_shared else str(args.ranks)}
        command = [sys.executable, *launcher, *child, "--compile", args.compile]
        subprocess.run(command, check=True, env={**os.environ, **threads})
        return float(json.loads(found.read_text()))


def train(batch: int, steps: int, compile: str, out: Path) -> None:
    """Train a multilayer perceptron on noise; the first process writes what a step took."""
    with started_by_torchrun("cpu"):
        torch.manual_seed(0)
        images, pair = torch.rand(10_000, 1, 28, 28).round(), VAE((1, 28, 28), 20, (400, 400), activation=nn.ReLU)
        options = {"batch_size": batch, "progress": False, "compile": compile, "device": "cpu"}
        history = fit(pair, images, steps=steps, **options)
        if Ranks().is_first:
            report.write_json(history.ms_per_step, out)
    leave()


if __name__ == "__main__":
    main()
