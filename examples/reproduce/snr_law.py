"""Signal-to-noise ratio of gradients against the number of particles K, on the toy of Rainforth et al. 2018.

z ~ N(mu, I), x | z ~ N(z, I) and q(z | x) = N(A x + b, 2/3 I) in 20 dimensions; 1,024 data, M = 1; parameters at
the optimum, each moved by N(0, 0.01^2). The law: the model's ratio (mu) grows as K^0.5, the guide's (A, b) falls
as K^-0.5 for IWAE and grows as K^0.5 for DReG. A point is the root mean square over components, without bias.
IWAE's mean gradient of the guide is lost in noise at large K (S draws show 1 / sqrt(S) where there is none). DReG is
an unbiased, quieter estimator of the same mean: it is set over IWAE's standard deviation ("IWAE, guide"; "direct"
is the plain estimate). The law is that of large K: at K = 1 the ELBO pulls mu towards the moved guide, which is a
larger gradient than that of log p(x), and fades as 1 / K; hence slopes over all K and over large K.

    python examples/reproduce/snr_law.py --out examples/reproduce/results
"""

import argparse
import math
import time
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ppl_vae import Pair, report
from ppl_vae.evaluation import gradient_moments
from ppl_vae.objectives import IWAE, DReG

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#E69F00")
EXPECTED = {"IWAE, model": 0.5, "IWAE, guide": -0.5, "DReG, guide": 0.5}
DIM, NUM_DATA, SPREAD = 20, 1024, 0.01
PARTICLES = [1, 3, 10, 30, 100, 300, 1000]
ASYMPTOTIC = 100  # slopes are also fitted from this K on


class Toy(Pair):
    """p(z) = N(mu, I);  p(x | z) = N(z, I);  q(z | x) = N(A x + b, 2/3 I); near the optimum, mu = mean of x."""

    def __init__(self, x: Tensor, spread: float) -> None:
        super().__init__()
        mu = x.mean(0)
        self.mu, self.b, self.A = (
            nn.Parameter(optimum + spread * torch.randn_like(optimum))
            for optimum in (mu, mu / 2, torch.eye(len(mu)) / 2)
        )

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x @ self.A.T + self.b, math.sqrt(2 / 3)).to_event(1))


def ratios(pair: Toy, x: Tensor, K: int, draws: int, seed: int) -> dict[str, float]:
    rows = max(1, 65536 // K)  # at a time: tensors that stay in the cache
    iwae, dreg = (
        gradient_moments(pair, objective, x, num_samples=draws, batch_size=rows, seed=seed + i)
        for i, objective in enumerate((IWAE(num_particles=K), DReG(num_particles=K)))
    )
    return {
        "IWAE, model": iwae["model"].snr_rms,
        "IWAE, guide": iwae["guide"].snr_rms_of(dreg["guide"]),
        "DReG, guide": dreg["guide"].snr_rms,
        "IWAE, guide (direct)": iwae["guide"].snr_rms,
    }


def fit(particles: list[int], runs: np.ndarray) -> dict[str, float]:
    """Log-log slope of the ratios (replicates, points): mean over replicates and its standard error."""
    slopes = np.array([np.polyfit(np.log(particles), np.log(r), 1)[0] if r.min() > 0 else np.nan for r in runs])
    return {"slope": slopes.mean(), "standard_error": slopes.std(ddof=1) / math.sqrt(len(slopes))}


def draw_figure(curves: dict[str, np.ndarray], path: Path) -> None:
    figure = Figure(figsize=(7.5, 4.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="particles K", ylabel="signal-to-noise ratio")
    for (name, runs), colour in zip(curves.items(), COLOURS, strict=True):
        points, law = runs.mean(0), name in EXPECTED
        style = {"color": colour, "marker": "o" if law else "x", "ms": 4 if law else 6, "ls": "-" if law else "none"}
        axes.plot(PARTICLES, np.where(points > 0, points, np.nan), label=name, **style)
        if law:
            line = points[-1] * (np.array(PARTICLES) / PARTICLES[-1]) ** EXPECTED[name]
            axes.plot(PARTICLES, line, ls=":", lw=1.2, color=colour)
    axes.set_title("Gradients of the toy of Rainforth et al. 2018; dotted: their law", fontsize=10, loc="left")
    axes.grid(color="#DDDDDD", linewidth=0.6)
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path, dpi=128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=4, help="data, perturbation and noise drawn anew")
    parser.add_argument("--work", type=int, default=3000, help="K x draws of one point, within 10 to 500 draws")
    parser.add_argument("--out", type=Path, default=Path("results"))
    arguments = parser.parse_args()
    start, runs = time.perf_counter(), []
    draws = {K: max(10, min(500, arguments.work // K)) for K in PARTICLES}
    for r in range(arguments.replicates):
        torch.manual_seed(r)
        x = torch.randn(DIM) + math.sqrt(2) * torch.randn(NUM_DATA, DIM)  # the true mu, then x given mu
        pair = Toy(x, SPREAD)
        runs.append([ratios(pair, x, K, draws[K], 1000 * (r + 1)) for K in PARTICLES])
    curves = {name: np.array([[point[name] for point in run] for run in runs]) for name in runs[0][0]}
    late = PARTICLES.index(ASYMPTOTIC)
    slopes = {}
    for name, c in curves.items():
        slopes[name] = fits = {"all K": fit(PARTICLES, c), f"K >= {ASYMPTOTIC}": fit(PARTICLES[late:], c[:, late:])}
        print(f"{name:22}", {k: f"{f['slope']:+.3f} +- {f['standard_error']:.3f}" for k, f in fits.items()})
    config = {"dim": DIM, "num_data": NUM_DATA, "spread": SPREAD, "draws": draws, "replicates": arguments.replicates}
    record = {"config": config, "environment": report.environment(), "seconds": time.perf_counter() - start}
    report.write_json({**record, "expected": EXPECTED, "slopes": slopes, "snr": curves}, arguments.out / "snr_law.json")
    draw_figure(curves, arguments.out / "snr_law.png")


if __name__ == "__main__":
    main()
