"""A VAE with any number of stochastic layers."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.nn import Head, as_shape
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Activation, Likelihood, Scale, TrunkName

__all__ = ["AncestralModel", "HierarchicalVAE"]


class AncestralModel(Pair):
    """The model p(z_L) p(z_{L-1} | z_L) ... p(z_1 | z_2) p(x | z_1) of pairs that differ in their guides.

    Args:
        data_shape: shape of one datum.
        latent_dims: sizes of z_1, ..., z_L, bottom to top.
        hidden: for each stochastic layer the units of the deterministic layers below it.

    Raises:
        ValueError: no layer; another number of hidden blocks than of layers.
    """

    down: nn.ModuleList
    """p(z_l | z_{l+1}) for l = 1, ..., L - 1."""
    decoder: nn.Sequential
    """p(x | z_1)."""

    def __init__(self, data_shape: Sequence[int], latent_dims: Sequence[int], hidden: Sequence[Sequence[int]]) -> None:
        super().__init__()
        self.data_shape = as_shape(data_shape, "data_shape")
        self.latent_dims = as_shape(latent_dims, "latent_dims")
        self.hidden = [as_shape(units, "hidden") for units in hidden]
        if not latent_dims or len(hidden) != len(latent_dims):
            raise ValueError(
                f"got {len(latent_dims)} stochastic layers and {len(hidden)} hidden blocks, expected as many of one "
                "as of the other, and at least one: hidden=((200, 200), (100, 100)) for latent_dims=(100, 50)"
            )

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


class HierarchicalVAE(AncestralModel):
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
        batch_norm: normalise every hidden layer of the MLPs; the bound of a datum then depends on its batch in
            training mode.
        scale: "exp" or "softplus", which makes sigma positive; with many layers of rectifiers exp may overflow.
        likelihood: "bernoulli", "grey-bernoulli", "normal", "discretised-logistic", "categorical",
            "logistic-mixture", or a `Head`.
        variance: the constant variance c of the "normal" likelihood; learned for each pixel if None.
        levels: number of grey levels of the last three.

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
        batch_norm: bool = False,
        scale: Scale = "exp",
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__(data_shape, latent_dims, hidden)
        shape, dims, units = self.data_shape, self.latent_dims, self.hidden

        def conditional(in_dim: int, out_dim: int, between: Sequence[int]) -> nn.Sequential:
            return networks.conditional_normal(in_dim, out_dim, between, activation, batch_norm, scale)

        head = networks.likelihood_head(likelihood, shape, variance, levels)
        below = list(zip(dims[:-1], dims[1:], units[1:], strict=True))
        self.encoder = networks.encoder(trunk, shape, dims[0], units[0], activation, batch_norm, scale)
        self.up = nn.ModuleList(conditional(a, b, between) for a, b, between in below)
        self.down = nn.ModuleList(conditional(b, a, between[::-1]) for a, b, between in below)
        self.decoder = networks.decoder(trunk, dims[0], head, units[0][::-1], activation, batch_norm)

    def guide(self, x: Tensor) -> None:
        """q(z_1, ..., z_L | x) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z1", self.encoder(x))
            for layer, network in enumerate(self.up, start=2):
                z = pyro.sample(f"z{layer}", network(z))
