"""Captured steps are the steps one by one: `capture` is the identity here, or a CUDA graph where there is one."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae import SVI, fit
from ppl_vae.capture import WARM_UP, CapturedUpdate, cuda_graph
from ppl_vae.compile import CompiledBackward, Recorded
from ppl_vae.data import Minibatches
from ppl_vae.objectives import IWAE, LinearWarmup, Objective, Trace_ELBO
from ppl_vae.pairs import VAE
from ppl_vae.steps import CapturedSteps, Steps

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def grey() -> Tensor:
    return torch.rand(23, 1, 8, 8)


def run(make: Callable[..., Steps], objective: Objective, counts: list[int], **options: Any) -> tuple[Tensor, Tensor]:
    """Sums of losses and the weights at the end; 23 data in batches of 4, so that passes end within bursts."""
    torch.manual_seed(3)
    pair, x = VAE((1, 8, 8), 5, (20,)), grey()
    optim = torch.optim.Adam(pair.parameters(), lr=2**-7, fused=True)
    settings: dict[str, Any] = {"compile": "off"} | options
    svi = SVI(pair, optim, objective, **settings)
    steps = make(svi, Minibatches((x,), 4, 1, torch.bernoulli), lambda step: 0.9**step)
    losses = torch.tensor([steps.take(count) and steps.collect() for count in counts])
    assert svi.objective.step == sum(counts)
    return losses, torch.cat([p.detach().flatten() for p in pair.parameters()])


def identity(function: Callable[[], None]) -> Callable[[], None]:
    return function


def captured(*arguments: Any) -> Steps:
    return CapturedSteps(*arguments, longest=40, capture=identity)


@pytest.mark.parametrize("compile", ["off", "inductor"])
def test_captured_steps_are_the_same_steps(compile: str) -> None:
    counts = [1, 2, 37, 40, 13]
    losses, weights = run(Steps, IWAE(3, kl_weight=LinearWarmup(50)), counts, compile=compile, clip_norm=20.0)
    again, same = run(captured, IWAE(3, kl_weight=LinearWarmup(50)), counts, compile=compile, clip_norm=20.0)
    # Learning rates and KL weights are float32 tensors in a captured step: equal up to rounding, over 93 steps.
    torch.testing.assert_close(again, losses, rtol=1e-4, atol=0)
    torch.testing.assert_close(same, weights, rtol=1e-3, atol=1e-5)


def test_without_schedules_they_are_the_same_to_the_last_bit() -> None:
    def plain(make: Callable[..., Steps]) -> Callable[..., Steps]:
        return lambda svi, batches, _: make(svi, batches, None)

    for a, b in zip(run(plain(Steps), IWAE(3), [5, 40]), run(plain(captured), IWAE(3), [5, 40]), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_cannot_be_captured_goes_on_eagerly_after_one_warning() -> None:
    def refuse(function: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    def make(*arguments: Any) -> Steps:
        return CapturedSteps(*arguments, longest=40, capture=refuse)

    expected = run(Steps, Trace_ELBO(), [40, 11])
    with pytest.warns(
        UserWarning, match=r"can't be captured and goes on eagerly \(operation not permitted.*capturing\)"
    ):
        got = run(make, Trace_ELBO(), [40, 11])
    torch.testing.assert_close(got[0], expected[0], rtol=1e-4, atol=0)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-3, atol=1e-5)


def test_clipping_bounds_the_norm_of_the_whole_gradient() -> None:
    torch.manual_seed(0)
    pair, x = VAE((1, 8, 8), 5, (20,)), grey().round()

    def norm(clip: float | None) -> float:
        svi = SVI(pair, torch.optim.SGD(pair.parameters(), lr=0.0), Trace_ELBO(), clip_norm=clip)
        torch.manual_seed(1)
        svi.step(x)
        return torch.cat([p.grad.flatten() for p in pair.parameters() if p.grad is not None]).norm().item()

    free = norm(None)
    assert free > 10
    assert norm(2 * free) == free
    assert norm(free / 3) == pytest.approx(free / 3, rel=1e-4)


def test_a_captured_update_reads_new_batches_and_leaves_old_losses_alone() -> None:
    seen: list[float] = []

    def update(x: Tensor) -> Tensor:
        seen.append(x.sum().item())
        return x.sum() * 2

    captured = CapturedUpdate(update, torch.zeros(3), capture=identity)
    losses = [captured(torch.full((3,), float(i))) for i in range(WARM_UP + 3)]
    assert seen == [3.0 * i for i in range(WARM_UP + 3)]
    assert [loss.item() for loss in losses] == [6.0 * i for i in range(WARM_UP + 3)]


def test_auto_begins_eagerly_and_compiles_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.svi.COMPILE_AFTER", 3)
    pair, x = VAE((1, 8, 8), 5, (20,)), grey().round()
    svi, runs = SVI(pair, torch.optim.Adam(pair.parameters())), []
    monkeypatch.setattr(svi, "compiled", lambda x: runs.append(svi.objective.step) or svi.loss_module(x).detach())
    for _ in range(5):
        svi.step(x)
    assert runs == [3, 4]


def test_a_warm_up_of_the_kl_weight_does_not_recompile(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []

    def compile(self: CompiledBackward, recorded: Recorded, *batch: Tensor) -> Any:
        compiled.append(recorded.graph)
        return recorded.graph

    monkeypatch.setattr(CompiledBackward, "_compile", compile)
    pair, x = VAE((1, 8, 8), 5, (20,)), grey().round()
    objective = Trace_ELBO(kl_weight=LinearWarmup(4))
    fit(pair, x, objective, steps=8, batch_size=4, schedule=lambda step: 0.5**step, compile="inductor", progress=False)
    assert len(compiled) == 1


@needs_cuda
@pytest.mark.parametrize("compile", ["cudagraph", "inductor"])
def test_a_cuda_graph_takes_the_same_steps(compile: str) -> None:
    def cuda(make: Callable[..., Steps]) -> Callable[..., Steps]:
        def made(svi: SVI, batches: Minibatches, rate: Any) -> Steps:
            svi.pair.cuda()
            batches = Minibatches((batches.tensors[0].cuda(),), 4, 1, torch.bernoulli)
            optim = torch.optim.Adam(svi.pair.parameters(), lr=2**-7, fused=True)
            how = "off" if make is Steps else compile
            return make(SVI(svi.pair, optim, svi.objective, compile=how, clip_norm=20.0), batches, rate)  # pyright: ignore[reportArgumentType]

        return made

    def graphed(*arguments: Any) -> Steps:
        return CapturedSteps(*arguments, longest=40, capture=cuda_graph)

    counts = [1, 2, 37, 40, 13]
    losses, weights = run(cuda(Steps), IWAE(3, kl_weight=LinearWarmup(50)), counts)
    again, same = run(cuda(graphed), IWAE(3, kl_weight=LinearWarmup(50)), counts)
    torch.testing.assert_close(again, losses, rtol=1e-3, atol=0)
    torch.testing.assert_close(same, weights, rtol=1e-2, atol=1e-4)


@needs_cuda
def test_noise_is_fresh_at_each_replay() -> None:
    torch.manual_seed(0)
    pair, x = VAE((1, 8, 8), 5, (20,)).cuda(), grey().round().cuda()
    svi = SVI(pair, torch.optim.SGD(pair.parameters(), lr=0.0), Trace_ELBO(), compile="cudagraph")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [svi.step(x) for _ in range(30)]
    assert len(set(losses)) == 30


@needs_cuda
def test_fit_with_a_cuda_graph_learns_as_eagerly() -> None:
    bounds = []
    for how in ("off", "cudagraph"):
        torch.manual_seed(0)
        history = fit(
            VAE((1, 8, 8), 5, (20,)), grey().round(), steps=400, batch_size=4, learning_rate=1e-2, compile=how,
            device="cuda", progress=False,
        )  # fmt: skip
        bounds.append(history.records[-1].bound)
    assert abs(bounds[0] - bounds[1]) < 5
