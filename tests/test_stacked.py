"""Stacked runs are the runs one by one: equal losses, gradients and weights, from equal seeds."""

import copy
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from ppl_vae import History, Pair, data, fit
from ppl_vae.capture import make_capturable
from ppl_vae.data import Minibatches
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.objectives import IWAE, DReG, LinearWarmup, Objective, Trace_ELBO, TraceGraph_ELBO, WakeSleep
from ppl_vae.pairs import VAE, HierarchicalVAE
from ppl_vae.quiet import private_stream
from ppl_vae.rates import Plateau
from ppl_vae.records import Record
from ppl_vae.signals import Stopped
from ppl_vae.stacked import fit_stacked
from ppl_vae.stacked.loss import StackedLoss
from ppl_vae.stacked.steps import StackedSteps
from ppl_vae.svi import Compile
from tests.helpers import LinearGaussian, vectors

PAIRS = {
    "vae": lambda: VAE((1, 8, 8), 5, (20,)),
    "two layers": lambda: HierarchicalVAE((1, 8, 8), (6, 3), ((20,), (10,))),
}
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "elbo": Trace_ELBO,
    "iwae": lambda: IWAE(5),
    "dreg": lambda: DReG(5),
    "warm-up": lambda: IWAE(5, kl_weight=LinearWarmup(20)),
}
SEEDS = (3, 0, 2**40)


def small() -> VAE:
    return PAIRS["vae"]()


def grey(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(47, 1, 8, 8, dtype=dtype)


def both(
    pairs: list[Any], given: Any, make: Callable[[], Objective], how: Compile = "off", **options: Any
) -> tuple[list[History], list[History], list[Any]]:
    """Histories of stacked runs, those of runs one by one, and the latter's pairs."""
    settings: dict[str, Any] = {"steps": 50, "batch_size": 10, "progress": False, "device": "cpu"}
    settings |= options
    seeds, alone = SEEDS[: len(pairs)], copy.deepcopy(pairs)
    stacked = fit_stacked(pairs, given, make(), seeds=seeds, compile=how, **settings)
    one_by_one = [
        fit(pair, given, make(), seed=seed, compile="off", **settings) for pair, seed in zip(alone, seeds, strict=True)
    ]
    return stacked, one_by_one, alone


def assert_same(pairs: list[Any], result: tuple[list[History], list[History], list[Any]], close: float) -> None:
    stacked, one_by_one, alone = result
    for got, expected in zip(stacked, one_by_one, strict=True):
        assert got.steps == expected.steps and len(got.records) == len(expected.records)
        for a, b in zip(got.records, expected.records, strict=True):
            assert a.step == b.step and a.learning_rate == b.learning_rate
            assert a.bound == pytest.approx(b.bound, rel=close)
            assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=10 * close)
    for pair, other in zip(pairs, alone, strict=True):
        torch.testing.assert_close(pair.state_dict(), other.state_dict(), rtol=close, atol=close)


@pytest.mark.parametrize("make", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("make_pair", PAIRS.values(), ids=PAIRS)
def test_stacked_runs_are_the_runs_one_by_one(make_pair: Callable[[], Pair], make: Callable[[], Objective]) -> None:
    pairs = [make_pair() for _ in SEEDS]
    assert_same(pairs, both(pairs, data.load("digits"), make), 1e-4)


@pytest.mark.parametrize("make_pair", PAIRS.values(), ids=PAIRS)
def test_they_are_so_to_the_last_digits_in_float64(make_pair: Callable[[], Pair]) -> None:
    pairs = [make_pair().double() for _ in SEEDS]
    x = grey(torch.float64).round()  # 47 data in batches of 10: passes of 4 steps, which leave out 7
    assert_same(pairs, both(pairs, x, OBJECTIVES["warm-up"], schedule=lambda step: 0.97**step), 1e-10)


def test_compiled_stacked_runs_are_the_same() -> None:
    pairs = [small() for _ in SEEDS]
    assert_same(pairs, both(pairs, data.load("digits"), OBJECTIVES["iwae"], "inductor"), 1e-4)


def test_one_stacked_run_is_fit() -> None:
    pairs = [small()]
    assert_same(pairs, both(pairs, data.load("digits"), OBJECTIVES["dreg"]), 1e-4)


def test_convolutions_and_one_weight_for_the_whole_batch() -> None:
    pairs = [VAE((3, 8, 8), 5, (4, 8), trunk="conv", likelihood="normal").double() for _ in SEEDS]
    x = torch.rand(20, 3, 8, 8, dtype=torch.float64)
    assert_same(pairs, both(pairs, x, lambda: IWAE(2, joint=True), steps=10), 1e-8)


@pytest.mark.parametrize("works", [True, False])
def test_a_captured_step_is_the_same_step(monkeypatch: pytest.MonkeyPatch, works: bool) -> None:
    """A capture that is the identity, or that fails; schedules reach the step through tensors."""
    pair, objective, x = small().double(), OBJECTIVES["warm-up"](), grey(torch.float64).round()
    alone, batches = copy.deepcopy(pair), [Minibatches((x,), 10, 7)]
    captures: list[bool] = []

    def captured(self: StackedSteps) -> Callable[[], Any]:
        captures.append(works)
        if not works:
            raise RuntimeError("operation not permitted when stream is capturing")
        return self._step

    monkeypatch.setattr(StackedSteps, "_captured", captured)
    loss = StackedLoss([objective(pair)], batches, [7], inductor=False)
    optim = torch.optim.Adam(loss.trained, lr=2**-7, fused=True)
    with private_stream(0, torch.device("cpu")):
        steps = StackedSteps(loss, batches, [7], optim, lambda step: 2.0**-step)
        steps._capture = True
        make_capturable(optim, torch.device("cpu"))
        with nullcontext() if works else pytest.warns(UserWarning, match="goes on eagerly .operation not permitted"):
            for _ in range(8):
                steps.take()
    loss.write()
    settings: dict[str, Any] = {"learning_rate": 2**-7, "schedule": lambda step: 2.0**-step, "progress": False}
    fit(alone, x, OBJECTIVES["warm-up"](), steps=8, batch_size=10, seed=7, device="cpu", compile="off", **settings)
    torch.testing.assert_close(pair.state_dict(), alone.state_dict(), rtol=1e-10, atol=1e-10)
    assert captures == [works]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("how", ["off", "cudagraph", "inductor"])
def test_on_cuda_they_are_the_runs_one_by_one(how: Compile) -> None:
    pairs = [small() for _ in SEEDS]
    result = both(pairs, data.load("digits"), OBJECTIVES["warm-up"], how, device="cuda")
    assert_same(pairs, result, 1e-3)


class Partly(LinearGaussian):
    """A frozen parameter, one that the loss does not use, a buffer that stays, and two tensors of data."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__(4, 2)
        self.c.requires_grad_(False)
        self.unused = nn.Parameter(torch.randn(3))
        self.register_buffer("shift", torch.randn(4))

    def model(self, x: Tensor, y: Tensor | float = 0.0) -> None:
        super().model(x + self.shift + y)

    def guide(self, x: Tensor, y: Tensor | float = 0.0) -> None:
        super().guide(x - y)


def test_frozen_and_unused_parameters_stay_and_buffers_are_each_run_s_own() -> None:
    pairs = [Partly().double() for _ in SEEDS]
    before = copy.deepcopy(pairs)
    assert_same(pairs, both(pairs, (vectors(30), vectors(30)), OBJECTIVES["iwae"]), 1e-10)
    for pair, old in zip(pairs, before, strict=True):
        for name in ("c", "unused", "shift"):
            assert torch.equal(getattr(pair, name), getattr(old, name))
        assert not torch.equal(pair.A, old.A)


def test_another_optimiser_and_records_of_each_run() -> None:
    pairs, x = [small(), small()], grey().round()
    seen: list[tuple[int, int]] = []
    alone = copy.deepcopy(pairs)
    histories = fit_stacked(
        pairs, x, IWAE(2), steps=5, batch_size=10, optim=lambda p: torch.optim.SGD(p, lr=1e-4),
        device="cpu", progress=False, on_record=lambda run, record: seen.append((run, record.step)),
    )  # fmt: skip
    assert seen == [(run, step) for step in range(1, 6) for run in range(2)]
    assert all(history.seconds > 0 and history.ms_per_step > 0 for history in histories)
    for seed, (pair, other) in enumerate(zip(pairs, alone, strict=True)):
        sgd = torch.optim.SGD(other.parameters(), lr=1e-4)
        fit(other, x, IWAE(2), steps=5, batch_size=10, optim=sgd, seed=seed, device="cpu", progress=False)
        torch.testing.assert_close(pair.state_dict(), other.state_dict(), rtol=1e-4, atol=1e-5)


def test_the_global_random_state_is_left_alone() -> None:
    pairs = [small(), small()]
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    fit_stacked(pairs, data.load("digits"), IWAE(2), steps=3, device="cpu", progress=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1] and repr(np.random.get_state()) == before[2]


class Gamma(Pair):
    """A sampler that depends on a parameter: it stays in the recorded loss."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Gamma(x.new_ones(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0).expand((len(x),)), obs=x[:, 0, 0, 0])

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Gamma(self.a.exp(), 1.0))


class Branching(Gamma):
    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.LogNormal(self.a if self.a > 0 else -self.a, 1.0))


class Normed(VAE):
    def __init__(self) -> None:
        super().__init__((1, 8, 8), 5, (20,))
        self.norm = nn.BatchNorm1d(64)

    def guide(self, x: Tensor) -> None:
        super().guide(self.norm(x.flatten(1)).view_as(x))


def relu() -> VAE:
    return VAE((1, 8, 8), 5, (20,), activation=nn.ReLU)


def frozen() -> VAE:
    pair = small()
    pair.encoder.requires_grad_(False)
    return pair


shared = small()

REFUSED: dict[str, tuple[list[Callable[[], Pair]], Objective, str]] = {
    "no pair": ([], Trace_ELBO(), "seeds: got 0 for 0 pairs"),
    "twice": (
        [lambda: shared, lambda: shared],
        Trace_ELBO(),
        r"pairs\[1\]: got parameters of pairs\[0\], expected its own",
    ),
    "class": ([small, Gamma], Trace_ELBO(), r"pairs\[1\]: got a Gamma, expected a VAE as pairs\[0\]"),
    "shape": ([small, lambda: VAE((1, 8, 8), 4, (20,))], Trace_ELBO(), r"pairs\[1\]: got \(20, 4\) of torch.float32"),
    "frozen": ([small, frozen], Trace_ELBO(), r"got \(20,\) of torch.float32 for 'encoder.*expected .*, trained"),
    "activation": ([small, small, relu], Trace_ELBO(), r"pairs\[2\]: got a loss of .*with the same arguments"),
    "sampler": ([Gamma, Gamma], Trace_ELBO(), r"random numbers by aten._standard_gamma.*one by one with fit"),
    "sampler of the objective": ([small, small], WakeSleep(), "random numbers by aten.bernoulli"),
    "branch": ([Branching, Branching], Trace_ELBO(), "got a loss that can't be recorded .*one by one with fit"),
    "buffers": ([Normed, Normed], Trace_ELBO(), "changes the buffer 'norm.running_mean'.*one by one with fit"),
    "averages": ([small, small], TraceGraph_ELBO(), "objective: got TraceGraph_ELBO, which keeps averages"),
}


@pytest.mark.parametrize(("makers", "objective", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_stacked_is_refused(
    makers: list[Callable[[], Pair]], objective: Objective, message: str
) -> None:
    pairs = [make() for make in makers]
    before = copy.deepcopy([pair.state_dict() for pair in pairs])
    with pytest.raises(ValueError, match=message):
        fit_stacked(pairs, grey().round(), objective, steps=3, batch_size=10, device="cpu", progress=False)
    for pair, state in zip(pairs, before, strict=True):
        torch.testing.assert_close(pair.state_dict(), state, rtol=0, atol=0)


def test_bad_settings_are_refused() -> None:
    pairs, x = [small(), small()], grey().round()

    def refused(match: str, given: Any = x, **options: Any) -> None:
        settings = {"steps": 1, "batch_size": 10, "device": "cpu", "progress": False} | options
        with pytest.raises(ValueError, match=match):
            fit_stacked(pairs, given, **settings)

    refused("seeds: got 1 for 2 pairs", seeds=[0])
    refused("seeds: got 0.5", seeds=[0, 0.5])
    refused("steps: got -1", steps=-1)
    refused("learning_rate: got nan", learning_rate=float("nan"))
    refused("schedule: got Plateau, which goes by the bound of one run", schedule=Plateau())
    refused("compile: got 'cudagraph' on cpu, expected a CUDA device", compile="cudagraph")
    refused("compile: got 'fast', expected one of", compile="fast")
    refused("got batch_size=50; expected 1 to 47", batch_size=50)
    refused("support", given=2 * x)
    refused(
        "data: got TensorDataset, which is read or composed as it is asked for, expected tensors",
        given=TensorDataset(x),
    )


def test_a_loss_that_is_not_finite_names_the_run_and_its_site() -> None:
    pairs = [small() for _ in SEEDS]
    before = copy.deepcopy([pair.state_dict() for pair in pairs])
    optims: list[torch.optim.Optimizer] = []

    def spoil(parameters: list[Tensor]) -> torch.optim.Optimizer:
        optims.append(torch.optim.SGD(parameters, lr=0.0))
        return optims[0]

    def overflow(run: int, record: Record) -> None:
        if (run, record.step) == (0, 4):
            with torch.no_grad():
                for parameter in optims[0].param_groups[0]["params"]:
                    parameter[1].fill_(1e38)

    with pytest.raises(NonFiniteError, match=r"step 4, pairs\[1\], seed 0: got a loss of .*; site 'z' of the guide"):
        fit_stacked(
            pairs, grey().round(), steps=50, seeds=SEEDS, batch_size=10, optim=spoil, device="cpu", progress=False,
            on_record=overflow,
        )  # fmt: skip
    for run in (0, 2):
        torch.testing.assert_close(pairs[run].state_dict(), before[run], rtol=0, atol=0)


def resumable(folder: Path, how: Compile, stop: Callable[[int, Record], object] | None = None) -> tuple[Any, Any]:
    torch.manual_seed(5)
    pairs = [small() for _ in SEEDS]
    options: dict[str, Any] = {"steps": 300, "batch_size": 20, "schedule": lambda step: 0.5 ** (step // 100)}
    options |= {"checkpoints": folder, "checkpoint_every": 7, "resume": True, "on_record": stop, "compile": how}
    digits = data.load("digits").subset(500)  # 25 steps a pass: a run is stopped within one
    return pairs, fit_stacked(pairs, digits, IWAE(3), seeds=SEEDS, device="cpu", progress=False, **options)


@pytest.mark.parametrize("how", ["off", "inductor"])
def test_runs_that_were_stopped_end_the_same(tmp_path: Path, how: Compile) -> None:
    def stop(run: int, record: Record) -> None:
        if record.step in stops:
            stops.remove(record.step)
            raise KeyError(run)

    def ask(run: int, record: Record) -> None:
        if record.step == 201 and run == 0:
            signal.raise_signal(signal.SIGTERM)

    whole, histories = resumable(tmp_path / "whole", how)
    stops = [60, 150] if how == "off" else []  # compiling takes its time
    for _ in list(stops):
        with pytest.raises(KeyError):
            resumable(tmp_path / "parts", how, stop)
    with pytest.raises(Stopped, match="SIGTERM after step 201"):
        resumable(tmp_path / "parts", how, ask)
    parts, again = resumable(tmp_path / "parts", how)
    for pair, other, first, second in zip(whole, parts, histories, again, strict=True):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in pair.state_dict().items())
        assert [(r.step, r.bound, r.gradient_norm, r.learning_rate) for r in first.records] == [
            (r.step, r.bound, r.gradient_norm, r.learning_rate) for r in second.records
        ]
        assert second.resumed == [*([56, 147] if how == "off" else []), 201] and second.steps == 300


def test_other_settings_and_pairs_are_refused_on_going_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"batch_size": 10, "progress": False, "device": "cpu", "checkpoints": tmp_path / "c"}
    fit_stacked([small(), small()], grey().round(), steps=2, **options)
    with pytest.raises(ValueError, match="an earlier run"):
        fit_stacked([small(), small()], grey().round(), steps=2, **options)
    with pytest.raises(ValueError, match=r"resume: got {'steps': 3}, expected {'steps': 2}"):
        fit_stacked([small(), small()], grey().round(), steps=3, resume=True, **options)
    with pytest.raises(ValueError, match=r"resume: got {'seeds': \[0\]}"):
        fit_stacked([small()], grey().round(), steps=2, resume=True, **options)
    wider = [VAE((1, 8, 8), 5, (21,)) for _ in range(2)]
    with pytest.raises(ValueError, match="resume: got a checkpoint of tensors"):
        fit_stacked(wider, grey().round(), steps=2, resume=True, **options)


def test_no_steps_leave_the_pairs_as_they_are() -> None:
    pairs = [small(), small()]
    before = copy.deepcopy(pairs[0].state_dict())
    assert [h.steps for h in fit_stacked(pairs, grey().round(), steps=0, batch_size=10, progress=False)] == [0, 0]
    torch.testing.assert_close(pairs[0].state_dict(), before, rtol=0, atol=0)


def test_the_benchmark_writes_every_number(tmp_path: Path) -> None:
    script = Path(__file__).parent.parent / "examples" / "benchmarks" / "stacked_time.py"
    options = ["--sizes", "2", "--particles", "1", "--processes", "--compile", "off"]
    options += ["--rounds", "2", "--bursts", "1", "--warm-steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(script), *options], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "results" / "stacked_time_cpu.json").read_text())["particles"]["1"]
    assert list(rows) == ["alone", "stacked-2"]
    assert all(row["status"] == "ok" and row["ms_per_step"]["median"] > 0 for row in rows.values())
    assert rows["alone"]["ratio"]["median"] == 1
