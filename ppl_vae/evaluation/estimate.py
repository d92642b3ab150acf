"""A mean over the data and how far to trust it."""

import math
from typing import Any, NamedTuple

from torch import Tensor

from ppl_vae.distributions import Flat

__all__ = ["Estimate", "check_prior", "standard_error"]


class Estimate(NamedTuple):
    """A mean over the data and its standard error, nats."""

    mean: float
    standard_error: float

    @classmethod
    def of(cls, values: Tensor) -> "Estimate":
        """From one value for each datum, (N,)."""
        return cls(values.mean().item(), standard_error(values))


def standard_error(values: Tensor) -> float:
    """Standard error of the mean of N values; NaN for one."""
    if len(values) < 2:
        return math.nan
    return values.double().std().item() / math.sqrt(len(values))


def check_prior(name: str, law: Any) -> None:
    """Refuse a latent site whose law is none.

    Raises:
        ValueError: names the site.
    """
    if isinstance(law, Flat):
        raise ValueError(
            f"site {name!r}: got no prior, without which there is no log p(x), expected one; `evaluate` has the "
            "log-likelihood of the reconstruction"
        )
