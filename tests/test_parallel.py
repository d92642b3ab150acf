"""Two processes train as one does: the same bound and gradients, noise of their own, one run folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.distributed as distributed
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from ppl_vae import SVI, Pair, evaluation, fit
from ppl_vae.checkpoints import Checkpoints
from ppl_vae.objectives import IWAE, Trace_ELBO
from ppl_vae.pairs import VAE
from ppl_vae.parallel import RankError, Ranks
from ppl_vae.validation import Validation

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TOGETHER = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc-per-node",
    "2",
    "-m",
    "ppl_vae",
    "train",
]
SETTINGS = ["--steps", "600", "--batch_size", "20", "--objective", "iwae:3", "--num-particles", "2"]
SETTINGS += ["--pair", "VAE(latent_dim=3, hidden=(20,))", "--checkpoint-every", "20", "--progress", "false"]


class Given(Pair):
    """z = encoder(x) + exp(s) eps with the noise eps as a part of the data: what is drawn is the same for any ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(6, 2), nn.Linear(2, 6)
        self.norm, self.s = nn.BatchNorm1d(6, affine=False, track_running_stats=True), nn.Parameter(torch.zeros(2))
        self.norm.eval()

    def model(self, x: Tensor, eps: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x: Tensor, eps: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = self.encoder(x) + self.s.exp() * eps
            log_density: Any = -self.s.sum()
            pyro.sample("z", dist.Delta(z, log_density, event_dim=1))


def trained(batches: int = 6) -> tuple[dict[str, Tensor], list[float]]:
    torch.manual_seed(0)
    pair = Given().double()
    x, eps = torch.rand(24, 6, dtype=torch.float64).round(), torch.randn(24, 2, dtype=torch.float64)
    rank = Ranks()
    with torch.no_grad():
        for p in pair.parameters():
            p += rank.rank  # those of the first rank count
    adam = torch.optim.Adam(pair.parameters(), lr=0.01)
    settings = {"steps": batches, "batch_size": 8, "optim": adam, "progress": False, "clip_norm": 5.0}
    history = fit(pair, (x, eps), Trace_ELBO(), **settings)
    return pair.state_dict(), [record.bound for record in history.records]


def in_a_group(rank: int, folder: str, work: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(globals()[work](), f"{folder}/{rank}.pt")
    os._exit(0)  # gloo's threads sometimes abort a process that ends by itself


def both(folder: Path, work: str) -> list:
    multiprocessing.spawn(in_a_group, (str(folder), work), nprocs=2)  # pyright: ignore
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_two_ranks_are_one_process_with_the_whole_batch(tmp_path: Path) -> None:
    weights, bounds = trained()
    for got, said in both(tmp_path, "trained"):
        assert said == pytest.approx(bounds, rel=1e-12)
        for name, value in weights.items():
            torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-12)


def exchanged() -> dict:
    ranks, module = Ranks(), nn.BatchNorm1d(2)
    module.running_mean = torch.tensor([1.0, 2.0]) * (ranks.rank + 1)
    for parameter in module.parameters():
        parameter.grad = torch.full((2,), 10.0**ranks.rank)
    first = ranks.agree((ranks.rank == 1, False))
    loss = ranks.add(torch.tensor(2.0 + ranks.rank), module)
    second = ranks.agree((False, False))
    ranks.add(torch.zeros(()), nn.Linear(1, 1))
    third = ranks.agree((False, False))
    return {
        "loss": loss,
        "gradient": module.bias.grad,
        "mean": module.running_mean,
        "seed": ranks.seed(7),
        "said": [first, second, third],
        "all": ranks.gather(ranks.rank),
    }


def test_what_ranks_exchange(tmp_path: Path) -> None:
    first, second = both(tmp_path, "exchanged")
    for got in (first, second):
        assert got["loss"] == 5.0 and got["gradient"].tolist() == [11.0, 11.0]
        assert got["mean"].tolist() == [1.5, 3.0]
        assert got["said"] == [(False, False), (True, False), (False, False)] and got["all"] == [0, 1]
    assert first["seed"] == 7 and second["seed"] not in range(-1000, 1000)


def test_one_process_alone_changes_nothing() -> None:
    ranks, loss = Ranks(), torch.ones(())
    assert ranks.add(loss, nn.Linear(1, 1)) is loss and ranks.agree((True, False)) == (True, False)
    assert ranks.gather(3) == [3] and ranks.seed(5) == 5 and ranks.is_first


def evaluated() -> dict:
    torch.manual_seed(0)
    pair, x = VAE((1, 8, 8), latent_dim=2, hidden=(5,)), torch.rand(50, 1, 8, 8).round()
    settings = {"objective": IWAE(num_particles=3), "num_particles": 20, "batch_size": 7, "seed": 1}
    numbers = evaluation.evaluate(pair, x, **settings).as_dict()
    del numbers["seconds"]
    diagnosed = evaluation.weight_diagnostics(pair, x, num_particles=30, batch_size=6, seed=2)
    svi = SVI(pair, torch.optim.Adam(pair.parameters()), Trace_ELBO(), ranks=Ranks())
    valid = Validation([(part,) for part in x.split(9)], seed=3, patience=None).measure(svi)
    return {**numbers, "k": diagnosed.pareto_k, "valid": valid}


def test_ranks_share_an_evaluation_whose_numbers_are_those_of_one_process(tmp_path: Path) -> None:
    alone = evaluated()
    first, second = both(tmp_path, "evaluated")
    for name, value in alone.items():
        if isinstance(value, Tensor):
            assert torch.equal(first[name], value) and torch.equal(second[name], value)
        else:
            assert first[name] == second[name] == value, name


def deserted() -> str:
    ranks = Ranks()
    if ranks.rank == 1:
        return "left"
    try:
        ranks.gather(None)
    except RankError as error:
        return str(error)
    return "nothing"


def test_a_rank_that_ends_is_missed(tmp_path: Path) -> None:
    message, _ = both(tmp_path, "deserted")
    assert "got no answer from another process of the run" in message and "start all again with --resume" in message


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TOGETHER, *words], cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def workers(parent: int) -> list[int]:
    """Process numbers of the ranks that torchrun has started, in their order."""
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    ranks = {}
    for child in map(int, children):
        words = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks |= {int(w.removeprefix(b"RANK=")): child for w in words if w.startswith(b"RANK=")}
    return [ranks[rank] for rank in sorted(ranks)]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds the ranks in /proc")
def test_a_rank_that_dies_brings_the_others_down_and_the_run_goes_on(tmp_path: Path) -> None:
    whole = start(tmp_path, *SETTINGS, "--out", "whole")
    printed, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0 and printed.count("NLL") == 2, printed  # once: a figure, and what it is
    run = start(tmp_path, *SETTINGS, "--out", "run")
    while Checkpoints(tmp_path / "run" / "checkpoints").newest() is None:
        assert run.poll() is None
        time.sleep(0.02)
    os.kill(workers(run.pid)[1], signal.SIGKILL)
    printed, _ = run.communicate(timeout=300)
    assert run.returncode != 0 and "rank 0: got no answer from another process of the run" in printed, printed
    again = start(tmp_path, "--resume", "run")
    printed, _ = again.communicate(timeout=300)
    assert again.returncode == 0, printed
    first, second = (torch.load(tmp_path / name / "pair.pt", weights_only=True) for name in ("whole", "run"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_of_two_goes_on_alone(tmp_path: Path) -> None:
    words = [*SETTINGS, "--steps", "40"]
    two = start(tmp_path, *words, "--out", "run")
    printed, _ = two.communicate(timeout=300)
    assert two.returncode == 0, printed
    newest = Checkpoints(tmp_path / "run" / "checkpoints").newest()
    assert newest is not None
    newest.unlink()  # as if it had ended after 20 steps
    alone = subprocess.run(
        [sys.executable, "-m", "ppl_vae", "train", "--resume", "run"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert alone.returncode == 0 and (tmp_path / "run" / "results.json").exists(), alone.stderr
