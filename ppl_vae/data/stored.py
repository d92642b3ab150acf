"""Training data that stay on disk: rows of `.npy` files, read when they are asked for."""

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as MapStyle

from ppl_vae.data.dataset import DataError
from ppl_vae.data.files import damaged, unread


class Stored(MapStyle[Any]):
    """Rows of one or several `.npy` files, never read as a whole.

    It holds neither data nor open files, so that it goes to worker processes as it is: a file is opened for the
    rows of one batch and closed again. Files are read, not mapped into memory: one that is cut off under a mapping
    ends the process by SIGBUS, a read that falls short is an error that can be told. Floats are checked when they
    are read. POSIX systems only (`os.preadv`).

    Args:
        paths: `.npy` files of N_1, N_2, ... rows, one after the other; all (N_i, D), (N_i, H, W) or
            (N_i, C, H, W) of one event shape and one type: bytes 0..255, bool, or floats in [0, 1].

    Attributes:
        paths: of the files.
        dtype: numpy's, as the files hold it; what is read is float32.
        shape: (N, *event); (H, W) has become (1, H, W).

    Raises:
        DataError: a file is missing, is no `.npy` of plain numbers in C order, is cut off, has no rows, or differs
            from the first in its event shape or type.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "images.npy")
        ...     np.save(path, np.full((100, 8, 8), 255, dtype=np.uint8))
        ...     images = Stored([path])
        ...     images.shape, images[90:].shape, images.rows([3, 1]).mean()
        (torch.Size([100, 1, 8, 8]), torch.Size([10, 1, 8, 8]), tensor(1.))
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        self.paths = tuple(Path(path).expanduser() for path in paths)
        if not self.paths:
            raise DataError("got no files; expected at least one .npy file")
        self._files = tuple(_open(path) for path in self.paths)
        first = self._files[0]
        for file in self._files[1:]:
            if (file.dtype, file.event) != (first.dtype, first.event):
                raise DataError(
                    f"{file.path}: got rows of {file.event} {file.dtype}; expected {first.event} {first.dtype} as in "
                    f"{first.path}; convert one of them"
                )
        self.dtype = first.dtype
        self._event = event_shape(str(first.path), (first.rows, *first.event))
        self._ends = np.cumsum([file.rows for file in self._files])
        self._span = range(int(self._ends[-1]))  # rows of all files that these are

    def __repr__(self) -> str:
        return f"Stored({len(self.paths)} files from {self.paths[0]}, shape {tuple(self.shape)}, {self.dtype})"

    def __len__(self) -> int:
        return len(self._span)

    @property
    def shape(self) -> torch.Size:
        """(N, *event), as of a tensor."""
        return torch.Size((len(self), *self._event))

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> Tensor | Self:
        """A row, (*event); or, of a slice, those rows, still on disk."""
        if not isinstance(index, slice):
            return self.rows([range(len(self))[index]])[0]
        part = copy.copy(self)
        part._span = self._span[index]
        return part

    def __getitems__(self, indices: list[int]) -> Tensor:
        """Rows stacked, for loaders: as `rows`, but bytes stay bytes, a quarter of what goes between processes."""
        if self.dtype != np.uint8:
            return self.rows(indices)
        return torch.from_numpy(self._values(self._wanted(indices))).reshape(-1, *self._event)

    def rows(self, indices: Tensor | Sequence[int]) -> Tensor:
        """Rows in the order asked for, as float32 on the CPU: bytes / 255, False and True as 0 and 1.

        Args:
            indices: B of them, from 0 to N - 1.

        Returns:
            (B, *event).

        Raises:
            IndexError: an index that is not of a row.
            DataError: a file can't be read, has become shorter, or holds values outside [0, 1]; names it and the row.
        """
        wanted = self._wanted(indices)
        x = _unit(self._values(wanted)).reshape(-1, *self._event)
        if self.dtype.kind == "f":
            self._check(x, wanted)
        return x

    def _wanted(self, indices: Tensor | Sequence[int]) -> np.ndarray:
        """Rows as numbered over all files."""
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            raise IndexError(f"got rows {wanted.min()} to {wanted.max()}; expected 0 to {len(self) - 1}")
        return self._span.start + self._span.step * wanted

    def _values(self, wanted: np.ndarray) -> np.ndarray:
        """Rows of all files in the order asked for, as the files hold them."""
        order = np.argsort(wanted, kind="stable")  # forward through each file, and runs of rows in one read
        raw = self._read(wanted[order])
        inverse = np.empty_like(order)
        inverse[order] = np.arange(len(order))
        return raw[inverse]

    def _read(self, wanted: np.ndarray) -> np.ndarray:
        """Rows of all files, ascending, as the files hold them."""
        raw = np.empty((len(wanted), *self._files[0].event), self.dtype)
        bounds = np.searchsorted(wanted, [0, *self._ends])
        for file, end, low, high in zip(self._files, self._ends, bounds, bounds[1:], strict=False):
            if low < high:
                file.read(wanted[low:high] - (end - file.rows), raw[low:high])
        return raw

    def _check(self, x: Tensor, wanted: np.ndarray) -> None:
        if not x.numel() or (x.min() >= 0 and x.max() <= 1):  # false for NaN
            return
        bad = ~((x >= 0) & (x <= 1)).flatten(1).all(1)
        row = int(wanted[int(bad.nonzero()[0])])
        number = int(np.searchsorted(self._ends, row, side="right"))
        file, end = self._files[number], int(self._ends[number])
        values = x[bad][0]
        got = "NaN" if bool(values.isnan().any()) else f"values in [{values.min():g}, {values.max():g}]"
        where = f"{file.path}, row {row - end + file.rows:,}"
        raise DataError(
            f"{where} (and {int(bad.sum()) - 1} others of these {len(x)}): got {got}; expected values in [0, 1]; "
            "rescale, or mend or drop those rows"
        )


@dataclass(frozen=True)
class _File:
    """One `.npy` file: its header, and a reader of its rows."""

    path: Path
    rows: int
    event: tuple[int, ...]
    dtype: np.dtype
    offset: int

    @property
    def row_bytes(self) -> int:
        return math.prod(self.event) * self.dtype.itemsize

    def read(self, rows: np.ndarray, out: np.ndarray) -> None:
        """Rows, ascending, into an array of as many."""
        starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)  # of runs of neighbours
        view = memoryview(out.view(np.uint8).reshape(-1))  # type: ignore[arg-type]
        try:
            with self.path.open("rb", buffering=0) as file:
                for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
                    self._run(file.fileno(), int(rows[start]), view[start * self.row_bytes : stop * self.row_bytes])
        except OSError as error:
            raise DataError(
                f"{self.path}: got {unread(error)} on reading rows {rows[0]:,} to {rows[-1]:,}; expected a file that "
                "stays readable during the run; check the disk, or the network it is mounted from"
            ) from error

    def _run(self, handle: int, row: int, view: memoryview) -> None:
        offset, done = self.offset + row * self.row_bytes, 0
        while done < len(view):  # the system reads at most 2 GiB at once
            count = os.preadv(handle, [view[done:]], offset + done)
            if count == 0:
                raise DataError(
                    f"{self.path}: got the end of the file in row {row + done // self.row_bytes:,}; expected "
                    f"{self.rows:,} rows, which it had at first; don't change data that are being trained on"
                )
            done += count


def _open(path: Path) -> _File:
    """Reads the header and compares the size of the file with it."""
    if not path.is_file():
        raise DataError(f"{path}: got no such file; expected a .npy file; check the path")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
            shape, is_fortran, dtype = read(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
    except Exception as error:  # numpy lets through whatever its parsers met
        raise DataError(f"{path}: got {unread(error)}; expected a .npy file of plain numbers; np.save them") from error
    if dtype.kind not in "fb" and dtype != np.uint8:
        raise DataError(f"{path}: got {dtype}; expected uint8 0..255, bool, or floats in [0, 1]; convert it")
    if is_fortran and len(shape) > 1:
        raise DataError(
            f"{path}: got Fortran order, in which a row is scattered over the file; expected C order; save "
            "np.ascontiguousarray(x)"
        )
    if 0 in shape or not shape:
        raise DataError(f"{path}: got shape {shape}; expected (number, *event) with no size 0; leave the file out")
    event_shape(str(path), shape)
    if size < offset + math.prod(shape) * dtype.itemsize:
        raise damaged(path, f"{size:,} bytes", f"{offset + math.prod(shape) * dtype.itemsize:,} for shape {shape}")
    return _File(path, shape[0], shape[1:], dtype, offset)


def _unit(raw: np.ndarray) -> Tensor:
    """Values as files hold them to float32 in [0, 1]."""
    if raw.dtype == np.uint8:
        return torch.from_numpy(raw).float().div_(255)
    if raw.dtype == np.bool_:
        return torch.from_numpy(raw.view(np.uint8)).ne(0).float()  # a file may hold other bytes than 0 and 1
    with np.errstate(over="ignore"):  # refused as infinite
        return torch.from_numpy(raw.astype(np.float32))


def event_shape(what: str, shape: Sequence[int]) -> torch.Size:
    """Event shape of data of shape (N, D), (N, H, W) or (N, C, H, W): images get a channel.

    Raises:
        DataError: another shape.
    """
    if len(shape) not in (2, 3, 4):
        raise DataError(f"{what}: got shape {tuple(shape)}; expected (N, D), (N, H, W) or (N, C, H, W); reshape it")
    if len(shape) == 4 and shape[-1] in (1, 3) and shape[1] > 4:
        raise DataError(
            f"{what}: got shape {tuple(shape)}, which looks like (N, H, W, C); expected (N, C, H, W); "
            "move the channels to the front with x.permute(0, 3, 1, 2)"
        )
    return torch.Size((1, *shape[1:]) if len(shape) == 3 else shape[1:])
