"""Data element by element: pairs without latent variables, whose ELBO is the log-likelihood."""

from collections.abc import Sequence
from typing import Literal

import pyro
from torch import Tensor, nn

from ppl_vae import nn as networks_of
from ppl_vae.distributions import Autoregressive
from ppl_vae.nn import (
    CausalNetwork,
    CausalTrunk,
    DiagonalBiLSTM,
    GatedPixelCNN,
    Head,
    ImageTrunk,
    PixelCNNPlus,
    RowLSTM,
    as_shape,
)
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Activation, Likelihood
from ppl_vae.pairs.painting import image_shape

__all__ = ["MADE", "PixelCNN", "PixelRNN"]


class ElementByElement(Pair):
    """p(x) = prod_i p(x_i | x_<i); no latent variables, no guide.

    The ELBO is log p(x), exactly, whatever the objective. `generate` draws one by one; there is no mean to show.

    Args:
        trunk: of the raw parameters of each p(x_i | x_<i).
        head: of these laws.
    """

    def __init__(self, trunk: CausalTrunk, head: Head) -> None:
        super().__init__()
        self.data_shape, self.network = tuple(head.shape), CausalNetwork(trunk, head)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start at the mean of the training data, shape `data_shape`; convolutions at one for all pixels."""
        if isinstance(self.network.trunk, ImageTrunk):
            mean = mean.mean((-1, -2), keepdim=True).expand_as(mean)
        self.network.trunk.set_output_bias(self.network.head.bias_for_mean(mean))

    def law(self, x: Tensor) -> Autoregressive:
        """p(x), for as many rows as x has."""
        return Autoregressive(self.network, batch_shape=x.shape[:1])

    def model(self, x: Tensor) -> None:
        """p(x) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.law(x), obs=x)


class PixelCNN(ElementByElement):
    """p(x) = prod_i p(x_i | x_<i) by masked convolutions: pixels row by row, of each the channels in turn.

    Args:
        data_shape: (C, H, W) of one image.
        hidden: features of a layer.
        layers: of the gated stacks; residual blocks of the masked one, and of each size of PixelCNN++.
        stack: "gated" (`nn.GatedPixelCNN`), "masked" (`nn.PixelCNN`), or "plus" (`nn.PixelCNNPlus`, for a mixture).
        kernel: of a gated layer, an odd number.
        features: of the two last layers; not of "plus".
        scales, dropout: of "plus".
        likelihood: "bernoulli", "categorical", "discretised-logistic", "logistic-mixture" (of which the channels of a
            pixel are drawn together), or a `Head`.
        levels: number of grey levels of the last three.

    Raises:
        ValueError: an unknown stack or likelihood, data that are no images, or sizes below 1.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016 (masked).
        Conditional image generation with PixelCNN decoders, van den Oord et al. 2016 (gated).
        PixelCNN++: Improving the PixelCNN with discretized logistic mixture likelihood and other modifications,
        Salimans, Karpathy, Chen & Kingma 2017 (plus).

    Example:
        >>> import torch
        >>> pair = PixelCNN((1, 8, 8), hidden=4, layers=2)
        >>> pair.law(torch.zeros(5, 1, 8, 8)).shape()
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        hidden: int = 64,
        layers: int = 8,
        *,
        stack: Literal["gated", "masked", "plus"] = "gated",
        kernel: int = 3,
        features: int = 64,
        scales: int = 3,
        dropout: float = 0.5,
        likelihood: Likelihood | Head = "bernoulli",
        levels: int = 256,
    ) -> None:
        head = networks.likelihood_head(likelihood, image_shape(data_shape), levels=levels)
        _check("stack", stack, ("gated", "masked", "plus"))
        if stack == "gated":
            trunk: CausalTrunk = GatedPixelCNN(head.raw_shape, hidden, layers, kernel, features, joint=head.joint)
        elif stack == "masked":
            trunk = networks_of.PixelCNN(head.raw_shape, hidden, layers, features, joint=head.joint)
        else:
            trunk = PixelCNNPlus(head.raw_shape, hidden, layers, scales, dropout)
        super().__init__(trunk, head)


class PixelRNN(ElementByElement):
    """p(x) = prod_i p(x_i | x_<i) by LSTMs over the image: pixels row by row, of each the channels in turn.

    Args:
        data_shape: (C, H, W) of one image.
        hidden: units of an LSTM.
        layers: LSTMs.
        order: "diagonal" (`nn.DiagonalBiLSTM`) or "row" (`nn.RowLSTM`).
        features: of the two last layers.
        likelihood, levels: as of `PixelCNN`.

    Raises:
        ValueError: an unknown order or likelihood, data that are no images, or sizes below 1.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016; the defaults are those of its
        binarised MNIST.

    Example:
        >>> PixelRNN((1, 8, 8), hidden=4, layers=2, order="row").data_shape
        (1, 8, 8)
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        hidden: int = 16,
        layers: int = 7,
        *,
        order: Literal["diagonal", "row"] = "diagonal",
        features: int = 32,
        likelihood: Likelihood | Head = "bernoulli",
        levels: int = 256,
    ) -> None:
        head = networks.likelihood_head(likelihood, image_shape(data_shape), levels=levels)
        _check("order", order, ("diagonal", "row"))
        make = DiagonalBiLSTM if order == "diagonal" else RowLSTM
        super().__init__(make(head.raw_shape, hidden, layers, features=features, joint=head.joint), head)


class MADE(ElementByElement):
    """p(x) = prod_i p(x_i | x_<i) by masked linear layers; without hidden layers a fully visible belief network.

    Args:
        data_shape: shape of one datum; elements of an image in the order rows, columns, channels.
        hidden: units of the hidden layers; none makes each p(x_i | x_<i) a (logistic) regression.
        activation: makes the nonlinearity between layers.
        likelihood, levels: as of `PixelCNN`.

    Raises:
        ValueError: an unknown likelihood, or sizes below 1.

    References:
        MADE: masked autoencoder for distribution estimation, Germain, Gregor, Murray & Larochelle 2015.

    Example:
        >>> sum(p.numel() for p in MADE((1, 2, 2), hidden=()).parameters())
        20
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        hidden: Sequence[int] = (500,),
        *,
        activation: Activation = nn.ReLU,
        likelihood: Likelihood | Head = "bernoulli",
        levels: int = 256,
    ) -> None:
        head = networks.likelihood_head(likelihood, as_shape(data_shape, "data_shape"), levels=levels)
        super().__init__(networks_of.MADE(head.raw_shape, hidden, activation), head)


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
