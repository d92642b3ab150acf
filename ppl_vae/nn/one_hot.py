"""Classes as vectors."""

import torch
from torch import Tensor, nn

from ppl_vae.nn.shapes import as_size

__all__ = ["OneHot"]


class OneHot(nn.Module):
    """Classes (...) int64, 0 to K - 1 -> their unit vectors, (..., K) float.

    Args:
        classes: K.

    Raises:
        ValueError: K below 1; in `forward`, labels that are not int64.
        IndexError: in `forward` on a CPU, a label that is no class.

    Example:
        >>> OneHot(3)(torch.tensor([0, 2])).tolist()
        [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """

    vectors: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.eye(as_size(classes, "classes")), persistent=False)

    def forward(self, label: Tensor) -> Tensor:
        """Unit vectors, (..., K)."""
        if label.dtype != torch.int64:
            raise ValueError(f"classes: got {label.dtype}, expected torch.int64, whole numbers from 0")
        return self.vectors[label]
