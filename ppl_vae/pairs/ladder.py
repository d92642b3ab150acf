"""The ladder variational autoencoder: a guide that goes down the model's own ladder."""

from collections.abc import Sequence

import pyro
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.nn import MLP, Head, NormalHead, leaky_rectifier, merge_normals
from ppl_vae.pairs import networks
from ppl_vae.pairs.hierarchical import AncestralModel
from ppl_vae.pairs.networks import Activation, Likelihood

__all__ = ["LadderVAE"]


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


class LadderVAE(AncestralModel):
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
        likelihood: "bernoulli", "grey-bernoulli", "normal", "discretised-logistic", "categorical",
            "logistic-mixture", or a `Head`.
        variance: the constant variance c of the "normal" likelihood; learned for each pixel if None.
        levels: number of grey levels of the last three.

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
        super().__init__(data_shape, latent_dims, hidden)
        shape, dims, units = self.data_shape, self.latent_dims, self.hidden
        # Not exp: at the end of many layers of rectifiers, which have no upper bound, it overflowed within 100 steps.
        scale = "softplus"
        self.up, self.down, below = nn.ModuleList(), nn.ModuleList(), shape
        for size, between in zip(dims, units, strict=True):
            head = NormalHead(size, scale)
            self.up.append(Rung(MLP(below, head.raw_shape, between, activation, batch_norm), head))
            below = between[-1:] or below
        for size, above, between in zip(dims[:-1], dims[1:], units[1:], strict=True):
            network = networks.conditional_normal(above, size, between[::-1], activation, batch_norm, scale)
            self.down.append(network)
        head = networks.likelihood_head(likelihood, shape, variance, levels)
        self.decoder = networks.decoder("mlp", dims[0], head, units[0][::-1], activation, batch_norm)

    def evidence(self, x: Tensor) -> list[TorchDistribution]:
        """N(mu^_l, sigma^_l^2), l = 1, ..., L, for x of shape (B, *data_shape): the deterministic pass upwards."""
        d, found = x, []
        for rung in self.up:
            d, evidence = rung(d)
            found.append(evidence)
        return found

    def guide(self, x: Tensor) -> None:
        """q(z_1, ..., z_L | x) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            *below, highest = self.evidence(x)
            z = pyro.sample(f"z{len(self.latent_dims)}", highest)
            for layer in range(len(below), 0, -1):
                z = pyro.sample(f"z{layer}", merge_normals(below[layer - 1], self.down[layer - 1](z)))
