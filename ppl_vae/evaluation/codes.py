"""How much of a codebook is in use."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_vae.pairs.quantised import QuantisedPair
from ppl_vae.quiet import undisturbed

__all__ = ["CodeUsage", "code_usage"]

ROWS = 256
"""Data that are encoded at once."""


@dataclass(frozen=True)
class CodeUsage:
    """How often each code of a site is the nearest one, over all places of some data.

    Args:
        counts: (K,) int64.
    """

    counts: Tensor

    @property
    def used(self) -> int:
        """Codes that occur."""
        return int((self.counts > 0).sum())

    @property
    def total(self) -> int:
        """K."""
        return len(self.counts)

    @property
    def perplexity(self) -> float:
        """exp of the entropy of their frequencies: between 1, and K for even use."""
        p = self.counts.double() / self.counts.sum()
        return torch.special.entr(p).sum().exp().item()

    def as_dict(self) -> dict[str, float]:
        """Plain values, ready for JSON."""
        return {"used": self.used, "total": self.total, "perplexity": self.perplexity}


def code_usage(pair: QuantisedPair, *batch: Any) -> dict[str, CodeUsage]:
    """How much of each site's codebook these data use.

    Args:
        pair: a VQ-VAE.
        batch: the data; the first tensor is x, (N, *data_shape).

    References:
        Neural discrete representation learning, van den Oord, Vinyals & Kavukcuoglu 2017; perplexity is the common
        figure of its reimplementations.

    Example:
        >>> from ppl_vae.pairs import VQVAE
        >>> pair = VQVAE((1, 8, 8), codes=4, code_dim=2, hidden=4, prior_layers=0)
        >>> code_usage(pair, torch.zeros(3, 1, 8, 8))["z"].counts.sum()
        tensor(12)
    """
    totals: dict[str, Tensor] = {}
    with undisturbed(pair, seed=0):
        for x in batch[0].split(ROWS):
            for site, index in pair.numbers(pair.codes(x)).items():
                counts = torch.bincount(index.flatten(), minlength=pair.quantiser(site).number)
                totals[site] = totals.get(site, 0) + counts
    return {site: CodeUsage(counts) for site, counts in totals.items()}
