"""The Helmholtz machine: a sigmoid belief net and its recognition net."""

from collections.abc import Sequence
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.nn import MLP, BernoulliHead, Shape, as_shape
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks

__all__ = ["HelmholtzMachine"]


class HelmholtzMachine(Pair):
    """p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2) p(x | z_1);  q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}).

    All units are binary. Those of a layer are independent given the next one, with probabilities sigmoid(W h + b):
    model and guide are two sigmoid belief nets that run opposite ways. p(z_L) is a bias for each unit. Sites "z1", ...,
    "zL" and "x".

    For `WakeSleep`, `ReweightedWakeSleep` and `VIMCO`; and `TraceEnum_ELBO` where the layers are small.

    Args:
        data_shape: shape of one datum, (1, 28, 28) say.
        latent_dims: units of z_1, ..., z_L, bottom to top.

    Raises:
        ValueError: no layer, or sizes below 1.

    References:
        The Helmholtz machine, Dayan, Hinton, Neal & Zemel 1995.
        The wake-sleep algorithm for unsupervised neural networks, Hinton, Dayan, Frey & Neal 1995.

    Example:
        >>> pair = HelmholtzMachine((1, 8, 8), latent_dims=(20, 5))
        >>> {name: tuple(node["value"].shape) for name, node in pair.generate(torch.zeros(3, 1, 8, 8)).nodes.items()
        ...  if name in ("z2", "z1", "x")}
        {'z2': (3, 5), 'z1': (3, 20), 'x': (3, 1, 8, 8)}
    """

    def __init__(self, data_shape: Sequence[int], latent_dims: Sequence[int] = (200, 200)) -> None:
        super().__init__()
        shape, dims = as_shape(data_shape, "data_shape"), as_shape(latent_dims, "latent_dims")
        if not dims:
            raise ValueError("latent_dims: got no layer, expected at least one: (200, 200), say")
        self.data_shape, self.latent_dims = shape, dims
        self.top = nn.Parameter(torch.zeros(dims[-1]))
        self.up = nn.ModuleList([_belief(shape, dims[0]), *(_belief(a, b) for a, b in pairwise(dims))])
        self.down = nn.ModuleList(_belief(b, a) for a, b in pairwise(dims))
        self.decoder = _belief(dims[0], shape)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(x | z_1) at the pixel means of the training data, shape `data_shape`."""
        networks.set_output_mean(self.decoder, mean)

    def model(self, x: Tensor) -> None:
        """p(x, z_1, ..., z_L) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample(f"z{len(self.latent_dims)}", dist.Bernoulli(logits=self.top).to_event(1))
            for layer in range(len(self.down), 0, -1):
                z = pyro.sample(f"z{layer}", self.down[layer - 1](z))
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z_1, ..., z_L | x) for x of shape (B, *data_shape)."""
        z = x
        with pyro.plate("data", len(x), dim=-1):
            for layer, network in enumerate(self.up, start=1):
                z = pyro.sample(f"z{layer}", network(z))


def _belief(in_shape: Shape, out_shape: Shape) -> nn.Sequential:
    """Independent binary units whose logits are linear in those before."""
    head = BernoulliHead(out_shape)
    return nn.Sequential(MLP(in_shape, head.raw_shape, ()), head)
