"""A run that was interrupted and taken up again ends as if nothing had happened, to the last bit."""

import os
import random
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import Pair, data, fit
from ppl_vae.checkpoints import Checkpoints
from ppl_vae.objectives import IWAE, VIMCO, LinearWarmup, Objective, Trace_ELBO, TraceGraph_ELBO
from ppl_vae.pairs import VAE
from ppl_vae.rates import Cosine, Plateau
from ppl_vae.records import History
from ppl_vae.signals import Stopped


class Crash(Exception):
    """What ends a run here; nothing of fit catches it."""


class Odd(VAE):
    """Buffers (batch normalisation), dropout, and noise from numpy and from Python."""

    particles = "tile"

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 5, (20,))
        self.norm, self.dropout = nn.BatchNorm1d(5), nn.Dropout(0.1)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(5), 1.0).to_event(1))
            noise = 0.01 * (np.random.randn() + random.random())
            pyro.sample("x", self.decoder(self.norm(self.dropout(z)) + noise), obs=x)


class Switch(VAE):
    """A sampled switch with a running mean as its baseline."""

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.5)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(5), 1.0).to_event(1))
            pyro.sample("x", self.decoder(z * y.unsqueeze(-1)), obs=x)

    def guide(self, x: Tensor) -> None:
        infer: Any = {"baseline": {"use_decaying_avg_baseline": True}}
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("y", dist.Bernoulli(x.mean((1, 2, 3))), infer=infer)
            pyro.sample("z", self.encoder(x))


Make = Callable[[], tuple[Pair, Objective, dict[str, Any]]]


def plain() -> tuple[Pair, Objective, dict[str, Any]]:
    return VAE((1, 8, 8), 5, (20,)), IWAE(3, kl_weight=LinearWarmup(40)), {"schedule": Cosine(60), "clip_norm": 30.0}


def odd() -> tuple[Pair, Objective, dict[str, Any]]:
    held_out = data.load("digits").test[:50].round()
    return Odd(), Trace_ELBO(), {"ema": 0.9, "valid": held_out, "schedule": Plateau(patience=2), "accumulate": 2}


def several() -> tuple[Pair, Objective, dict[str, Any]]:
    return Odd(), IWAE(3), {}


def momentum() -> tuple[Pair, Objective, dict[str, Any]]:
    pair = VAE((1, 8, 8), 5, (20,))
    return pair, VIMCO(3), {"optim": torch.optim.SGD(pair.parameters(), lr=1e-4, momentum=0.9)}


def baselines() -> tuple[Pair, Objective, dict[str, Any]]:
    return Switch((1, 8, 8), 5, (20,)), TraceGraph_ELBO(), {"on_nonfinite": "skip"}


def compiled() -> tuple[Pair, Objective, dict[str, Any]]:
    return VAE((1, 8, 8), 5, (20,)), IWAE(3), {"compile": "inductor"}


def run(make: Make, folder: Path | None = None, crash: int | None = None, **options: Any) -> tuple[Pair, History]:
    torch.manual_seed(0)
    pair, objective, settings = make()

    def on_step(step: int) -> None:
        if step == crash:
            raise Crash

    settings |= {"steps": 60, "batch_size": 20, "progress": False, "on_step": on_step} | options
    if folder is not None:
        settings |= {"checkpoints": folder, "checkpoint_every": 7}
    return pair, fit(pair, data.load("digits"), objective, **settings)


def curve(history: History) -> list[dict[str, Any]]:
    return [{**asdict(record), "seconds": 0.0} for record in history.records]


@pytest.mark.parametrize("make", [plain, odd, several, momentum, baselines, compiled], ids=lambda make: make.__name__)
def test_interrupted_runs_end_the_same(make: Make, tmp_path: Path) -> None:
    whole, history = run(make)
    for crash in (3, 8, 20, 34, 59):  # before the first checkpoint, and behind others
        torch.rand(crash)  # a process that was taken up again has another past
        with pytest.raises(Crash):
            run(make, tmp_path, crash, resume=True)
    again, resumed = run(make, tmp_path, resume=True)
    assert resumed.resumed == [7, 14, 28, 56]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert len(history.records) == 60 and curve(history) == curve(resumed)
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith("step-")]


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first, _ = run(plain, tmp_path)
    second, history = run(plain, tmp_path, crash=60, resume=True)
    assert history.steps == 60 and history.resumed == [60]
    assert torch.equal(next(first.parameters()), next(second.parameters()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_stops_between_two_steps(number: int, tmp_path: Path) -> None:
    whole, _ = run(plain)
    before = signal.getsignal(number)

    def kill(step: int) -> None:
        if step == 17:
            os.kill(os.getpid(), number)

    with pytest.raises(Stopped, match=r"SIG(INT|TERM) after step (17|18); a checkpoint is written") as stopped:
        run(plain, tmp_path, on_step=kill)
    assert signal.getsignal(number) is before
    newest = Checkpoints(tmp_path).newest()
    assert newest is not None and newest.name.startswith(f"step-{stopped.value.step:09}-")
    again, _ = run(plain, tmp_path, resume=True)
    assert torch.equal(next(whole.parameters()), next(again.parameters()))


def test_a_second_signal_interrupts_at_once(tmp_path: Path) -> None:
    def kill(step: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(plain, tmp_path, on_step=kill)
    assert not isinstance(stopped.value, Stopped)


def test_training_in_another_thread_leaves_signals_alone(tmp_path: Path) -> None:
    thread = threading.Thread(target=run, args=(plain, tmp_path))
    thread.start()
    thread.join()
    assert Checkpoints(tmp_path).newest() is not None


def test_another_run_is_not_taken_up(tmp_path: Path) -> None:
    run(plain, tmp_path, steps=8)
    with pytest.raises(ValueError, match="of an earlier run, expected an empty folder; go on with resume=True"):
        run(plain, tmp_path, steps=8)
    with pytest.raises(ValueError, match=r"resume: got \{'steps': 9\}, expected \{'steps': 8\}"):
        run(plain, tmp_path, steps=9, resume=True)
    with pytest.raises(ValueError, match="resume: the checkpoint is not of this Odd"):
        run(lambda: (Odd(), *plain()[1:]), tmp_path, steps=8, resume=True)
    with pytest.raises(ValueError, match="optim: got a state of Adam, expected one of SGD"):
        run(lambda: (*(m := momentum())[:1], plain()[1], m[2] | {"clip_norm": 30.0}), tmp_path, steps=8, resume=True)
    with pytest.raises(ValueError, match="resume: got no checkpoints, expected checkpoints=FOLDER"):
        run(plain, resume=True)
