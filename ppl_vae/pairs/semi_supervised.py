"""The VAE that learns classes from a few labels: M2 of Kingma et al. 2014."""

import math
from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from ppl_vae.data import UNLABELLED
from ppl_vae.nn import MLP, Head, JoinedMLP, NormalHead, OneHot, as_shape, as_size
from ppl_vae.pair import Pair
from ppl_vae.pairs import networks
from ppl_vae.pairs.networks import Activation, Likelihood

__all__ = ["SemiSupervisedVAE"]


class SemiSupervisedVAE(Pair):
    """p(y) = Cat(1/K), p(z) = N(0, I), p(x | y, z) = decoder([z, y]);  q(y | x) = classifier(x), q(z | x, y) = encoder.

    The programs take data x and classes c, whole numbers from 0, or -1 (`UNLABELLED`) where none is given. The class is
    a latent site "y", one-hot, of all data; where it is given, the guide has all its mass there, so that one formula is
    both of the paper's bounds: of log p(x, y) (its eq. 6) where y is given, and of log p(x) (its eq. 7) elsewhere.

    `TraceEnum_ELBO` sums over the classes, as the paper does; `Trace_ELBO` draws one, with the score function's noise.
    Not for `WakeSleep`, whose dreams have other classes than those given.

    Args:
        data_shape: shape of one datum, (1, 28, 28) say.
        classes: K.
        latent_dim: D, the size of z.
        hidden: units of the hidden layers of encoder and classifier; the decoder's reversed.
        activation: makes the nonlinearity between layers.
        likelihood: "bernoulli", "grey-bernoulli", "normal", "discretised-logistic", "categorical",
            "logistic-mixture", or a `Head`.
        variance: the constant variance c of the "normal" likelihood; learned for each element if None.
        levels: number of grey levels of the last three.
        classification: alpha, the weight of log q(y | x) of each datum whose class is given, a `pyro.factor` that is
            trained on and never counted (the paper's eq. 9). Without it the classifier learns nothing from labels.

    Raises:
        ValueError: an unknown likelihood, sizes below 1, or a negative weight.

    References:
        Semi-supervised learning with deep generative models, Kingma, Rezende, Mohamed & Welling 2014, section 2.

    Example:
        >>> pair = SemiSupervisedVAE((1, 8, 8), classes=10, latent_dim=5, hidden=(20,))
        >>> pair.classify(torch.zeros(3, 1, 8, 8)).probs.shape
        torch.Size([3, 10])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        classes: int,
        latent_dim: int = 50,
        hidden: Sequence[int] = (500,),
        *,
        activation: Activation = nn.Softplus,
        likelihood: Likelihood | Head = "bernoulli",
        variance: float | None = None,
        levels: int = 256,
        classification: float = 0.0,
    ) -> None:
        super().__init__()
        shape, hidden = as_shape(data_shape, "data_shape"), as_shape(hidden, "hidden")
        self.data_shape, self.classes = shape, as_size(classes, "classes")
        self.latent_dim = as_size(latent_dim, "latent_dim")
        if not 0 <= classification < math.inf:
            raise ValueError(f"classification: got {classification}, expected a weight, 0 or more")
        self.classification = classification
        head = networks.likelihood_head(likelihood, shape, variance, levels)
        self.classifier = MLP(shape, classes, hidden, activation)
        self.posterior, self.likelihood = NormalHead(latent_dim), head
        self.encoder = JoinedMLP(math.prod(shape), classes, self.posterior.raw_shape, hidden, activation)
        self.decoder = JoinedMLP(latent_dim, classes, head.raw_shape, hidden[::-1], activation)

    def set_output_mean(self, mean: Tensor) -> None:
        """Start p(x | y, z) at the pixel means of the training data, shape `data_shape`."""
        self.decoder.mlp.set_output_bias(self.likelihood.bias_for_mean(mean))

    def classify(self, x: Tensor) -> dist.Categorical:
        """q(y | x), batch shape (B,), for x of shape (B, *data_shape)."""
        return dist.Categorical(logits=self.classifier(x))

    def model(self, x: Tensor, c: Tensor) -> None:
        """p(x, y, z) for x of shape (B, *data_shape); of c (B,) only the classification loss knows."""
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(self.classes)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z, y)), obs=x)
            if self.classification:
                log_q = self.classify(x).log_prob(c.clamp(min=0))
                pyro.factor("classification", self.classification * torch.where(c == UNLABELLED, 0.0, log_q))

    def generate(self, *batch: Any) -> Trace:
        """Samples of the classes c (B,), and of any class where none is given, for a batch (x, c); see `Pair`."""
        _, c = batch
        with torch.no_grad():
            drawn = dist.OneHotCategorical(logits=torch.zeros(len(c), self.classes, device=c.device)).sample()
            y = torch.where((c == UNLABELLED).unsqueeze(-1), drawn, OneHot(self.classes)(c.clamp(min=0)))
            given = poutine.condition(poutine.uncondition(self.model), {"y": y.to(self.reference())})
            return poutine.trace(given).get_trace(*batch)

    def guide(self, x: Tensor, c: Tensor) -> None:
        """q(y | x, c) q(z | x, y) for x of shape (B, *data_shape) and classes c (B,), -1 where not given."""
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.OneHotCategorical(logits=self._class_logits(x, c)))
            pyro.sample("z", self.posterior(self.encoder(x.flatten(1), y)))

    def _class_logits(self, x: Tensor, c: Tensor) -> Tensor:
        """Those of q(y | x), (B, K); 0 for a class that is given, and -inf for all others."""
        is_other = torch.arange(self.classes, device=c.device) != c.unsqueeze(-1)
        given = torch.where(is_other, -torch.inf, 0.0).to(x.dtype)
        return torch.where((c == UNLABELLED).unsqueeze(-1), self.classifier(x), given)
