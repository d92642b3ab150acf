"""Complete images of which some quadrants are given: a plain network, and a conditional VAE on top of it.

python examples/07_conditional.py
python examples/07_conditional.py --data mnist --hidden 500 --latent-dim 200 --steps 10000  # as in the literature
"""

import argparse

import torch

from ppl_vae import data, evaluation, fit, generation, report
from ppl_vae.data import UNKNOWN, quadrants
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.pairs import ConditionalVAE, Prediction
from ppl_vae.pairs.conditional import PriorGuided

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", default="digits", help="digits, mnist, ...")
parser.add_argument("--root", default=None, help="folder of the data files")
parser.add_argument("--quadrants", type=int, default=1, choices=(1, 2, 3), help="given: 1 bottom left, 2 left half, 3")
parser.add_argument("--hidden", type=int, default=100, help="units of each of the two hidden layers")
parser.add_argument("--latent-dim", type=int, default=10)
parser.add_argument("--steps", type=int, default=3000, help="of each of the two")
parser.add_argument("--num-particles", type=int, default=100)
parser.add_argument("--num-test", type=int, default=None, help="evaluate on the first so many alone")
parser.add_argument("--out", default="completions.png")
args = parser.parse_args()

# Grey pixels and their cross-entropy, as in the literature: nats that compare with such nats alone.
images = data.load(args.data, root=args.root, binarisation="none").subset(num_test=args.num_test)
train, valid = (quadrants(part, args.quadrants) for part in (images.train[:-100], images.train[-100:]))
y, c = quadrants(images.test, args.quadrants)
shape, budget = images.shape, {"steps": args.steps, "batch_size": 128, "valid": valid}

options = {"hidden": (args.hidden, args.hidden), "likelihood": "grey-bernoulli", "completion": True}
baseline = Prediction(shape, shape, **options)
fit(baseline, train, **budget)
pair = ConditionalVAE(shape, shape, args.latent_dim, **options, baseline=baseline)
fit(pair, train, Trace_ELBO(), **budget)

K = args.num_particles
y, c = y.to(pair.reference()), c.to(pair.reference())
nll = {
    "network without latent variables": -evaluation.bound(baseline, Trace_ELBO(), y, c, seed=0),
    "CVAE, -ELBO": -evaluation.bound(pair, Trace_ELBO(), y, c, seed=0),
    f"CVAE, Monte Carlo from p(z | c), k = {K}": -evaluation.log_likelihood(
        PriorGuided(pair), y, c, num_particles=K, seed=0
    ),
    f"CVAE, importance sampling from q(z | y, c), k = {K}": -evaluation.log_likelihood(
        pair, y, c, num_particles=K, seed=0
    ),
}
print("NLL of the pixels that are not given, nats per image:")
for name, values in nll.items():
    print(f"  {name:52} {values.mean():7.2f} (s.e. {values.std() / len(values) ** 0.5:.2f})")

rows = slice(0, 10)
hidden = c[rows] == UNKNOWN
guess = generation.samples(baseline, y[rows], c[rows])
draws = [generation.samples(pair, y[rows], c[rows], seed=seed) for seed in range(6)]
filled = [torch.where(hidden, image, y[rows]) for image in (torch.full_like(guess, 0.4), guess, *draws)]
pictures = torch.stack([*filled, y[rows]], 1).flatten(0, 1)
print(report.image_grid(pictures, args.out, columns=9, title="given | network | CVAE, six draws | truth"))
