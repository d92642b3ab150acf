"""What a pair's guide makes of data, as features for something else: the means of its latent variables."""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from ppl_vae.pair import Pair
from ppl_vae.sites import NotPerDatumError, is_subsample, plates_of, sample_sites

__all__ = ["Features", "features"]


def features(pair: Pair, *batch: Any) -> Tensor:
    """The means of the guide's latent sites side by side, (B, F), with gradient.

    A site that the guide draws given others is given their means. Of binary and one-hot sites the means are
    probabilities; of an `Autoencoder` they are its codes.

    Args:
        pair: any pair with a guide; B data on its plate.
        batch: the arguments of the guide.

    Raises:
        ValueError: a guide without latent sites, or a site without a mean, of whole numbers say.
        NotPerDatumError: a site in no plate of the data.

    Example:
        >>> from ppl_vae.pairs import VAE
        >>> features(VAE((1, 8, 8), latent_dim=2), torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 2])
    """
    with poutine.block():  # a program that asks for features is not to have the guide's sites for its own
        nodes = sample_sites(poutine.trace(_AtMeans()(pair.guide)).get_trace(*batch))
    latent = [node for node in nodes.values() if not node["is_observed"] and not node["infer"].get("is_auxiliary")]
    if not latent:
        raise ValueError(
            f"{type(pair).__name__}: got a guide without latent sites, expected one that makes something of x; choose "
            "another pair"
        )
    rows = len(next(value for value in batch if isinstance(value, Tensor)))
    return torch.cat([_by_rows(node, rows) for node in latent], -1)


def _by_rows(node: Any, rows: int) -> Tensor:
    """A site's value as (B, F): one that stands in several plates has the data's first."""
    frames = {f.name: f for f in node["cond_indep_stack"] if f.vectorized}
    plate = frames.get("data") or next((f for f in frames.values() if f.size == rows), None)
    if plate is None:
        raise NotPerDatumError(
            f"site {node['name']!r}: got {plates_of(node['cond_indep_stack'])}, expected one of the {rows} data"
        )
    return node["value"].movedim(plate.dim - node["fn"].event_dim, 0).reshape(rows, -1)


class Features(nn.Module):
    """`features` of a pair whose guide takes x alone, as a module that trains the pair's parameters.

    Args:
        pair: see `features`.
    """

    def __init__(self, pair: Pair) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) for x (B, *shape)."""
        return features(self.pair, x)


class _AtMeans(Messenger):
    """Gives each latent site the mean of its law."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or is_subsample(msg):
            return
        fn = msg["fn"]
        base = fn.base_dist if isinstance(fn, torch.distributions.Independent) else fn
        try:
            if isinstance(base, torch.distributions.Categorical):  # its mean is NaN
                raise NotImplementedError
            msg["value"] = fn.mean
        except NotImplementedError:
            raise ValueError(
                f"site {msg['name']!r}: got {type(base).__name__}, which has no mean, expected sites that do; one-hot "
                "ones instead of whole numbers, say"
            ) from None
