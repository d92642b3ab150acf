"""All rows of a table, side by side where there are cores for it, in a folder that grows and can be taken up again."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from tqdm import tqdm

from ppl_vae import report
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.reproduction.budget import Budget
from ppl_vae.reproduction.errors import ErrorJob, ErrorProtocol, write_error_page
from ppl_vae.reproduction.job import Job, Stack
from ppl_vae.reproduction.page import write_page
from ppl_vae.reproduction.protocol import Protocol
from ppl_vae.runs import check_writable
from ppl_vae.seeds import check_seeds
from ppl_vae.training import Compile, resolve_device
from ppl_vae.workers import run_jobs

__all__ = ["reproduce"]

PROTOCOL = "protocol.yaml"


def reproduce(
    protocol: Protocol | ErrorProtocol,
    folder: str | Path,
    *,
    rows: list[str] | None = None,
    seeds: int = 1,
    budget: Budget | None = None,
    data_root: str | None = None,
    device: str = "auto",
    compile: Compile = "auto",
    stacked: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> str:
    """Train and evaluate rows of a table; what is done already is kept, what was stopped goes on.

    Args:
        protocol: of the table.
        folder: for results.json, table.md and index.html, which are written anew after each run, and a run folder
            for each row and seed.
        rows: names, or numbers from 1; all but those on request by default.
        seeds: runs of each row: seeds 0, 1, ...
        budget: how much of the protocol; all by default.
        data_root: folder of the data sets.
        device, compile: as for `fit`.
        stacked: train the seeds of a row in one batched computation (see `fit_stacked`): for a GPU.
        workers: processes of one thread each that take rows side by side; on a CPU one for each core by default, on
            CUDA one.
        progress: show one bar over all rows.

    Returns:
        The table as text.

    Raises:
        ValueError: no such rows, seeds or data, a folder of another protocol or budget, or one that can't be written;
            what `fit` refuses.
    """
    budget, folder = budget or Budget(), Path(folder)
    check_seeds(seeds)
    check_writable(folder)
    place = resolve_device(device)
    root = None if data_root is None else str(Path(data_root).resolve())

    if isinstance(protocol, ErrorProtocol) and stacked:
        raise ValueError("stacked: got it for a table of error rates, expected it left out; its runs are of stages")
    kind, write = (ErrorJob, write_error_page) if isinstance(protocol, ErrorProtocol) else (Job, write_page)

    def _job(row: Any, seed: int) -> Any:
        start = row.start and folder / _name(row.start, seed)
        return kind(protocol, row, seed, budget, folder / _name(row.name, seed), start or None, root, device, compile)  # type: ignore[arg-type]

    if workers is None:
        workers = torch.get_num_threads() if place.type == "cpu" else 1
    require_positive("workers", workers)
    chosen = [row for row in protocol.chosen(rows) if row.has_run]
    trained = [row for row in protocol.rows if row.has_run]
    jobs = {(row.name, seed): _job(row, seed) for row in trained for seed in range(seeds)}
    wanted = [job for job in jobs.values() if job.row in chosen]
    for job in wanted:
        if job.seed == 0:
            job.check()
    _claim(folder, {"protocol": asdict(protocol), "budget": asdict(budget)})
    table = write(protocol, jobs, folder)  # type: ignore[arg-type]
    total = sum(job.steps for job in wanted)
    first, then = ([job for job in wanted if (job.start is None) is fresh] for fresh in (True, False))
    if stacked:
        first = _stacked(first, chosen)
    with tqdm(total=total, disable=not progress, unit="step", mininterval=0.5) as bar:
        for wave in filter(None, (first, then)):  # those that begin with the end of another come after all of these
            for job, _ in zip(wave, run_jobs(wave, min(workers, len(wave)), bar.update), strict=True):
                table = write(protocol, jobs, folder)  # type: ignore[arg-type]
                bar.set_postfix_str(f"done: {job.row.name}")
    return table


def _stacked(jobs: Sequence[Job], rows: Sequence[Any]) -> list[Job | Stack]:
    """Jobs of a row as one; a row that another begins with by itself: the end of a stacked run is its weights alone."""
    begun = {row.start for row in rows}
    alone = [job for job in jobs if job.row.name in begun]
    together = [[job for job in jobs if job.row is row] for row in rows if row.name not in begun and row.start is None]
    return [*alone, *map(Stack, together)]


def _name(row: str, seed: int) -> str:
    """A run folder's name."""
    plain = "".join(c if c.isalnum() else "-" for c in row.lower())
    return f"{'-'.join(filter(None, plain.split('-')))}-seed-{seed}"


def _claim(folder: Path, config: dict[str, Any]) -> None:
    """Make the folder, or see that it is of the same protocol and budget.

    Raises:
        ValueError: it is of others, or of something else.
    """
    plain, path = yaml.safe_load(yaml.safe_dump(_plain(config))), folder / PROTOCOL
    if not folder.exists():
        report.write_bytes(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).encode(), path)
        return
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"out: got {folder} without a readable {PROTOCOL}, expected a folder of this table or none; choose another"
        ) from error
    if found != plain:
        raise ValueError(
            f"out: got {folder} of another table or budget ({found.get('budget')}), expected {plain['budget']} of "
            "the same; go on with those, or choose another folder"
        )


def _plain(value: Any) -> Any:
    """Lists for tuples, which YAML's plain values lack."""
    if isinstance(value, dict):
        return {key: _plain(v) for key, v in value.items()}
    is_several = isinstance(value, Sequence) and not isinstance(value, str)
    return [_plain(v) for v in value] if is_several else value
