"""Run folders: written whole or not at all, and read back without running anything that they hold."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from ppl_vae import specs
from ppl_vae.data import Dataset, load
from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair

__all__ = ["CONFIG", "LoadedRun", "check_free", "folder_of", "load_run", "new_folder", "save_pair"]

CONFIG, WEIGHTS = "config.yaml", "pair.pt"


@contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write results to, which appears under its name only when all has been written.

    Raises:
        ValueError: the folder exists, or can't be written.
    """
    final = Path(path)
    check_free(final, overwrite)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    except OSError as error:
        raise ValueError(
            f"out: {final} can't be written: {error.strerror}; choose another folder with --out"
        ) from error
    try:
        yield partial
        if final.exists():
            shutil.rmtree(final)
        # mkdtemp's folder is the owner's alone; results are meant to be read.
        partial.chmod(0o755)
        partial.replace(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(path: str | Path, overwrite: bool = False) -> None:
    """Refuse a folder of results that is there already, before any work is done.

    Raises:
        ValueError: the path exists.
    """
    final = Path(path)
    if final.exists() and not overwrite:
        raise ValueError(f"out: {final} exists already; choose another folder with --out, or pass --overwrite true")
    if final.exists() and not final.is_dir():
        raise ValueError(f"out: {final} is a file, expected a folder; choose another with --out")


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
    data: Dataset
    objective: Objective
    config: dict[str, Any]


def folder_of(run: str | Path) -> Path:
    """The run folder of a path that names it, or one of its checkpoints."""
    path = Path(run)
    return path.parent.parent if path.suffix == ".pt" else path


def save_pair(folder: Path, pair: Pair) -> None:
    """Write the weights and buffers to `pair.pt`."""
    partial = folder / f".{WEIGHTS}.tmp"
    torch.save({name: value.cpu() for name, value in pair.state_dict().items()}, partial)
    partial.replace(folder / WEIGHTS)


def load_run(folder: str | Path, data_root: str | None = None) -> LoadedRun:
    """Read a folder that `ppl-vae train` wrote.

    Raises:
        ValueError: it is not such a folder, or a file in it is missing or damaged.
    """
    folder = Path(folder)
    try:
        config = yaml.safe_load((folder / CONFIG).read_text())
        pair_text, objective_text = config["pair"], config["objective"]
        chosen = {"binarisation": config["binarisation"], "seed": config["data_seed"]}
        root = data_root or config["data_root"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        raise ValueError(
            f"run: {folder} is not a run folder: {CONFIG} is missing or damaged ({type(error).__name__}: {error}); "
            "expected a folder written by ppl-vae train"
        ) from error
    if not (folder / WEIGHTS).exists():
        raise ValueError(
            f"run: {folder} has no {WEIGHTS}: the run has not ended; expected one that has; "
            f"let it go on with ppl-vae train --resume {folder}"
        )
    dataset = load(config["data"], root=root, **chosen)
    pair = specs.pair_factory(pair_text)(dataset.shape)
    try:
        # weights_only: a file of weights can't run code.
        pair.load_state_dict(torch.load(folder / WEIGHTS, weights_only=True, map_location="cpu"))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"run: {folder / WEIGHTS} is missing, damaged or of another pair: {reason}") from error
    return LoadedRun(pair.eval(), dataset, specs.make_objective(objective_text), config)
