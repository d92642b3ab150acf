"""A logistic distribution over the grey levels of a pixel."""

from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.utils import broadcast_all
from torch.types import _size

from ppl_vae.distributions.precision import at_least_float32

# Scales, in grey levels, are clamped to this range: below it a pixel is deterministic and above it uniform to
# float32, and outside it the gradient of 1 / scale overflows.
_MIN_SCALE, _MAX_SCALE = 1e-6, 1e12


class GreyLevels(constraints.Constraint):
    """The values {0, 1 / (levels - 1), ..., 1}, to a thousandth of a level or the rounding of their dtype."""

    is_discrete = True
    event_dim = 0

    def __init__(self, levels: int) -> None:
        self.levels = levels
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Return elementwise whether `value` is a grey level."""
        top = float(self.levels - 1)
        i = value * top
        tolerance = max(1e-3, self.levels * torch.finfo(i.dtype).eps)
        return (i - i.round()).abs().le(tolerance) & (i >= -tolerance) & (i <= top + tolerance)


@final
class DiscretisedLogistic(TorchDistribution):
    """P(x) = sigmoid((x + h - loc) / scale) - sigmoid((x - h - loc) / scale), x = i / (L - 1), h half a step.

    The lowest level takes the whole lower tail and the highest the whole upper tail, so the L = `levels`
    probabilities sum to 1. A true probability mass, comparable in bits per dimension. Value and gradient are
    finite for every finite loc and scale, far tails included; half-precision arguments are raised to float32.

    Args:
        loc: centre of the logistic in units of the pixel value, so that 0 is the lowest level and 1 the
            highest, (...).
        scale: its scale > 0 in the same units, (...).
        levels: L, the number of grey levels, at least 2.
        validate_args: whether to check arguments and values, as in `torch.distributions`.

    Raises:
        ValueError: fewer than 2 levels; with validation on, also scale <= 0 or values that are no grey level.

    References:
        Salimans, Karpathy, Chen and Kingma, PixelCNN++: Improving the PixelCNN with discretized logistic
        mixture likelihood and other modifications, 2017, eq. 2, with one component and pixels in [0, 1].

    Example:
        >>> d = DiscretisedLogistic(torch.tensor(0.5), torch.tensor(0.1), levels=3)
        >>> d.log_prob(torch.tensor([0.0, 0.5, 1.0])).exp()
        tensor([0.0759, 0.8483, 0.0759])
    """

    arg_constraints: ClassVar[dict[str, Any]] = {  # pyright: ignore
        "loc": constraints.real,
        "scale": constraints.positive,
    }
    has_rsample = False

    def __init__(self, loc: Tensor, scale: Tensor, levels: int = 256, validate_args: bool | None = None) -> None:
        if levels < 2:
            raise ValueError(f"DiscretisedLogistic: got levels={levels}, expected at least 2 grey levels")
        self.loc, self.scale = broadcast_all(loc, scale)
        self.levels = levels
        super().__init__(self.loc.shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=0)
    def support(self) -> GreyLevels:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The grey levels."""
        return GreyLevels(self.levels)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log P(value), elementwise; without validation a value counts as its nearest level."""
        if self._validate_args:
            self._validate_sample(value)
        loc, scale = self._in_levels()
        top = self.levels - 1
        # In whole levels the edges i +- 1/2 are exact, and neighbours share the very same edge.
        i = torch.round(at_least_float32(value) * top)
        upper, lower = (i + 0.5 - loc) / scale, (i - 0.5 - loc) / scale
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)): no cancellation in either tail.
        # The factor of an edge at infinity is 1, and with it the third.
        below = F.logsigmoid(upper).masked_fill(i >= top, 0.0)
        above = F.logsigmoid(-lower).masked_fill(i <= 0, 0.0)
        width = torch.log(-torch.expm1(-1.0 / scale)).masked_fill((i <= 0) | (i >= top), 0.0)
        return below + above + width

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draw grey levels: a logistic draw, rounded and clipped."""
        loc, scale = self._in_levels()
        shape = self._extended_shape(torch.Size(sample_shape))
        u = torch.rand(shape, dtype=loc.dtype, device=loc.device).clamp(min=torch.finfo(loc.dtype).tiny)
        top = self.levels - 1
        return torch.round(loc + scale * torch.logit(u)).clamp(0, top) / top

    @property
    def mean(self) -> Tensor:
        """E[x], by E[i] = sum_i P(level > i); a loop, so that memory stays that of one batch."""
        loc, scale = self._in_levels()
        top = self.levels - 1
        total = torch.zeros_like(loc)
        for i in range(top):
            total = total + torch.sigmoid((loc - (i + 0.5)) / scale)
        return total / top

    def expand(self, batch_shape: _size, _instance: None = None) -> "DiscretisedLogistic":
        """Return the same distribution with a larger batch shape (a view)."""
        loc, scale = self.loc.expand(batch_shape), self.scale.expand(batch_shape)
        new = DiscretisedLogistic(loc, scale, self.levels, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _in_levels(self) -> tuple[Tensor, Tensor]:
        """Return loc and scale in units of one grey level, in float32 or better."""
        top = self.levels - 1
        scale = at_least_float32(self.scale) * top
        return at_least_float32(self.loc) * top, scale.clamp(_MIN_SCALE, _MAX_SCALE)
