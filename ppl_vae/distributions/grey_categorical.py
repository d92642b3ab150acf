"""Any law over the grey levels of a pixel."""

from typing import Any, ClassVar, final

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from ppl_vae.distributions.discretised_logistic import GreyLevels
from ppl_vae.distributions.precision import at_least_float32

__all__ = ["GreyCategorical"]


@final
class GreyCategorical(TorchDistribution):
    """P(x = i / (L - 1)) = softmax(logits)_i for i = 0, ..., L - 1.

    Args:
        logits: (..., L), of the L grey levels, up to a constant.
        validate_args: whether to check values, as in `torch.distributions`.

    Raises:
        ValueError: fewer than 2 levels; with validation on, values that are no grey level.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016, section 2.2.

    Example:
        >>> GreyCategorical(torch.zeros(4)).log_prob(torch.tensor([0.0, 1 / 3, 1.0])).exp()
        tensor([0.2500, 0.2500, 0.2500])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real_vector}  # pyright: ignore
    has_rsample = False

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        if logits.dim() < 1 or logits.shape[-1] < 2:
            raise ValueError(f"logits: got shape {tuple(logits.shape)}, expected (..., L) of at least 2 grey levels")
        self.logits = at_least_float32(logits)
        self.levels = logits.shape[-1]
        super().__init__(logits.shape[:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> GreyLevels:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The grey levels."""
        return GreyLevels(self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), elementwise; without validation a value counts as its nearest level."""
        if self._validate_args:
            self._validate_sample(value)
        i = torch.round(at_least_float32(value) * (self.levels - 1)).long().clamp(0, self.levels - 1)
        log_p = self.logits.log_softmax(-1)
        i = i.expand(torch.broadcast_shapes(i.shape, log_p.shape[:-1]))
        return log_p.expand(*i.shape, -1).gather(-1, i.unsqueeze(-1)).squeeze(-1)

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draw grey levels."""
        shape = self._extended_shape(torch.Size(sample_shape))
        p = self.logits.softmax(-1).expand(*shape, -1).reshape(-1, self.levels)
        return torch.multinomial(p, 1).view(shape).to(self.logits.dtype) / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """E[x]."""
        levels = torch.arange(self.levels, dtype=self.logits.dtype, device=self.logits.device) / (self.levels - 1)
        return self.logits.softmax(-1) @ levels

    def expand(self, batch_shape: _size, _instance: None = None) -> "GreyCategorical":
        """The same with a larger batch shape (a view)."""
        new = GreyCategorical(self.logits.expand(*batch_shape, -1), validate_args=False)
        new._validate_args = self._validate_args
        return new
