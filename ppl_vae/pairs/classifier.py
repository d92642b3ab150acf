"""A classifier, which is a pair without latent variables."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from torch import Tensor, nn

from ppl_vae.nn import MLP, as_shape, as_size
from ppl_vae.pair import Pair
from ppl_vae.pairs.networks import Activation

__all__ = ["Classifier"]


class Classifier(Pair):
    """p(y | x) = Cat(softmax(W features(x) + b)).

    The guide is empty, so that the ELBO is log p(y | x), whatever the objective, and `fit` trains it. The programs take
    data x and their classes y, whole numbers from 0, as `data.labelled` gives them; x is what they are conditioned on.

    Args:
        data_shape: shape of one x, (1, 28, 28) say.
        classes: K.
        hidden: units of the hidden layers.
        activation: makes the nonlinearity of each.
        features: instead of hidden layers: from x (B, *data_shape) to features (B, F).
        num_features: F.

    Raises:
        ValueError: sizes below 1; features without num_features, or the reverse.

    Example:
        >>> import torch
        >>> pair = Classifier((1, 8, 8), classes=10, hidden=(20,))
        >>> pair.classify(torch.zeros(5, 1, 8, 8)).probs.shape
        torch.Size([5, 10])
    """

    data_site = "y"

    def __init__(
        self,
        data_shape: Sequence[int],
        classes: int,
        hidden: Sequence[int] = (500,),
        *,
        activation: Activation = nn.ReLU,
        features: nn.Module | None = None,
        num_features: int | None = None,
    ) -> None:
        super().__init__()
        self.data_shape, self.classes = as_shape(data_shape, "data_shape"), as_size(classes, "classes")
        if (features is None) != (num_features is None):
            raise ValueError(
                f"features: got {type(features).__name__} with num_features={num_features}, expected both or none"
            )
        if features is None or num_features is None:
            hidden = as_shape(hidden, "hidden")
            mlp = MLP(self.data_shape, self.classes, hidden, activation)
            self.features: nn.Module = nn.Sequential(nn.Flatten(), mlp.hidden)
            self.head = mlp.output
        else:
            self.features, self.head = features, nn.Linear(as_size(num_features, "num_features"), classes)

    def classify(self, x: Tensor) -> dist.Categorical:
        """p(y | x), batch shape (B,), for x of shape (B, *data_shape)."""
        return dist.Categorical(logits=self.head(self.features(x)))

    def model(self, x: Tensor, y: Tensor) -> None:
        """p(y | x) for x of shape (B, *data_shape) and classes y of shape (B,)."""
        p = self.classify(x)  # outside of the plate: features may be those of another pair, with a plate of its own
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", p, obs=y)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """Nothing: there are no latent sites."""
