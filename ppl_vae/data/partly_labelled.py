"""A data set of which a few classes are known."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ppl_vae.data.dataset import DataError, Dataset
from ppl_vae.data.labelled import Labelled, labelled
from ppl_vae.data.minibatch import Minibatches

__all__ = ["UNLABELLED", "PartlyLabelled", "partly_labelled"]

UNLABELLED = -1
"""The class of data whose class is not given."""

MOST_KNOWN = 100  # Beyond it hardly a batch has other data than known ones, and the rows of a pass fill the memory.


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PartlyLabelled(Labelled):
    """Data of which some classes are known: batches are x (B, *shape) float32 and c (B,) int64, -1 where not known.

    Test data, and those held out, have all their classes.

    Args:
        dataset, classes: as of `Labelled`; the labels that are not known are never given out.
        known: how many training data have a class, as many of each class.
        repeat: how often a pass comes by each of them; by the others once.
        choice: seed of which they are.

    Raises:
        DataError: as of `Labelled`; a number of known data that is no multiple of the classes, or above what there are
            of one; a repeat below 1, or with which known data come by 100 times as often as there are data.
    """

    known: int
    repeat: int = 1
    choice: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.known < self.classes or self.known % self.classes:
            raise DataError(
                f"{self.name}: got {self.known} known data of {self.classes} classes; expected a multiple of "
                f"{self.classes}, as many of each"
            )
        if not isinstance(self.repeat, int) or self.repeat < 1:
            raise DataError(f"{self.name}: got repeat={self.repeat}; expected a whole number of at least 1")
        if self.known * self.repeat > MOST_KNOWN * len(self.train):
            raise DataError(
                f"{self.name}: got {self.known} known data, {self.repeat} times a pass; expected no more than "
                f"{MOST_KNOWN} of them for each of the {len(self.train)} data; repeat less, or take labelled_only()"
            )
        if len(self.known_rows) < self.known:
            raise DataError(
                f"{self.name}: got {self.known} known data, {self.known // self.classes} of each class; expected no "
                "more than there are of the rarest; choose fewer"
            )

    @cached_property
    def known_rows(self) -> Tensor:
        """Rows of the training data whose class is known, (known,)."""
        labels, each = self._every_label.cpu(), self.known // self.classes
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.choice))
        rows = [order[labels[order] == label][:each] for label in range(self.classes)]
        return torch.cat(rows).to(self.train.device)

    @property
    def train_labels(self) -> Tensor:
        """Classes of the training data, (N,), -1 where not known."""
        labels = torch.full_like(self._every_label, UNLABELLED)
        labels[self.known_rows] = self._every_label[self.known_rows]
        return labels

    def minibatches(self, batch_size: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> Minibatches:
        """Training data and what is known of their classes, in batches without end, on the device of the data."""
        again = self.known_rows.repeat(self.repeat - 1)
        rows = torch.cat([torch.arange(len(self.train), device=self.train.device), again])

        def drawn(some: Tensor) -> Tensor:
            return self.dataset.draw(self.train.index_select(0, some))

        return Minibatches((rows, self.train_labels[rows]), batch_size, seed, drawn, part)

    def labelled_only(self) -> Labelled:
        """The data whose class is known, alone: what a classifier learns from by itself."""
        rows = self.known_rows
        known = {"train": self.train[rows], "train_labels": self._every_label[rows]}
        note = "; ".join(filter(None, [self.note, f"the {self.known:,} of known class alone"]))
        return labelled(replace(self.dataset, **known, note=note), self.classes)

    def describe(self) -> dict[str, Any]:
        """As of the data set, with the number of classes and of data whose class is known."""
        return {**super().describe(), "known": self.known, "repeat": self.repeat, "choice": self.choice}

    @property
    def _every_label(self) -> Tensor:
        assert self.dataset.train_labels is not None
        return self.dataset.train_labels


def partly_labelled(
    dataset: Dataset[Any], known: int, *, repeat: int = 1, choice: int = 0, classes: int | None = None
) -> PartlyLabelled:
    """The same data with the classes of a few, as many of each class: `partly_labelled(load("mnist"), 100)`.

    Args:
        dataset: in memory, with labels of both parts.
        known: how many training data have a class, a multiple of the classes.
        repeat: how often a pass comes by each of them; by the others once.
        choice: seed of which they are.
        classes: K, how many there are; one more than the largest label by default.

    Raises:
        DataError: what `labelled` raises; a number of known data that is no multiple of the classes, or above what
            there are of one; a repeat below 1, or one that is far too large.

    Example:
        >>> from ppl_vae.data import load
        >>> data = partly_labelled(load("digits"), 100)
        >>> int((data.train_labels >= 0).sum()), data.labelled_only().train.shape
        (100, torch.Size([100, 1, 8, 8]))
    """
    classes = labelled(dataset, classes).classes
    return PartlyLabelled(dataset=dataset, classes=classes, known=known, repeat=repeat, choice=choice)
