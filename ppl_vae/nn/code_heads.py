"""Laws of codes: a head of any trunk, and a network of p(z_i | z_<i) over a grid of codes."""

from collections.abc import Callable

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor

from ppl_vae.distributions import Codebook, at_least_float32
from ppl_vae.nn.causal import CausalNetwork, CausalTrunk
from ppl_vae.nn.heads import Head
from ppl_vae.nn.shapes import Shape

__all__ = ["CodeNetwork", "CodebookHead"]


class CodebookHead(Head):
    """Codebook(codes, logits) at each place, from K logits: a joint law of the D numbers of a vector.

    The K logits of a place are spread over P = ceil(K / D) numbers for each of the D "channels"; those beyond K do not
    count.

    Args:
        shape: (D, *S), of one grid of vectors.
        codes: gives the codes (K, D), such as `lambda: quantiser.codes`, or a bound method; asked at each pass.
        number: K.

    Example:
        >>> codes = torch.randn(10, 4)
        >>> head = CodebookHead((4, 7, 7), lambda: codes, 10)
        >>> head.raw_shape, head(torch.zeros(5, *head.raw_shape)).event_shape
        ((3, 4, 7, 7), torch.Size([4, 7, 7]))
    """

    joint = True

    def __init__(self, shape: Shape, codes: Callable[[], Tensor], number: int) -> None:
        super().__init__(shape)
        self.codes, self.number = codes, number
        self.num_parameters = -(-number // self.shape[0])

    def law(self, raw: Tensor, dim: int) -> TorchDistribution:
        """The codebook's law of raw parameters (..., P, D, *S) whose dimension `dim` is P."""
        logits = at_least_float32(raw).flatten(dim, dim + 1).narrow(dim, 0, self.number)
        return Codebook(self.codes(), logits, raw.dim() - dim - 2)

    def distribution(self, parameters: tuple[Tensor, ...]) -> TorchDistribution:
        """The codebook's law of P tensors (D, *S)."""
        return self.law(torch.stack(parameters), 0)

    def raw_for_mean(self, mean: Tensor) -> tuple[Tensor, ...]:
        """Zeros: codes have no order, and all are equally likely."""
        return (torch.zeros_like(mean),) * self.num_parameters


class CodeNetwork(CausalNetwork):
    """p(z_i | z_<i, context) of codes on a grid: takes them as constants, so that no gradient reaches their encoder.

    Args:
        trunk: of raw parameters, causal and joint.
        head: of a place's codes.
    """

    def __init__(self, trunk: CausalTrunk, head: CodebookHead) -> None:
        super().__init__(trunk, head)

    def forward(self, x: Tensor, context: Tensor | None = None) -> TorchDistribution:
        """The law of all places, batch shape (...), event shape (D, H, W)."""
        return super().forward(x.detach(), context if context is None else context.detach())
