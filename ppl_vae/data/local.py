"""Data of your own: tensors, one file of arrays, or a folder of files larger than memory."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.dataset import DataError, Dataset
from ppl_vae.data.files import damaged, read_npz, unread
from ppl_vae.data.stored import Stored, event_shape

SUFFIXES = (".npy", ".npz", ".pt")

MOST_HELD_OUT = 10_000
"""Rows of data on disk that are held out for testing, and so come into memory, where no test data are given."""


def from_tensor(
    x: Tensor | np.ndarray,
    name: str = "data",
    *,
    test: Tensor | np.ndarray | None = None,
    test_fraction: float = 0.1,
    train_labels: Tensor | np.ndarray | None = None,
    test_labels: Tensor | np.ndarray | None = None,
    levels: int = 256,
) -> Dataset:
    """A `Dataset` of your own numbers, without binarisation (see `binarise`).

    Args:
        x: training data (N, D), (N, H, W) or (N, C, H, W); bytes 0..255, bool, or floats in [0, 1].
        name: what tables call it.
        test: test data; None holds out the last `test_fraction` of x, in order (so shuffle x first if its
            order means something and neighbours are not alike; do not, for frames of a film).
        test_fraction: part of x held out where no test data are given.
        train_labels: classes of x (also of the part held out), (N,).
        test_labels: classes of the test data.
        levels: grey levels of the source.

    Returns:
        (N, D) stays as it is; images become (N, C, H, W).

    Raises:
        DataError: other types or shapes, or values outside [0, 1].

    Example:
        >>> from_tensor(torch.rand(20, 8, 8)).shape
        torch.Size([1, 8, 8])
    """
    train, labels, note = _pixels(f"{name}: train", x), _labels(f"{name}: train_labels", train_labels), ""
    if test is None:
        if test_labels is not None:
            raise DataError(f"{name}: got test_labels without test; expected both; labels of x go in train_labels")
        held_out = _held_out(name, len(train), test_fraction)
        train, kept = train[:-held_out], train[-held_out:]
        labels, kept_labels = (None, None) if labels is None else (labels[:-held_out], labels[-held_out:])
        note = f"tests on the last {held_out:,} of {held_out + len(train):,} data"
    else:
        kept, kept_labels = _pixels(f"{name}: test", test), _labels(f"{name}: test_labels", test_labels)
    return Dataset(
        name=name,
        train=train,
        test=kept,
        train_labels=labels,
        test_labels=kept_labels,
        levels=levels,
        note=note,
    )


def load_file(path: str | Path) -> Dataset:
    """A `Dataset` from one file.

    Args:
        path: `.npz`, or `.pt` holding a dict, with `train` and, if you have them, `test`, `train_labels`,
            `test_labels`; or `.npy`, or `.pt` holding a tensor: the training data alone. Shapes and types are
            those of `from_tensor`. Nothing is unpickled but plain tensors.

    Raises:
        DataError: missing, damaged, other arrays or values than these.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"{path}: got no such file; expected a {', '.join(SUFFIXES)} file; check the path")
    arrays = _read(path)
    known = ("train", "test", "train_labels", "test_labels")
    if "train" not in arrays or not set(arrays) <= set(known):
        raise DataError(
            f"{path}: got arrays {sorted(map(str, arrays))}; expected 'train', and if you have them "
            f"{', '.join(known[1:])}; rename them"
        )
    return from_tensor(
        arrays["train"],
        path.stem,
        test=arrays.get("test"),
        train_labels=arrays.get("train_labels"),
        test_labels=arrays.get("test_labels"),
    )


def load_folder(path: str | Path, *, levels: int = 256) -> Dataset[Stored]:
    """A `Dataset` whose training data stay on disk, for data larger than memory.

    Args:
        path: a folder with `train.npy` or shards `train-*.npy` (taken in the order of their names), and, if you have
            them, `test.npy` or `test-*.npy`, which are read into memory. Without test data the last tenth of the
            rows is held out in order, 10,000 of them at most. Shapes and types are those of `Stored`; other files
            are left alone.
        levels: grey levels of the source.

    Raises:
        DataError: no such folder, no training data, files that `Stored` refuses, values outside [0, 1].
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        raise DataError(f"{path}: got no such folder; expected one with train.npy or train-*.npy; check the path")
    train, files = Stored(_shards(path, "train")), _shards(path, "test")
    note = f"read from {len(train.paths):,} file{'s' if len(train.paths) > 1 else ''} during training"
    if files:
        test = Stored(files)
        kept = test.rows(range(len(test)))
    else:
        held_out = min(MOST_HELD_OUT, _held_out(path.name, len(train), 0.1))
        note += f"; tests on the last {held_out:,} of {len(train):,} data"
        left = len(train) - held_out
        train, kept = train[:left], train.rows(range(left, len(train)))
    return Dataset(name=path.resolve().name, train=train, test=kept, levels=levels, note=note)


def _shards(folder: Path, part: str) -> list[Path]:
    whole, shards = folder / f"{part}.npy", sorted(folder.glob(f"{part}-*.npy"))
    if whole.exists() and shards:
        raise DataError(f"{folder}: got {whole.name} and {shards[0].name}; expected one or the other; remove one")
    if part == "train" and not (whole.exists() or shards):
        raise DataError(f"{folder}: got neither train.npy nor train-*.npy; expected one of them; rename your files")
    return [whole] if whole.exists() else shards


def _read(path: Path) -> Mapping[str, Tensor | np.ndarray]:
    if path.suffix == ".npz":
        return read_npz(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on files that it did not write
            is_npy = path.suffix == ".npy"
            content = np.load(path, allow_pickle=False) if is_npy else torch.load(path, weights_only=True)
    except Exception as error:  # numpy and torch let through whatever their parsers met
        raise damaged(path, unread(error), f"a {path.suffix} file of plain arrays") from error
    return content if isinstance(content, Mapping) else {"train": content}


def _pixels(what: str, data: Tensor | np.ndarray) -> Tensor:
    x = _tensor(what, data)
    event = event_shape(what, x.shape)
    if x.dtype == torch.uint8:
        x = x.float().div_(255)
    elif x.dtype != torch.bool and not x.dtype.is_floating_point:
        raise DataError(f"{what}: got {x.dtype}; expected uint8 0..255, bool, or floats in [0, 1]; convert it")
    return x.float().contiguous().reshape(len(x), *event)


def _labels(what: str, labels: Tensor | np.ndarray | None) -> Tensor | None:
    return None if labels is None else _tensor(what, labels).long()


def _tensor(what: str, data: Any) -> Tensor:
    try:
        return torch.as_tensor(data)
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(data, "dtype", type(data).__name__)
        raise DataError(f"{what}: got {kind}; expected an array of numbers; convert it") from error


def _held_out(name: str, number: int, fraction: float) -> int:
    held_out = max(1, int(number * fraction))
    if not 0 < fraction < 1 or held_out >= number:
        raise DataError(
            f"{name}: got test_fraction={fraction} of {number} data; expected a fraction in (0, 1) that "
            "leaves data on both sides; give test=... or more data"
        )
    return held_out
