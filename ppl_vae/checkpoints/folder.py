"""`Checkpoints`: the newest states of a run, in a folder."""

import errno
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ppl_vae.checkpoints.files import Sink, digest_of, write
from ppl_vae.checkpoints.packing import CheckpointError, packed, unpacked

__all__ = ["DISK_FULL", "Checkpoints", "read"]

_NAME = re.compile(r"step-([0-9]{9,})-([0-9a-f]{16})\.pt")
DISK_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
"""Numbers of the errors of a disk, or a quota (Windows knows none), without room."""


class Checkpoints:
    """The newest `keep` states of a run, each in a file of its own, written whole or not at all.

    A state is a dict of tensors, ints (of at most 2039 bits), floats, strings, bools and None, in dicts, lists and
    tuples at will, as `state_dict()` gives them. Values and types come back exactly, tensors without gradient and on
    the CPU, an OrderedDict as a dict. Saving takes no memory for tensors that fill their storages.

    One process at a time writes to a folder; others may read. A process that is killed, at any point, leaves whole
    files and perhaps a temporary one, which the next save removes.

    Args:
        folder: made by the first `save`.
        keep: how many states to keep.

    Raises:
        ValueError: keep is not at least 1.

    Example:
        >>> import tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     checkpoints = Checkpoints(folder)
        ...     path = checkpoints.save({"weight": torch.ones(2), "epoch": 3}, step=1200)
        ...     checkpoints.load()
        {'weight': tensor([1., 1.]), 'epoch': 3}
    """

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        if keep < 1:
            raise ValueError(f"keep: got {keep}, expected at least 1")
        self.folder, self.keep = Path(folder), keep

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write a state, then remove what it supersedes; the file.

        Kept are this file and, of the others, those of the largest steps. A second state of the same step replaces
        the first.

        Args:
            state: is read and left as it is.
            step: steps taken so far.

        Raises:
            CheckpointError: the state holds something that could not be read back; nothing has been written then. Or
                the disk is full or the folder can't be written; what was there before is there still.
        """
        if type(step) is not int or step < 0:
            raise CheckpointError(f"step: got {step!r}, expected an int of at least 0")
        envelope, sink = packed(state, step), Sink()
        try:
            path = write(envelope, self.folder, f"step-{step:09}", sink)
        except OSError as error:
            raise CheckpointError(self._refusal(step, error, sink.bytes)) from error
        others = [file for file in _files(self.folder) if file != path]
        kept = [file for file in others if _step(file) != step][: self.keep - 1]
        for file in set(others) - set(kept):
            with suppress(OSError):  # Windows removes no file that is mapped; the next save tries again
                file.unlink(missing_ok=True)
        return path

    def newest(self) -> Path | None:
        """The file of the largest step; None where there is none."""
        return next(iter(_files(self.folder)), None)

    def load(self) -> dict[str, Any]:
        """The newest state, as `read` gives it.

        Raises:
            CheckpointError: there is none, or it is damaged; names the newest good one before it.
        """
        if newest := self.newest():
            return read(newest)
        raise CheckpointError(
            f"checkpoint: got none in {self.folder}, expected step-...pt; check the folder, or start the run anew"
        )

    def _refusal(self, step: int, error: OSError, needed: int) -> str:
        good = _newest_good(self.folder)
        intact = f"{good} is intact" if good else "no earlier checkpoint is there"
        expected, advice = "a folder that can be written", "check its permissions"
        if error.errno in DISK_FULL:
            expected, advice = f"room for a file of {needed} bytes", "free some space"
        return (
            f"checkpoint: step {step} was not saved: got '{error.strerror}' in {self.folder}, expected {expected}; "
            f"{intact}; {advice} or choose another folder"
        )


def read(path: str | Path) -> dict[str, Any]:
    """The state in a file; its tensors are read from the file when they are first touched.

    They may be changed, which leaves the file alone, and outlive its removal.

    Args:
        path: as `Checkpoints` named it.

    Raises:
        CheckpointError: the file is not there, unreadable, damaged, renamed, or not a checkpoint of this version;
            names the newest good one before it.
    """
    path = Path(path)
    if _NAME.fullmatch(path.name) is None:
        raise CheckpointError(
            f"checkpoint: {path} is foreign: got a file of this name, expected step-NNNNNNNNN-HHHHHHHHHHHHHHHH.pt, "
            "with its step and SHA-256; give it its own name again, or choose another file"
        )
    try:
        return _read(path)
    except CheckpointError as error:
        good = _newest_good(path.parent, path)
        offer = f"read {good} instead, the newest other" if good else "start the run anew: there is no other"
        raise CheckpointError(f"{error}; {offer} good one up to this step") from error


def _read(path: Path) -> dict[str, Any]:
    """The state in a file that is named as one; where there is none, the error has no advice."""
    try:
        got, expected = digest_of(path), path.stem.split("-")[2]
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {path} can't be read: got '{error.strerror}', expected a readable file"
        ) from error
    if got != expected:
        raise CheckpointError(
            f"checkpoint: {path} is damaged: got a file with SHA-256 {got}..., expected {expected}... as its name says"
        )
    return unpacked(path, _step(path))


def _newest_good(folder: Path, bad: Path | None = None) -> Path | None:
    """The newest file that can be read as a whole; with `bad`, of no larger step and not that file."""
    with suppress(CheckpointError):  # the folder can't be read
        for path in _files(folder):
            if bad is None or (path.name != bad.name and _step(path) <= _step(bad)):
                with suppress(CheckpointError):
                    _read(path)
                    return path
    return None


def _files(folder: Path) -> list[Path]:
    """Checkpoints, by their names: largest step first, then, as a kill between two of one step left them, the last."""
    try:
        found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {folder} can't be read: got '{error.strerror}', expected a readable folder; check the path "
            "and its permissions"
        ) from error
    return sorted(found, key=lambda path: (_step(path), _written(path)), reverse=True)


def _step(path: Path) -> int:
    return int(path.name.split("-")[1])


def _written(path: Path) -> int:
    with suppress(OSError):  # removed since
        return path.stat().st_mtime_ns
    return 0
