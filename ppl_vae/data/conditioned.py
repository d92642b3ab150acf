"""Data with something that each datum is given: captions, or classes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ppl_vae.data.dataset import Binarisation
from ppl_vae.data.minibatch import Minibatches

__all__ = ["Conditioned"]


class Conditioned(ABC):
    """Data whose batches are (x, c): data x (B, *shape) float32, and what each of them is given.

    For pairs whose programs take (x, c), such as `pairs.AlignDRAW` and `pairs.ConditionalVAE`.

    Attributes:
        name: what the data are called in tables.
        note: provenance and comparability.
        levels: number of grey levels of the source.
        binarisation: as of `Dataset`.
        train: training data, the first tensor of `minibatches` before it is drawn.
    """

    name: str
    note: str
    levels: int
    binarisation: Binarisation
    train: Tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value!r}' for key, value in self.describe().items())})"

    @property
    @abstractmethod
    def shape(self) -> torch.Size:
        """Event shape of one x."""

    @property
    @abstractmethod
    def pixel_means(self) -> Tensor:
        """Mean of the training data, of the event shape."""

    @property
    @abstractmethod
    def told(self) -> Mapping[str, int]:
        """What a pair must know of c, as arguments of its constructor: {"vocabulary": 23}, {"classes": 10}."""

    @abstractmethod
    def minibatches(self, batch_size: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> Minibatches:
        """The training data in batches without end, on the device of the data."""

    @abstractmethod
    def test_batch(self) -> tuple[Tensor, Tensor]:
        """The test set as evaluation sees it, x and c: the same at every call, in every run."""

    @abstractmethod
    def conditions(self, number: int) -> Tensor:
        """So many c, (number, ...), to sample for: in turn those of the test data, or all classes."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What a number on these data depends on, ready for JSON."""

    @abstractmethod
    def subset(self, num_train: int | None = None, num_test: int | None = None) -> Self:
        """The first `num_train` and `num_test` (None: all), said so in the note.

        Raises:
            DataError: a number below 1, or above what there is.
        """

    @abstractmethod
    def hold_out(self, number: int) -> tuple[Self, tuple[Tensor, Tensor]]:
        """The data without their last `number`, and those as evaluation sees them, always the same.

        Raises:
            DataError: a number below 1, or not below what there is.
        """
