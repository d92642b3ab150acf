"""The table of a reproduction: what was published beside what has been reached, as JSON, text and a page."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

from ppl_vae import report
from ppl_vae.reproduction.job import Job
from ppl_vae.reproduction.protocol import Protocol, Published, Row

__all__ = ["write_page"]

Jobs = Mapping[tuple[str, int], Job]
Part = Literal["test", "train"]
COLUMNS = (
    *("row", "published", "independent", "ours", "active units", "KL"),
    *("seeds", "steps", "hours", "device", "state"),
)
_HOW = {"guide": "importance sampling", "prior": "draws from the model alone"}


def write_page(protocol: Protocol, jobs: Jobs, folder: Path) -> str:
    """Write results.json, table.md and index.html for what has been reached so far; the table as text.

    Runs that have not ended are shown as such: nothing is extrapolated.

    Args:
        protocol: of the table.
        jobs: by name of the row and seed.
        folder: an existing folder.
    """
    results = {key: found for key, job in jobs.items() if (found := job.result()) is not None}
    rows = [_line(row, jobs, results) for row in protocol.rows]
    gaps = [_gap(row, other, results) for row in protocol.rows for other in row.versus]
    runs = [{"row": name, "seed": seed, **found} for (name, seed), found in results.items()]
    everything = {"protocol": asdict(protocol), "rows": rows, "differences": gaps, "runs": runs}
    report.write_json(everything, folder / "results.json")
    table = report.markdown_table(rows)
    if gaps:
        table += f"\n\nDifferences in NLL; negative is better.\n\n{report.markdown_table(gaps)}"
    about = _about(protocol, jobs, runs)
    text = f"# {protocol.title}\n\n{about}\n\n{table}\n"
    report.write_bytes(text.encode(), folder / "table.md")
    sections = [report.Section("Rows", about, table=rows)]
    if gaps:
        sections.append(report.Section("Differences in NLL: negative is better", table=gaps))
    what = "The bound" if protocol.estimator == "guide" else "log p(x)"
    for part in get_args(Part):
        if figure := _curves(protocol, jobs, folder, part):
            sections.append(report.Section(f"{what} on {part} data while training", figures=[figure]))
    if figure := _kl_curves(jobs, folder):
        text = "E_q[log q(z_l | .) - log p(z_l | .)] of each layer on test data. Below the dotted line it is idle."
        sections.append(report.Section("The layers while training", text, figures=[figure]))
    sections += _pictures(jobs)
    report.html_page(protocol.title, sections, folder / "index.html")
    return table


def _curves(protocol: Protocol, jobs: Jobs, folder: Path, part: Part) -> Path | None:
    """A figure of the bound, or log p(x), against the training data seen, of the runs that have come far enough."""
    curves: dict[str, list[Any]] = {}
    for (row, _), job in jobs.items():
        if len(curve := job.curve(part)) > 1:
            curves.setdefault(row, []).append(curve)
    same = {row: [c for c in several if len(c) == len(several[0])] for row, several in curves.items()}
    if not same:
        return None
    return report.learning_curves(
        same,
        folder / f"{part}_curves.png",
        ylabel=f"{part} {'bound' if protocol.estimator == 'guide' else 'log p(x)'}, nats per datum",
        xlabel="training data seen",
        title=protocol.title,
        log_x=True,
    )


def _kl_curves(jobs: Jobs, folder: Path) -> Path | None:
    """A figure of the KL term of each layer against the training data seen, of each row's first seed."""
    rows = {row: job.kl_curves() for (row, seed), job in jobs.items() if seed == 0}
    come = {row: curves for row, curves in rows.items() if any(len(curve) > 1 for curve in curves.values())}
    return report.kl_curves(come, folder / "kl_curves.png", xlabel="training data seen") if come else None


def _pictures(jobs: Jobs) -> list[report.Section]:
    """What the first seed of each row draws, beside real data; of two latents the whole manifold."""
    first = {row: job.folder for (row, seed), job in jobs.items() if seed == 0 and job.result() is not None}
    found = {
        row: [_either(at / "real_and_samples.png", at / "samples.png"), at / "manifold.png"]
        for row, at in first.items()
    }
    there = {row: [path for path in paths if path.exists()] for row, paths in found.items()}
    return [report.Section(row, figures=paths) for row, paths in there.items() if paths]


def _either(path: Path, other: Path) -> Path:
    return path if path.exists() else other


def _about(protocol: Protocol, jobs: Jobs, runs: Sequence[Mapping[str, Any]]) -> str:
    job = next(iter(jobs.values()))
    particles, _ = job.budget.of(protocol)
    data = runs[0]["data"] if runs else {"num_test": 0, "note": ""}
    number = f"{data['num_test']:,} " if data["num_test"] else ""
    note = f" ({data['note']})" if data["note"] else ""
    share = "" if job.budget.fraction == 1 else f" A rehearsal: {job.budget.fraction:g} of each stage of the schedule."
    other = f"Batches of {job.batch_size}, not {protocol.batch_size}. " if job.budget.batch_size else ""
    deviations = f"\n\nDeviations: {other}{protocol.deviations}" if other or protocol.deviations else ""
    independent = f" Independent: {protocol.independent_source}." if protocol.independent_source else ""
    how = _HOW[protocol.estimator]
    return (
        f"Published: {protocol.source}.{independent}\n\nOurs: NLL in nats per datum on {number}test data of "
        f"{protocol.data}{note}, by {how} with {particles:,} particles; in brackets the standard error over seeds, of "
        f"one seed over the data. Active units and KL terms (nats): bottom to top.{share}{deviations}"
    )


def _line(row: Row, jobs: Jobs, results: Mapping[tuple[str, int], Any]) -> dict[str, Any]:
    if row.absent is not None:
        return {**dict.fromkeys(COLUMNS, ""), "row": row.name, "seeds": 0, "state": row.absent}
    source = row.same_as or row.name
    mine = {seed: job for (name, seed), job in jobs.items() if name == source}
    found = [results[source, seed] for seed in mine if (source, seed) in results]
    steps, seconds = next(iter(mine.values())).steps, [r["history"]["seconds"] for r in found]
    cells = [
        row.name,
        _published(row.published),
        _published(row.independent),
        _nll(found),
        _units(found),
        _kl(found),
        len(found),
        steps,
        f"{statistics.fmean(seconds) / 3600:.2f}" if seconds else "",
        found[0]["environment"]["gpu"] or found[0]["environment"]["cpu"] if found else "",
        _state(row, mine, len(found)),
    ]
    return dict(zip(COLUMNS, cells, strict=True))


def _state(row: Row, mine: Mapping[int, Job], finished: int) -> str:
    if finished == len(mine):
        return f"the run of {row.same_as}" if row.same_as else "finished"
    done = [job.steps_done for job in mine.values() if job.result() is None]
    if row.on_request and not any(done):
        return "on request"
    return f"unfinished: at step {', '.join(f'{d:,}' for d in done)}" if any(done) else "not begun"


def _published(figures: Published) -> str:
    if figures.nll is None:
        return ""
    units = f" ({'+'.join(map(str, figures.active_units))})" if figures.active_units else ""
    return f"{figures.nll:.2f}{units}"


def _nll(found: list[Any]) -> str:
    nlls = [r["evaluation"]["nll"] for r in found]
    if not nlls:
        return ""
    error = _error(nlls) if len(nlls) > 1 else found[0]["evaluation"]["nll_se"]
    return f"{statistics.fmean(nlls):.2f}" + ("" if error is None else f" ({error:.2f})")  # of one datum there is none


def _units(found: list[Any]) -> str:
    sites = _upwards(found[0]["evaluation"]["active_units"]) if found else []
    counts = [statistics.fmean(r["evaluation"]["active_units"][site]["count"] for r in found) for site in sites]
    return "+".join(f"{count:g}" for count in counts)


def _kl(found: list[Any]) -> str:
    sites = _upwards(found[0]["evaluation"]["kl"]) if found else []
    return "+".join(f"{statistics.fmean(r['evaluation']['kl'][site] for r in found):.2f}" for site in sites)


def _upwards(sites: Iterable[str]) -> list[str]:
    """z1, z2, ..., z10: a guide may draw them the other way round."""
    return sorted(sites, key=lambda site: (len(site), site))


def _gap(row: Row, other: str, results: Mapping[tuple[str, int], Any]) -> dict[str, Any]:
    name = row.same_as or row.name
    seeds = [seed for (n, seed) in results if n == name and (other, seed) in results]
    gaps = [results[name, s]["evaluation"]["nll"] - results[other, s]["evaluation"]["nll"] for s in seeds]
    error = _error(gaps) if len(gaps) > 1 else math.nan
    ours = "" if not gaps else f"{statistics.fmean(gaps):+.2f}" + ("" if math.isnan(error) else f" ({error:.2f})")
    return {"row": row.name, "minus": other, "ours": ours, "seeds": len(gaps)}


def _error(values: list[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
