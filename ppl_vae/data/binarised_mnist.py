"""The fixed binarised MNIST: one Bernoulli draw of the grey values, on which published results in nats rest."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.dataset import Dataset
from ppl_vae.data.files import damaged, missing, unread

_LINES = {"train": 50_000, "valid": 10_000, "test": 10_000}
_PIXELS = 28 * 28
_BETWEEN = b" " * (_PIXELS - 1)
_LONGEST = 4 * _PIXELS  # bytes of a line, twice what a good one has: a file without line ends stays out of memory
_NOTE = (
    "the fixed files of Larochelle and Murray (2011); the last 10,000 training images are the official validation set"
)


def binarised_mnist(root: Path, download: bool) -> Dataset:
    """Binarised MNIST, (1, 28, 28) of 0 and 1, 60,000 train and 10,000 test images, without labels.

    Read from `root/binarised_mnist/binarized_mnist_{train,valid,test}.amat`; never downloaded, since we know no
    checksum of them. The validation file follows the training file, so that `hold_out(10_000)` gives back the
    official 50,000 and 10,000.

    Raises:
        DataError: a file is missing, or not 50,000 (train) or 10,000 lines of 784 zeros and ones.

    References:
        Larochelle, Murray. The neural autoregressive distribution estimator. AISTATS 2011.
        Salakhutdinov, Murray. On the quantitative analysis of deep belief networks. ICML 2008 (the draw).
    """
    files = {part: root / "binarised_mnist" / f"binarized_mnist_{part}.amat" for part in _LINES}
    if absent := [path for path in files.values() if not path.is_file()]:
        remedy = "place them there by hand (from http://www.cs.toronto.edu/~larocheh/public/datasets/binarized_mnist/)"
        raise missing("binarised-mnist", absent, remedy)
    train, valid, test = (read_amat(path, _LINES[part]) for part, path in files.items())
    return Dataset(
        name="binarised-mnist",
        train=_images(np.concatenate([train, valid])),
        test=_images(test),
        binarisation="static",
        note=_NOTE,
    )


def read_amat(path: Path, number: int) -> np.ndarray:
    """Reads images of zeros and ones, a line each, with space between and any line ends; blank lines are no images.

    Args:
        path: the file.
        number: of images expected.

    Returns:
        (number, 784) uint8, 0 or 1.

    Raises:
        DataError: unreadable, another number of images or of values in a line, or another value.
    """
    rows, found = np.empty((number, _PIXELS), np.uint8), 0
    try:
        with path.open("rb") as file:
            for line_number, line in _lines(file):
                if found == number:
                    raise damaged(path, f"more than {number:,} lines", f"{number:,}, one an image")
                rows[found] = _bits(line, path, line_number)
                found += 1
    except OSError as error:
        raise damaged(path, unread(error), "a file that can be read") from error
    if found != number:
        raise damaged(path, f"{found:,} lines", f"{number:,}, one an image")
    return rows


def _lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    for number, line in enumerate(iter(partial(file.readline, _LONGEST), b""), start=1):
        if not line.isspace():
            yield number, line


def _bits(line: bytes, path: Path, number: int) -> np.ndarray:
    text = line.strip()
    digits = text[::2]
    if text[1::2] != _BETWEEN or digits.strip(b"01"):  # a value at a time only where that fails: five times slower
        digits = b"".join(_checked(text.split(), path, number))
    return np.frombuffer(digits, np.uint8) - ord("0")


def _checked(values: list[bytes], path: Path, number: int) -> list[bytes]:
    if len(values) != _PIXELS:
        got = f"more than {_PIXELS}" if len(values) > _PIXELS else f"{len(values)}"
        raise damaged(path, f"{got} values in line {number:,}", f"{_PIXELS}, the pixels of an image")
    if odd := [value for value in values if value not in (b"0", b"1")]:
        raise damaged(path, f"the value {ascii(odd[0])[2:-1]} in line {number:,}", "zeros and ones alone")
    return values


def _images(bits: np.ndarray) -> Tensor:
    return torch.from_numpy(bits.astype(np.float32).reshape(-1, 1, 28, 28))
