"""`RunFolder`: what one training run writes, while it trains, so that a person and a later process can read it."""

import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from ppl_vae.report import write_bytes, write_csv
from ppl_vae.runs import CONFIG, check_free, parents_of
from ppl_vae.training import History, Record

__all__ = ["CHECKPOINTS", "RunFolder"]

LOCK, METRICS, LOG, CHECKPOINTS = ".lock", "metrics.jsonl", "log.txt", "checkpoints"


class RunFolder:
    """A folder that describes itself: configuration, environment, learning curve, log and checkpoints.

    Made by `create` or `reopen`, both context managers. Within, no other process can write to it.

    - config.yaml: the settings, which `ppl-vae train --config` takes again;
    - environment.json: versions and hardware of the run's last part;
    - metrics.jsonl: a point of the learning curve a line, see `Record` (and metrics.csv at the end);
    - log.txt: when the run began, was taken up, stopped and ended, in UTC;
    - checkpoints/: see `Checkpoints`.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.checkpoints = path, path / CHECKPOINTS
        self.aside: Path | None = None  # an older folder of this name, until this run has begun
        text = self._text()
        # A last line without its end, cut off by a kill, is replaced by whatever comes next.
        is_cut = bool(text) and not text.endswith("\n")
        self._newest = math.inf if is_cut else max(map(_step, text.splitlines()), default=-1)

    @classmethod
    @contextmanager
    def create(cls, path: str | Path, config: dict[str, Any], overwrite: bool = False) -> Iterator["RunFolder"]:
        """A new folder. Where an error comes before the first point of the learning curve, it goes again.

        Args:
            path: the folder's; it appears with its configuration in it.
            config: plain values.
            overwrite: an older folder is put aside, and removed at the first point of the learning curve.

        Raises:
            ValueError: the path exists, or can't be written, or is being written by another process.
        """
        path = Path(path)
        check_free(path, overwrite)
        with ExitStack() as locks:
            aside = _put_aside(path, locks) if path.exists() else None
            locks.enter_context(parents_of(path))
            partial = _make_beside(path)
            try:
                locks.enter_context(_locked(partial, path))
                (partial / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False, explicit_end=True))
                (partial / LOG).touch()
                partial.chmod(0o755)  # mkdtemp's folder is the owner's alone; results are meant to be read
                _appear(partial, path)
                folder = cls(path)
                folder.aside = aside
                with folder._logged("began"):
                    yield folder
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                if not _has_begun(path):
                    shutil.rmtree(path, ignore_errors=True)
                    if aside is not None and aside.exists():
                        aside.rename(path)
                raise
            folder._drop_aside()

    @classmethod
    @contextmanager
    def reopen(cls, path: str | Path) -> Iterator["RunFolder"]:
        """The folder of a run that is to go on.

        Raises:
            ValueError: it is not one, or is being written by another process.
        """
        path = Path(path)
        if not (path / CONFIG).is_file():
            raise ValueError(f"resume: got {path} without {CONFIG}, expected a folder written by ppl-vae train")
        with _locked(path, path), cls(path)._logged("was taken up") as folder:
            yield folder

    def record(self, record: Record) -> None:
        """Append a point to the learning curve; it replaces what was written from its step on, before a kill."""
        if record.step <= self._newest:
            before = [line for line in self._text().splitlines() if _step(line) < record.step]
            write_bytes("".join(f"{line}\n" for line in before).encode(), self.path / METRICS)
        with (self.path / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(record)) + "\n")
        self._newest = record.step
        self._drop_aside()

    def finish(self, history: History) -> None:
        """Write the whole learning curve: points that were taken twice, after a kill, are there once."""
        rows = [asdict(record) for record in history.records]
        write_bytes("".join(json.dumps(row) + "\n" for row in rows).encode(), self.path / METRICS)
        write_csv(rows, self.path / "metrics.csv")

    def _text(self) -> str:
        path = self.path / METRICS
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    def log(self, what: str) -> None:
        """Append a line to the log."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with suppress(OSError), (self.path / LOG).open("a", encoding="utf-8") as file:
            file.write(f"{now} {what}\n")

    @contextmanager
    def _logged(self, how: str) -> Iterator["RunFolder"]:
        self.log(f"{how}: {' '.join(sys.argv)} (process {os.getpid()})")
        try:
            yield self
        except BaseException as error:
            self.log(f"ended by {type(error).__name__}: {error}")
            raise
        self.log("finished")

    def _drop_aside(self) -> None:
        if self.aside is not None:
            shutil.rmtree(self.aside, ignore_errors=True)
            self.aside = None


def _has_begun(path: Path) -> bool:
    """Whether there is something to go on from, or to look at."""
    return (path / METRICS).exists() or any((path / CHECKPOINTS).glob("step-*"))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf


def _make_beside(path: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _refusal(path, error) from error


def _appear(partial: Path, path: Path) -> None:
    try:
        partial.rename(path)
    except OSError as error:  # another process was faster
        raise _refusal(path, error) from error


def _put_aside(path: Path, locks: ExitStack) -> Path:
    """Rename an older folder, which no process may be writing."""
    locks.enter_context(_locked(path, path))
    aside = path.with_name(f".{path.name}.before")
    shutil.rmtree(aside, ignore_errors=True)
    return path.rename(aside)


def _refusal(path: Path, error: OSError) -> ValueError:
    return ValueError(
        f"out: got {path} ({error.strerror}), expected a folder that can be written; choose one with --out"
    )


@contextmanager
def _locked(folder: Path, name: Path) -> Iterator[None]:
    """Keep other processes from writing to the folder; the system lets go of the lock when this one dies."""
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(
            f"out: got {name}, which another process is writing, expected a free one; wait for it, or choose another"
        ) from error
    except OSError as error:
        raise _refusal(name, error) from error
    try:
        yield
    finally:
        lock.release()
