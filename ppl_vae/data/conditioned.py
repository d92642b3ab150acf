"""Data with something that each datum is given: captions, or classes."""

from abc import abstractmethod
from typing import Self

import torch
from torch import Tensor

from ppl_vae.data.source import Source

__all__ = ["Conditioned"]


class Conditioned(Source):
    """Data whose batches are (x, c): data x (B, *shape) float32, and what each of them is given.

    For pairs whose programs take (x, c), such as `pairs.AlignDRAW` and `pairs.ConditionalVAE`.

    Attributes: as of `Source`.
    """

    @property
    @abstractmethod
    def pixel_means(self) -> Tensor:
        """Mean of the training data, of the event shape."""

    @property
    def output_mean(self) -> Tensor:
        """The pixel means."""
        return self.pixel_means

    @abstractmethod
    def test_batch(self) -> tuple[Tensor, Tensor]:
        """The test set as evaluation sees it, x and c: the same at every call, in every run."""

    @abstractmethod
    def conditions(self, number: int) -> Tensor:
        """So many c, (number, ...), to sample for: in turn those of the test data, or all classes."""

    def blank(self, num: int) -> tuple[Tensor, Tensor]:
        """A batch for `num` samples: x that the model ignores, and c of the first test data or all classes."""
        return torch.zeros(num, *self.shape, device=self.train.device), self.conditions(num)

    @abstractmethod
    def hold_out(self, number: int) -> tuple[Self, tuple[Tensor, Tensor]]:
        """The data without their last `number`, and those as evaluation sees them, always the same.

        Raises:
            DataError: a number below 1, or not below what there is.
        """
