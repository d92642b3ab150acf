"""A pair of one's own: two Pyro programs. It trains, compares and evaluates with no other code.

python examples/02_your_own_pair.py
ppl-vae compare --pair examples/02_your_own_pair.py:MyPair --objective elbo --objective iwae:5
"""

import argparse

import pyro
import pyro.distributions as dist
from torch import nn

from ppl_vae import Pair, compare, data, tables
from ppl_vae.nn import MLP, BernoulliHead, NormalHead
from ppl_vae.objectives import IWAE, Trace_ELBO


class MyPair(Pair):
    """p(z) = Laplace(0, 1);  p(x | z) = Bernoulli(decoder(z));  q(z | x) = Normal(encoder(x))."""

    def __init__(self, data_shape, latent_dim=10):
        super().__init__()
        self.latent_dim = latent_dim
        latent, pixels = NormalHead(latent_dim), BernoulliHead(data_shape)
        self.encoder = nn.Sequential(MLP(data_shape, latent.raw_shape, hidden=(100,)), latent)
        self.decoder = nn.Sequential(MLP(latent_dim, pixels.raw_shape, hidden=(100,)), pixels)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Laplace(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encoder(x))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--num-particles", type=int, default=1000)
    args = parser.parse_args()
    digits = data.load("digits")
    result = compare(
        lambda: MyPair(digits.shape),
        {"elbo": Trace_ELBO(), "iwae-5": IWAE(5)},
        digits,
        steps=args.steps,
        seeds=args.seeds,
        num_particles=args.num_particles,
    )
    print(tables.comparison_table(result))
