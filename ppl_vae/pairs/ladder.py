"""The ladder variational autoencoder: a guide that goes down the model's own ladder."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.nn import MLP, Head, NormalHead, Shape, as_shape, merge_normals
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Activation, Likelihood

__all__ = ["LadderVAE", "leaky_rectifier"]


def leaky_rectifier() -> nn.Module:
    """max(x, 0.1 x)."""
    return nn.LeakyReLU(0.1)


class Rung(nn.Module):
    """d_{l-1} -> d_l = MLP_l(d_{l-1}), and the evidence N(mu^(d_l), sigma^(d_l)^2) about z_l.

    Args:
        trunk: MLP_l, with the linear map that reads the evidence out of d_l.
        head: of the evidence.
    """

    def __init__(self, trunk: MLP, head: NormalHead) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head

    def forward(self, below: Tensor) -> tuple[Tensor, TorchDistribution]:
        """d_l and the evidence, for d_{l-1} of shape (B, D), or x."""
        d = self.trunk.features(below)
        return d, self.head(self.trunk.read_out(d))


class LadderVAE(Pair):
    """p(z_L) ... p(z_l | z_{l+1}) ... p(x | z_1);  q(z_L | x) ... q(z_l | z_{l+1}, x) ... q(z_1 | z_2, x).

    The model is that of `HierarchicalVAE`. The guide draws z_L first, as the model does. A deterministic pass
    upwards, d_l = MLP_l(d_{l-1}) with d_0 = x, gives evidence N(mu^_l, sigma^_l^2) about each z_l. At the top the
    evidence is the guide; below, q(z_l | z_{l+1}, x) is proportional to evidence times prior, N(mu^_l, sigma^_l^2)
    p(z_l | z_{l+1}), with the model's own network: a layer whose evidence says nothing follows its prior. Sites
    "z1", ..., "zL" and "x".

    With `batch_norm` the bound of a datum depends on its batch in training mode (`check_pair` says so), and is
    its own in eval mode. Guide and model normalise the same values with the same modules, which move their
    running averages at each call. Samples of the model in eval mode are normalised as the guide's samples were.

    Args:
        data_shape: shape of one datum, (1, 28, 28) say.
        latent_dims: sizes of z_1, ..., z_L, bottom to top.
        hidden: for each stochastic layer the units of the deterministic layers below it: from d_{l-1} to d_l in
            the guide; between z_l and what it generates, in reverse, in the model.
        activation: makes the nonlinearity between layers.
        batch_norm: normalise every hidden layer, as the paper does.
        likelihood: "bernoulli", "grey-bernoulli", "normal", "discretised-logistic", or a `Head`.
        variance: the constant variance c of the "normal" likelihood; learned for each pixel if None.
        levels: number of grey levels of the "discretised-logistic" likelihood.

    Raises:
        ValueError: no layer; another number of hidden blocks than of layers; an unknown likelihood.

    References:
        Ladder Variational Autoencoders, Sønderby et al. 2016, sections 2 and 3; the sizes are theirs.
        sigma = softplus(.) + 1e-4 here, where they have sigma^2 = softplus(.).

    Example:
        >>> pair = LadderVAE((1, 28, 28), latent_dims=(40, 20, 10), hidden=((200,), (100,), (50,)))
        >>> len(pair.up), len(pair.down)
        (3, 2)
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dims: Sequence[int] = (64, 32, 16, 8, 4),
        hidden: Sequence[Sequence[int]] = ((512, 512), (256, 256), (128, 128), (64, 64), (32, 32)),
        *,
        activation: Activation = leaky_rectifier,
        batch_norm: bool = False,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
    ) -> None:
        super().__init__()
        shape, latent_dims = as_shape(data_shape, "data_shape"), as_shape(latent_dims, "latent_dims")
        if not latent_dims or len(hidden) != len(latent_dims):
            raise ValueError(
                f"got {len(latent_dims)} stochastic layers and {len(hidden)} hidden blocks, expected as many of one "
                "as of the other, and at least one: hidden=((512, 512), (256, 256)) for latent_dims=(64, 32)"
            )

        def trunk(in_shape: Shape, head: Head, units: Sequence[int]) -> MLP:
            return MLP(in_shape, head.raw_shape, units, activation, batch_norm)

        hidden = [as_shape(units, "hidden") for units in hidden]
        self.data_shape, self.latent_dims = shape, latent_dims
        self.up, self.down, below = nn.ModuleList(), nn.ModuleList(), shape
        for size, units in zip(latent_dims, hidden, strict=True):
            head = _head(size)
            self.up.append(Rung(trunk(below, head, units), head))
            below = units[-1:] or below
        for size, above, units in zip(latent_dims[:-1], latent_dims[1:], hidden[1:], strict=True):
            head = _head(size)
            self.down.append(nn.Sequential(trunk(above, head, units[::-1]), head))
        head = networks.likelihood_head(likelihood, shape, variance, levels)
        self.decoder = nn.Sequential(trunk(latent_dims[0], head, hidden[0][::-1]), head)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(x | z_1) at the pixel means of the training data, shape `data_shape`."""
        networks.set_output_mean(self.decoder, mean)

    def evidence(self, x: Tensor) -> list[TorchDistribution]:
        """N(mu^_l, sigma^_l^2), l = 1, ..., L, for x of shape (B, *data_shape): the deterministic pass upwards."""
        d, found = x, []
        for rung in self.up:
            d, evidence = rung(d)
            found.append(evidence)
        return found

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
            *below, highest = self.evidence(x)
            z = pyro.sample(f"z{len(self.latent_dims)}", highest)
            for layer in range(len(below), 0, -1):
                z = pyro.sample(f"z{layer}", merge_normals(below[layer - 1], self.down[layer - 1](z)))


def _head(size: int) -> NormalHead:
    # Not exp: at the end of many layers of rectifiers, which have no upper bound, it overflowed within 100 steps.
    return NormalHead(size, "softplus")
