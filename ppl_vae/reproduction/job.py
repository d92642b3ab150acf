"""One row of a table, from one seed: a run folder that is trained, taken up again where it stopped, and evaluated."""

import copy
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ppl_vae import evaluation, rates, report, runs, specs
from ppl_vae.checkpoints import Checkpoints
from ppl_vae.data import Dataset, load
from ppl_vae.mcem import fit_mcem
from ppl_vae.objectives import LinearWarmup, Objective, Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.quiet import undisturbed
from ppl_vae.reproduction.budget import Progress
from ppl_vae.reproduction.protocol import Protocol, Row
from ppl_vae.reproduction.row_job import RowJob
from ppl_vae.run_folder import CHECKPOINTS, RunFolder
from ppl_vae.stacked import fit_stacked
from ppl_vae.training import History, Record, fit, resolve_device
from ppl_vae.workers import Advance

__all__ = ["Job", "Stack"]

TEST_CURVE, TRAIN_CURVE, KL_CURVE = "test_curve.json", "train_curve.json", "kl_curve.json"
CURVE_PARTICLES = 5000
"""Draws for a point of a curve of log p(x)."""
KL_PARTICLES = 10
"""Of each test datum, for a mean over many of them."""


class Job(RowJob[Protocol, Row]):
    """Trains and evaluates a row of a table of likelihoods, in a run folder."""

    def run(self, advance: Advance) -> None:
        """Train, follow the curves that the protocol asks for, and evaluate."""
        pair, objective, watch = self.pair(), self.objective(), Progress(advance)
        adam = self.adam(list(pair.to(resolve_device(self.device)).parameters()))
        if self.start is not None:
            _begin_with(self.start, pair, adam)
        with self.opened() as folder:

            def on_record(record: Record) -> None:
                watch(record.step)
                self.record(record, folder, pair, objective)

            options = {"optim": adam, "seed": self.seed, "checkpoints": folder.checkpoints, "on_record": on_record}
            settings = {**self.settings(), **options}
            if self.row.method == "mcem":
                del settings["compile"]
                history, _ = fit_mcem(pair, self.dataset(), **settings)
            else:
                history = fit(pair, self.dataset(), objective, **settings)
            self.finish(history, folder, pair, objective)

    def settings(self) -> dict[str, Any]:
        """What `fit` and `fit_stacked` are given alike."""
        text = self.row.schedule or self.protocol.schedule
        return {
            "steps": self.steps,
            "batch_size": self.batch_size,
            "schedule": rates.parse(text, steps=self.steps, steps_per_pass=self._steps_per_pass),
            "device": self.device,
            "compile": self.compile,
            "resume": True,
            "progress": False,
        }

    def pair(self) -> Pair:
        """With the initial weights of the seed."""
        torch.manual_seed(self.seed)
        return specs.maker(str(self.row.pair), self.dataset())()

    def adam(self, parameters: list[Tensor]) -> torch.optim.Adam:
        """The protocol's optimiser."""
        of = self.protocol
        # The loss is the sum over B of N data, so B / N of the prior of the parameters goes with it.
        decay = of.weight_precision * self.batch_size / len(self.dataset().train)
        settings: dict[str, Any] = {"betas": of.betas, "eps": of.eps, "weight_decay": decay, "fused": True}
        return torch.optim.Adam(parameters, lr=of.learning_rate, **settings)

    def record(self, record: Record, folder: RunFolder, pair: Pair, objective: Objective) -> None:
        """Write a point of the learning curve, and those on test data where they are followed."""
        folder.record(record)
        dataset, first, place = self.dataset(), self.protocol.rehearsal_test, pair.reference().device
        test = dataset.test_batch()[:first].to(place)
        if self.protocol.test_curve:
            self._append(TEST_CURVE, record.step, self._followed(pair, objective, test))
        if self.protocol.train_curve:
            with undisturbed(pair, 0):
                seen = dataset.draw(dataset.train[:first].to(place))
            self._append(TRAIN_CURVE, record.step, self._followed(pair, objective, seen))
        if self.protocol.kl_curve:
            kl = evaluation.kl_per_site(pair, test, num_particles=KL_PARTICLES, seed=0)
            self._append(KL_CURVE, record.step, {site: values.mean().item() for site, values in kl.items()})

    def finish(self, history: History, folder: RunFolder, pair: Pair, objective: Objective) -> None:
        """Evaluate, and write everything that the run is for."""
        folder.finish(history)
        dataset, (particles, _) = self.dataset(), self.budget.of(self.protocol)
        test = dataset.test_batch().to(pair.reference().device)
        reached = self._reached(pair, objective, test, particles)
        runs.save_pair(folder.path, pair)
        report.pictures(pair, test, self.row.name, folder.path)
        result = {"data": dataset.describe(), "evaluation": reached, "history": history.as_dict()}
        environment = report.environment(history.device)
        report.write_json({**result, "environment": environment}, self.folder / "results.json")

    def _reached(self, pair: Pair, objective: Objective, test: Tensor, particles: int) -> dict[str, Any]:
        if self.protocol.estimator == "guide":
            return evaluation.evaluate(
                pair, test, objective=objective, num_particles=particles, seed=self.seed
            ).as_dict()
        found = evaluation.prior_sampling(pair, test, num_particles=particles, seed=self.seed)
        ess = found.ess.mean().item()
        numbers = {"nll": -found.mean, "nll_se": found.standard_error, "ess": ess, "num_particles": particles}
        return {**numbers, "kl": {}, "active_units": {}}  # of a guide, and there may be none

    def _followed(self, pair: Pair, objective: Objective, x: Tensor) -> float:
        """A point of a curve: the objective's bound, or log p(x)."""
        if self.protocol.estimator == "guide":
            return evaluation.bound(pair, objective, x, seed=0).mean().item()
        return evaluation.prior_sampling(pair, x, num_particles=CURVE_PARTICLES).mean

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
        """The row's, with its warm-up; of Monte Carlo EM what its M-step raises."""
        if self.row.method == "mcem":
            return Trace_ELBO()
        objective = specs.make_objective(str(self.row.objective))
        if self.row.warmup is not None:
            objective.kl_weight = LinearWarmup(max(1, round(self.row.warmup * self._steps_per_pass)))
        return objective

    def dataset(self) -> Dataset:
        """The data of the protocol."""
        _, num_test = self.budget.of(self.protocol)
        num_train = self.row.num_train or self.protocol.num_train
        return _dataset(self.protocol.data, self.protocol.binarisation, self.data_root, num_train, num_test or None)

    def curve(self, part: Literal["test", "train"]) -> list[tuple[float, float]]:
        """Points (training data seen, bound or log p(x) in nats per datum), as far as the run has come."""
        name = TEST_CURVE if part == "test" else TRAIN_CURVE
        return [(int(step) * self.batch_size, value) for step, value in self._read(name).items()]

    def kl_curves(self) -> dict[str, list[tuple[float, float]]]:
        """For each latent site points (training data seen, KL on test data in nats per datum), likewise."""
        found = self._read(KL_CURVE)
        sites = next(iter(found.values()), {})
        return {site: [(int(step) * self.batch_size, kl[site]) for step, kl in found.items()] for site in sites}

    def _append(self, name: str, step: int, value: Any) -> None:
        # A run that was taken up again comes by some steps once more.
        kept = {s: v for s, v in self._read(name).items() if int(s) < step}
        report.write_json({**kept, str(step): value}, self.folder / name)

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def opened(self) -> AbstractContextManager[RunFolder]:
        """The run folder, new or taken up again."""
        if self.folder.exists():
            return RunFolder.reopen(self.folder)
        config = {"pair": self.row.pair, "objective": self.row.objective or self.row.method, "data": self.protocol.data}
        config |= {"data_root": self.data_root, "data_seed": 0, "binarisation": self.dataset().binarisation}
        particles, num_test = self.budget.of(self.protocol)
        config |= {"seed": self.seed, "num_particles": particles, "num_test": num_test or None, "steps": self.steps}
        return RunFolder.create(self.folder, config)


@dataclass(frozen=True)
class Stack:
    """Trains several seeds of a row in one batched computation, and evaluates each: the same files as from jobs.

    Args:
        jobs: of one row, which starts afresh.
    """

    jobs: Sequence[Job]

    @property
    def row(self) -> Row:
        """Of the jobs."""
        return self.jobs[0].row

    def __call__(self, advance: Advance) -> None:
        """Train and evaluate, unless that has been done."""
        if all(job.result() is not None for job in self.jobs):
            advance(sum(job.steps for job in self.jobs))
            return
        first, objective = self.jobs[0], self.jobs[0].objective()
        pairs = [job.pair() for job in self.jobs]
        with ExitStack() as stack:
            folders = [stack.enter_context(job.opened()) for job in self.jobs]
            watch = Progress(lambda steps: advance(steps * len(pairs)))

            def on_record(run: int, record: Record) -> None:
                watch(record.step)
                self.jobs[run].record(record, folders[run], pairs[run], objective)

            options = {"seeds": [job.seed for job in self.jobs], "optim": first.adam, "on_record": on_record}
            checkpoints = first.folder.with_name(f"{first.folder.name}-stacked")
            histories = fit_stacked(
                pairs, first.dataset(), objective, checkpoints=checkpoints, **first.settings(), **options
            )
            for job, folder, pair, history in zip(self.jobs, folders, pairs, histories, strict=True):
                job.finish(history, folder, pair, objective)


def _begin_with(run: Path, pair: Pair, optim: torch.optim.Optimizer) -> None:
    """Take over the weights at the end of a run, and the moments of its optimiser."""
    checkpoints = Checkpoints(run / CHECKPOINTS)
    if checkpoints.newest() is None:
        raise ValueError(
            f"stacked: got {run}, which was trained among others and kept no optimiser, expected a run by itself; name "
            "both rows in one command, with another --out"
        )
    state = checkpoints.load()
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
