"""A data set whose classes are given: batches of data and labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from ppl_vae.data.conditioned import Conditioned
from ppl_vae.data.dataset import Binarisation, DataError, Dataset
from ppl_vae.data.minibatch import Minibatches

__all__ = ["Labelled", "labelled"]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Labelled(Conditioned):
    """Data and their classes: batches are x (B, *shape) float32 and c (B,) int64, whole numbers from 0.

    Args:
        dataset: in memory, with labels of both parts.
        classes: K, how many there are.

    Attributes:
        name, note, levels, binarisation, train: as of the data set.

    Raises:
        DataError: data on disk, no labels, or labels that are not 0 to K - 1.

    Example:
        >>> labels = torch.tensor([0, 2, 1])
        >>> coin = Dataset(name="coin", train=torch.ones(3, 1), test=torch.ones(3, 1), train_labels=labels,
        ...                test_labels=labels)
        >>> [tuple(part.shape) for part in labelled(coin).minibatches(2).next()]
        [(2, 1), (2,)]
    """

    dataset: Dataset
    classes: int
    name: str = field(init=False)
    note: str = field(init=False)
    levels: int = field(init=False)
    binarisation: Binarisation = field(init=False)
    train: Tensor = field(init=False)

    def __post_init__(self) -> None:
        for part, labels in zip(("train", "test"), _labels_of(self.dataset), strict=True):
            low, high = (int(bound) for bound in torch.aminmax(labels))
            if not 0 <= low <= high < self.classes:
                raise DataError(
                    f"{self.dataset.name}: got classes {low} to {high} in {part}_labels; expected 0 to "
                    f"{self.classes - 1}; renumber them, or set classes"
                )
        for name in ("name", "note", "levels", "binarisation", "train"):
            object.__setattr__(self, name, getattr(self.dataset, name))

    @property
    def shape(self) -> torch.Size:
        """Event shape of one x."""
        return self.dataset.shape

    @property
    def pixel_means(self) -> Tensor:
        """Mean of the training data, of the event shape."""
        return self.dataset.pixel_means

    @property
    def told(self) -> Mapping[str, int]:
        """A pair must know how many classes there are."""
        return {"classes": self.classes}

    @property
    def train_labels(self) -> Tensor:
        """Classes of the training data, (N,)."""
        return _labels_of(self.dataset)[0]

    def minibatches(self, batch_size: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> Minibatches:
        """Training data and classes in batches without end, on the device of the data."""
        return Minibatches((self.train, _labels_of(self.dataset)[0]), batch_size, seed, self.dataset.draw, part)

    def test_batch(self) -> tuple[Tensor, Tensor]:
        """The test set as evaluation sees it, (M, *shape) and (M,)."""
        return self.dataset.test_batch(), _labels_of(self.dataset)[1]

    def conditions(self, number: int) -> Tensor:
        """All classes in turn, (number,)."""
        return torch.arange(number, device=self.train.device) % self.classes

    def read(self, label: int) -> Tensor:
        """A class that someone asks for, (1,).

        Raises:
            DataError: there is no such class.
        """
        if not 0 <= label < self.classes:
            raise DataError(f"got the class {label}, expected 0 to {self.classes - 1}, those of {self.name}")
        return torch.tensor([label], device=self.train.device)

    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`."""
        return replace(self, dataset=self.dataset.to(device))

    def describe(self) -> dict[str, Any]:
        """As of the data set, with the number of classes."""
        return {**self.dataset.describe(), "classes": self.classes}

    def subset(self, num_train: int | None = None, num_test: int | None = None) -> Self:
        """The first `num_train` and `num_test` (None: all), said so in the note.

        Raises:
            DataError: a number below 1, or above what there is.
        """
        return replace(self, dataset=self.dataset.subset(num_train, num_test))

    def hold_out(self, number: int) -> tuple[Self, tuple[Tensor, Tensor]]:
        """The data without their last `number`, and those as evaluation sees them, x and c.

        Raises:
            DataError: a number below 1, or not below what there is.
        """
        rest, x = self.dataset.hold_out(number)
        return replace(self, dataset=rest), (x, _labels_of(self.dataset)[0][-number:])


def labelled(dataset: Dataset[Any], classes: int | None = None) -> Labelled:
    """The same data with their classes as what pairs are conditioned on: `labelled(load("mnist"))`.

    Args:
        dataset: in memory, with labels of both parts.
        classes: K, how many there are; one more than the largest label by default.

    Raises:
        DataError: data on disk, no labels, or labels that are not 0 to K - 1.
    """
    if classes is None:
        classes = 1 + max(int(labels.max()) for labels in _labels_of(dataset))
    return Labelled(dataset=dataset, classes=classes)


def _labels_of(dataset: Dataset[Any]) -> tuple[Tensor, Tensor]:
    """Of the training and of the test data."""
    if not isinstance(dataset.train, Tensor):
        raise DataError(f"{dataset.name}: got data on disk; expected data in memory, with a label for each")
    if dataset.train_labels is None or dataset.test_labels is None:
        raise DataError(f"{dataset.name}: got no labels; expected the class of each datum; choose other data")
    return dataset.train_labels, dataset.test_labels
