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
    OneHot,
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
    """p(x | c) = prod_i p(x_i | x_<i, c); no latent variables, no guide. Programs take x alone, or (x, c).

    The ELBO is log p(x | c), exactly, whatever the objective. `generate` draws one by one; there is no mean to show.

    Args:
        trunk: of the raw parameters of each p(x_i | x_<i, c).
        head: of these laws.
        classes: K, where c (B,) are classes; otherwise c are the trunk's contexts (B, F), if it has any.
    """

    def __init__(self, trunk: CausalTrunk, head: Head, classes: int | None) -> None:
        super().__init__()
        self.data_shape, self.network = tuple(head.shape), CausalNetwork(trunk, head)
        self.condition = nn.Identity() if classes is None else OneHot(classes)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start at the mean of the training data, shape `data_shape`; convolutions at one for all pixels."""
        if isinstance(self.network.trunk, ImageTrunk):
            mean = mean.mean((-1, -2), keepdim=True).expand_as(mean)
        self.network.trunk.set_output_bias(self.network.head.bias_for_mean(mean))

    def law(self, x: Tensor, c: Tensor | None = None) -> Autoregressive:
        """p(x | c), for as many rows as x has."""
        if c is None:
            if (size := self.network.trunk.context_dim) is not None:
                raise ValueError(f"got x alone, expected (x, c): the pair is told {size} numbers or classes of each x")
            return Autoregressive(self.network, batch_shape=x.shape[:1])
        return Autoregressive(self.network, self.condition(c))

    def model(self, x: Tensor, c: Tensor | None = None) -> None:
        """p(x | c) for x of shape (B, *data_shape), and c of shape (B,) or (B, F) if there is any."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.law(x, c), obs=x)

    def guide(self, x: Tensor, c: Tensor | None = None) -> None:
        """Nothing: there are no latent sites."""


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
        classes: K, where each image is given its class, a whole number from 0 to K - 1.
        context_dim: F, where it is given a vector.

    Raises:
        ValueError: an unknown stack or likelihood, data that are no images, sizes below 1, or both classes and vectors.

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
        classes: int | None = None,
        context_dim: int | None = None,
    ) -> None:
        context_dim = _context(classes, context_dim)
        head = networks.likelihood_head(likelihood, image_shape(data_shape), levels=levels)
        _check("stack", stack, ("gated", "masked", "plus"))
        if stack == "gated":
            trunk: CausalTrunk = GatedPixelCNN(
                head.raw_shape, hidden, layers, kernel, features, context_dim, head.joint
            )
        elif stack == "masked":
            trunk = networks_of.PixelCNN(head.raw_shape, hidden, layers, features, context_dim, head.joint)
        else:
            trunk = PixelCNNPlus(head.raw_shape, hidden, layers, scales, dropout, context_dim)
        super().__init__(trunk, head, classes)


class PixelRNN(ElementByElement):
    """p(x) = prod_i p(x_i | x_<i) by LSTMs over the image: pixels row by row, of each the channels in turn.

    Args:
        data_shape: (C, H, W) of one image.
        hidden: units of an LSTM.
        layers: LSTMs.
        order: "diagonal" (`nn.DiagonalBiLSTM`) or "row" (`nn.RowLSTM`).
        features: of the two last layers.
        likelihood, levels, classes, context_dim: as of `PixelCNN`.

    Raises:
        ValueError: an unknown order or likelihood, data that are no images, sizes below 1, or both classes and vectors.

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
        classes: int | None = None,
        context_dim: int | None = None,
    ) -> None:
        context_dim = _context(classes, context_dim)
        head = networks.likelihood_head(likelihood, image_shape(data_shape), levels=levels)
        _check("order", order, ("diagonal", "row"))
        make = DiagonalBiLSTM if order == "diagonal" else RowLSTM
        options = {"features": features, "context_dim": context_dim, "joint": head.joint}
        super().__init__(make(head.raw_shape, hidden, layers, **options), head, classes)


class MADE(ElementByElement):
    """p(x) = prod_i p(x_i | x_<i) by masked linear layers; without hidden layers a fully visible belief network.

    Args:
        data_shape: shape of one datum; elements of an image in the order rows, columns, channels.
        hidden: units of the hidden layers; none makes each p(x_i | x_<i) a (logistic) regression.
        activation: makes the nonlinearity between layers.
        likelihood, levels, classes, context_dim: as of `PixelCNN`.

    Raises:
        ValueError: an unknown likelihood, sizes below 1, or both classes and vectors.

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
        classes: int | None = None,
        context_dim: int | None = None,
    ) -> None:
        context_dim = _context(classes, context_dim)
        head = networks.likelihood_head(likelihood, as_shape(data_shape, "data_shape"), levels=levels)
        super().__init__(networks_of.MADE(head.raw_shape, hidden, activation, context_dim), head, classes)


def _context(classes: int | None, context_dim: int | None) -> int | None:
    """How many numbers the network is given beside x."""
    if classes is not None and context_dim is not None:
        raise ValueError(f"got classes={classes} and context_dim={context_dim}, expected one of them; leave one out")
    return context_dim if classes is None else classes


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(known)}")
