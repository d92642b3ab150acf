"""Run folders: written whole or not at all, and read back without running anything that they hold."""

import errno
import io
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ppl_vae import specs
from ppl_vae.data import Dataset, Source, load_named
from ppl_vae.data.files import unread
from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair
from ppl_vae.seeds import check_seed

__all__ = [
    "CONFIG",
    "LoadedRun",
    "check_free",
    "check_writable",
    "folder_of",
    "load_run",
    "new_folder",
    "parents_of",
    "save_pair",
]

CONFIG, WEIGHTS, RESULTS = "config.yaml", "pair.pt", "results.json"
_TYPES = {"pair": str, "objective": str, "data": str, "binarisation": str | None, "data_root": str | None}
"""What a configuration must hold, beside a seed of the data."""


@contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write results to, which appears under its name only when all has been written.

    It is made at once: work inside of it can't end in a folder that can't be made.

    Raises:
        ValueError: what `check_free` refuses, or the folder can't be written. If the name has been taken meanwhile,
            the results are kept beside it.
    """
    final = Path(path)
    check_free(final, overwrite)
    with parents_of(final):
        try:
            partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        except OSError as error:
            raise _not_writable(final, error) from error
        try:
            yield partial
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        # mkdtemp's folder is the owner's alone; results are meant to be read.
        partial.chmod(0o755)
        try:
            check_free(final, overwrite)
        except ValueError as error:
            raise ValueError(f"{error}; the results are in {partial}") from error
        if final.exists():
            shutil.rmtree(final)
        partial.replace(final)


@contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """The folders above a path, made where they are not there; if an error comes, those that are empty go again.

    Raises:
        ValueError: they can't be made.
    """
    above = [folder for folder in path.parents if not folder.exists()]
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _not_writable(path, error) from error
        yield
    except BaseException:
        for folder in above:
            with suppress(OSError):
                folder.rmdir()
        raise


def check_free(path: str | Path, overwrite: bool = False) -> None:
    """Refuse a place for results that is not free, before any work is done.

    Args:
        path: of a folder that is to be made.
        overwrite: whether one that is there may be replaced; only results of this program ever are.

    Raises:
        ValueError: the path exists (without `overwrite`), is the working folder or one above it, can't be written,
            or holds something that is not this program's.
    """
    check_writable(path)
    final, here = Path(path), Path.cwd().resolve()
    if final.resolve() in (here, *here.parents):
        raise ValueError(
            f"out: got {str(path)!r}, the working folder or one above it, expected a folder of its own; choose one "
            "with --out"
        )
    if not os.path.lexists(final):
        return
    if not overwrite:
        raise ValueError(
            f"out: got {final}, which exists, expected a new folder; choose one with --out, or pass --overwrite true"
        )
    if final.is_symlink() or not final.is_dir():
        raise ValueError(f"out: got {final}, a file or a link, expected a folder; choose another with --out")
    if not _is_ours(final):
        raise ValueError(
            f"out: got {final}, which has no {CONFIG} or {RESULTS} of ours, expected a folder written by ppl-vae: "
            "nothing else is overwritten; choose another with --out, or remove it yourself"
        )


def check_writable(path: str | Path, name: str = "out") -> None:
    """Refuse a path under which nothing can be made: below a file, a name too long, no permission.

    Args:
        path: of a file or folder that is to be made.
        name: of the option that gave it.

    Raises:
        ValueError: it is one.
    """
    try:
        whole = Path(path).resolve()
        nearest = next(folder for folder in (*whole.parents, whole) if os.path.lexists(folder))
        names = whole.relative_to(nearest).parts
        # What is made first has a longer name: a dot, and letters that make it unique.
        for part in (*names[:-1], *(f".{last}.{'x' * 12}" for last in names[-1:])):
            with suppress(FileNotFoundError):
                (nearest / part).lstat()
        if not os.access(nearest, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except (OSError, ValueError, RuntimeError) as error:
        raise _not_writable(path, error, name) from error


def _not_writable(path: str | Path, error: Exception, name: str = "out") -> ValueError:
    reason = getattr(error, "strerror", None) or error
    return ValueError(
        f"{name}: got {str(path)!r} ({reason}), expected a path that can be written; choose another with --{name}"
    )


def _is_ours(folder: Path) -> bool:
    """Whether a folder holds the configuration of a run, or the results of one or of a comparison."""
    with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
        config = yaml.safe_load((folder / CONFIG).read_text())
        if isinstance(config, dict) and {"pair", "objective", "data"} <= config.keys():
            return True
    with suppress(OSError, ValueError, RecursionError):
        results = json.loads((folder / RESULTS).read_text())
        return isinstance(results, dict) and "environment" in results
    return False


@dataclass(frozen=True)
class LoadedRun:
    """A trained pair with all that it was trained on and for.

    Args:
        pair: with the trained weights, in evaluation mode.
        data: the data set.
        objective: the objective that it was trained for.
        config: the run's configuration.
    """

    pair: Pair
    data: Dataset | Source
    objective: Objective
    config: dict[str, Any]


def folder_of(run: str | Path) -> Path:
    """The run folder of a path that names it, or one of its checkpoints."""
    path = Path(run)
    return path.parent.parent if path.suffix == ".pt" else path


def save_pair(folder: Path, pair: Pair) -> None:
    """Write the weights and buffers to `pair.pt`."""
    partial = folder / f".{WEIGHTS}.tmp"
    content = io.BytesIO()
    torch.save({name: value.cpu() for name, value in pair.state_dict().items()}, content)
    try:
        partial.write_bytes(content.getvalue())
        partial.replace(folder / WEIGHTS)
    finally:
        partial.unlink(missing_ok=True)


def load_run(folder: str | Path, data_root: str | None = None) -> LoadedRun:
    """Read a folder that `ppl-vae train` wrote.

    Raises:
        ValueError: it is not such a folder, or a file in it is missing or damaged.
    """
    folder = Path(folder)
    try:
        config = yaml.safe_load((folder / CONFIG).read_text())
        _check_config(config)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(
            f"run: got {folder} with {CONFIG} missing or damaged ({type(error).__name__}: {error}), expected a folder "
            "written by ppl-vae train; choose one"
        ) from error
    if not (folder / WEIGHTS).exists():
        raise ValueError(
            f"run: got {folder} without {WEIGHTS}, expected a run that has ended; let it go on with ppl-vae train "
            f"--resume {folder}"
        )
    try:
        root = data_root or config["data_root"]
        dataset = load_named(config["data"], root=root, binarisation=config["binarisation"], seed=config["data_seed"])
        make, objective = specs.pair_factory(config["pair"], specs.told_by(dataset)), config["objective"]
        pair, objective = make(dataset.shape), specs.make_objective(objective)
    except ValueError as error:
        raise ValueError(f"run: in {folder / CONFIG}: {error}") from error
    try:
        # weights_only: a file of weights can't run code.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, on files that it did not write
            pair.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True, map_location="cpu"))
    except Exception as error:
        raise ValueError(
            f"run: got {folder / WEIGHTS} damaged or of another pair ({unread(error)}), expected the weights that "
            f"ppl-vae train wrote beside {CONFIG}; train again"
        ) from error
    return LoadedRun(pair.eval(), dataset, objective, config)


def _check_config(config: Any) -> None:
    """Refuse a configuration that lacks a value, or has one of another type.

    Raises:
        ValueError: it does.
    """
    if not isinstance(config, dict):
        raise ValueError(f"got {type(config).__name__}, expected names with their values")
    for name in (*_TYPES, "data_seed"):
        if name not in config:
            raise ValueError(f"got no {name}, expected one")
    for name, kind in _TYPES.items():
        if not isinstance(config[name], kind):
            raise ValueError(f"{name}: got {config[name]!r}, expected text")
    check_seed("data_seed", config["data_seed"])
