"""Vectors of a codebook at the places of a grid, each drawn by its number."""

from typing import Any, ClassVar, final

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.types import _size

from ppl_vae.distributions.precision import at_least_float32

__all__ = ["CodeVectors", "Codebook", "nearest_codes", "vectors_of"]


def nearest_codes(z: Tensor, codes: Tensor, places: int = 0) -> Tensor:
    """argmin_k ||z - e_k||^2 at each place.

    Args:
        z: vectors, features first, (..., D, *S).
        codes: e, (K, D).
        places: how many dimensions S has.

    Returns:
        Numbers of codes, int64, (..., *S); of equal codes the first.

    Example:
        >>> nearest_codes(torch.tensor([0.9, 0.2]), torch.eye(2))
        tensor(0)
    """
    rows = z.movedim(-1 - places, -1)
    # ||z||^2 is the same for all codes; without gradient, for a number has none.
    with torch.no_grad():
        distance = codes.square().sum(1) - 2 * rows.reshape(-1, codes.shape[1]) @ codes.T
        return distance.argmin(1).view(rows.shape[:-1])


def vectors_of(index: Tensor, codes: Tensor, places: int = 0) -> Tensor:
    """The codes (K, D) of these numbers (..., *S), features first: (..., D, *S)."""
    return codes[index].movedim(-1, -1 - places)


class CodeVectors(constraints.Constraint):
    """Vectors of a codebook, features first, (..., D, *S)."""

    def __init__(self, codes: Tensor, places: int) -> None:
        self.codes, self.places, self.event_dim = codes, places, 1 + places
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Whether each of its vectors is a code, to a hundred-thousandth of the largest number in it, (...)."""
        code = vectors_of(nearest_codes(value, self.codes, self.places), self.codes, self.places)
        near = (value - code).abs() <= 1e-5 * code.abs().amax(-1 - self.places, keepdim=True)
        return near.flatten(-self.event_dim).all(-1)


@final
class Codebook(TorchDistribution):
    """P(z) = prod_s softmax(logits_s)[k_s], z_s = e_{k_s}: at each place s of a grid S a code, independent of others.

    The values are the vectors, not their numbers, so that networks can take them and gradients can flow through them
    (straight through, see `nn.Quantiser`); the probability itself depends on the numbers alone.

    Args:
        codes: e, (K, D).
        logits: (..., K, *S).
        places: how many dimensions S has.
        validate_args: whether to check values, as in `torch.distributions`.

    Raises:
        ValueError: logits for another number of codes; with validation on, values that are no codes.

    References:
        Neural discrete representation learning, van den Oord, Vinyals & Kavukcuoglu 2017, section 3.1.

    Example:
        >>> p = Codebook(torch.randn(8, 3), torch.zeros(5, 8, 4, 4), places=2)
        >>> p.event_shape, p.log_prob(p.sample()).exp().mul(8.0**16).round()
        (torch.Size([3, 4, 4]), tensor([1., 1., 1., 1., 1.]))
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}  # pyright: ignore
    has_rsample = False

    def __init__(self, codes: Tensor, logits: Tensor, places: int = 0, validate_args: bool | None = None) -> None:
        at = logits.dim() - 1 - places
        if codes.dim() != 2 or at < 0 or logits.shape[at] != len(codes):
            raise ValueError(
                f"got codes {tuple(codes.shape)} and logits {tuple(logits.shape)} with places={places}, expected "
                "(K, D) and (..., K, *S); reshape them, or set places to the number of dimensions of S"
            )
        self.codes, self.logits, self.places = codes, logits, places
        event = torch.Size([codes.shape[1], *logits.shape[at + 1 :]])
        super().__init__(logits.shape[:at], event, validate_args=validate_args)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The codes, at each place."""
        return CodeVectors(self.codes, self.places)

    def log_prob(self, value: Tensor) -> Tensor:
        """log P(value), (...): of vectors that are no codes that of the nearest ones."""
        if self._validate_args:
            self._validate_sample(value)
        index = nearest_codes(value, self.codes, self.places).unsqueeze(-1 - self.places)
        log_p = at_least_float32(self.logits).log_softmax(-1 - self.places)
        lead = torch.broadcast_shapes(index.shape[: -1 - self.places], self.batch_shape)
        found = log_p.expand(*lead, *log_p.shape[-1 - self.places :]).gather(
            -1 - self.places, index.expand(*lead, *index.shape[-1 - self.places :])
        )
        return found.flatten(-1 - self.places).sum(-1)

    @torch.no_grad()
    def sample(self, sample_shape: _size = ()) -> Tensor:
        """Draws, (*sample_shape, ..., D, *S)."""
        p = at_least_float32(self.logits).softmax(-1 - self.places).movedim(-1 - self.places, -1)
        p = p.expand(*sample_shape, *p.shape)
        index = torch.multinomial(p.reshape(-1, p.shape[-1]), 1).view(p.shape[:-1])
        return vectors_of(index, self.codes, self.places)

    def expand(self, batch_shape: _size, _instance: None = None) -> "Codebook":
        """The same with a larger batch shape (a view)."""
        logits = self.logits.expand(*batch_shape, *self.logits.shape[-1 - self.places :])
        new = Codebook(self.codes, logits, self.places, validate_args=False)
        new._validate_args = self._validate_args
        return new
