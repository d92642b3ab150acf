"""Images pixel by pixel: a pair whose ELBO is the log-likelihood."""

from collections.abc import Sequence
from typing import Literal, get_args

import pyro
from torch import Tensor

from ppl_vae.distributions import Autoregressive
from ppl_vae.nn import CausalNetwork, GatedPixelCNN, Head
from ppl_vae.nn import PixelCNN as Masked
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Likelihood
from ppl_vae.pairs.painting import image_shape

__all__ = ["PixelCNN"]

Stack = Literal["gated", "masked"]


class PixelCNN(Pair):
    """p(x) = prod_i p(x_i | x_<i), pixels row by row, of each the channels in turn; no latent variables, no guide.

    The ELBO is log p(x), exactly, whatever the objective. `generate` draws pixel by pixel; there is no mean to show.

    Args:
        data_shape: (C, H, W) of one image.
        hidden: features of a layer.
        layers: of the gated stacks; residual blocks of the masked one.
        stack: "gated" (`nn.GatedPixelCNN`) or "masked" (`nn.PixelCNN`).
        kernel: of a gated layer, an odd number.
        features: of the two last layers.
        likelihood: "bernoulli", "categorical", "discretised-logistic", or a `Head`.
        levels: number of grey levels of the last two.

    Raises:
        ValueError: an unknown stack or likelihood, data that are no images, or sizes below 1.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016.
        Conditional image generation with PixelCNN decoders, van den Oord et al. 2016 (gated).

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
        stack: Stack = "gated",
        kernel: int = 3,
        features: int = 64,
        likelihood: Likelihood | Head = "bernoulli",
        levels: int = 256,
    ) -> None:
        super().__init__()
        self.data_shape = image_shape(data_shape)
        head = networks.likelihood_head(likelihood, self.data_shape, levels=levels)
        match stack:
            case "gated":
                trunk = GatedPixelCNN(head.raw_shape, hidden, layers, kernel, features)
            case "masked":
                trunk = Masked(head.raw_shape, hidden, layers, features)
            case _:
                raise ValueError(f"stack: got {stack!r}, expected one of {', '.join(get_args(Stack))}")
        self.network = CausalNetwork(trunk, head)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start at the mean of the training data, shape `data_shape`; one number for all pixels."""
        raw = self.network.head.bias_for_mean(mean.mean((-1, -2), keepdim=True).expand_as(mean))
        self.network.trunk.set_output_bias(raw)

    def law(self, x: Tensor) -> Autoregressive:
        """p(x), for as many rows as x has."""
        return Autoregressive(self.network, batch_shape=x.shape[:1])

    def model(self, x: Tensor) -> None:
        """p(x) for x of shape (B, *data_shape)."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", self.law(x), obs=x)
