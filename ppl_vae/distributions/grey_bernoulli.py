"""Grey pixels under a Bernoulli: the cross-entropy of the literature, named for what it is."""

from typing import ClassVar

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size


class GreyBernoulli(dist.Bernoulli):
    """log_prob(x) = x log p + (1 - x) log(1 - p) for grey x in [0, 1], with p = sigmoid(logits).

    Not a log-likelihood: exp(log_prob) does not integrate to 1 over [0, 1], so bounds in these nats compare
    with each other only, never with those of a density or of binary pixels. `normalised` is False to say so.
    It equals the expected Bernoulli log-likelihood of pixels binarised at random with probabilities x.
    `sample` draws binary pixels and `mean` is p.

    Args:
        logits: log p / (1 - p), any shape (the batch shape).
        validate_args: whether to check arguments and values, as in `torch.distributions`.

    Raises:
        ValueError: with validation on, for values outside [0, 1].

    References:
        Loaiza-Ganem and Cunningham, The continuous Bernoulli: fixing a pervasive error in variational
        autoencoders, 2019, section 3: the normaliser left out here.

    Example:
        >>> GreyBernoulli(torch.zeros(2)).log_prob(torch.tensor([0.25, 1.0]))
        tensor([-0.6931, -0.6931])
    """

    arg_constraints: ClassVar = {"logits": constraints.real}
    support = constraints.unit_interval
    has_enumerate_support = False  # its values are not {0, 1}
    normalised: ClassVar[bool] = False

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: _size, _instance: TorchDistribution | None = None) -> "GreyBernoulli":
        """Return the same distribution with a larger batch shape (a view)."""
        new = self._get_checked_instance(GreyBernoulli, _instance)
        return super().expand(torch.Size(batch_shape), _instance=new)
