"""Five stochastic layers, guided bottom-up and down the ladder: which of them carry anything?

python examples/04_ladder.py
"""

import argparse

from torch import nn

from ppl_vae import data, evaluation, fit
from ppl_vae.objectives import LinearWarmup, Trace_ELBO
from ppl_vae.pairs import HierarchicalVAE, LadderVAE

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=5000)
parser.add_argument("--num-particles", type=int, default=1000)
args = parser.parse_args()

digits = data.load("digits")
latent_dims, hidden = (32, 16, 8, 4, 2), ((100, 100), (80, 80), (60, 60), (40, 40), (20, 20))
pairs = {
    "bottom-up": HierarchicalVAE(digits.shape, latent_dims, hidden, activation=nn.Tanh),
    "ladder": LadderVAE(digits.shape, latent_dims, hidden, activation=nn.Tanh),
    "ladder, batch norm": LadderVAE(digits.shape, latent_dims, hidden, activation=nn.Tanh, batch_norm=True),
}
for name, pair in pairs.items():
    pair.set_output_mean(digits.pixel_means)
    # The KL terms are switched on slowly, so that no layer is given up before the others have learned to use it.
    objective = Trace_ELBO(kl_weight=LinearWarmup(steps=max(1, args.steps // 2)))
    fit(pair, digits, objective, steps=args.steps)
    result = evaluation.evaluate(pair, digits.test_batch(), objective=objective, num_particles=args.num_particles)
    print(f"{name}: -log p(x) = {result.nll:.2f} nats (s.e. {result.nll_se:.2f}), ELBO {result.bound:.2f}")
    for site, kl in sorted(result.kl.items()):
        print(f"  {site}: KL {kl:.3f} nats{'' if kl > 0.1 else ', idle'}")
