"""Heads: modules that turn raw parameters into a distribution."""

import math
from abc import ABC, abstractmethod
from numbers import Integral
from typing import ClassVar, Literal

import pyro.distributions as dist
import torch
import torch.nn.functional as F
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from ppl_vae.distributions import (
    DiscretisedLogistic,
    DiscretisedLogisticMixture,
    GreyBernoulli,
    GreyCategorical,
    at_least_float32,
)
from ppl_vae.nn.shapes import Shape, as_shape, as_size

# Pixel means are clipped to [_MEAN_CLIP, 1 - _MEAN_CLIP] before a logit, as in Burda et al.'s (2015) code.
_MEAN_CLIP = 0.001
# Slope of logits over [0, 1] beyond which a law of grey levels has a mean nearer to 0 or 1 than that.
_STEEPEST = 2e4


class Head(nn.Module, ABC):
    """Raw parameters (..., P, *shape) -> a distribution with batch shape (...) and event shape `shape`.

    A network that gives a distribution is `nn.Sequential(trunk, head)`; the trunk's out_shape is
    `head.raw_shape`. Raw parameters in half precision are raised to float32.

    A subclass sets `num_parameters` = P and writes `distribution` and `raw_for_mean`. One of images that is `joint` has
    laws of whole pixels: its `law` is of event shape (C, ...).

    Args:
        shape: shape of one event; an int n means (n,).

    Raises:
        ValueError: in the forward pass, for raw parameters that do not end with (P, *shape).
    """

    num_parameters: int
    joint: ClassVar[bool] = False

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = as_shape(shape)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """(P, *shape): what the trunk before this head must put out."""
        return (self.num_parameters, *self.shape)

    def forward(self, raw: Tensor) -> TorchDistribution:
        """Return the distribution with raw parameters (..., P, *shape)."""
        n = raw.dim() - len(self.raw_shape)
        if n < 0 or tuple(raw.shape[n:]) != self.raw_shape:
            wanted = ", ".join(["...", *map(str, self.raw_shape)])
            raise ValueError(
                f"{type(self).__name__}: got raw parameters of shape {tuple(raw.shape)}, "
                f"expected ({wanted}); build the trunk with out_shape=head.raw_shape={self.raw_shape}"
            )
        law = self.law(raw, n)
        return law.to_event(len(self.shape) - law.event_dim)

    def law(self, raw: Tensor, dim: int) -> TorchDistribution:
        """The elementwise distribution of raw parameters whose dimension `dim` is P, of whatever other shape."""
        return self.distribution(at_least_float32(raw).unbind(dim))

    def bias_for_mean(self, mean: Tensor) -> Tensor:
        """Return raw parameters (P, *shape) of a distribution with this mean, for `Trunk.set_output_bias`.

        Args:
            mean: the mean of the data, say, shape `shape`.

        Raises:
            ValueError: for another shape.
        """
        if tuple(mean.shape) != self.shape:
            raise ValueError(
                f"{type(self).__name__}.bias_for_mean: got shape {tuple(mean.shape)}, expected {self.shape}; "
                f"average the data over all but the event dims"
            )
        return torch.stack(self.raw_for_mean(at_least_float32(mean)))

    @abstractmethod
    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return the elementwise distribution of P tensors (..., *shape)."""

    @abstractmethod
    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Return the P raw parameters, each of shape `shape`, for this mean."""


class NormalHead(Head):
    """N(loc, diag(sigma^2)) with raw parameters (loc, s) and sigma = floor + exp(s), or floor + softplus(s).

    Note sigma = exp(s), not exp(s / 2): s is a log standard deviation.

    Args:
        shape: shape of one event; an int n means (n,).
        scale: "exp" or "softplus".
        floor: smallest sigma >= 0; None means 0 with "exp" (the literature's code) and 1e-4 with "softplus".

    Raises:
        ValueError: another scale, or a negative floor.

    References:
        Kingma and Welling, Auto-encoding variational Bayes, 2013, appendix C.2, with s = log sigma as in the
        code of Burda, Grosse and Salakhutdinov, Importance weighted autoencoders, 2015.

    Example:
        >>> NormalHead(3)(torch.zeros(5, 2, 3)).base_dist.scale.unique()
        tensor([1.])
    """

    num_parameters = 2

    def __init__(self, shape: Shape, scale: Literal["exp", "softplus"] = "exp", floor: float | None = None) -> None:
        super().__init__(shape)
        if scale not in ("exp", "softplus"):
            raise ValueError(f"NormalHead: got scale={scale!r}, expected 'exp' or 'softplus'")
        self.scale = scale
        self.floor = floor if floor is not None else (0.0 if scale == "exp" else 1e-4)
        if self.floor < 0:
            raise ValueError(f"NormalHead: got floor={floor}, expected a number >= 0")

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return Normal(loc, sigma)."""
        loc, s = parameters
        sigma = s.exp() if self.scale == "exp" else F.softplus(s)
        return dist.Normal(loc, sigma + self.floor if self.floor else sigma)

    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Return (mean, 0)."""
        return mean, torch.zeros_like(mean)


class FixedNormalHead(Head):
    """N(loc, c I) with raw parameters (loc,) and one constant variance c.

    Args:
        shape: shape of one event; an int n means (n,).
        variance: c > 0.

    Raises:
        ValueError: a variance that is not positive and finite.

    References:
        Lucas, Tucker, Grosse and Norouzi, Don't blame the ELBO! A linear VAE perspective on posterior
        collapse, 2019: what the constant stands for.

    Example:
        >>> FixedNormalHead(3, variance=0.25)(torch.zeros(1, 3)).variance
        tensor([0.2500, 0.2500, 0.2500])
    """

    num_parameters = 1

    def __init__(self, shape: Shape, variance: float) -> None:
        super().__init__(shape)
        if not 0 < variance < math.inf:
            raise ValueError(f"FixedNormalHead: got variance={variance}, expected a finite number > 0")
        self.variance = float(variance)

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return Normal(loc, sqrt(c))."""
        (loc,) = parameters
        # Filled on loc's device: a number would be copied from the host, which no CUDA graph can capture.
        return dist.Normal(loc, loc.new_full((), math.sqrt(self.variance)))

    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Return (mean,)."""
        return (mean,)


class SharedNormalHead(Head):
    """N(loc, diag(sigma^2)), raw parameters (loc,), and a learned sigma = exp(log_scale) that all data share.

    Args:
        shape: shape of one event; an int n means (n,).
        scalar: one sigma for the whole event, instead of one for each of its dimensions.

    References:
        Rybkin, Daniilidis and Levine, Simple and effective VAE training with calibrated decoders, 2021:
        `scalar=True` is their shared variance.

    Example:
        >>> SharedNormalHead((1, 8, 8), scalar=True)(torch.zeros(5, 1, 1, 8, 8)).batch_shape
        torch.Size([5])
    """

    num_parameters = 1

    def __init__(self, shape: Shape, scalar: bool = False) -> None:
        super().__init__(shape)
        self.log_scale = nn.Parameter(torch.zeros(() if scalar else self.shape))

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return Normal(loc, exp(log_scale))."""
        (loc,) = parameters
        return dist.Normal(loc, at_least_float32(self.log_scale).exp())

    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Return (mean,)."""
        return (mean,)


class BernoulliHead(Head):
    """Bernoulli(sigmoid(logits)) for each dimension, with raw parameters (logits,).

    Args:
        shape: shape of one event; an int n means (n,).
        grey: accept grey values in [0, 1] and score them with the cross-entropy, see `GreyBernoulli`; that
            score is not a log-likelihood.

    References:
        Kingma and Welling, Auto-encoding variational Bayes, 2013, appendix C.1.

    Example:
        >>> BernoulliHead(2)(torch.zeros(1, 2)).log_prob(torch.tensor([0.0, 1.0]))
        tensor(-1.3863)
    """

    num_parameters = 1

    def __init__(self, shape: Shape, grey: bool = False) -> None:
        super().__init__(shape)
        self.grey = grey

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return Bernoulli(logits) or GreyBernoulli(logits)."""
        (logits,) = parameters
        return GreyBernoulli(logits) if self.grey else dist.Bernoulli(logits=logits)

    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Return the logit of the mean, clipped to [0.001, 0.999]."""
        return (torch.logit(mean, eps=_MEAN_CLIP),)


class CategoricalHead(Head):
    """GreyCategorical(logits) for each dimension: any law over L grey levels, with raw parameters (logits,) x L.

    Args:
        shape: shape of one event; an int n means (n,).
        levels: L.

    Raises:
        ValueError: fewer than 2 levels.

    References:
        Pixel recurrent neural networks, van den Oord, Kalchbrenner & Kavukcuoglu 2016, section 2.2.

    Example:
        >>> CategoricalHead((8, 8), levels=17)(torch.zeros(5, 17, 8, 8)).log_prob(torch.ones(8, 8)).shape
        torch.Size([5])
    """

    def __init__(self, shape: Shape, levels: int = 256) -> None:
        super().__init__(shape)
        self.levels = self.num_parameters = _as_levels(levels, "CategoricalHead")

    def law(self, raw: Tensor, dim: int) -> TorchDistribution:
        """GreyCategorical of logits along `dim`."""
        return GreyCategorical(raw.movedim(dim, -1))

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return GreyCategorical of L logits."""
        return GreyCategorical(torch.stack(parameters, -1))

    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Return the logits of the widest law with this mean, clipped to [0.001, 0.999]: linear in the grey level."""
        levels = torch.arange(self.levels, dtype=mean.dtype, device=mean.device) / (self.levels - 1)
        low, high = torch.full_like(mean, -_STEEPEST), torch.full_like(mean, _STEEPEST)
        for _ in range(50):  # the mean grows with the slope
            slope = (low + high) / 2
            is_below = (slope.unsqueeze(-1) * levels).softmax(-1) @ levels < mean.clamp(_MEAN_CLIP, 1 - _MEAN_CLIP)
            low, high = torch.where(is_below, slope, low), torch.where(is_below, high, slope)
        return ((low + high) / 2 * levels.view(-1, *[1] * mean.dim())).unbind(0)


class DiscretisedLogisticHead(Head):
    """DiscretisedLogistic(loc, exp(max(s, -7))) for each dimension, with raw parameters (loc, s).

    Pixels are grey levels in [0, 1].

    Args:
        shape: shape of one event; an int n means (n,).
        levels: number of grey levels.

    References:
        Salimans, Karpathy, Chen and Kingma, PixelCNN++: Improving the PixelCNN with discretized logistic
        mixture likelihood and other modifications, 2017, eq. 2; the floor of -7 is
        that of their code, for pixels in [-1, 1].

    Example:
        >>> DiscretisedLogisticHead((8, 8))(torch.zeros(5, 2, 8, 8)).log_prob(torch.ones(8, 8)).shape
        torch.Size([5])
    """

    num_parameters = 2

    def __init__(self, shape: Shape, levels: int = 256) -> None:
        super().__init__(shape)
        self.levels = _as_levels(levels, "DiscretisedLogisticHead")

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return DiscretisedLogistic(loc, exp(s))."""
        loc, s = parameters
        return DiscretisedLogistic(loc, s.clamp(min=-7.0).exp(), self.levels)

    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Return (loc, log scale) for this mean, clipped to [0.001, 0.999] and exact to 0.01 of a grey level.

        Clipping to [0, 1] moves the mean away from loc. With u = loc / scale and w = 1 / scale the clipped
        logistic has mean scale * (softplus(u) - softplus(u - w)), and m = mean / scale gives e^u = (e^m - 1)
        / (1 - e^(m - w)).
        """
        scale = max(0.1, 1 / (self.levels - 1))
        m = mean.clamp(_MEAN_CLIP, 1 - _MEAN_CLIP) / scale
        u = torch.log(torch.expm1(m)) - torch.log(-torch.expm1(m - 1 / scale))
        return u * scale, torch.full_like(mean, math.log(scale))


class LogisticMixtureHead(Head):
    """DiscretisedLogisticMixture of M components for each pixel; P = M (C + 2) raw parameters for each of C channels.

    These are M logits (added up over the channels), M centres, M log scales (-7 at least), and M (C - 1) slopes on the
    channels before, by tanh.

    Args:
        shape: (C, H, W).
        levels: L, the number of grey levels.
        components: M.

    References:
        Salimans, Karpathy, Chen and Kingma, PixelCNN++: Improving the PixelCNN with discretized logistic
        mixture likelihood and other modifications, 2017, section 2.1 and 2.2.

    Example:
        >>> head = LogisticMixtureHead((3, 8, 8), components=2)
        >>> head.raw_shape, head(torch.zeros(5, *head.raw_shape)).log_prob(torch.ones(3, 8, 8)).shape
        ((10, 3, 8, 8), torch.Size([5]))
    """

    joint = True

    def __init__(self, shape: Shape, levels: int = 256, components: int = 10) -> None:
        super().__init__(shape)
        self.levels, self.components = _as_levels(levels, "LogisticMixtureHead"), as_size(components, "components")
        self.num_parameters = self.components * (self.shape[0] + 2)

    def law(self, raw: Tensor, dim: int) -> TorchDistribution:
        """The mixture of raw parameters (..., P, C, *S) whose dimension `dim` is P: event shape (C, *S)."""
        m, channels, places = self.components, self.shape[0], raw.dim() - dim - 2
        logits, loc, s, slopes = at_least_float32(raw).split([m, m, m, m * (channels - 1)], dim)
        slope = None
        if channels > 1:
            # (..., M, C - 1, C, *S): on the channel d of the channel c; (c, d) is how the mixture has it.
            slope = slopes.unflatten(dim, (m, channels - 1)).tanh().transpose(dim + 1, dim + 2)
            slope = F.pad(slope, (0, 0) * places + (0, 1))
        scale = s.clamp(min=-7.0).exp()
        return DiscretisedLogisticMixture(logits.sum(dim + 1), loc, scale, slope, self.levels, places)

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """Return the mixture of P tensors (..., C, *S)."""
        raw = torch.stack(parameters)
        return self.law(raw, 0)

    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Return centres about the mean, clipped to [0.001, 0.999], scales of a tenth, and nothing else."""
        m = self.components
        spread = torch.linspace(-0.2, 0.2, m, dtype=mean.dtype, device=mean.device)
        loc = mean.clamp(_MEAN_CLIP, 1 - _MEAN_CLIP) + spread.view(-1, *[1] * mean.dim())
        s = torch.full_like(loc, math.log(0.1))
        rest = mean.new_zeros(m * (self.shape[0] - 1), *mean.shape)
        return torch.cat([torch.zeros_like(loc), loc, s, rest]).unbind(0)


def _as_levels(levels: int, name: str) -> int:
    if not isinstance(levels, Integral) or isinstance(levels, bool) or levels < 2:
        raise ValueError(f"{name}: got levels={levels!r}, expected a whole number of at least 2")
    return int(levels)
