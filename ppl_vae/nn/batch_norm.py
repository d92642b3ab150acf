"""Batch normalisation of features with any number of leading dimensions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["BatchNorm"]


class BatchNorm(nn.BatchNorm1d):
    """Features (..., D) normalised over all leading dims: (K, B, D) has the statistics of K * B rows.

    In training mode these are the statistics of the batch, so the rows of a batch depend on each other: a bound
    is one of each datum in eval mode alone, where the running averages serve. These averages move in runs with
    gradient only: neither a bound looked at during training, nor the run that counts a pair's plates (which a
    resumed training repeats), changes a pair. A module that is called twice in a step, by guide and model, moves
    them twice.

    Args:
        num_features: D.
        momentum: the weight of the new statistics in the running averages.

    References:
        Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift, Ioffe &
        Szegedy 2015, algorithms 1 and 2.

    Example:
        >>> norm = BatchNorm(3)
        >>> norm(torch.randn(2, 5, 3)).mean((0, 1)).abs().max().item() < 1e-5
        True
    """

    def __init__(self, num_features: int, momentum: float = 0.1) -> None:
        super().__init__(num_features, momentum=momentum)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise (..., D)."""
        rows = input.reshape(-1, input.shape[-1])
        if self.training and not torch.is_grad_enabled():
            normalised = F.batch_norm(rows, None, None, self.weight, self.bias, training=True, eps=self.eps)
        else:
            normalised = super().forward(rows)
        return normalised.reshape(input.shape)
