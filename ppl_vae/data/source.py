"""Data that make their own minibatches."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ppl_vae.data.dataset import Binarisation
from ppl_vae.data.minibatch import Minibatches

__all__ = ["Source"]


class Source(ABC):
    """Data whose batches are all that a pair's programs take: what `fit` and the command line need to know of them.

    `Dataset` has tensors of one event shape; whatever else there is to a batch (a caption, a class, a width of its own)
    is a source of these.

    Attributes:
        name: what the data are called in tables.
        note: provenance and comparability.
        levels: number of values that one of the source's numbers may have: grey levels, or word ids.
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
    def output_mean(self) -> Tensor:
        """What a pair's `set_output_mean` takes: p(x | z) starts there."""

    @property
    @abstractmethod
    def told(self) -> Mapping[str, int]:
        """What a pair must know besides the shape, by its constructor's names: {"vocabulary": 23}, {"classes": 10}."""

    @abstractmethod
    def minibatches(self, batch_size: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> Minibatches:
        """The training data in batches without end, on the device of the data."""

    @abstractmethod
    def test_batch(self) -> tuple[Tensor, ...]:
        """The test set as evaluation sees it: the same at every call, in every run."""

    @abstractmethod
    def blank(self, num: int) -> tuple[Tensor, ...]:
        """A batch for `num` samples: the model ignores the values of what it observes there."""

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
    def hold_out(self, number: int) -> tuple[Self, tuple[Tensor, ...]]:
        """The data without their last `number`, and those as evaluation sees them, always the same.

        Raises:
            DataError: a number below 1, or not below what there is.
        """
