"""Categorical latent variables, and the ways to train them: the discrete model's NLL in nats, after equal steps.

What is in the table is the model with one-hot z, whatever each way is trained for. On the digits expect VIMCO ahead
(5 particles, each the others' baseline: 22.2 nats), then Gumbel-softmax (22.6) and straight-through (23.3), whose
gradients pass z and are biased, and the score function alone last (24.7), as its gradient is by far the noisiest.

python examples/12_categorical.py                                     # scikit-learn's digits, 2 minutes
python examples/12_categorical.py --data mnist --variables 20 --hidden 200 --steps 10000
"""

import argparse
import time

import torch

from ppl_vae import data, evaluation, fit, generation, report
from ppl_vae.objectives import VIMCO, Objective, Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.pairs import CategoricalVAE
from ppl_vae.pairs.categorical import Guide

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--variables", type=int, default=10)
parser.add_argument("--categories", type=int, default=10)
parser.add_argument("--hidden", type=int, default=100, help="units of each of the two hidden layers")
parser.add_argument("--steps", type=int, default=2500, help="of each")
parser.add_argument("--num-particles", type=int, default=1000, help="of the likelihood")
parser.add_argument("--num-test", type=int, default=None, help="evaluate on the first so many alone")
parser.add_argument("--out", default="categorical.png")
args = parser.parse_args()

images = data.load(args.data, root=args.root).subset(num_test=args.num_test)
# From 1 to 0.5 in the first half of the steps.
annealed = {"temperature": (1.0, 0.5, 1.4 / args.steps)}
ways: dict[str, tuple[Guide, dict, Objective]] = {
    "Gumbel-softmax": ("gumbel-softmax", annealed, TraceMeanField_ELBO()),
    "straight-through": ("straight-through", annealed, TraceMeanField_ELBO()),
    "VIMCO, k = 5": ("score", {}, VIMCO(5)),
    "score function": ("score", {}, Trace_ELBO()),
}
print(f"{args.data}: {args.variables} variables of {args.categories} categories")
print(f"{'':18} {'NLL (s.e.)':>15} {'ELBO':>8} {'KL':>6} {'ms/step':>8}")
rows = []
for name, (guide, options, objective) in ways.items():
    torch.manual_seed(0)
    hidden = (args.hidden, args.hidden)
    pair = CategoricalVAE(images.shape, args.variables, args.categories, hidden, guide=guide, **options)
    pair.set_output_mean(images.pixel_means)
    start = time.perf_counter()
    fit(pair, images, objective, steps=args.steps, batch_size=100, learning_rate=1e-3, seed=0)
    seconds = time.perf_counter() - start
    result = evaluation.evaluate(
        pair, images.test_batch(), objective=Trace_ELBO(), num_particles=args.num_particles, seed=0
    )
    speed = 1000 * seconds / args.steps
    nll = f"{result.nll:.2f} ({result.nll_se:.2f})"
    print(f"{name:18} {nll:>15} {result.bound:8.2f} {result.kl['z']:6.2f} {speed:8.2f}")
    rows.append(generation.samples(pair, images.test_batch()[:12], seed=0))
print(report.image_grid(torch.cat(rows), args.out, columns=12, title=f"samples: {' | '.join(ways)}"))
