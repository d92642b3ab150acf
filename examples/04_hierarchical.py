"""Two stochastic layers beside one: test NLL, active units and KL of each layer.

python examples/04_hierarchical.py
"""

import argparse

from ppl_vae import data, evaluation, fit
from ppl_vae.objectives import IWAE
from ppl_vae.pairs import VAE, HierarchicalVAE

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=5000)
parser.add_argument("--num-particles", type=int, default=5000)
args = parser.parse_args()

digits = data.load("digits")
pairs = {
    "one layer": VAE(digits.shape, latent_dim=20, hidden=(100, 100)),
    "two layers": HierarchicalVAE(digits.shape, latent_dims=(20, 10), hidden=((100, 100), (50, 50))),
}
for name, pair in pairs.items():
    pair.set_output_mean(digits.pixel_means)  # p(x | z) starts at the pixel means, as in Burda et al. 2015
    fit(pair, digits, IWAE(5), steps=args.steps)
    result = evaluation.evaluate(pair, digits.test_batch(), objective=IWAE(5), num_particles=args.num_particles)
    print(f"{name}: -log p(x) = {result.nll:.2f} nats (s.e. {result.nll_se:.2f}), L_5 = {result.bound:.2f}")
    for site, units in result.active_units.items():
        print(f"  {site}: {units.count} of {units.total} units active, KL {result.kl[site]:.2f} nats")
