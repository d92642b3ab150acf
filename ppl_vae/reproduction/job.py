"""One row of a table, from one seed: a run folder that is trained, taken up again where it stopped, and evaluated."""

import copy
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ppl_vae import evaluation, rates, report, runs, specs
from ppl_vae.checkpoints import Checkpoints
from ppl_vae.data import Dataset, load
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.objectives import LinearWarmup, Objective
from ppl_vae.pair import Pair
from ppl_vae.reproduction.protocol import Protocol, Row
from ppl_vae.run_folder import CHECKPOINTS, RunFolder
from ppl_vae.training import Record, fit, resolve_device
from ppl_vae.workers import Advance

__all__ = ["Budget", "Job"]

TEST_CURVE, KL_CURVE = "test_curve.json", "kl_curve.json"
KL_PARTICLES = 10
"""Of each test datum, for a mean over many of them."""


@dataclass(frozen=True)
class Budget:
    """How much of a protocol is run.

    Args:
        fraction: of each stage of the schedule, for a rehearsal; 1 is the protocol.
        passes: stop after so many passes of the (scaled) schedule; None: all of them.
        num_particles: K of the NLL; None: the protocol's, or its rehearsal's where fraction is below 1.
        num_test: the first so many test data; None likewise.
        batch_size: data per step, where it is not to be the protocol's: a deviation, which the page names.
    """

    fraction: float = 1.0
    passes: float | None = None
    num_particles: int | None = None
    num_test: int | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction: got {self.fraction}, expected a number above 0, and at most 1")
        if self.passes is not None and not self.passes > 0:
            raise ValueError(f"passes: got {self.passes}, expected a number above 0")
        for name in ("num_particles", "num_test", "batch_size"):
            if (value := getattr(self, name)) is not None:
                require_positive(name, value)

    def of(self, protocol: Protocol) -> tuple[int, int]:
        """K and the number of test data; 0 for all."""
        rehearses = self.fraction < 1
        particles = self.num_particles or (protocol.rehearsal_particles if rehearses else protocol.num_particles)
        return particles, self.num_test or (protocol.rehearsal_test if rehearses else 0)


@dataclass(frozen=True)
class Job:
    """Trains and evaluates one row from one seed; called again after an end of any kind, it goes on.

    Args:
        protocol, row, seed, budget: what to run.
        folder: the run folder.
        start: that of the run whose end this one begins with, or None.
        data_root: folder of the data sets.
        device, compile: as for `fit`.
    """

    protocol: Protocol
    row: Row
    seed: int
    budget: Budget
    folder: Path
    start: Path | None
    data_root: str | None
    device: str
    compile: Any

    def __call__(self, advance: Advance) -> dict[str, Any]:
        """What has been reached: `evaluation`, `history` and `environment`, as in results.json of the run folder."""
        if (found := self.result()) is not None:
            advance(self.steps)
            return found
        dataset = self.dataset()
        torch.manual_seed(self.seed)
        pair = specs.maker(str(self.row.pair), dataset)()
        objective = self.objective()
        adam = torch.optim.Adam(
            pair.to(resolve_device(self.device)).parameters(),
            lr=self.protocol.learning_rate,
            betas=self.protocol.betas,
            eps=self.protocol.eps,
            fused=True,
        )
        if self.start is not None:
            _begin_with(self.start, pair, adam)
        done, text = 0, self.row.schedule or self.protocol.schedule
        with self._opened() as folder:

            def on_record(record: Record) -> None:
                nonlocal done
                advance(record.step - done)
                done = record.step
                folder.record(record)
                self._follow(record.step, pair, objective, dataset)

            history = fit(
                pair,
                dataset,
                objective,
                steps=self.steps,
                batch_size=self.batch_size,
                optim=adam,
                schedule=rates.parse(text, steps=self.steps, steps_per_pass=self._steps_per_pass),
                seed=self.seed,
                device=self.device,
                compile=self.compile,
                checkpoints=folder.checkpoints,
                resume=True,
                progress=False,
                on_record=on_record,
            )
            folder.finish(history)
            test = dataset.test_batch().to(pair.reference().device)
            particles, _ = self.budget.of(self.protocol)
            reached = evaluation.evaluate(pair, test, objective=objective, num_particles=particles, seed=self.seed)
            runs.save_pair(folder.path, pair)
            report.pictures(pair, test, self.row.name, folder.path)
            result = {"data": dataset.describe(), "evaluation": reached.as_dict(), "history": history.as_dict()}
            environment = report.environment(history.device)
            report.write_json({**result, "environment": environment}, self.folder / "results.json")
        found = self.result()
        assert found is not None
        return found

    def result(self) -> dict[str, Any] | None:
        """What has been reached; None before the end."""
        path = self.folder / "results.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def check(self) -> None:
        """Refuse what would be refused once the run has begun.

        Raises:
            ValueError: fewer data than a batch or the budget asks for; a pair that can't be made for them.
        """
        dataset, wanted = self.dataset(), self.budget.num_test
        for name, number, there in (
            ("batch_size", self.batch_size, len(dataset.train)),
            ("num_test", wanted or 1, len(dataset.test)),
        ):
            if number > there:
                raise ValueError(f"{name}: got {number}, expected at most {there}, the data there are; choose less")
        with torch.random.fork_rng(devices=[]):
            specs.maker(str(self.row.pair), dataset)()

    @property
    def steps(self) -> int:
        """Of the run."""
        planned = self.row.passes or self.protocol.passes
        passes = planned if self.budget.passes is None else min(planned, self.budget.passes)
        return max(1, round(passes * self._steps_per_pass))

    @property
    def batch_size(self) -> int:
        """Data per step."""
        return self.budget.batch_size or self.protocol.batch_size

    @property
    def steps_done(self) -> int:
        """Of the last point of the learning curve that was written."""
        path = self.folder / "metrics.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()  # a kill may have cut the last one off
        return int(json.loads(lines[-1])["step"]) if lines else 0

    @property
    def _steps_per_pass(self) -> int:
        """What counts as one pass of the schedule: a fraction of one, for a rehearsal."""
        return max(1, round(self.budget.fraction * (len(self.dataset().train) // self.batch_size)))

    def objective(self) -> Objective:
        """The row's, with its warm-up."""
        objective = specs.make_objective(str(self.row.objective))
        if self.row.warmup is not None:
            objective.kl_weight = LinearWarmup(max(1, round(self.row.warmup * self._steps_per_pass)))
        return objective

    def dataset(self) -> Dataset:
        """The data of the protocol."""
        _, num_test = self.budget.of(self.protocol)
        return _dataset(
            self.protocol.data, self.protocol.binarisation, self.data_root, self.protocol.num_train, num_test or None
        )

    def test_curve(self) -> list[tuple[float, float]]:
        """Points (training data seen, bound on test data in nats per datum), as far as the run has come."""
        return [(int(step) * self.batch_size, bound) for step, bound in self._read(TEST_CURVE).items()]

    def kl_curves(self) -> dict[str, list[tuple[float, float]]]:
        """For each latent site points (training data seen, KL on test data in nats per datum), likewise."""
        found = self._read(KL_CURVE)
        sites = next(iter(found.values()), {})
        return {site: [(int(step) * self.batch_size, kl[site]) for step, kl in found.items()] for site in sites}

    def _follow(self, step: int, pair: Pair, objective: Objective, dataset: Dataset) -> None:
        test = dataset.test_batch()[: self.protocol.rehearsal_test].to(pair.reference().device)
        if self.protocol.test_curve:
            self._append(TEST_CURVE, step, evaluation.bound(pair, objective, test, seed=0).mean().item())
        if self.protocol.kl_curve:
            kl = evaluation.kl_per_site(pair, test, num_particles=KL_PARTICLES, seed=0)
            self._append(KL_CURVE, step, {site: values.mean().item() for site, values in sorted(kl.items())})

    def _append(self, name: str, step: int, value: Any) -> None:
        # A run that was taken up again comes by some steps once more.
        kept = {s: v for s, v in self._read(name).items() if int(s) < step}
        report.write_json({**kept, str(step): value}, self.folder / name)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _opened(self) -> AbstractContextManager[RunFolder]:
        if self.folder.exists():
            return RunFolder.reopen(self.folder)
        config = {"pair": self.row.pair, "objective": self.row.objective, "data": self.protocol.data}
        config |= {"data_root": self.data_root, "data_seed": 0, "binarisation": self.dataset().binarisation}
        particles, num_test = self.budget.of(self.protocol)
        config |= {"seed": self.seed, "num_particles": particles, "num_test": num_test or None, "steps": self.steps}
        return RunFolder.create(self.folder, config)


def _begin_with(run: Path, pair: Pair, optim: torch.optim.Optimizer) -> None:
    """Take over the weights at the end of a run, and the moments of its optimiser."""
    state = Checkpoints(run / CHECKPOINTS).load()
    pair.load_state_dict(state["pair"])
    kept = {key: value for key, value in state["steps"]["optimiser"].items() if key != "class"}
    rates_before = [group["lr"] for group in optim.param_groups]
    optim.load_state_dict(copy.deepcopy(kept))
    for group, rate in zip(optim.param_groups, rates_before, strict=True):
        group["lr"] = rate  # the schedule's factors are on the first one, not on the last


@lru_cache(maxsize=1)
def _dataset(name: str, binarisation: Any, root: str | None, num_train: int | None, num_test: int | None) -> Dataset:
    dataset = load(name, binarisation=binarisation, root=root)
    # A protocol's numbers are of the whole data set: a part of it is used as it is.
    smaller = None if num_train is None else min(num_train, len(dataset.train))
    return dataset.subset(smaller, None if num_test is None else min(num_test, len(dataset.test)))
