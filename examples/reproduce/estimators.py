"""MNIST: gradient estimators of the importance-weighted bound, k = 50, at equal steps and from equal weights.

Burda et al.'s one-layer pair and batch of 20, dynamic binarisation; the bound is the same for all estimators, what
differs is how its gradient reaches the guide. Writes estimators.json with the NLL of each run and their paired
differences over the seeds.

    python examples/reproduce/estimators.py --data-root DATA --workers 2
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ppl_vae import Pair, compare, report, tables
from ppl_vae.comparison import Comparison
from ppl_vae.data import load
from ppl_vae.objectives import IWAE, DReG, Objective
from ppl_vae.pairs import VAE

RATE, BATCH, PARTICLES = 1e-3, 20, 50


@dataclass(frozen=True)
class Schedule:
    """The learning rate's factor: 1, then 0.3 and 0.1 for the last two fifths of the steps."""

    steps: int

    def __call__(self, step: int) -> float:
        return 1.0 if step < 0.6 * self.steps else 0.3 if step < 0.8 * self.steps else 0.1


@dataclass(frozen=True)
class OneLayer:
    """200-200-50 with tanh units, p(x | z) starting at the pixel means."""

    pixel_means: Tensor

    def __call__(self) -> Pair:
        pair = VAE((1, 28, 28))
        pair.set_output_mean(self.pixel_means)
        return pair


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root")
    parser.add_argument("--steps", type=int, default=40_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--test-images", type=int, default=10_000)
    parser.add_argument("--test-particles", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path("estimators.json"))
    args = parser.parse_args()
    data = load("mnist", binarisation="dynamic", root=args.data_root)
    objectives: dict[str, Objective] = {"IWAE k=50": IWAE(PARTICLES), "DReG k=50": DReG(PARTICLES)}
    result = compare(
        {"VAE 200-200-50": OneLayer(data.pixel_means)},
        objectives,
        data,
        steps=args.steps,
        seeds=args.seeds,
        batch_size=BATCH,
        learning_rate=RATE,
        schedule=Schedule(args.steps),
        num_particles=args.test_particles,
        num_test=args.test_images,
        device=args.device,
        compile="inductor" if args.device != "cuda" else "auto",
        workers=args.workers,
    )
    print(tables.comparison_table(result))
    write(result, args.out)


def write(result: Comparison, path: Path) -> None:
    schedule = "x 1, from 60 % of the steps x 0.3, from 80 % x 0.1"
    config = {**result.config, "schedule": schedule}
    report.write_json({**result.as_dict(), "config": config, "environment": report.environment("cpu")}, path)


if __name__ == "__main__":
    main()
