"""A VAE with any number of stochastic layers."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.nn import Head, as_shape
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Activation, Likelihood, TrunkName

__all__ = ["HierarchicalVAE"]


class HierarchicalVAE(Pair):
    """p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2) p(x | z_1);  q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}).

    The model is ancestral from the top, the guide goes bottom-up; p(z_L) = N(0, I), and all other
    conditionals of the z_l are diagonal Normals with deterministic layers in between. Sites "z1",
    ..., "zL" and "x".

    Args:
        data_shape: shape of one datum, (1, 28, 28) say.
        latent_dims: sizes of z_1, ..., z_L, bottom to top.
        hidden: for each stochastic layer the units of the deterministic layers below it: between
            x and z_1 (channels, if convolutional), between z_1 and z_2, and so on.
        trunk: "mlp" or "conv", for the networks that touch x.
        activation: makes the nonlinearity between layers.
        likelihood: "bernoulli", "grey-bernoulli", "normal", "discretised-logistic", or a `Head`.
        variance: the constant variance c of the "normal" likelihood; learned for each pixel if None.
        levels: number of grey levels of the "discretised-logistic" likelihood.

    Raises:
        ValueError: no layer; another number of hidden blocks than of layers; an unknown name.

    References:
        Importance Weighted Autoencoders, Burda et al. 2015, eq. 1, 2 and section 5: the defaults are
        their two-layer model.

    Example:
        >>> pair = HierarchicalVAE((1, 28, 28), latent_dims=(40, 20, 10), hidden=((200,), (100,), (50,)))
        >>> len(pair.up), len(pair.down)
        (2, 2)
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dims: Sequence[int] = (100, 50),
        hidden: Sequence[Sequence[int]] = ((200, 200), (100, 100)),
        *,
        trunk: TrunkName = "mlp",
        activation: Activation = nn.Tanh,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__()
        shape, latent_dims = as_shape(data_shape, "data_shape"), as_shape(latent_dims, "latent_dims")
        if not latent_dims or len(hidden) != len(latent_dims):
            raise ValueError(
                f"got {len(latent_dims)} stochastic layers and {len(hidden)} hidden blocks, expected as many of one "
                "as of the other, and at least one: hidden=((200, 200), (100, 100)) for latent_dims=(100, 50)"
            )
        hidden = [as_shape(units, "hidden") for units in hidden]
        head = networks.likelihood_head(likelihood, shape, variance, levels)
        below = list(zip(latent_dims[:-1], latent_dims[1:], hidden[1:], strict=True))
        self.data_shape, self.latent_dims = shape, latent_dims
        self.encoder = networks.encoder(trunk, shape, latent_dims[0], hidden[0], activation)
        self.up = nn.ModuleList(networks.conditional_normal(a, b, units, activation) for a, b, units in below)
        self.down = nn.ModuleList(networks.conditional_normal(b, a, units[::-1], activation) for a, b, units in below)
        self.decoder = networks.decoder(trunk, latent_dims[0], head, hidden[0][::-1], activation)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(x | z_1) at the pixel means of the training data, shape `data_shape`."""
        networks.set_output_mean(self.decoder, mean)

    def model(self, x: Tensor) -> None:
        """p(x, z_1, ..., z_L) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            top = len(self.latent_dims)
            z = pyro.sample(f"z{top}", dist.Normal(x.new_zeros(self.latent_dims[-1]), 1.0).to_event(1))
            for layer in range(top - 1, 0, -1):
                z = pyro.sample(f"z{layer}", self.down[layer - 1](z))
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z_1, ..., z_L | x) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z1", self.encoder(x))
            for layer, network in enumerate(self.up, start=2):
                z = pyro.sample(f"z{layer}", network(z))
