"""The variational autoencoder of Kingma & Welling."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.nn import Head, as_shape, as_size
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Activation, Likelihood, TrunkName

__all__ = ["VAE"]


class VAE(Pair):
    """p(z) = N(0, I);  p(x | z) = decoder(z);  q(z | x) = N(mu(x), sigma(x)^2) = encoder(x).

    Args:
        data_shape: shape of one datum, (1, 28, 28) say.
        latent_dim: D, the size of z.
        hidden: units of the encoder's hidden layers (channels, if convolutional); the decoder's reversed.
        trunk: "mlp" or "conv".
        activation: makes the nonlinearity between layers.
        likelihood: "bernoulli", "grey-bernoulli", "normal", "discretised-logistic", "categorical",
            "logistic-mixture", or a `Head`.
        variance: the constant variance c of the "normal" likelihood; learned for each pixel if None.
        levels: number of grey levels of the last three.

    Raises:
        ValueError: an unknown trunk or likelihood, or sizes below 1.

    References:
        Auto-Encoding Variational Bayes, Kingma & Welling 2013, section 3 and appendix C.
        The defaults (200-200-50, tanh, sigma = exp) are the one-layer model of Importance Weighted
        Autoencoders, Burda et al. 2015, section 5.

    Example:
        >>> import torch
        >>> pair = VAE((1, 28, 28), latent_dim=20)
        >>> pair.encoder(torch.zeros(5, 1, 28, 28)).event_shape
        torch.Size([20])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 50,
        hidden: Sequence[int] = (200, 200),
        *,
        trunk: TrunkName = "mlp",
        activation: Activation = nn.Tanh,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__()
        shape, hidden = as_shape(data_shape, "data_shape"), as_shape(hidden, "hidden")
        head = networks.likelihood_head(likelihood, shape, variance, levels)
        self.data_shape, self.latent_dim = shape, as_size(latent_dim, "latent_dim")
        self.encoder = networks.encoder(trunk, shape, latent_dim, hidden, activation)
        self.decoder = networks.decoder(trunk, latent_dim, head, hidden[::-1], activation)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(x | z) at the pixel means of the training data, shape `data_shape`."""
        networks.set_output_mean(self.decoder, mean)

    def model(self, x: Tensor) -> None:
        """p(x, z) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", self.decoder(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z | x) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.encoder(x))
