"""One file, written whole or not at all."""

import errno
import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import torch

__all__ = ["Sink", "digest_of", "write"]

_NO_FOLDER_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)  # some network file systems


class Sink:
    """What torch writes a file through: after an error it goes on counting, so that the whole size is known.

    An exception here would leave torch with an unfinished archive, and be buried under what it says to that.
    """

    def __init__(self) -> None:
        self.file: Any = None
        self.bytes = 0
        self.error: BaseException | None = None
        self.sha = hashlib.sha256()

    def write(self, data: Any) -> int:
        """Write all of it, or nothing after an error; its bytes."""
        view = memoryview(data).cast("B")
        count = len(view)
        self.bytes += count
        try:
            self.sha.update(view)
            while self.error is None and len(view):
                view = view[self.file.write(view) :]
        except BaseException as error:  # Control-C as well
            self.error = error
        return count

    def flush(self) -> None:
        """Nothing is held back."""


def write(obj: Any, folder: Path, stem: str, sink: Sink) -> Path:
    """Save an object under the stem and its digest, and remove what killed processes left half written; the file.

    Args:
        obj: what to save.
        folder: made if it is not there.
        stem: of the file's name.
        sink: a new one; knows the file's size whatever happens.

    Raises:
        OSError: there is no such file then, or it is whole.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.parent)
    for left in folder.glob(".step-*.tmp"):
        left.unlink(missing_ok=True)
    temporary = folder / f".step-{os.getpid()}.tmp"
    try:
        # Unbuffered: closing it after an error must not write again. Closed: Windows renames no open file.
        with temporary.open("xb", buffering=0) as sink.file:
            torch.save(obj, sink)  # pyright: ignore[reportArgumentType]  # write and flush are all that it calls
            if sink.error is not None:
                raise sink.error
            os.fsync(sink.file.fileno())
        path = temporary.replace(folder / f"{stem}-{sink.sha.hexdigest()[:16]}.pt")
    finally:
        temporary.unlink(missing_ok=True)
    _sync(folder)
    return path


def digest_of(path: Path) -> str:
    """The start of a file's SHA-256, in hexadecimal; it is read piece by piece."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _sync(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    if sys.platform == "win32":
        return  # does so by itself
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)
