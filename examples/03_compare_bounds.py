"""Which bound is better on this pair? Equal weights, data and budget; the answer in nats, with error bars.

python examples/03_compare_bounds.py
"""

import argparse

from ppl_vae import compare, data, report, tables
from ppl_vae.objectives import IWAE, LinearWarmup, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.pairs import VAE

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=3000)
parser.add_argument("--seeds", type=int, default=3)
parser.add_argument("--num-particles", type=int, default=1000)
args = parser.parse_args()

digits = data.load("digits")
objectives = {
    "elbo": Trace_ELBO(),
    "analytic KL": TraceMeanField_ELBO(),
    "KL warm-up": Trace_ELBO(kl_weight=LinearWarmup(steps=max(1, args.steps // 5))),
    "Rényi 0.5, k=5": RenyiELBO(alpha=0.5, num_particles=5),
    "IWAE, k=5": IWAE(5),
    "IWAE, k=50": IWAE(50),
}
result = compare(
    lambda: VAE(digits.shape, latent_dim=20, hidden=(100, 100)),
    objectives,
    digits,
    steps=args.steps,
    seeds=args.seeds,
    num_particles=args.num_particles,
)
print(tables.comparison_table(result))

curves = {name: [run.history.curve for run in result.runs if run.objective == name] for name in objectives}
print(report.learning_curves(curves, "bounds.png", title="Training bounds: each objective its own"))
