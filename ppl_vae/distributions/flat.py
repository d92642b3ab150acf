"""The law of a variable that has none."""

from typing import Any, ClassVar, final

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

__all__ = ["Flat"]


@final
class Flat(TorchDistribution):
    """Density 1 everywhere: log p(z) = 0. It integrates to no number, and nothing can be drawn from it.

    A site with it is scored by all others alone. Unlike Pyro's `ImproperUniform`, its zeros are on the value's device.

    Args:
        event_shape: of a value.
        batch_shape: of the law.
        validate_args: whether to check values, as in `torch.distributions`.

    Example:
        >>> Flat((2,)).log_prob(torch.ones(5, 2))
        tensor([0., 0., 0., 0., 0.])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore
    has_rsample = False
    normalised = False

    def __init__(self, event_shape: _size, batch_shape: _size = (), validate_args: bool | None = None) -> None:
        super().__init__(torch.Size(batch_shape), torch.Size(event_shape), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """All real values."""
        return constraints.independent(constraints.real, len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """0 for each value (..., *event_shape): (...)."""
        if self._validate_args:
            self._validate_sample(value)
        lead = value.shape[: value.dim() - len(self.event_shape)]
        return value.new_zeros(torch.broadcast_shapes(lead, self.batch_shape))

    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Nothing.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "got a variable without a prior to be drawn, expected a pair whose latent variables have one; train a VAE, "
            "or fit a density to the codes (pair.encode) and decode its draws"
        )

    def expand(self, batch_shape: _size, _instance: None = None) -> "Flat":
        """The same with a larger batch shape."""
        return Flat(self.event_shape, batch_shape, validate_args=self._validate_args)
