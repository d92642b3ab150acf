"""What checkpoints cost: their share of a run's time at the default interval, and memory while a large one is written.

python examples/benchmarks/checkpoint_cost.py --out results
"""

import argparse
import tempfile
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from torch import nn

from ppl_vae import data, fit, report
from ppl_vae.checkpoints import Checkpoints
from ppl_vae.loop import Saver
from ppl_vae.pairs import VAE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--seconds", type=float, default=100.0, help="of training; the first checkpoint comes after 30")
    parser.add_argument("--megabytes", type=int, default=1024, help="of the large state")
    args = parser.parse_args()
    result = {
        "environment": report.environment(),
        "share": share(args.seconds),
        "memory": memory(args.megabytes),
    }
    path = report.write_json(result, args.out / "checkpoint_cost.json")
    for name, values in result.items():
        print(f"{name}: {values}")
    print(f"written: {path}")


def share(seconds: float) -> dict[str, Any]:
    """Train the benchmark's multilayer perceptron for so long, and add up the time in `Saver.save`."""
    spent: list[float] = []
    save = Saver.save

    def timed(self: Saver, *arguments: Any) -> None:
        start = time.perf_counter()
        save(self, *arguments)
        spent.append(time.perf_counter() - start)

    pair, begin = VAE((1, 8, 8), 20, (400, 400), activation=nn.ReLU), time.perf_counter()

    def stop(step: int) -> None:
        if time.perf_counter() - begin > seconds:
            raise TimeoutError

    setattr(Saver, "save", timed)  # noqa: B010
    try:
        with tempfile.TemporaryDirectory() as folder:
            fit(pair, data.load("digits"), steps=10**9, batch_size=128, checkpoints=folder, on_step=stop)
    except TimeoutError:
        pass
    finally:
        setattr(Saver, "save", save)  # noqa: B010
    total = time.perf_counter() - begin
    size = sum(p.numel() for p in pair.parameters())
    return {
        "parameters": size,
        "training_seconds": total,
        "checkpoints": len(spent),
        "seconds_each": sum(spent) / max(1, len(spent)),
        "share_of_time": sum(spent) / total,
    }


def memory(megabytes: int) -> dict[str, Any]:
    """Anonymous memory of this process (Linux) before and while such a state is written."""
    state = {"weights": [torch.ones(1 << 18) for _ in range(megabytes)]}
    peak, before = 0, anonymous()
    with tempfile.TemporaryDirectory() as folder:
        done = Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, anonymous())

        thread = Thread(target=watch)
        thread.start()
        start = time.perf_counter()
        Checkpoints(folder).save(state, 1)
        seconds = time.perf_counter() - start
        done.set()
        thread.join()
    return {"state_megabytes": megabytes, "before_megabytes": before, "peak_megabytes": peak, "seconds": seconds}


def anonymous() -> int:
    """Megabytes of memory that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Anonymous:")).split()[1]) // 1024


if __name__ == "__main__":
    main()
