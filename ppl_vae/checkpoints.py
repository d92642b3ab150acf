"""`Checkpoints`: a run's states on disk, in files that are whole or not there and that are read without running code.

A file's name holds the start of its SHA-256, so that a flipped bit or a missing end is found before anything is read
out of it. That is no signature: it tells damage, not who wrote the file. What a file can do at worst is bounded by how
it is read: no code of it is run.
"""

import errno
import hashlib
import mmap
import os
import re
import secrets
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

if sys.platform != "win32":
    import fcntl

__all__ = ["CheckpointError", "Checkpoints", "read"]

FORMAT, VERSION = "ppl_vae checkpoint", 1

DEEPEST = 100
"""Levels of dicts, lists and tuples in a state; one that contains itself has more than any number."""

_NAME = re.compile(r"(step|best)-([0-9]{9}|[1-9][0-9]{9,})-([0-9a-f]{16})\.pt")
_TEMPORARY = re.compile(r"\.(step|best)-[0-9]{9,}-[0-9a-f]{16}\.tmp")
_EXPECTED = "expected a tensor, int, float, str, bool or None, in dicts, lists and tuples"
_SCALARS = (int, float, str, bool, type(None))
_LONGEST_INT = 2039  # bits: torch's restricted reader knows integers of at most 255 bytes
_NOT_STORED = re.compile(r"torch\.u?int[1-7]")  # of torch's dtypes
_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows has no quota error
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP, errno.EBADF}  # some network file systems
_CHUNK = 1 << 20


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, foreign or unreadable, or can't be written."""


class Checkpoints:
    """The newest `keep` states of a run and its best, each in a file of its own, written whole or not at all.

    A state is a dict of tensors, ints, floats, strings, bools and None, in dicts, lists and tuples at will, as
    `state_dict()` and `torch.get_rng_state()` give them. Values and types come back exactly, tensors without gradient
    and on the CPU. Saving takes no memory for tensors that fill their storages, together with others of the state
    or alone; other views are copied, so that a file is as large as what is in it.

    One process at a time writes to a folder. A process that is killed, at any point, leaves whole files and perhaps
    a temporary one, which the next process removes.

    Args:
        folder: made by the first `save`.
        keep: how many states to keep besides the best.

    Raises:
        ValueError: keep is not at least 1.

    Example:
        >>> import tempfile
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
        _remove_stale(self.folder)

    def save(self, state: dict[str, Any], step: int, *, best: bool = False) -> Path:
        """Write a state, then remove what it supersedes; the file.

        Kept are this file and, of the others, those of the largest steps. A second state of the same step replaces
        the first.

        Args:
            state: is read and left as it is.
            step: steps taken so far.
            best: this state is the best one; it is kept until a better one is saved.

        Raises:
            CheckpointError: the state holds something that could not be read back; nothing has been written then. Or
                the disk is full or the folder can't be written; what was there before is there still.
        """
        if type(step) is not int or step < 0:
            raise CheckpointError(f"step: got {step!r}, expected an int of at least 0")
        if not isinstance(state, dict):
            raise CheckpointError(f"state: got {type(state).__name__}, expected a dict")
        envelope = {"format": FORMAT, "version": VERSION, "step": step, "state": _packed(state)}
        what, size = f"step {step} was not saved", _Size()
        try:
            _make_folder(self.folder)
            _remove_stale(self.folder)
            path = _write(envelope, self.folder, step, size)
            if best:
                what = f"step {step} was saved as {path}, but not as the best"
                _make_best(path, size)
        except OSError as error:
            raise CheckpointError(self._refusal(what, error, size.bytes)) from error
        self._remove_superseded(path)
        return path

    def newest(self) -> Path | None:
        """The file of the largest step; None where there is none."""
        files = _files(self.folder, "step")
        return files[0].path if files else None

    def best(self) -> Path | None:
        """The file that was last saved as the best one; None where there is none."""
        files = _files(self.folder, "best")
        # Two are there after a kill between putting the new one in place and removing the old one.
        return max(files, key=lambda file: (file.written, file.step)).path if files else None

    def load(self) -> dict[str, Any]:
        """The newest state, as `read` gives it.

        Raises:
            CheckpointError: there is none, or it is damaged; names the newest good one before it.
        """
        newest = self.newest()
        if newest is None:
            raise CheckpointError(
                f"checkpoint: got no checkpoint in {self.folder}, expected at least one file step-...pt; "
                "check the folder, or start the run anew"
            )
        return read(newest)

    def _remove_superseded(self, path: Path) -> None:
        written = _parse(path)
        others = [file for file in _files(self.folder, "step") if file.path != path]
        superseded = [file for file in others if file.step == written.step]
        superseded += [file for file in others if file.step != written.step][self.keep - 1 :]
        for file in superseded:
            with suppress(OSError):  # Windows removes no file that is mapped; the next save tries again
                file.path.unlink(missing_ok=True)

    def _refusal(self, what: str, error: OSError, needed: int) -> str:
        good = _newest_good(self.folder)
        intact = f"{good} is intact" if good else "no earlier checkpoint is there"
        if error.errno in _FULL:
            return (
                f"checkpoint: {what}: got '{error.strerror}' in {self.folder}, expected room for a file "
                f"of {needed} bytes; the temporary file was removed, and {intact}; free some space or choose another "
                "folder"
            )
        return (
            f"checkpoint: {what}: got '{error.strerror}' for {error.filename or self.folder}, expected "
            f"a folder that can be written; {intact}; check its permissions or choose another folder"
        )


def read(path: str | Path) -> dict[str, Any]:
    """The state in a file; its tensors are read from the file when they are first touched.

    They may be changed, which leaves the file alone, and outlive its removal.

    Args:
        path: as `Checkpoints` named it.

    Raises:
        CheckpointError: the file is not there, unreadable, damaged (names the newest good one before it), renamed,
            or not a checkpoint of this version.
    """
    file = _parse(Path(path))
    try:
        digest = _digest_of(file.path)
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {path} can't be read: got '{error.strerror}', expected a readable file; check the path and "
            f"its permissions, or {_offer(file)}"
        ) from error
    if digest != file.digest:
        raise CheckpointError(
            f"checkpoint: {path} is damaged: got a file with SHA-256 {digest}..., expected {file.digest}... as its "
            f"name says; {_offer(file)}"
        )
    return _unpacked(file)


@dataclass(frozen=True)
class _File:
    """What a checkpoint's name tells.

    Args:
        path: of the file.
        kind: "step" or "best".
        step: steps taken.
        digest: the first 16 hexadecimal digits of its SHA-256.
        written: when, in nanoseconds; 0 if it was not asked for.
    """

    path: Path
    kind: str
    step: int
    digest: str
    written: int = 0


@dataclass
class _Size:
    """Bytes of a file so far."""

    bytes: int = 0


class _Sink:
    """What torch writes a file through: after an error it goes on counting, so that the whole size is known.

    An exception here would leave torch with an unfinished archive, and be buried under what it says to that.
    """

    def __init__(self, file: FileIO, size: _Size) -> None:
        self.file, self.size = file, size
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        count = len(view)
        self.size.bytes += count
        try:
            while self.error is None and len(view):
                view = view[self.file.write(view) :]
        except BaseException as error:  # Control-C as well
            self.error = error
        return count

    def flush(self) -> None:
        """Nothing is held back."""

    def finish(self) -> None:
        """Bring all to the disk; the first error is raised here."""
        if self.error is not None:
            raise self.error
        os.fsync(self.file.fileno())


def _parse(path: Path) -> _File:
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise CheckpointError(
            f"checkpoint: {path} is foreign: got a file of this name, expected step-NNNNNNNNN-HHHHHHHHHHHHHHHH.pt or "
            "best-..., with its step and SHA-256; give it its own name again, or choose another file"
        )
    return _File(path, match[1], int(match[2]), match[3])


def _files(folder: Path, *kinds: str) -> list[_File]:
    """Checkpoints of these kinds, by their names alone: largest step first, then the last written."""
    found = []
    for path in _names(folder):
        if (match := _NAME.fullmatch(path.name)) and match[1] in kinds:
            with suppress(FileNotFoundError):  # removed since
                found.append(_File(path, match[1], int(match[2]), match[3], path.stat().st_mtime_ns))
    return sorted(found, key=lambda file: (file.step, file.written), reverse=True)


def _names(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CheckpointError(
            f"checkpoint: {folder} can't be read: got '{error.strerror}', expected a readable folder; check the path "
            "and its permissions"
        ) from error


def _offer(file: _File) -> str:
    good = _newest_good(file.path.parent, file)
    if good is None:
        return "start the run anew: no other good one is there up to this step"
    return f"read {good} instead, the newest other good one up to this step"


def _newest_good(folder: Path, before: _File | None = None) -> Path | None:
    """The newest file that can be read as a whole; with `before`, of no larger step and not that file."""
    try:
        files = _files(folder, "step", "best")
    except CheckpointError:
        return None
    if before is not None:
        files = [file for file in files if file.step <= before.step and file.path.name != before.path.name]
    return next((file.path for file in files if _is_good(file)), None)


def _is_good(file: _File) -> bool:
    try:
        if _digest_of(file.path) != file.digest:
            return False
        _unpacked(file)
    except (OSError, CheckpointError):
        return False
    return True


def _digest_of(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return _digest(file)


def _digest(file: FileIO) -> str:
    """The start of the SHA-256 of a file, read piece by piece."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync_folder(folder.parent)


def _write(envelope: dict[str, Any], folder: Path, step: int, size: _Size) -> Path:
    """Stream a file to the disk, then give it its name."""
    with _temporary(folder, f"step-{step:09}") as (temporary, file):
        sink = _Sink(file, size)
        torch.save(envelope, sink)  # pyright: ignore[reportArgumentType]  # write and flush are all that it calls
        sink.finish()
        path = folder / f"step-{step:09}-{_digest(file)}.pt"
        _put(temporary, file, path)
    return path


def _make_best(path: Path, size: _Size) -> None:
    """Put a file in place as the best one as well, then remove the best ones before it."""
    best = path.with_name(path.name.replace("step", "best", 1))
    if not _link(path, best):
        _copy(path, best, size)
    for file in _files(path.parent, "best"):
        if file.path != best:
            with suppress(OSError):
                file.path.unlink(missing_ok=True)


def _link(path: Path, best: Path) -> bool:
    """Give a file a second name, over what may have that name; False where the file system has no links."""
    temporary = _temporary_name(best.parent, f"best-{_parse(best).step:09}")
    try:
        temporary.hardlink_to(path)
    except (OSError, NotImplementedError):
        return False
    try:
        temporary.replace(best)
    finally:
        temporary.unlink(missing_ok=True)  # a rename to another name of the same file does nothing
    _sync_folder(best.parent)
    return True


def _copy(path: Path, best: Path, size: _Size) -> None:
    size.bytes = 0
    with _temporary(best.parent, f"best-{_parse(best).step:09}") as (temporary, file), path.open("rb") as source:
        sink = _Sink(file, size)
        while chunk := source.read(_CHUNK):
            sink.write(chunk)
        sink.finish()
        _put(temporary, file, best)


def _put(temporary: Path, file: FileIO, path: Path) -> None:
    """Give a whole file its name."""
    if sys.platform == "win32":
        file.close()  # an open file can't be renamed there
    temporary.replace(path)
    _sync_folder(path.parent)


@contextmanager
def _temporary(folder: Path, stem: str) -> Iterator[tuple[Path, FileIO]]:
    """A new file that other processes leave alone while it is open here, gone at the end if it was not renamed."""
    path = _temporary_name(folder, stem)
    file = path.open("x+b", buffering=0)  # unbuffered: closing it after an error must not write again
    try:
        with file:
            with suppress(OSError):  # not every file system has locks
                _lock(file)
            yield path, file
    finally:
        path.unlink(missing_ok=True)


def _temporary_name(folder: Path, stem: str) -> Path:
    return folder / f".{stem}-{secrets.token_hex(8)}.tmp"


def _remove_stale(folder: Path) -> None:
    """Remove what killed processes left: temporary files that no process holds the lock of."""
    for path in _names(folder):
        if _TEMPORARY.fullmatch(path.name):
            with suppress(OSError):
                with path.open("r+b") as file:
                    _lock(file)
                path.unlink()


def _lock(file: Any) -> None:
    """Lock a file until it is closed, or until the process ends, however that comes.

    Raises:
        OSError: another process holds the lock, or the file system has none.
    """
    if sys.platform != "win32":  # Windows removes no file that is open: nothing needs a lock there
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; Windows does so by itself."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(handle)


def _packed(state: dict[Any, Any]) -> Any:
    """A state as it is written: the same values in containers of our own, tensors without gradient, views compact."""
    tensors: list[Tensor] = []
    copies: dict[Any, Tensor] = {}

    def plain(value: Any, path: str) -> Any:
        value = _checked(value, path)
        if isinstance(value, Tensor):
            tensors.append(value)
        return value

    state = _each(state, plain)
    filled = _filled(tensors)

    def compact(value: Any, _: str) -> Any:
        if not isinstance(value, Tensor) or _storage(value) in filled:
            return value
        if (view := _view(value)) not in copies:
            copies[view] = value.to("cpu", copy=True)
        return copies[view]

    return _each(state, compact)


def _filled(tensors: list[Tensor]) -> set[Any]:
    """Storages that may be written as they are: of one dtype, and no larger than their views in the state together."""
    views = {_view(tensor): tensor for tensor in tensors}
    sizes: dict[Any, int] = {}
    dtypes: dict[Any, set[torch.dtype]] = {}
    for tensor in views.values():
        key = _storage(tensor)
        sizes[key] = sizes.get(key, 0) + tensor.numel() * tensor.element_size()
        dtypes.setdefault(key, set()).add(tensor.dtype)
    whole = {_storage(tensor): tensor.untyped_storage().nbytes() for tensor in views.values()}
    return {key for key in sizes if whole[key] <= sizes[key] and len(dtypes[key]) == 1}


def _storage(tensor: Tensor) -> Any:
    return tensor.device, tensor.untyped_storage().data_ptr()


def _view(tensor: Tensor) -> Any:
    return *_storage(tensor), tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()


def _each(value: Any, change: Callable[[Any, str], Any], path: str = "state", depth: int = 0) -> Any:
    """New containers of the same kinds, with `change(value, path)` of each value and key that is none."""
    kind = type(value)
    if kind not in (dict, OrderedDict, list, tuple):
        return change(value, path)
    if depth == DEEPEST:
        raise CheckpointError(
            f"{path[:80]}...: got more than {DEEPEST} levels, expected fewer; flatten it, or take out what contains "
            "itself"
        )
    if kind in (list, tuple):
        return kind([_each(v, change, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)])
    new: Any = kind()
    for key, v in value.items():
        if type(key) not in (*_SCALARS, bytes):
            raise CheckpointError(
                f"{path}: got a key of type {type(key).__name__}, expected int, float, str, bool or None; convert it"
            )
        name = f"{path}[{key!r}]"
        new[change(key, name)] = _each(v, change, name, depth + 1)
    if kind is OrderedDict and vars(value):  # a module's state_dict() keeps the versions of its parts there
        vars(new).update(_each(vars(value), change, f"vars({path})", depth + 1))
    return new


def _checked(value: Any, path: str) -> Any:
    """A value as it is written; refuses what could not be read back exactly without running code."""
    kind = type(value)
    if kind is int and value.bit_length() > _LONGEST_INT:
        return value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    if kind in _SCALARS:
        return value
    if kind not in (Tensor, nn.Parameter):
        raise CheckpointError(f"{path}: got {kind.__name__}, {_EXPECTED}; convert it, or leave it out")
    if value.layout is not torch.strided or value.is_quantized or value.is_nested or value.is_meta:
        what = "quantized" if value.is_quantized else "nested" if value.is_nested else value.layout
        what = "meta" if value.is_meta else what
        raise CheckpointError(f"{path}: got a tensor that is {what}, expected a dense one with values; convert it")
    if _NOT_STORED.fullmatch(str(value.dtype)):
        raise CheckpointError(f"{path}: got a tensor of {value.dtype}, expected a dtype of whole bytes; convert it")
    return value.detach().resolve_conj().resolve_neg()


def _unpacked(file: _File) -> dict[str, Any]:
    """The state in a file of the right digest.

    Raises:
        CheckpointError: it is not a checkpoint, or not one of this version or step.
    """
    try:
        with _private_mapping():
            envelope = torch.load(file.path, mmap=True, weights_only=True, map_location="cpu")
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:300]
        raise CheckpointError(
            f"checkpoint: {file.path} is foreign: got a file that can't be read without running code or is no archive "
            f"({reason}), expected one that Checkpoints.save wrote; choose another"
        ) from error
    if type(envelope) is not dict or envelope.keys() != {"format", "version", "step", "state"}:
        raise _foreign(file, "something else", "the four entries of a checkpoint")
    found, version, step = (envelope[key] for key in ("format", "version", "step"))
    if type(found) is not str or found != FORMAT:
        raise _foreign(file, f"the format {found!r}", f"{FORMAT!r}")
    if type(version) is not int or version != VERSION:
        raise CheckpointError(
            f"checkpoint: {file.path} is of another version: got {version!r}, expected {VERSION}; read it with the "
            "ppl_vae that wrote it"
        )
    if type(step) is not int or step != file.step:
        raise _foreign(file, f"step {step!r}", f"step {file.step} as its name says")
    if type(envelope["state"]) not in (dict, OrderedDict):
        raise _foreign(file, f"a state of type {type(envelope['state']).__name__}", "a dict")
    try:
        return _each(envelope["state"], _restored)
    except CheckpointError as error:
        raise _foreign(file, "a state that save would have refused", f"plain values ({error})") from error


def _restored(value: Any, path: str) -> Any:
    if type(value) is bytes:
        return int.from_bytes(value, "little", signed=True)
    return value if type(value) in (*_SCALARS, Tensor) else _checked(value, path)


def _foreign(file: _File, got: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint: {file.path} is foreign: got {got}, expected {expected}; choose a file that Checkpoints.save wrote"
    )


def _private_mapping() -> AbstractContextManager[Any]:
    """Within, what is read from a file and then changed stays in this process, whatever torch was told elsewhere."""
    if sys.platform == "win32":  # no other way there
        return nullcontext()
    return torch.serialization.set_default_mmap_options(mmap.MAP_PRIVATE)
