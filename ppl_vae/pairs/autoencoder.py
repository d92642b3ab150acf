"""Autoencoders: codes without a prior, and the layers of a stack as pairs of their own."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pyro
import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.distributions import Flat
from ppl_vae.nn import Frozen, Head, as_shape, as_size
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Activation, Likelihood

__all__ = ["Autoencoder", "Coder", "is_sigmoid", "linear_of"]


class Coder(Pair):
    """z = encoder(x);  p(x | z) = head(decoder(z)): what an autoencoder and each of its layers are.

    The guide is a `Delta` at encoder(x), and the prior of z is flat: improper, with log p(z) = 0. So the ELBO is the
    log-likelihood of the reconstruction, log p(x | encoder(x)). It bounds no log p(x), as there is none.

    Args:
        encoder: layers from x to z, bottom to top.
        decoder: those from z to x, in the encoder's order: decoder[l] undoes encoder[l].
        head: of the likelihood.
        corruption: probability that an element of x is set to 0 before it is encoded, in training.
        below: makes of the data what is encoded here, and is not trained.
    """

    def __init__(
        self, encoder: nn.ModuleList, decoder: nn.ModuleList, head: Head, corruption: float, below: nn.Module
    ) -> None:
        super().__init__()
        if not 0 <= corruption < 1:
            raise ValueError(f"corruption: got {corruption}, expected a probability, 0 or more and below 1")
        self.encoder, self.decoder, self.head = encoder, decoder, head
        self.corruption, self.below = corruption, below

    def encode(self, x: Tensor) -> Tensor:
        """z of data (B, *shape): (B, D)."""
        h = x.flatten(1)
        for layer in self.encoder:
            h = layer(h)
        return h

    def decode(self, z: Tensor) -> TorchDistribution:
        """p(x | z) for z (..., D)."""
        for layer in reversed(self.decoder):
            z = layer(z)
        return self.head(z.reshape(*z.shape[:-1], *self.head.raw_shape))

    def model(self, x: Tensor) -> None:
        """p(x | z) for x of shape (B, *data_shape); z has no law."""
        x = self.below(x)
        with pyro.plate("data", len(x), dim=-1):
            size = linear_of(self.encoder[-1]).out_features
            z = pyro.sample("z", Flat((size,)))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x: Tensor) -> None:
        """z = encoder(x) for x of shape (B, *data_shape)."""
        x = self.below(x)
        if self.training and self.corruption:
            x = torch.where(torch.rand_like(x) < self.corruption, 0.0, x)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Delta(self.encode(x), event_dim=1))


class Autoencoder(Coder):
    """z = encoder(x);  p(x | z) = decoder(z);  the objective is log p(x | encoder(x)); there is no p(z).

    For dimension reduction, and to begin a classifier with: `pretrain.greedy` trains it layer by layer, and
    `finetune.classifier` goes on with the encoder. With the "normal" likelihood of variance 1/2 the loss is the squared
    error (and a constant); linear layers then find the subspace of the principal components.

    Args:
        data_shape: shape of one datum, (1, 28, 28) say.
        latent_dim: D, the size of z.
        hidden: units of the encoder's hidden layers; the decoder's reversed.
        activation: makes the nonlinearity of each hidden layer.
        linear_code: whether z is linear in the layer below, or goes through the activation too.
        tied: the decoder's weights are the encoder's, transposed; its biases are its own.
        corruption: denoising: probability that an element of x is set to 0 before it is encoded, in training.
        likelihood: "grey-bernoulli" (cross-entropy of grey values), or another one of `VAE`'s, or a `Head`.
        variance: the constant variance c of the "normal" likelihood; learned for each element if None.
        levels: number of grey levels of the likelihoods that have them.

    Raises:
        ValueError: an unknown likelihood, sizes below 1, a corruption outside [0, 1); tied with a likelihood of several
            parameters.

    References:
        Greedy layer-wise training of deep networks, Bengio, Lamblin, Popovici & Larochelle 2007, section 4.
        Extracting and composing robust features with denoising autoencoders, Vincent et al. 2008, section 2.3.

    Example:
        >>> pair = Autoencoder((1, 28, 28), latent_dim=2, hidden=(100, 50))
        >>> z = pair.encode(torch.zeros(5, 1, 28, 28))
        >>> z.shape, pair.decode(z).mean.shape
        (torch.Size([5, 2]), torch.Size([5, 1, 28, 28]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 2,
        hidden: Sequence[int] = (500, 500),
        *,
        activation: Activation = nn.Sigmoid,
        linear_code: bool = True,
        tied: bool = False,
        corruption: float = 0.0,
        likelihood: Likelihood | Head = "grey-bernoulli",
        variance: float | None = None,
        levels: int = 256,
    ) -> None:
        shape = as_shape(data_shape, "data_shape")
        sizes = [math.prod(shape), *as_shape(hidden, "hidden"), as_size(latent_dim, "latent_dim")]
        head = networks.likelihood_head(likelihood, shape, variance, levels)
        if tied and head.num_parameters != 1:
            raise ValueError(
                f"tied: got True with {head.num_parameters} parameters for each element of {likelihood!r}, expected a "
                "likelihood of one; leave tied out, or choose another"
            )
        last = len(sizes) - 2
        encoder = nn.ModuleList(
            _layer(nn.Linear(a, b), nn.Identity if linear_code and i == last else activation)
            for i, (a, b) in enumerate(pairwise(sizes))
        )
        decoder = nn.ModuleList()
        for i, (a, b) in enumerate(pairwise(sizes)):
            width = head.num_parameters * a if i == 0 else a
            back = _Transposed(linear_of(encoder[i])) if tied else nn.Linear(b, width)
            decoder.append(_layer(back, nn.Identity if i == 0 else activation))
        super().__init__(encoder, decoder, head, corruption, nn.Identity())
        self.data_shape, self.latent_dim = shape, latent_dim
        self.activation, self.tied = activation, tied

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(x | z) at the means of the training data, shape `data_shape`."""
        with torch.no_grad():
            last: Any = self.decoder[0]
            last[0].bias.copy_(self.head.bias_for_mean(mean).flatten())

    def layers(self) -> list[Coder]:
        """Each layer with its decoder as a pair that takes x; those below are used as they are, and not trained.

        The first has the likelihood of the data. Of those above, what is decoded are units of the layer below: by
        cross-entropy where they are sigmoids, in [0, 1], and by a Normal of variance 1 elsewhere.
        """
        result = [Coder(self.encoder[:1], self.decoder[:1], self.head, self.corruption, nn.Identity())]
        for i in range(1, len(self.encoder)):
            below = Frozen(nn.Sequential(nn.Flatten(), *self.encoder[:i]))
            head, back = _head_of(self.encoder[i - 1]), self.decoder[i : i + 1]
            if is_sigmoid(self.encoder[i - 1]):
                linear = next(self.decoder[i].children())
                back = nn.ModuleList([_layer(linear, nn.Identity)])  # the head has the sigmoid
            result.append(Coder(self.encoder[i : i + 1], back, head, self.corruption, below))
        return result


class _Transposed(nn.Module):
    """h -> W^T h + b for the weights W of a linear map that owns them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._owner = (linear,)  # in a tuple: its parameters are not to be listed here too
        self.bias = nn.Parameter(torch.zeros(linear.in_features))

    def forward(self, h: Tensor) -> Tensor:
        return F.linear(h, self._owner[0].weight.t(), self.bias)


def linear_of(layer: nn.Module) -> nn.Linear:
    """The linear map of an encoder's layer."""
    linear = next(layer.children())
    assert isinstance(linear, nn.Linear)
    return linear


def is_sigmoid(layer: nn.Module) -> bool:
    """Whether its units are."""
    return any(isinstance(part, nn.Sigmoid) for part in layer.children())


def _head_of(layer: nn.Module) -> Head:
    """The likelihood of a layer's units."""
    units = (linear_of(layer).out_features,)
    if is_sigmoid(layer):
        return networks.likelihood_head("grey-bernoulli", units)
    return networks.likelihood_head("normal", units, 1.0)


def _layer(linear: nn.Module, activation: Activation) -> nn.Sequential:
    return nn.Sequential(linear, activation())
