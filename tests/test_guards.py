"""What protects a run: steps left out, averages of weights, data held out, gradients in parts."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import SVI, Pair, data, fit
from ppl_vae.checkpoints import Checkpoints
from ppl_vae.data import DataError, Minibatches
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.objectives import IWAE, Objective, Trace_ELBO
from ppl_vae.pairs import VAE
from ppl_vae.rates import Plateau


class Fragile(Pair):
    """x ~ N(a, 1); a datum 7 makes the gradient NaN (of a root at 0) and leaves the loss, a datum 8 makes both NaN."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.ones(()))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            root = torch.where(x == 7, self.a - self.a.detach(), 1.0).sqrt()
            bad = torch.where(x == 8, torch.nan, torch.where(x == 7, root, 0.0))
            pyro.sample("x", dist.Normal(self.a + bad, 1.0), obs=x)


def rows(*bad: float, number: int = 40) -> Tensor:
    x = torch.linspace(-1, 1, number)
    x[: len(bad)] = torch.tensor(bad)
    return x


def by_hand(x: Tensor, steps: int, batch_size: int) -> float:
    """SGD on the mean of N(a, 1), leaving out batches with a bad datum."""
    a, batches = torch.ones(()), Minibatches((x,), batch_size, 0)
    for _ in range(steps):
        (batch,) = batches.next()
        if not (batch >= 7).any():
            a = a - 0.01 * (a - batch).sum()
    return a.item()


def train(pair: Pair, x: Tensor, **options: Any) -> Any:
    sgd = torch.optim.SGD(pair.parameters(), lr=0.01)
    return fit(pair, x, Trace_ELBO(), batch_size=4, optim=sgd, progress=False, **options)


def test_bad_steps_are_left_out_named_and_counted() -> None:
    pair, x = Fragile(), rows(7.0, 8.0)
    with pytest.warns(UserWarning) as caught:
        history = train(pair, x, steps=100, on_nonfinite="skip")
    assert pair.a.item() == pytest.approx(by_hand(x, 100, 4), rel=1e-5)
    skipped = [record.skipped for record in history.records]
    assert 10 <= skipped[-1] <= 20 and skipped == sorted(skipped)  # ten passes; the two rows may share a batch
    said = [str(w.message) for w in caught if "skipped" in str(w.message)]
    assert len(said) == 5 and said[-1].endswith("Further ones are counted.")
    assert any("the gradient of parameter 'a' is non-finite" in s and "Rows of the batch: [" in s for s in said)
    assert any("loss nan: site 'x' of the model: Normal's parameter 'loc' is non-finite" in s for s in said)
    assert all(torch.tensor(record.bound).isfinite() for record in history.records)


def test_a_run_that_skips_every_step_stops() -> None:
    with (
        pytest.raises(NonFiniteError, match=r"step 21: all of the last 21 steps were skipped"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        train(Fragile(), torch.full((40,), 7.0), steps=300, on_nonfinite="skip")


def test_a_gradient_that_overflows_is_named_one_step_later_with_the_rows_of_both() -> None:
    x = rows(7.0)
    with pytest.raises(NonFiniteError) as stopped:
        train(Fragile(), x, steps=40)
    message = str(stopped.value)
    assert "parameter 'a' is already non-finite: an earlier gradient overflowed" in message
    before = message.partition("of the one before: ")[2]
    assert " 0," in before or "[0," in before or " 0]" in before


def test_spoilt_weights_do_not_become_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match="parameter 'a' is already non-finite"):
        train(Fragile(), rows(7.0), steps=40, checkpoints=tmp_path, checkpoint_every=1)
    weights = Checkpoints(tmp_path).load()["pair"]
    assert weights["a"].isfinite() and weights["a"] != 1.0


def test_an_optimiser_leaves_a_step_out_without_asking_the_host() -> None:
    pair = VAE((1, 8, 8), 5, (20,))
    svi = SVI(pair, torch.optim.Adam(pair.parameters(), lr=0.1, fused=True))
    x = torch.rand(4, 1, 8, 8).round()
    svi.step(x)
    before = copy.deepcopy((pair.state_dict(), svi.optim.state_dict()["state"]))
    for bad in (True, False):
        svi._gradient(x)
        svi._step_unless(torch.tensor(bad))
        state = svi.optim.state_dict()["state"]
        same = [torch.equal(p, before[0][n]) for n, p in pair.state_dict().items()]
        same += [torch.equal(state[i][key], values[key]) for i, values in before[1].items() for key in values]
        assert all(same) is bad and any(same) is bad


def test_unknown_guards_are_refused() -> None:
    pair = VAE((1, 8, 8), 5, (20,))
    adam = torch.optim.Adam(pair.parameters())
    refused: list[tuple[dict[str, Any], str]] = [
        ({"on_nonfinite": "hope"}, "on_nonfinite: got 'hope', expected one of .*'stop', 'skip'"),
        ({"accumulate": 0}, "accumulate: got 0, expected at least 1"),
        ({"accumulate": 2, "loss": IWAE(2, joint=True)}, "accumulate: got 2, expected at least 1, and 1 for .* joint"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            SVI(pair, adam, **options)
    with pytest.raises(ValueError, match="accumulate: got a batch of 5 rows, expected a multiple of 2"):
        SVI(pair, adam, accumulate=2).step(torch.zeros(5, 1, 8, 8))
    x = torch.zeros(20, 1, 8, 8)
    refused = [
        ({"ema": 1.0}, "ema: got 1.0"),
        ({"patience": 3}, "patience: got 3 without data held out"),
        ({"patience": 0, "valid": x}, "patience: got 0"),
        ({"precision": "fp8"}, "precision: got 'fp8'"),
        ({"checkpoints": "nowhere", "checkpoint_every": 0}, "checkpoint_every: got 0"),
    ]
    for options, message in refused:
        with pytest.raises(ValueError, match=message):
            fit(pair, x, steps=1, batch_size=5, progress=False, **options)


@pytest.mark.parametrize("compile", ["off", "inductor"])
def test_accumulated_gradients_are_the_sum_over_the_parts(compile: Any) -> None:
    pair, x = VAE((1, 8, 8), 5, (20,)), torch.rand(12, 1, 8, 8).round()
    sgd = torch.optim.SGD(pair.parameters(), lr=0.0)
    svi = SVI(pair, sgd, IWAE(3), compile=compile, accumulate=3)
    loss_of = IWAE(3)(pair)
    for _ in range(2):  # the first time validated and eager
        torch.manual_seed(1)
        loss = svi.step(x)
        got = [p.grad for p in pair.parameters()]
        torch.manual_seed(1)
        expected = torch.stack([loss_of(part) for part in x.chunk(3)]).sum()
        assert loss == pytest.approx(expected.item(), rel=1e-6)
        for a, b in zip(got, torch.autograd.grad(expected, list(pair.parameters())), strict=True):
            assert a is not None and (a - b).norm() <= 1e-5 * b.norm()


def test_the_bound_of_accumulated_steps_is_per_datum() -> None:
    pairs = [copy.deepcopy(pair) for pair in [VAE((1, 8, 8), 5, (20,))] * 2]
    settings: dict[str, Any] = {"steps": 5, "learning_rate": 0.0, "progress": False}
    one, four = (
        fit(pair, data.load("digits"), Trace_ELBO(50), batch_size=b, accumulate=a, **settings)
        for pair, b, a in zip(pairs, (80, 20), (1, 4), strict=True)
    )
    # 400 data each: means of the same weights' bound, whose standard error is about 0.25 nats.
    assert sum(r.bound for r in one.records) / 5 == pytest.approx(sum(r.bound for r in four.records) / 5, abs=1.5)


def test_the_average_is_the_exponential_one() -> None:
    pair, seen, other = Fragile(), [1.0], Fragile()
    train(pair, rows(), steps=20, on_step=lambda step: seen.append(pair.a.item()))
    train(other, rows(), steps=20, ema=0.8)
    average = seen[0]
    for value in seen[1:]:
        average = 0.8 * average + 0.2 * value
    assert other.a.item() == pytest.approx(average, rel=1e-6) and average != pytest.approx(seen[-1], rel=1e-3)


def test_a_run_ends_with_the_weights_that_are_best_on_data_held_out() -> None:
    """a falls from 1 to the training data's mean, 0, and passes the mean of the data held out, 0.5."""
    pair, seen = Fragile(), {}
    history = train(
        pair, rows(), steps=300, valid=torch.full((10,), 0.5), on_step=lambda step: seen.update({step: pair.a.item()})
    )
    best = max(history.records, key=lambda record: record.valid or 0.0)
    assert history.best == best.step and 0 < best.step < 200
    assert pair.a.item() == seen[best.step] == pytest.approx(0.5, abs=0.1)
    assert best.valid == pytest.approx(-0.5 * (pair.a.item() - 0.5) ** 2 - 0.9189, abs=1e-3)
    early = train(Fragile(), rows(), steps=300, valid=torch.full((10,), 0.5), patience=5)
    assert early.best == best.step and early.steps == best.step + 5 * 3


def test_held_out_data_are_the_last_and_drawn_once() -> None:
    digits = data.load("digits")
    left, held_out = digits.hold_out(37)
    assert len(left.train) == len(digits.train) - 37 and torch.equal(left.train, digits.train[:-37])
    assert held_out.shape == (37, 1, 8, 8) and set(held_out.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(held_out, digits.hold_out(37)[1])
    difference = (held_out - digits.train[-37:]).mean().item()
    assert abs(difference) < 4.417 * 0.5 / held_out.numel() ** 0.5  # by chance beyond with probability 1e-5
    for number in (0, len(digits.train)):
        with pytest.raises(DataError, match=f"got {number} data to hold out; expected 1 to {len(digits.train) - 1}"):
            digits.hold_out(number)


def test_a_plateau_follows_the_data_held_out() -> None:
    history = train(Fragile(), rows(), steps=100, valid=torch.full((10,), 0.9), schedule=Plateau(0.5, patience=2))
    rates = [record.learning_rate for record in history.records]
    assert rates[0] == 0.01 and rates[-1] < 0.001 and rates == sorted(rates, reverse=True)


def test_half_precision_changes_the_result_a_little() -> None:
    ends = []
    for precision in ("float32", "float32", "bf16"):
        torch.manual_seed(0)
        pair = VAE((1, 8, 8), 5, (20,))
        settings: dict[str, Any] = {"steps": 30, "precision": precision, "progress": False}
        fit(pair, data.load("digits"), **settings)
        assert {p.dtype for p in pair.parameters()} == {torch.float32}
        ends.append(torch.cat([p.detach().flatten() for p in pair.parameters()]))
    assert torch.equal(ends[0], ends[1])
    assert 0 < (ends[2] - ends[0]).norm() < 0.02 * ends[0].norm()


def test_determinism_is_put_back() -> None:
    seen: list[bool] = []
    for wanted in (True, False):
        fit(
            VAE((1, 8, 8), 5, (20,)),
            data.load("digits"),
            steps=1,
            deterministic=wanted,
            progress=False,
            on_step=lambda step: seen.append(torch.are_deterministic_algorithms_enabled()),
        )
    assert seen == [True, False] and not torch.are_deterministic_algorithms_enabled()


def test_steps_are_called_back_in_order() -> None:
    seen: list[int] = []
    objective: Objective = Trace_ELBO()
    fit(VAE((1, 8, 8), 5, (20,)), data.load("digits"), objective, steps=7, progress=False, on_step=seen.append)
    assert seen == list(range(1, 8))
