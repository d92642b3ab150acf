"""log p(x) by draws from the model alone, the same for all data: for models of few latent variables."""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ppl_vae.checks import check_batch
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.evaluation.likelihood import ImportanceSampling
from ppl_vae.pair import Pair
from ppl_vae.quiet import undisturbed

__all__ = ["prior_sampling"]

DRAWS, ROWS = 1000, 1000
"""Draws and data at a time."""

BY_PRODUCT = dist.Bernoulli
"""The likelihood whose table is a product of matrices."""


def prior_sampling(pair: Pair, x: Tensor, *, num_particles: int = 20_000, seed: int | None = 0) -> ImportanceSampling:
    """log p(x) ~ log mean_k p(x | z_k), z_k ~ p(z), the same K draws for all data.

    No guide is asked, so that models that have none, or none that is trained, are measured like all others. A lower
    bound in expectation; good for few latent variables, where K draws come near to each posterior: look at `ess`.
    The estimates of different data share their draws, and are not independent.

    Args:
        pair: its model takes x alone.
        x: (N, *shape).
        num_particles: K.
        seed: of a private random stream; the global one if None.

    Raises:
        ValueError: num_particles below 1; a bad batch (see `check_batch`), or values outside the likelihood's support.

    References:
        Monte Carlo theory, methods and examples, Owen 2013, chapter 9.

    Example:
        >>> from ppl_vae.testing import LinearGaussian
        >>> pair, x = LinearGaussian(5, 1).double(), torch.zeros(3, 5).double()
        >>> bool((prior_sampling(pair, x).log_likelihood - pair.log_likelihood(x)).abs().max() < 0.05)
        True
    """
    require_positive("num_particles", num_particles)
    x = x.to(pair.reference().device)
    check_batch(pair, x)
    sums = x.new_full((2, len(x)), -torch.inf, dtype=torch.float64)
    with undisturbed(pair, seed):
        for first in range(0, num_particles, DRAWS):
            number = min(DRAWS, num_particles - first)
            nodes: dict[str, Any] = dict(pair.generate(x[:1].expand(number, *x.shape[1:])).nodes)
            law = nodes[pair.data_site]["fn"]
            log_p = torch.cat([_table(law, part) for part in x.split(ROWS)]).double()
            new = torch.stack([torch.logsumexp(log_p, 1), torch.logsumexp(2 * log_p, 1)])
            sums = torch.logaddexp(sums, new)
    return ImportanceSampling.of(sums, num_particles)


def _table(law: TorchDistribution, x: Tensor) -> Tensor:
    """log p(x_n | z_k), (N, K), for the law of K draws and x (N, *shape)."""
    base: Any = law.base_dist if isinstance(law, torch.distributions.Independent) else law
    if type(base) is BY_PRODUCT:
        # sum_d x_d l_d - log(1 + e^l_d): a product of matrices instead of a table (N, K, D)
        if not bool(base.support.check(x).all()):
            raise ValueError("x: got values besides 0 and 1 under a Bernoulli, expected none; binarise the data")
        logits = base.logits.expand(*law.batch_shape, *law.event_shape).reshape(law.batch_shape.numel(), -1)
        return x.reshape(len(x), -1) @ logits.t() - torch.nn.functional.softplus(logits).sum(-1)
    rows = max(1, 10_000_000 // (law.batch_shape.numel() * x[0].numel()))
    return torch.cat([law.log_prob(part.unsqueeze(1)) for part in x.split(rows)])
