"""A data set of real numbers in [0, 1], how it is binarised, and what is known about where it came from."""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, get_args

import torch
from torch import Tensor
from typing_extensions import TypeVar  # with defaults; torch needs it too

if TYPE_CHECKING:  # files on disk are read below this
    from ppl_vae.data.stored import Stored

Train = TypeVar("Train", bound="Tensor | Stored", default=Tensor)

MEAN_ROWS = 10_000
"""Rows of data on disk that `pixel_means` goes by."""

Binarisation = Literal["dynamic", "static", "none"]


class DataError(ValueError):
    """Data that cannot be used: what was got, what was expected and what to do about it."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Dataset(Generic[Train]):
    """Training and test data of one event shape, with the facts that a reported number depends on.

    A likelihood in nats means nothing without its binarisation: on the same MNIST images the choices below
    differ by several nats. So the choice is part of the data, and `describe` is recorded with every number.

    - `"dynamic"`: every training batch is a fresh Bernoulli draw of the grey values (Burda et al. 2016,
      section 5); the test set is drawn once, from `seed`, so that all runs are evaluated on the same bits.
    - `"static"`: the tensors already hold one Bernoulli draw (see `binarise`).
    - `"none"`: grey values as they are.

    Args:
        name: what the data are called in tables.
        train: training data, (N, *shape) float32 in [0, 1]; an image is (C, H, W). Or `Stored`: read from disk
            during training, and checked then; its methods below touch no more rows than they must.
        test: test data, (M, *shape) float32 in [0, 1].
        train_labels: classes of the training data, (N,) int64, or None.
        test_labels: classes of the test data, (M,) int64, or None.
        binarisation: see above.
        levels: number of grey levels of the source (8-bit images: 256), for discretised likelihoods.
        seed: of the static binarisation, and of the one dynamic draw of the test set.
        note: provenance and comparability, shown with every number.

    Raises:
        DataError: empty tensors, another type than float32, NaN, values outside [0, 1], train and test of
            different event shapes, labels of another length, an unknown binarisation.

    References:
        Salakhutdinov, Murray. On the quantitative analysis of deep belief networks. ICML 2008.
        Burda, Grosse, Salakhutdinov. Importance weighted autoencoders. ICLR 2016, section 5.

    Example:
        >>> data = Dataset(name="coin", train=torch.full((8, 3), 0.5), test=torch.full((2, 3), 0.5),
        ...                binarisation="dynamic")
        >>> data.shape, sorted(data.draw(data.train).unique().tolist())
        (torch.Size([3]), [0.0, 1.0])
    """

    name: str
    train: Train
    test: Tensor
    train_labels: Tensor | None = None
    test_labels: Tensor | None = None
    binarisation: Binarisation = "none"
    levels: int = 256
    seed: int = 0
    note: str = ""

    def __post_init__(self) -> None:
        check_binarisation(self.binarisation)
        for part, x, labels in self._parts():
            if isinstance(x, Tensor):
                _check_values(f"{self.name}: {part}", x, binary=self.binarisation == "static")
            elif self.binarisation == "static" and x.dtype != bool:
                raise _no_static(self.name, x)
            _check_labels(f"{self.name}: {part}_labels", labels, len(x))
        if self.train.shape[1:] != self.test.shape[1:]:
            raise DataError(
                f"{self.name}: got train of event shape {tuple(self.train.shape[1:])} and test of "
                f"{tuple(self.test.shape[1:])}; expected the same; reshape one of them"
            )

    def __repr__(self) -> str:
        return f"Dataset({', '.join(f'{key}={value!r}' for key, value in self.describe().items())})"

    def _parts(self) -> "tuple[tuple[str, Tensor | Stored, Tensor | None], ...]":
        return ("train", self.train, self.train_labels), ("test", self.test, self.test_labels)

    @property
    def shape(self) -> torch.Size:
        """Event shape of one datum, e.g. (1, 28, 28)."""
        return self.train.shape[1:]

    @property
    def pixel_means(self) -> Tensor:
        """Mean over the training data, of the event shape: its logits start a Bernoulli decoder's bias.

        Of data on disk: over the first 10,000.
        """
        if isinstance(self.train, Tensor):
            return self.train.mean(0)
        starts = range(0, min(MEAN_ROWS, len(self.train)), 100)
        parts = [self.train[i : min(i + 100, MEAN_ROWS)] for i in starts]
        total = torch.stack([x.rows(range(len(x))).sum(0, dtype=torch.float64) for x in parts]).sum(0)
        return (total / min(MEAN_ROWS, len(self.train))).float()

    @property
    def output_mean(self) -> Tensor:
        """What a pair's `set_output_mean` takes: the pixel means."""
        return self.pixel_means

    def blank(self, num: int) -> tuple[Tensor]:
        """A batch for `num` samples: data that the model ignores, (num, *shape)."""
        return (self.test[:1].expand(num, *self.shape),)

    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`; what is on disk stays there."""

        def move(x: Tensor | None) -> Tensor | None:
            return None if x is None else x.to(device)

        return replace(
            self,
            train=self.train.to(device) if isinstance(self.train, Tensor) else self.train,
            test=self.test.to(device),
            train_labels=move(self.train_labels),
            test_labels=move(self.test_labels),
        )

    def draw(self, pixels: Tensor) -> Tensor:
        """A batch as the model sees it in training.

        Plain `torch.bernoulli` from the device's global stream: no host sync, and the tracer can record it.

        Args:
            pixels: a batch of training data, (B, *shape).

        Returns:
            (B, *shape): for `"dynamic"` fresh bits with these means, otherwise `pixels` itself.
        """
        return torch.bernoulli(pixels) if self.binarisation == "dynamic" else pixels

    def test_batch(self) -> Tensor:
        """The test set as evaluation sees it, (M, *shape): the same at every call and in every run.

        For `"dynamic"` one Bernoulli draw from a private CPU generator seeded by `seed`, whatever the device;
        the draw of the first m data does not depend on how many follow.
        """
        if self.binarisation != "dynamic":
            return self.test
        return _bernoulli(self.test, _generator(self.seed)).to(self.test.device)

    def subset(self, num_train: int | None = None, num_test: int | None = None) -> Self:
        """The first `num_train` training and `num_test` test data (None: all), said so in the note.

        Raises:
            DataError: a number below 1, or above what there is.
        """
        notes, fields = [self.note] if self.note else [], {}
        for (part, x, labels), number in zip(self._parts(), (num_train, num_test), strict=True):
            if number is None or number == len(x):
                continue
            if not 1 <= number <= len(x):
                raise DataError(f"{self.name}: got num_{part}={number}; expected 1 to {len(x)}, the data there are")
            fields |= {part: x[:number], f"{part}_labels": None if labels is None else labels[:number]}
            notes.append(f"only the first {number:,} of {len(x):,} {part} data")
        return replace(self, note="; ".join(notes), **fields)

    def hold_out(self, number: int) -> tuple[Self, Tensor]:
        """The data without their last `number` training data, and those as evaluation sees them, (number, *shape).

        Raises:
            DataError: a number below 1, or not below what there is.
        """
        left = len(self.train) - number
        if number < 1 or left < 1:
            raise DataError(f"{self.name}: got {number} data to hold out; expected 1 to {len(self.train) - 1}")
        held_out = self.train[left:]
        if not isinstance(held_out, Tensor):
            held_out = held_out.rows(range(number))
        if self.binarisation == "dynamic":
            held_out = _bernoulli(held_out, _generator(self.seed)).to(held_out.device)
        return self.subset(num_train=left), held_out

    def describe(self) -> dict[str, Any]:
        """What a number on these data depends on, ready for JSON."""
        return {
            "name": self.name,
            "num_train": len(self.train),
            "num_test": len(self.test),
            "shape": list(self.shape),
            "binarisation": self.binarisation,
            "levels": self.levels,
            "seed": self.seed,
            "note": self.note,
        }


def binarise(dataset: Dataset[Train], how: Binarisation, seed: int | None = None) -> Dataset[Train]:
    """The same grey data under another binarisation.

    `"static"` is one Bernoulli draw of test and train from `seed`. It is *not* the fixed binarised MNIST of
    Larochelle and Murray (2011), whose files hold another draw of the same grey values. Its test set equals
    the `test_batch` of `"dynamic"` with the same seed, so that the two are compared on the same bits.

    Args:
        dataset: data that are not yet statically binarised.
        how: the binarisation wanted.
        seed: of the draw; None keeps the data set's own.

    Raises:
        DataError: an unknown `how`, a data set whose grey values are gone, or "static" of data on disk.

    References:
        Larochelle, Murray. The neural autoregressive distribution estimator. AISTATS 2011 (the fixed files).
    """
    check_binarisation(how)
    seed = dataset.seed if seed is None else seed
    if dataset.binarisation == "static":
        if how == "static" and seed == dataset.seed:
            return dataset
        raise DataError(
            f"{dataset.name}: got data already binarised (static, seed {dataset.seed}); expected grey values "
            f"for binarisation {how!r}, seed {seed}; load the data again with that binarisation"
        )
    if how != "static":
        return replace(dataset, binarisation=how, seed=seed)
    if not isinstance(dataset.train, Tensor):
        raise _no_static(dataset.name, dataset.train)
    generator = _generator(seed)
    test = _bernoulli(dataset.test, generator).to(dataset.test.device)  # before train: equal to test_batch()
    train = _bernoulli(dataset.train, generator).to(dataset.train.device)
    remark = f"one Bernoulli draw with seed {seed}, not the fixed files of Larochelle and Murray (2011)"
    note = f"{dataset.note}; {remark}" if dataset.note else remark
    return replace(dataset, train=train, test=test, binarisation="static", seed=seed, note=note)


def check_binarisation(how: str) -> None:
    """Raises DataError unless `how` is one of the binarisations."""
    if how not in get_args(Binarisation):
        raise DataError(
            f"got binarisation {how!r}; expected one of {', '.join(map(repr, get_args(Binarisation)))}: "
            "'dynamic' draws every batch anew, 'static' draws once, 'none' keeps the grey values"
        )


def _no_static(name: str, train: "Stored") -> DataError:
    return DataError(
        f"{name}: got 'static' for {train.dtype} values on disk ({train.paths[0]}); expected 'dynamic', which draws "
        "every batch anew, or 'none'; for fixed bits store them as bool"
    )


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _bernoulli(x: Tensor, generator: torch.Generator) -> Tensor:
    return torch.bernoulli(x.cpu(), generator=generator)  # on the CPU: the same bits for every device


def _check_values(what: str, x: Tensor, *, binary: bool) -> None:
    if x.dtype != torch.float32:
        raise DataError(f"{what}: got {x.dtype}; expected torch.float32 in [0, 1]; convert it, 8-bit values by / 255")
    if x.ndim < 2 or x.numel() == 0:
        raise DataError(f"{what}: got shape {tuple(x.shape)}; expected (number, *event) with no size 0")
    low, high = (bound.item() for bound in torch.aminmax(x))
    if math.isnan(low):  # aminmax hands NaN on
        raise DataError(f"{what}: got {int(x.isnan().sum())} NaN; expected values in [0, 1]; drop or mend those data")
    if low < 0 or high > 1:
        raise DataError(f"{what}: got values in [{low:g}, {high:g}]; expected [0, 1]; rescale, 8-bit values by / 255")
    if binary and not bool(((x == 0) | (x == 1)).all()):
        raise DataError(f"{what}: got grey values; expected 0 and 1 alone for 'static'; use binarise(data, 'static')")


def _check_labels(what: str, labels: Tensor | None, number: int) -> None:
    if labels is not None and (labels.shape != (number,) or labels.dtype != torch.int64):
        raise DataError(
            f"{what}: got {tuple(labels.shape)} {labels.dtype}; expected ({number},) torch.int64, one class "
            "a datum; cut or convert the labels, or pass None"
        )
