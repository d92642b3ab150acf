"""Time to draw images from an autoregressive network, pixel by pixel: features kept, or computed anew for each.

Three ways: "cached" computes the features of the next pixel alone (`CausalNetwork.draw`); "rows so far" passes the rows
down to that pixel through the network (`draw(cached=False)`; the same draw, which is checked on a small image); "whole
image" passes all of it, as is often done. The last two are timed at pixels spread evenly over the image, and the time
of a draw is estimated from these; --whole times every pixel. Each round times all ways in
turn. Printed: the median over the rounds of the seconds of a draw [quartiles], and of the ratio to "cached" of the same
round. Writes draw_time_DEVICE.json. Weights are untrained: the time does not depend on them.

    python examples/benchmarks/draw_time.py --out results
    python examples/benchmarks/draw_time.py --stack masked --whole --rounds 1
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch
from torch import Tensor

from ppl_vae import report
from ppl_vae.nn import CausalNetwork, ImageTrunk
from ppl_vae.pairs import PixelCNN


def main() -> None:
    args = arguments()
    torch.set_flush_denormal(True)  # before the thread pool starts: the threads inherit it
    torch.set_num_threads(args.threads)
    draws_are_equal(args)
    network = make(args, args.size)
    entries, timed = measure(network, args)
    result = {
        "config": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "environment": report.environment(args.device),
        "pixels": args.size**2,
        "parameters": sum(p.numel() for p in network.parameters()),
        "ways": {name: row(entry, entries["cached"], timed[name], args.size**2) for name, entry in entries.items()},
    }
    print(table(result))
    print(f"written: {report.write_json(result, args.out / f'draw_time_{args.device}.json')}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--out", type=Path, default=Path("results"))
    parser.add_argument("--stack", default="gated", choices=["gated", "masked"])
    parser.add_argument("--hidden", type=int, default=32, help="features of a layer")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--number", type=int, default=64, help="images drawn at once")
    parser.add_argument("--size", type=int, default=28, help="rows, and columns, of an image")
    parser.add_argument("--sample", type=int, default=16, help="pixels at which the ways that keep nothing are timed")
    parser.add_argument("--whole", action="store_true", help="time them at all pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    return parser.parse_args()


def make(args: argparse.Namespace, size: int) -> CausalNetwork:
    """The network of binary images of that size, with the weights of seed 0."""
    torch.manual_seed(0)
    return PixelCNN((1, size, size), args.hidden, args.layers, stack=args.stack).network.to(args.device)


def draws_are_equal(args: argparse.Namespace) -> None:
    """Of 4 images of 6 x 6, on one seed.

    Raises:
        RuntimeError: the draws of `cached` and of `rows so far` differ.
    """
    network, draws = make(args, 6), []
    for cached in (True, False):
        torch.manual_seed(1)
        draws.append(network.draw(4, cached=cached))
    if not torch.equal(*draws):
        raise RuntimeError("draws with features kept are not those without; the times would compare nothing")


def measure(network: CausalNetwork, args: argparse.Namespace) -> tuple[dict[str, timing.Entry], dict[str, int]]:
    """Milliseconds of a draw by each way, one number for each round, and at how many pixels it was timed."""
    pixels = args.size**2
    sample = pixels if args.whole else min(args.sample, pixels)
    x = torch.rand(args.number, *network.shape, device=args.device).round()
    ways: dict[str, Callable[[], Any]] = {
        "cached": lambda: network.draw(args.number),
        "rows so far": lambda: anew(network, x, spread(sample, pixels), is_whole=False),
        "whole image": lambda: anew(network, x, spread(sample, pixels), is_whole=True),
    }
    timed = {name: pixels if name == "cached" else sample for name in ways}
    entries = {name: timing.Entry() for name in ways}
    make(args, 6).draw(args.number)  # libraries load, and memory is found
    anew(network, x, [pixels - 1], is_whole=True)
    for number in range(args.rounds):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            seconds = seconds_of(ways[name], x.device)
            entries[name].blocks.append(1e3 * seconds * pixels / timed[name])
    return entries, timed


def spread(sample: int, pixels: int) -> list[int]:
    """So many of the pixels, in order: the middles of equal stretches."""
    return [pixels * (2 * i + 1) // (2 * sample) for i in range(sample)]


@torch.no_grad()
def anew(network: CausalNetwork, x: Tensor, places: list[int], is_whole: bool) -> None:
    """Draw these pixels as `draw` does that keeps nothing; of the rows so far, or of whole images."""
    trunk, width = network.trunk, x.shape[-1]
    assert isinstance(trunk, ImageTrunk) and trunk.rows_alone
    for row, column in (divmod(place, width) for place in places):
        raw = trunk.raw(x if is_whole else x[:, :, : row + 1], None)
        x[:, :, row, column] = network.head.law(raw[..., row, column], 1).sample()


def seconds_of(act: Callable[[], Any], device: torch.device) -> float:
    timing.finish(None, device)
    start = time.perf_counter()
    act()
    timing.finish(None, device)
    return time.perf_counter() - start


def row(entry: timing.Entry, cached: timing.Entry, timed: int, pixels: int) -> dict[str, Any]:
    """Seconds of a draw of all pixels, and their ratio to those of `cached` in the same round."""
    return {
        "seconds": timing.quartiles([ms / 1e3 for ms in entry.blocks]),
        "ratio": timing.quartiles([a / b for a, b in zip(entry.blocks, cached.blocks, strict=True)]),
        "rounds_seconds": [ms / 1e3 for ms in entry.blocks],
        "pixels_timed": timed,
        "how": "measured" if timed == pixels else f"estimated from {timed} of {pixels} pixels",
    }


def table(result: dict[str, Any]) -> str:
    """One line for each way."""
    config, environment = result["config"], result["environment"]
    lines = [
        f"{environment['gpu'] or environment['cpu']}, {environment['threads']} threads: {config['number']} images of "
        f"{config['size']} x {config['size']}, {config['stack']}, hidden {config['hidden']}, layers {config['layers']}",
        f"  {'':12} {'seconds of a draw [quartiles]':32} {'ratio to cached [quartiles]':32}",
    ]
    for name, way in result["ways"].items():
        seconds, ratio = (spelled(way[key]) for key in ("seconds", "ratio"))
        lines.append(f"  {name:12} {seconds:32} {ratio:32} {way['how']}")
    return "\n".join(lines)


def spelled(values: dict[str, float]) -> str:
    return f"{values['median']:8.2f} [{values['q1']:.2f}, {values['q3']:.2f}]"


if __name__ == "__main__":
    main()
