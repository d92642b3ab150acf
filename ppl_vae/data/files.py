"""Readers of data files: idx and npz in, checked arrays and float images out; damage is one clear error."""

import gzip
import lzma
import math
import pickle
import re
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppl_vae.data.dataset import DataError

_DAMAGE = (OSError, EOFError, ValueError, NotImplementedError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def read_idx(path: Path, event: Sequence[int] = ()) -> np.ndarray:
    """Reads an idx file of bytes (the format of MNIST), unpacked or `.gz`, without writing anything.

    Args:
        path: the file.
        event: expected shape of one entry: (28, 28) for images, () for labels.

    Returns:
        (N, *event) uint8.

    Raises:
        DataError: unreadable, truncated, not idx, or of another shape.

    References:
        LeCun, Cortes, Burges. The MNIST database, file formats (0 0 8 ndim, big-endian sizes, data).
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except _DAMAGE as error:
        raise damaged(path, f"{type(error).__name__}: {error}", "a whole idx file") from error
    ndim = 1 + len(event)
    magic, sizes_end = bytes((0, 0, 8, ndim)), 4 + 4 * ndim
    if raw[:4] != magic or len(raw) < sizes_end:
        raise damaged(path, f"first bytes {raw[:4].hex() or 'none'}", f"idx magic {magic.hex()} and {ndim} sizes")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", count=ndim, offset=4))
    if shape[1:] != tuple(event):
        raise damaged(path, f"shape {shape}", f"(number, *{tuple(event)})")
    if len(raw) - sizes_end != math.prod(shape):
        raise damaged(path, f"{len(raw) - sizes_end:,} data bytes", f"{math.prod(shape):,} for shape {shape}")
    return np.frombuffer(raw, np.uint8, offset=sizes_end).reshape(shape)


def read_npz(path: Path, keys: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Reads arrays of an npz archive; never unpickles.

    Args:
        path: the file.
        keys: the arrays wanted; None reads all.

    Returns:
        The arrays by name.

    Raises:
        DataError: unreadable, not an npz, pickled objects inside, or an array missing.
    """
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an archive")
        with archive:
            absent = [key for key in keys or () if key not in archive.files]
            if absent:
                raise damaged(path, f"arrays {sorted(archive.files)}", f"also {absent}")
            return {key: archive[key] for key in keys or archive.files}
    except DataError:  # is a ValueError
        raise
    except Exception as error:  # numpy lets through whatever its parsers met, TokenError and MemoryError among them
        raise damaged(path, unread(error), "an .npz archive of plain arrays") from error


def images(array: np.ndarray, event: Sequence[int], where: str) -> Tensor:
    """Bytes to images.

    Args:
        array: (N, *event) or, of one channel, (N, H, W) uint8.
        event: (C, H, W).
        where: file and array, for the error.

    Returns:
        (N, C, H, W) float32 in [0, 1].

    Raises:
        DataError: another type or shape.
    """
    accepted = {tuple(event)} | ({tuple(event[1:])} if event[0] == 1 else set())
    if array.dtype != np.uint8 or array.shape[1:] not in accepted or len(array) == 0:
        got = f"{array.shape} {array.dtype}"
        raise DataError(f"{where}: got {got}; expected (number, *{tuple(event)}) uint8; the file holds other data")
    pixels = array.astype(np.float32)
    pixels /= 255.0  # in place: a full set is 190 MB
    return torch.from_numpy(pixels.reshape(-1, *event))


def classes(array: np.ndarray) -> Tensor:
    """Class numbers (N,) of any integer type to int64 (N,)."""
    return torch.from_numpy(array.astype(np.int64))


def damaged(path: Path, got: str, expected: str) -> DataError:
    """The error for a file whose content is wrong."""
    return DataError(f"damaged file {path}: got {got}; expected {expected}; delete it and fetch it again")


def unread(error: Exception) -> str:
    """Why a file could not be read, in a line; without torch's advice to unpickle it with `weights_only=False`."""
    if isinstance(error, pickle.UnpicklingError) or "weights_only" in str(error):
        return "a pickle of other objects than plain tensors"
    first = re.sub("\x1b\\[[0-9;]*m", "", str(error)).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def missing(what: str, tried: Sequence[Path], remedy: str) -> DataError:
    """The error for files that are not there."""
    places = ", ".join(map(str, tried))
    return DataError(
        f"{what}: got no files (tried {places}); expected them there; {remedy}, or name another folder by "
        "--data-root, root=... or the environment variable PPL_VAE_DATA"
    )
