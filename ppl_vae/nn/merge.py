"""Two Normal distributions of one thing, merged into one."""

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

__all__ = ["merge_normals"]


def merge_normals(a: TorchDistribution, b: TorchDistribution) -> TorchDistribution:
    """The Normal whose density is proportional to the product of two: means are weighted by their precisions.

    sigma^2 = 1 / (sigma_a^-2 + sigma_b^-2),  mu = sigma^2 (mu_a sigma_a^-2 + mu_b sigma_b^-2).

    Args:
        a: a Normal, or a diagonal one, `Normal(...).to_event(n)`.
        b: another of the same event shape; batch shapes are broadcast, (B,) with (K, B) say.

    Raises:
        ValueError: another distribution, or another event shape.

    References:
        Ladder Variational Autoencoders, Sønderby et al. 2016, eq. 18 and 19.

    Example:
        >>> merged = merge_normals(dist.Normal(0.0, 3.0), dist.Normal(25.0, 4.0))
        >>> round(merged.mean.item(), 4), round(merged.variance.item(), 4)
        (9.0, 5.76)
    """
    if a.event_shape != b.event_shape:
        raise ValueError(
            f"merge_normals: got event shapes {tuple(a.event_shape)} and {tuple(b.event_shape)}, expected two Normals "
            "over one event: give both networks heads of one shape"
        )
    (mu_a, sigma_a), (mu_b, sigma_b) = _parameters(a), _parameters(b)
    # Not by precisions: sigma^-2 overflows in float32 where sigma < 1e-19, and its gradient long before.
    total = torch.hypot(sigma_a, sigma_b)
    share_a, share_b = sigma_b / total, sigma_a / total
    merged = dist.Normal(share_a.square() * mu_a + share_b.square() * mu_b, share_a * sigma_a)
    return merged.to_event(a.event_dim)


def _parameters(normal: TorchDistribution) -> tuple[Tensor, Tensor]:
    base = normal.base_dist if isinstance(normal, dist.Independent) else normal
    if not isinstance(base, torch.distributions.Normal):
        raise ValueError(
            f"merge_normals: got {type(base).__name__}, expected a Normal, or Normal(...).to_event(n): build the "
            "network with a NormalHead"
        )
    return base.loc, base.scale
