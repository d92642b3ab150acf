"""Time of a training step of alignDRAW: 60 x 60 images, 32 glimpses, batches of 100, captions of 12 words, Adam.

Each way of running a step (`compile` of SVI: "off", and on CUDA "cudagraph") takes a block of steps in turn, for some
rounds, from the same weights and batch. Printed: the median of a step's milliseconds [quartiles], and the loss after
the first steps, which of both ways is about the same (their noise differs). Writes painter_time_DEVICE.json. Images
and captions are random: the time does not depend on them.

    python examples/benchmarks/painter_time.py --device cuda --out results
    python examples/benchmarks/painter_time.py --canvas 28 --glimpses 8 --hidden 192 --latent-dim 24 --steps 5
"""

import argparse
import time
from pathlib import Path
from typing import Any

import timing
import torch

from ppl_vae import SVI, report
from ppl_vae.objectives import TraceMeanField_ELBO
from ppl_vae.pairs import AlignDRAW

VOCABULARY, WORDS = 23, 12


def main() -> None:
    args = arguments()
    torch.set_flush_denormal(True)
    ways = ("off", "cudagraph") if args.device == "cuda" else ("off",)
    takers = {way: Taker(way, args) for way in ways}
    first = {way: taker.run(args.warm) for way, taker in takers.items()}
    blocks: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(args.rounds):
        for way, taker in takers.items():
            begin = time.perf_counter()
            taker.run(args.steps)
            blocks[way].append(1e3 * (time.perf_counter() - begin) / args.steps)
    result = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "environment": report.environment(args.device),
        "parameters": sum(p.numel() for p in takers["off"].svi.pair.parameters()),
        "ms_per_step": {way: timing.quartiles(times) for way, times in blocks.items()},
        "loss_after_warm_up": first,
    }
    for way, ms in result["ms_per_step"].items():
        spread = f"{ms['median']:.1f} [{ms['q1']:.1f}, {ms['q3']:.1f}]"
        print(f"{way:10} {spread} ms a step; loss {first[way]:.2f} nats per datum after {args.warm} steps")
    print(f"written: {report.write_json(result, args.out / f'painter_time_{args.device}.json')}")


class Taker:
    """Takes steps in one way, each from the same seed."""

    def __init__(self, way: Any, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        shape, sizes = (1, args.canvas, args.canvas), (VOCABULARY, args.latent_dim, args.hidden, args.glimpses)
        pair = AlignDRAW(shape, *sizes).to(args.device)
        self.batch = (
            torch.rand(args.batch, *shape).round().to(args.device),
            torch.randint(1, VOCABULARY, (args.batch, WORDS)).to(args.device),
        )
        optim = torch.optim.Adam(pair.parameters(), lr=1e-4, fused=True)
        self.svi = SVI(pair, optim, TraceMeanField_ELBO(), compile=way)

    def run(self, steps: int) -> float:
        """So many steps, to the end; the last loss, in nats per datum."""
        loss = torch.zeros(())
        for _ in range(steps):
            loss = self.svi.update(*self.batch)
        return loss.item() / len(self.batch[0])  # waits for the device


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--canvas", type=int, default=60)
    parser.add_argument("--glimpses", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=300)
    parser.add_argument("--latent-dim", type=int, default=150)
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--warm", type=int, default=5, help="steps before the timed ones")
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


if __name__ == "__main__":
    main()
