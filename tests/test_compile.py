"""The recorded loss is the eager loss: equal values and gradients on shared noise."""

import copy
import os
import subprocess
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_vae import SVI, Pair
from ppl_vae.compile import MAX_SHAPES, CompiledBackward, eager_backward, loss_state, record
from ppl_vae.objectives import (
    IWAE,
    LinearWarmup,
    Objective,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from ppl_vae.pairs import VAE, HierarchicalVAE
from tests.helpers import assert_compiled_is_eager

PAIRS = {
    "vae": lambda: VAE((1, 8, 8), 5, (20,)),
    "conv": lambda: VAE((1, 8, 8), 5, (4, 8), trunk="conv"),
    "logistic": lambda: VAE((1, 8, 8), 5, (20,), likelihood="discretised-logistic", levels=2),
    "two layers": lambda: HierarchicalVAE((1, 8, 8), (6, 3), ((20,), (10,))),
}
OBJECTIVES = {
    "elbo": Trace_ELBO(kl_weight=LinearWarmup(10)),
    "mean-field": TraceMeanField_ELBO(2, fallback=True),
    "iwae": IWAE(5),
    "renyi": RenyiELBO(alpha=0.5, num_particles=3, kl_weight=0.5),
}


@pytest.fixture
def x() -> Tensor:
    return torch.bernoulli(torch.full((6, 1, 8, 8), 0.3))


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_recorded_equals_eager_on_shared_noise(make, objective: Objective, x: Tensor) -> None:
    pair, objective.step = make(), 3
    loss = objective(pair)
    recorded = record(loss, x)
    torch.manual_seed(1)
    eager = loss(x)
    torch.manual_seed(1)
    kl_weight = torch.as_tensor(objective.current_kl_weight)
    again, *gradients = recorded.graph(*loss_state(loss).values(), kl_weight, x, *recorded.noise())
    torch.testing.assert_close(again, eager.detach(), rtol=1e-6, atol=0)
    assert len(recorded.trained) == len(gradients) == len(list(pair.parameters()))
    for a, b in zip(gradients, torch.autograd.grad(eager, list(pair.parameters())), strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() + 1e-7


def test_noise_is_fresh_and_differs_between_particles(x: Tensor) -> None:
    recorded = record(IWAE(5)(VAE((1, 8, 8), 5, (20,))), x)
    (first,), (second,) = recorded.noise(), recorded.noise()
    assert first.shape == (5, 6, 5)
    assert not torch.equal(first, second)
    assert len(first.flatten().unique()) == first.numel()


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
def test_inductor_equals_eager(make, x: Tensor) -> None:
    assert_compiled_is_eager(IWAE(5)(make()), x)


def curves(compile: Literal["off", "inductor"], seeds: range) -> Tensor:
    """Losses of the first and the last ten of 60 steps from equal weights, (seeds, 2)."""
    torch.manual_seed(0)
    pair, x = VAE((1, 8, 8), 5, (20,)), torch.bernoulli(torch.full((20, 1, 8, 8), 0.3))
    start = copy.deepcopy(pair.state_dict())
    svi = SVI(pair, torch.optim.Adam(pair.parameters(), lr=1e-2), IWAE(5), compile=compile)
    rows = []
    for seed in seeds:
        pair.load_state_dict(start)
        svi.optim.state.clear()
        torch.manual_seed(seed)
        losses = torch.tensor([svi.step(x) for _ in range(60)])
        rows.append(torch.stack([losses[:10].mean(), losses[-10:].mean()]))
    assert svi.compiled.failed is False
    return torch.stack(rows)


def test_gradients_have_the_layout_of_their_parameters() -> None:
    """Which a fused optimiser takes for granted: it would else train other weights, without a word."""
    trained = {}
    for how in ("off", "inductor"):
        torch.manual_seed(0)
        pair = VAE((3, 8, 8), 5, (4, 8), trunk="conv", likelihood="normal")
        adam = torch.optim.Adam(pair.parameters(), lr=1e-3, fused=True)
        svi, x = SVI(pair, adam, Trace_ELBO(), compile=how), torch.rand(6, 3, 8, 8)
        torch.manual_seed(1)
        for _ in range(5):
            svi.step(x)
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in pair.parameters())
        trained[how] = torch.cat([p.detach().flatten() for p in pair.parameters()])
    assert not svi.compiled.failed
    torch.testing.assert_close(trained["inductor"], trained["off"], rtol=0, atol=1e-5)


def test_training_curves_agree_in_distribution_over_seeds() -> None:
    """Other seeds on both sides; mean by Welch's test, spread by the F test: four tests, each at 2.5e-6."""
    eager, compiled = curves("off", range(1, 31)), curves("inductor", range(31, 61))
    # Noise that stood still would leave means alone and change the spread over the seeds.
    for a, b in zip(eager.T.numpy(), compiled.T.numpy(), strict=True):
        result: Any = stats.ttest_ind(a, b, equal_var=False)
        assert result.pvalue > 2.5e-6
        ratio = a.var(ddof=1) / b.var(ddof=1)
        assert 2 * min(stats.f.cdf(ratio, 29, 29), stats.f.sf(ratio, 29, 29)) > 2.5e-6


class Branching(Pair):
    """A model whose control flow depends on a latent value: it can't be recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            scale = 1.0 if z.sum() > 0 else 2.0
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.loc, 1.0))


def test_a_pair_that_cannot_be_recorded_goes_on_eagerly_after_one_warning() -> None:
    pair = Branching()
    svi = SVI(pair, torch.optim.Adam(pair.parameters()), compile="inductor")
    x = torch.zeros(4)
    svi.step(x)  # the first batch of a shape is validated, eagerly
    with pytest.warns(UserWarning, match=r"after site 'z' at test_compile.py:\d+, `scale = 1.0 if z.sum\(\) > 0"):
        svi.step(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert svi.step(x) > 0


WITHOUT_COMPILER = """
import warnings, torch
from ppl_vae.compile import CompiledBackward
from ppl_vae.objectives import Trace_ELBO
from ppl_vae.pairs import VAE

compiled = CompiledBackward(Trace_ELBO()(VAE((1, 8, 8), 7, (21,))))
for _ in range(2):
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        loss = compiled(torch.zeros(3, 1, 8, 8))
    ours = [str(w.message) for w in seen if "ppl_vae" in str(w.message)]
    print(len(ours), loss.item() > 0, *ours)
"""


def test_a_record_too_long_goes_on_eagerly_after_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.compile.MAX_OPERATIONS", 10)
    pair, x = VAE((1, 8, 8), 5, (20,)), torch.rand(3, 1, 8, 8).round()
    loss = Trace_ELBO()(pair)
    run = CompiledBackward(loss)
    with pytest.warns(UserWarning, match=r"goes on eagerly \(RuntimeError: \d+ operations, of at most 10: compiling"):
        torch.manual_seed(0)
        value = run(x)
    torch.manual_seed(0)
    torch.testing.assert_close(value, loss(x).detach(), rtol=0, atol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(x)


def test_without_a_compiler_it_goes_on_eagerly_after_one_warning(tmp_path: Path) -> None:
    # A process of its own: Inductor remembers that it found no compiler.
    environment = {**os.environ, "CXX": "no-such-compiler", "PATH": "", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", WITHOUT_COMPILER]
    first, second = subprocess.run(
        command, check=True, capture_output=True, text=True, env=environment, timeout=200
    ).stdout.splitlines()[:2]
    assert first.startswith("1 True ppl_vae: this pair can't be compiled and goes on eagerly") and "compiler" in first
    assert second == "0 True"


def test_further_batch_shapes_are_not_compiled(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CompiledBackward, "_compile", lambda self, recorded, *batch: recorded.graph)
    compiled = CompiledBackward(Trace_ELBO()(VAE((1, 8, 8), 5, (20,))))
    for rows in range(1, MAX_SHAPES + 3):
        compiled(x[:1].expand(rows, 1, 8, 8))
    assert len(compiled._compiled) == MAX_SHAPES


def test_unknown_way_to_compile_is_refused(x: Tensor) -> None:
    pair = VAE((1, 8, 8), 5, (20,))
    adam = torch.optim.Adam(pair.parameters())
    with pytest.raises(ValueError, match=r"got 'fast', expected one of .*'inductor', 'cudagraph'"):
        SVI(pair, adam, compile="fast")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="got 'cudagraph' for a batch that is not on a CUDA device; use 'inductor'"):
        SVI(pair, adam, compile="cudagraph").step(x)
    with pytest.raises(ValueError, match="clip_norm: got 0"):
        SVI(pair, adam, clip_norm=0.0)


class Partly(VAE):
    """A frozen encoder, a parameter that the loss does not use, and batch normalisation with its buffers."""

    particles = "tile"

    def __init__(self) -> None:
        super().__init__((1, 8, 8), 5, (20,))
        self.encoder.requires_grad_(False)
        self.unused = torch.nn.Parameter(torch.zeros(3))
        self.norm = torch.nn.BatchNorm1d(5)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(5), 1.0).to_event(1))
            pyro.sample("x", self.decoder(self.norm(z)), obs=x)


def test_frozen_and_unused_parameters_get_no_gradient_and_buffers_are_updated(x: Tensor) -> None:
    pair = Partly()
    eager = copy.deepcopy(pair)
    compiled = CompiledBackward(Trace_ELBO()(pair))
    for run in (compiled, partial(eager_backward, Trace_ELBO()(eager))):
        torch.manual_seed(1)
        run(x)
    assert not compiled.failed
    with_gradient = {name for name, p in pair.named_parameters() if p.grad is not None}
    assert with_gradient == {n for n, _ in pair.named_parameters() if n.startswith(("decoder", "norm"))}
    for name, value in eager.norm.state_dict().items():
        torch.testing.assert_close(pair.norm.state_dict()[name], value)
    assert pair.norm.state_dict()["running_mean"].abs().min() > 0
