"""`compare`: pairs x objectives x seeds with equal initial weights, data and budget -> one table in nats."""

import copy
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ppl_vae import evaluation
from ppl_vae.data import Dataset, Source, as_batch
from ppl_vae.evaluation import Evaluation
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair
from ppl_vae.seeds import check_seeds
from ppl_vae.training import Compile, Data, History, Record, fit, resolve_device
from ppl_vae.workers import Advance, run_jobs

__all__ = ["Comparison", "Difference", "Row", "Run", "compare"]

MakePair = Callable[[], Pair]


@dataclass(frozen=True)
class Run:
    """One pair trained with one objective from one seed.

    Args:
        pair: name of the pair.
        objective: name of the objective.
        seed: of the initial weights, the minibatches and the noise.
        history: the learning curve and the time taken.
        evaluation: what the trained pair reaches on the test data.
        gradient_snr: signal-to-noise ratio of the objective's gradient at the end of the run, for the parameters of
            the model and of the guide (`evaluation.gradient_snr`); empty where it was not asked for.
    """

    pair: str
    objective: str
    seed: int
    history: History
    evaluation: Evaluation
    gradient_snr: dict[str, float]


@dataclass(frozen=True)
class Row:
    """The runs of one pair and one objective: means over the seeds.

    Args:
        pair: name of the pair.
        objective: name of the objective.
        seeds: how many.
        nll: -log p(x) in nats per datum, by importance sampling.
        nll_se: its standard error over the seeds; over the test data where there is one seed.
        active_units: for each latent site, bottom to top.
        ess: effective sample size of the importance sampling.
        bound: the training bound on the test data, nats per datum.
        snr_model: signal-to-noise ratio of the gradient of the model's parameters; NaN where it was not asked for.
        snr_guide: that of the guide's parameters.
        ms_per_step: median wall time of a training step.
    """

    pair: str
    objective: str
    seeds: int
    nll: float
    nll_se: float
    active_units: tuple[float, ...]
    ess: float
    bound: float
    snr_model: float
    snr_guide: float
    ms_per_step: float


@dataclass(frozen=True)
class Difference:
    """NLL of `objective` minus NLL of `baseline`, paired over the seeds: negative is better than the baseline."""

    pair: str
    objective: str
    baseline: str
    nats: float
    standard_error: float


@dataclass(frozen=True)
class Comparison:
    """What `compare` returns.

    Args:
        runs: all runs.
        trained: the pair of the last seed of each (pair, objective), for pictures.
        config: what was asked for, and the data's description.
    """

    runs: list[Run]
    trained: dict[tuple[str, str], Pair] = field(repr=False)
    config: dict[str, Any]

    @property
    def rows(self) -> list[Row]:
        """One row for each pair and objective, in the order in which they were given."""
        return [_row(runs) for runs in self._cells().values()]

    def differences(self) -> list[Difference]:
        """Each objective against the first one, for each pair."""
        cells, first = self._cells(), next(iter(self.config["objectives"]))
        return [
            _difference(runs, cells[pair, first])
            for (pair, objective), runs in cells.items()
            if objective != first and (pair, first) in cells
        ]

    def as_dict(self) -> dict[str, Any]:
        """Config, rows, differences and runs, ready for JSON."""
        return {
            "config": self.config,
            "label": self.runs[0].evaluation.label if self.runs else "",
            "rows": [asdict(row) for row in self.rows],
            "differences": [asdict(difference) for difference in self.differences()],
            "runs": [
                {
                    "pair": run.pair,
                    "objective": run.objective,
                    "seed": run.seed,
                    "evaluation": run.evaluation.as_dict(),
                    "gradient_snr": run.gradient_snr,
                    "history": run.history.as_dict(),
                }
                for run in self.runs
            ],
        }

    def _cells(self) -> dict[tuple[str, str], list[Run]]:
        cells: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            cells.setdefault((run.pair, run.objective), []).append(run)
        return cells


def compare(
    make_pair: MakePair | Mapping[str, MakePair],
    objectives: Mapping[str, Objective],
    data: Data,
    *,
    test: Tensor | Sequence[Tensor] | None = None,
    steps: int,
    seeds: int = 3,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    schedule: Callable[[int], float] | None = None,
    num_particles: int = 5000,
    num_test: int | None = None,
    gradient_draws: int = 100,
    device: str | torch.device = "auto",
    compile: Compile = "auto",
    workers: int = 1,
    progress: bool = True,
    on_run: Callable[[Run], None] | None = None,
) -> Comparison:
    """Train each pair with each objective, from equal weights and with an equal budget, and evaluate all alike.

    For one seed, all objectives start from the same initial weights and see the same minibatches in the same
    order. All are evaluated on the test data by importance sampling with the same number of particles, whatever
    they were trained for.

    Args:
        make_pair: makes a fresh pair; or several such functions by name.
        objectives: by name; the first is the baseline of the paired differences.
        data: a data set; or a tensor of N rows, or several tensors of N rows, one for each argument of the programs.
        test: test data for a `data` of tensors, of as many tensors; its last tenth is held out if None.
        steps: gradient steps of each run.
        seeds: how many runs of each; seeds 0, 1, ...
        batch_size: B.
        learning_rate: of Adam.
        schedule: from the step to a factor on the learning rate.
        num_particles: K of the evaluation.
        num_test: evaluate on the first so many test data; on all of them if None.
        gradient_draws: of the noise, for the signal-to-noise ratio of each trained pair's gradient on one batch of
            test data; 0 leaves it out.
        device: "auto" takes CUDA where there is one.
        compile: as for `fit`.
        workers: so many runs side by side, in processes of one thread each. With more than one, all arguments
            must be picklable and the main module guarded by `if __name__ == "__main__"`.
        progress: show one bar over all runs, with the time left.
        on_run: called with each finished run.

    Raises:
        ValueError: no objective, no seed, one gradient draw, a number out of its range, or whatever `fit` and
            `evaluate` refuse.

    Example:
        >>> from ppl_vae.data import load
        >>> from ppl_vae.objectives import IWAE, Trace_ELBO
        >>> from ppl_vae.pairs import VAE
        >>> result = compare(lambda: VAE((1, 8, 8), 5, (20,)), {"elbo": Trace_ELBO(), "iwae-5": IWAE(5)},
        ...                  load("digits"), steps=3, seeds=1, num_particles=10, progress=False)
        >>> [row.objective for row in result.rows]
        ['elbo', 'iwae-5']
    """
    if not objectives:
        raise ValueError("objectives: got none, expected at least one; {'elbo': Trace_ELBO()}, say")
    _check_settings(seeds, batch_size, learning_rate, num_particles)
    if gradient_draws < 0 or gradient_draws == 1:
        raise ValueError(f"gradient_draws: got {gradient_draws}, expected 0 for none, or at least 2")
    makers = dict(make_pair) if isinstance(make_pair, Mapping) else {"pair": make_pair}
    place = resolve_device(device)
    train, tests, description = _split(data, test)
    if num_test is not None and not 1 <= num_test <= len(tests[0]):
        raise ValueError(f"num_test: got {num_test}, expected 1 to {len(tests[0])}, the test data there are")
    tests = tuple(t[:num_test].to(place) for t in tests)
    config = {
        "pairs": list(makers),
        "objectives": {name: objective.describe() for name, objective in objectives.items()},
        "steps": steps,
        "seeds": seeds,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "evaluation_particles": num_particles,
        "evaluation_data": len(tests[0]),
        "gradient_draws": gradient_draws,
        "device": str(place),
        "data": description,
    }
    for make in makers.values():
        _fresh(make, 0)  # a pair that can't be made is refused before the first run
    result = Comparison([], {}, config)
    options: dict[str, Any] = {
        "steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "schedule": schedule,
        "device": place, "compile": compile, "progress": False,
    }  # fmt: skip
    jobs = [
        Job(pair, makers[pair], name, objectives[name], seed, train, tests, num_particles, gradient_draws, options)
        for seed in range(seeds)
        for pair in makers
        for name in objectives
    ]
    with tqdm(total=steps * len(jobs), disable=not progress, unit="step", smoothing=0.1, mininterval=0.5) as bar:
        for job, (run, state) in zip(jobs, run_jobs(jobs, workers, bar.update), strict=True):
            trained = _fresh(job.make, job.seed)
            trained.load_state_dict(state)
            result.runs.append(run)
            result.trained[run.pair, run.objective] = trained.to(place).eval()
            bar.set_postfix_str(f"{_short(run.pair)} {run.objective}: {run.evaluation.nll:.2f} nats")
            if on_run is not None:
                on_run(run)
    return result


@dataclass(frozen=True)
class Job:
    """One run yet to be done; called, it gives the run and the trained pair's state."""

    pair: str
    make: MakePair
    name: str
    objective: Objective
    seed: int
    data: Data
    test: tuple[Tensor, ...]
    num_particles: int
    gradient_draws: int
    options: dict[str, Any]

    def __call__(self, advance: Advance) -> tuple[Run, dict[str, Tensor]]:
        """Train and evaluate."""
        trained, objective, done = _fresh(self.make, self.seed), copy.deepcopy(self.objective), 0

        def on_record(record: Record) -> None:
            nonlocal done
            advance(record.step - done)
            done = record.step

        history = fit(trained, self.data, objective, seed=self.seed, on_record=on_record, **self.options)
        reached = evaluation.evaluate(
            trained, *self.test, objective=objective, num_particles=self.num_particles, seed=self.seed
        )
        state = {name: value.cpu() for name, value in trained.state_dict().items()}
        return Run(self.pair, self.name, self.seed, history, reached, self._gradient_snr(trained, objective)), state

    def _gradient_snr(self, trained: Pair, objective: Objective) -> dict[str, float]:
        if not self.gradient_draws:
            return {}
        batch = tuple(t[: self.options["batch_size"]] for t in self.test)
        return evaluation.gradient_snr(trained, objective, *batch, num_samples=self.gradient_draws, seed=self.seed)


def _split(data: Data, test: Tensor | Sequence[Tensor] | None) -> tuple[Data, tuple[Tensor, ...], dict[str, Any]]:
    """Training data, test data, and what to record of them."""
    if isinstance(data, Dataset | Source):
        if test is not None:
            raise ValueError("test: got test data beside a data set, which has its own; pass data.train instead")
        return data, as_batch(data.test_batch()), data.describe()
    if not isinstance(data, Tensor | tuple | list):
        raise ValueError(f"data: got {type(data).__name__}, expected tensors or a Dataset; load_folder makes one")
    train = _tensors(data)
    if test is None:
        kept = max(1, len(train[0]) // 10)
        train, tests = tuple(t[:-kept] for t in train), tuple(t[-kept:] for t in train)
    else:
        tests = _tensors(test)
    shapes = {"train": [list(t.shape) for t in train], "test": [list(t.shape) for t in tests]}
    return train, tests, {"name": "tensors", "binarisation": "none", "note": "", **shapes}


def _tensors(data: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (data,) if isinstance(data, Tensor) else tuple(data)


def _check_settings(seeds: int, batch_size: int, learning_rate: float, num_particles: int) -> None:
    """Refuse before the first run what would be refused after it, or without its name."""
    for name, value in (("batch_size", batch_size), ("num_particles", num_particles)):
        require_positive(name, value)
    check_seeds(seeds)
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate: got {learning_rate}, expected a finite number of at least 0")


def _fresh(make: MakePair, seed: int) -> Pair:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def _short(pair: str) -> str:
    return pair.partition("(")[0]


def _row(runs: Sequence[Run]) -> Row:
    reached = [run.evaluation for run in runs]
    units = [[site.count for site in e.active_units.values()] for e in reached]
    return Row(
        pair=runs[0].pair,
        objective=runs[0].objective,
        seeds=len(runs),
        nll=statistics.fmean(e.nll for e in reached),
        nll_se=_standard_error([e.nll for e in reached]) if len(runs) > 1 else reached[0].nll_se,
        active_units=tuple(statistics.fmean(layer) for layer in zip(*units, strict=True)),
        ess=statistics.fmean(e.ess for e in reached),
        bound=statistics.fmean(e.bound for e in reached if e.bound is not None),
        snr_model=statistics.fmean(run.gradient_snr.get("model", math.nan) for run in runs),
        snr_guide=statistics.fmean(run.gradient_snr.get("guide", math.nan) for run in runs),
        ms_per_step=statistics.median(run.history.ms_per_step for run in runs),
    )


def _difference(runs: Sequence[Run], baseline: Sequence[Run]) -> Difference:
    by_seed = {run.seed: run.evaluation.nll for run in baseline}
    gaps = [run.evaluation.nll - by_seed[run.seed] for run in runs]
    error = _standard_error(gaps) if len(gaps) > 1 else math.nan
    return Difference(runs[0].pair, runs[0].objective, baseline[0].objective, statistics.fmean(gaps), error)


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values))
