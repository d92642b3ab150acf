"""A variational autoencoder on real digits: train, evaluate, look.

python examples/01_vae.py
"""

import argparse

from ppl_vae import data, evaluation, fit, generation, report
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.pairs import VAE

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=5000)
parser.add_argument("--num-particles", type=int, default=5000)
args = parser.parse_args()

digits = data.load("digits")  # scikit-learn's 8x8 digits; each use of an image draws its bits anew
pair = VAE(digits.shape, latent_dim=2, hidden=(100, 100))
history = fit(pair, digits, Trace_ELBO(), steps=args.steps)

test = digits.test_batch()
result = evaluation.evaluate(pair, test, objective=Trace_ELBO(), num_particles=args.num_particles)
print(f"-log p(x) = {result.nll:.2f} nats (s.e. {result.nll_se:.2f}), ELBO {result.bound:.2f} nats")
print(f"{result.active_units['z'].count} of 2 units active, {history.ms_per_step:.2f} ms a step")

print(report.image_grid(generation.samples(pair, num=100), "vae_samples.png", title="Samples from the prior"))
print(report.reconstruction_grid(test[:20], generation.reconstructions(pair, test[:20]), "vae_reconstructions.png"))
print(report.manifold_figure(generation.manifold(pair), "vae_manifold.png", title="The manifold of the digits"))
