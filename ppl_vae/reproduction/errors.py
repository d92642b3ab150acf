"""Tables of error rates: a protocol, its rows as runs that survive, and the page beside the print."""

import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from ppl_vae import report, specs
from ppl_vae.data import Binarisation, Labelled, labelled, load
from ppl_vae.evaluation import classification_error
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.quiet import undisturbed
from ppl_vae.reproduction.budget import Progress
from ppl_vae.reproduction.row_job import RowJob
from ppl_vae.reproduction.rows import check_names, chosen
from ppl_vae.reproduction.ways import WAYS, Run, Way
from ppl_vae.training import Record
from ppl_vae.workers import Advance

__all__ = ["ErrorJob", "ErrorProtocol", "ErrorRow", "Errors", "write_error_page"]

PARTS = ("train", "valid", "test")


@dataclass(frozen=True)
class Errors:
    """Shares of data that are misread, in percent, as printed somewhere."""

    train: float | None = None
    valid: float | None = None
    test: float | None = None


@dataclass(frozen=True)
class ErrorRow:
    """One row of a table of error rates.

    Args:
        name: of the row.
        way: as a text: `Stack(layers=3)`, `M2(labels=100)`; see `ppl_vae.reproduction.ways`.
        on_request: left out unless it is named.
        published: by the authors.
    """

    name: str
    way: str
    on_request: bool = False
    published: Errors = field(default_factory=Errors)
    same_as = start = None
    has_run = True

    def parsed(self) -> Way:
        """The way.

        Raises:
            ValueError: there is no such way, or it has no such settings.
        """
        way = specs.evaluated(self.way, WAYS, "way")
        if not isinstance(way, Way):
            raise ValueError(
                f"way: got {self.way!r}, expected one of {', '.join(WAYS)}, with its settings in parentheses"
            )
        return way


@dataclass(frozen=True)
class ErrorProtocol:
    """How the rows of a table of error rates are trained.

    Args:
        title: of the table.
        source: where it was published.
        data: name of a data set with classes.
        rows: of the table.
        num_valid: the last so many training data are held out.
        batch_size: data per step.
        binarisation: of the data.
        num_train: the first so many training data, those held out among them; all by default.
        rehearsal_test: the first so many test data, where a fraction of the protocol runs.
        deviations: from what was published.

    Raises:
        ValueError: rows of one name, or a way that can't be read; a number out of its range.
    """

    title: str
    source: str
    data: str
    rows: list[ErrorRow]
    num_valid: int
    batch_size: int = 100
    binarisation: Binarisation | None = None
    num_train: int | None = None
    rehearsal_test: int = 1000
    deviations: str = ""

    def __post_init__(self) -> None:
        for name in ("batch_size", "num_valid", "rehearsal_test", *(["num_train"] if self.num_train else [])):
            require_positive(name, getattr(self, name))
        check_names(self.rows)
        for row in self.rows:
            row.parsed()

    def chosen(self, names: list[str] | None) -> list[ErrorRow]:
        """Rows by name, or number from 1; all but those on request by default.

        Raises:
            ValueError: there is no such row.
        """
        return chosen(self.rows, names)


class ErrorJob(RowJob[ErrorProtocol, ErrorRow]):
    """Trains and measures a row of a table of error rates: each stage has a folder of checkpoints in the run's."""

    def run(self, advance: Advance) -> None:
        """Train, and count what is misread of each part of the data."""
        run = self._run(advance)
        pair = self.row.parsed().train(run)
        with undisturbed(pair, 0):
            seen = run.data.dataset.draw(run.data.train)
        parts = {"train": (seen, run.data.train_labels), "valid": run.valid, "test": self._data().test_batch()}
        shares = {name: classification_error(pair, x, y) for name, (x, y) in parts.items()}  # type: ignore[arg-type]
        found = {name: {"percent": 100 * share.value, "s.e.": 100 * share.se} for name, share in shares.items()}
        environment = report.environment(pair.reference().device)
        result = {"data": self._data().describe(), "errors": found, "environment": environment}
        report.write_json({**result, "steps": self.steps}, self.folder / "results.json")

    def check(self) -> None:
        """Refuse what would be refused once the run has begun.

        Raises:
            ValueError: data without classes, or fewer than the protocol or the budget asks for; a limit on passes or
                particles.
        """
        for name in ("passes", "num_particles"):
            if getattr(self.budget, name) is not None:
                raise ValueError(f"{name}: got it for a table of error rates, expected it left out; choose a fraction")
        self._run(lambda steps: None)
        self._data()

    @property
    def steps(self) -> int:
        """Of all stages of the run."""
        return self.row.parsed().steps(self._run(lambda steps: None))

    @property
    def steps_done(self) -> int:
        """1 where the run has begun: its stages have curves of their own."""
        return int(self.folder.exists())

    def _run(self, advance: Advance) -> Run:
        data = self._data()
        rest, valid = data.hold_out(self.protocol.num_valid)
        batch_size = self.budget.batch_size or self.protocol.batch_size

        def options(stage: str) -> dict[str, Any]:
            watch = Progress(advance)

            def on_record(record: Record) -> None:
                if record.step < watch.done:
                    watch.done = 0  # the next layer
                watch(record.step)

            settings: dict[str, Any] = {"device": self.device, "compile": self.compile, "progress": False}
            return settings | {"checkpoints": self.folder / stage, "resume": True, "on_record": on_record}

        def per_pass(number: int) -> int:
            return max(1, round(self.budget.fraction * (number // batch_size)))

        return Run(rest, valid, self.seed, per_pass, batch_size, options)

    def _data(self) -> Labelled:
        rehearsal = self.protocol.rehearsal_test if self.budget.fraction < 1 else None
        num_test = self.budget.num_test or rehearsal
        return _data(self.protocol.data, self.protocol.binarisation, self.data_root, self.protocol.num_train, num_test)


def write_error_page(protocol: ErrorProtocol, jobs: Mapping[tuple[str, int], ErrorJob], folder: Path) -> str:
    """Write results.json, table.md and index.html for what has been reached so far; the table as text.

    Args:
        protocol: of the table.
        jobs: by name of the row and seed.
        folder: an existing folder.
    """
    results = {key: found for key, job in jobs.items() if (found := job.result()) is not None}
    rows = [_line(row, jobs, results) for row in protocol.rows]
    runs = [{"row": name, "seed": seed, **found} for (name, seed), found in results.items()]
    report.write_json({"protocol": asdict(protocol), "rows": rows, "runs": runs}, folder / "results.json")
    budget = next(iter(jobs.values())).budget
    share = "" if budget.fraction == 1 else f" A rehearsal: {budget.fraction:g} of the passes."
    deviations = f"\n\nDeviations: {protocol.deviations}" if protocol.deviations else ""
    about = (
        f"Published: {protocol.source}.\n\nOurs: data of {protocol.data} that are misread, in percent, train / valid / "
        f"test; in brackets the standard error of the last, over seeds, of one seed over the data.{share}{deviations}"
    )
    table = report.markdown_table(rows)
    report.write_bytes(f"# {protocol.title}\n\n{about}\n\n{table}\n".encode(), folder / "table.md")
    report.html_page(protocol.title, [report.Section("Rows", about, table=rows)], folder / "index.html")
    return table


def _line(row: ErrorRow, jobs: Mapping[tuple[str, int], ErrorJob], results: Mapping[Any, Any]) -> dict[str, Any]:
    mine = {seed: job for (name, seed), job in jobs.items() if name == row.name}
    found = [results[row.name, seed] for seed in mine if (row.name, seed) in results]
    published = [getattr(row.published, part) for part in PARTS]
    has_begun = any(job.steps_done for job in mine.values())
    state = "finished" if len(found) == len(mine) else "unfinished" if has_begun else "not begun"
    return {
        "row": row.name,
        "published": " / ".join("-" if p is None else f"{p:g}" for p in published) if any(published) else "",
        "ours": _ours(found),
        "seeds": len(found),
        "steps": next(iter(mine.values())).steps,
        "device": found[0]["environment"]["gpu"] or found[0]["environment"]["cpu"] if found else "",
        "state": "on request" if row.on_request and state == "not begun" else state,
    }


def _ours(found: list[Any]) -> str:
    if not found:
        return ""
    percents = {part: [run["errors"][part]["percent"] for run in found] for part in PARTS}
    error = found[0]["errors"]["test"]["s.e."]
    if len(found) > 1:
        error = statistics.stdev(percents["test"]) / len(found) ** 0.5
    return " / ".join(f"{statistics.fmean(values):.2f}" for values in percents.values()) + f" ({error:.2f})"


@lru_cache(maxsize=1)
def _data(
    name: str, binarisation: Binarisation | None, root: str | None, num_train: int | None, num_test: int | None
) -> Labelled:
    dataset = load(name, binarisation=binarisation, root=root)
    # As in tables of NLLs: a data set that has fewer is used as it is.
    smaller = [None if n is None else min(n, len(x)) for n, x in ((num_train, dataset.train), (num_test, dataset.test))]
    return labelled(dataset.subset(*smaller))
