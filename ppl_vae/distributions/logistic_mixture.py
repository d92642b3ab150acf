"""A mixture of logistics over the grey levels of a pixel and of its colours, which depend on one another."""

from typing import Any, ClassVar, final

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from ppl_vae.distributions.discretised_logistic import DiscretisedLogistic, GreyLevels
from ppl_vae.distributions.precision import at_least_float32

__all__ = ["DiscretisedLogisticMixture"]


@final
class DiscretisedLogisticMixture(TorchDistribution):
    """P(x) = sum_m p_m prod_c DiscretisedLogistic(x_c; loc_mc + sum_{d<c} slope_mcd (x_d - 1/2), scale_mc).

    p = softmax(logits). A component is drawn for a pixel, and of it the colours in turn, each about a centre that is
    linear in those before it. S are places, the pixels of a map say, independent of one another: the event is (C, *S).

    Args:
        logits: of the components, (..., M, *S).
        loc: centres in units of the pixel value, 0 the lowest level and 1 the highest, (..., M, C, *S).
        scale: > 0 in the same units, (..., M, C, *S).
        slope: (..., M, C, C, *S), of which those with d < c count; None for none, with one colour say.
        levels: L, the number of grey levels, at least 2.
        places: how many dimensions S has.
        validate_args: whether to check values, as in `torch.distributions`.

    Raises:
        ValueError: shapes that do not fit; with validation on, values that are no grey level.

    References:
        Salimans, Karpathy, Chen and Kingma, PixelCNN++: Improving the PixelCNN with discretized logistic
        mixture likelihood and other modifications, 2017, section 2.1 and 2.2; there pixels are in [-1, 1].

    Example:
        >>> p = DiscretisedLogisticMixture(torch.zeros(5, 2), torch.zeros(5, 2, 3), torch.ones(5, 2, 3))
        >>> p.log_prob(torch.ones(3)).shape, p.sample().shape
        (torch.Size([5]), torch.Size([5, 3]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore
    has_rsample = False

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        slope: Tensor | None = None,
        levels: int = 256,
        places: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.scale, self.slope = logits, loc, scale, slope
        self.levels, self.places = levels, places
        batch = logits.shape[: logits.dim() - 1 - places]
        event = loc.shape[len(batch) + 1 :]
        _check(logits, loc, scale, slope, batch, event)
        super().__init__(batch, event, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The grey levels, of each colour."""
        return constraints.independent(GreyLevels(self.levels), len(self.event_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), (...): a log-sum-exp over components for each place."""
        if self._validate_args:
            self._validate_sample(value)
        x = at_least_float32(value).unsqueeze(-2 - self.places)  # (..., 1, C, *S), against components
        law = DiscretisedLogistic(self._centres(x), self.scale, self.levels, validate_args=False)
        colours, component = -1 - self.places, -1 - self.places
        log_p = law.log_prob(x).sum(colours) + at_least_float32(self.logits).log_softmax(component)
        log_p = log_p.logsumexp(component)
        return log_p.sum(tuple(range(-self.places, 0))) if self.places else log_p

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws, (*sample_shape, ..., C, *S)."""
        lead = torch.Size(sample_shape) + self.batch_shape
        component, places = -1 - self.places, self.event_shape[1:]
        p = at_least_float32(self.logits).softmax(component).movedim(component, -1)
        p = p.expand(*lead, *places, -1)
        chosen = torch.multinomial(p.reshape(-1, p.shape[-1]), 1).view(*lead, 1, 1, *places)
        loc, scale = (_of(part, chosen, lead) for part in (self.loc, self.scale))
        slope = None if self.slope is None else _of(self.slope, chosen.unsqueeze(len(lead)), lead)
        x: list[Tensor] = []
        for c in range(self.event_shape[0]):
            at = [slice(None)] * len(lead) + [c]
            centre = loc[tuple(at)]
            if slope is not None:
                for d, before in enumerate(x):
                    centre = centre + slope[(*at, d)] * (before - 0.5)
            x.append(DiscretisedLogistic(centre, scale[tuple(at)], self.levels, validate_args=False).sample())
        return torch.stack(x, len(lead))

    def expand(self, batch_shape: _size, _instance: None = None) -> "DiscretisedLogisticMixture":
        """The same with a larger batch shape (a view)."""
        n = len(self.batch_shape)
        parts = [self.logits, self.loc, self.scale, self.slope]
        logits, loc, scale, slope = (p if p is None else p.expand(*batch_shape, *p.shape[n:]) for p in parts)
        assert logits is not None and loc is not None and scale is not None
        new = DiscretisedLogisticMixture(logits, loc, scale, slope, self.levels, self.places, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _centres(self, x: Tensor) -> Tensor:
        """Where each component's logistics are, given the colours before, (..., M, C, *S)."""
        loc = at_least_float32(self.loc)
        if self.slope is None:
            return loc
        colours = loc.shape[-1 - self.places]
        before = torch.ones(colours, colours, dtype=loc.dtype, device=loc.device).tril(-1)
        before = before.view(colours, colours, *[1] * self.places)
        shift = at_least_float32(self.slope) * before * (x.unsqueeze(-2 - self.places) - 0.5)
        return loc + shift.sum(-1 - self.places)


def _of(part: Tensor, chosen: Tensor, lead: torch.Size) -> Tensor:
    """The component that was chosen at each place: (..., M, *rest) -> (*lead, *rest)."""
    n = len(lead)
    behind = part.shape[part.dim() - (chosen.dim() - n) :]
    wide = part.expand(*lead, *behind)
    index = chosen.expand(*lead, 1, *behind[1:])
    return at_least_float32(wide).gather(n, index).squeeze(n)


def _check(
    logits: Tensor, loc: Tensor, scale: Tensor, slope: Tensor | None, batch: torch.Size, event: torch.Size
) -> None:
    wanted = (*batch, logits.shape[len(batch)], *event)
    same = tuple(loc.shape) == wanted == tuple(scale.shape)
    fits = len(event) > 0 and same and logits.shape[len(batch) + 1 :] == event[1:]
    slopes = (*wanted[: len(batch) + 1], event[0], *event) if len(event) else ()
    if not fits or (slope is not None and tuple(slope.shape) != slopes):
        raise ValueError(
            f"got logits {tuple(logits.shape)}, loc {tuple(loc.shape)}, scale {tuple(scale.shape)} and slope "
            f"{None if slope is None else tuple(slope.shape)}, expected (..., M, *S), (..., M, C, *S) twice, and "
            "(..., M, C, C, *S) or None; reshape them, or set places to the number of dimensions of S"
        )
