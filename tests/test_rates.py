"""Learning rates: torch's own schedulers say the same, step by step."""

import json
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, ReduceLROnPlateau, SequentialLR, StepLR

from ppl_vae import fit
from ppl_vae.pairs import VAE
from ppl_vae.rates import FORMS, Burda, Constant, Cosine, Plateau, StepDecay, parse

EXACT = 1e-12


def sgd() -> torch.optim.SGD:
    """An optimiser of learning rate 1: its learning rate is the factor."""
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=1.0)


def factors(make: Callable[[Any], lr_scheduler.LRScheduler], steps: int) -> list[float]:
    """The factors of torch's scheduler at steps 0, 1, ..."""
    optim = sgd()
    scheduler, rates = make(optim), []
    for _ in range(steps):
        rates.append(float(optim.param_groups[0]["lr"]))
        optim.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("end", [0.0, 0.05])
def test_cosine_is_torchs(end: float) -> None:
    expected = factors(lambda optim: CosineAnnealingLR(optim, T_max=97, eta_min=end), 98)
    assert [Cosine(97, end=end)(t) for t in range(98)] == pytest.approx(expected, abs=EXACT)
    assert Cosine(97, end=end)(97) == pytest.approx(end, abs=EXACT) == Cosine(97, end=end)(1000)


def test_cosine_after_a_warm_up_is_torchs() -> None:
    def make(optim: torch.optim.Optimizer) -> lr_scheduler.LRScheduler:
        rise = LinearLR(optim, start_factor=1 / 8, total_iters=7)
        return SequentialLR(optim, [rise, CosineAnnealingLR(optim, T_max=43 - 7)], milestones=[7])

    expected = factors(make, 44)
    assert expected[0] == 0.125 and expected[7] == 1.0
    assert [Cosine(43, warmup=7)(t) for t in range(44)] == pytest.approx(expected, abs=EXACT)


def test_step_decay_is_torchs() -> None:
    expected = factors(lambda optim: StepLR(optim, step_size=7, gamma=0.3), 60)
    assert [StepDecay(7, 0.3)(t) for t in range(60)] == pytest.approx(expected, abs=EXACT)


@pytest.mark.parametrize("per_pass", [1, 3])
def test_burda_has_eight_stages_of_3280_passes(per_pass: int) -> None:
    stages = [10 ** (-i / 7) for i in range(8) for _ in range(3**i) for _ in range(per_pass)]
    burda = Burda(per_pass)
    assert len(stages) == burda.steps == 3280 * per_pass
    assert [burda(t) for t in range(burda.steps)] == pytest.approx(stages, abs=EXACT)
    # What the eight stages do together: the mean factor, from the paper's list of learning rates and passes.
    assert sum(stages) == pytest.approx(per_pass * sum(3**i * 10 ** (-i / 7) for i in range(8)), rel=1e-9)
    assert burda(burda.steps) == burda(10**9) == pytest.approx(0.1, abs=EXACT)


def test_constant() -> None:
    assert Constant()(0) == Constant()(10**9) == 1.0


def curve(seed: int, points: int = 300) -> list[float]:
    """Rises, stays, and is noisy: nats per datum."""
    noise = 0.3 * torch.randn(points, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (-90 - 60 * torch.exp(-torch.arange(points) / 15.0) + noise).tolist()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("factor", "patience", "threshold", "smallest"), [(0.5, 10, 0.01, 1e-3), (0.7, 0, 0.2, 0.05)])
def test_plateau_is_torchs(factor: float, patience: int, threshold: float, smallest: float, seed: int) -> None:
    optim, plateau = sgd(), Plateau(factor, patience, threshold, smallest)
    torchs = ReduceLROnPlateau(
        optim, "max", factor=factor, patience=patience, threshold=threshold, threshold_mode="abs", min_lr=smallest,
        eps=0.0,
    )  # fmt: skip
    seen = set()
    for step, bound in enumerate(curve(seed)):
        torchs.step(bound)
        plateau.observe(bound)
        seen.add(plateau(step))
        assert plateau(step) == pytest.approx(optim.param_groups[0]["lr"], abs=EXACT)
    assert len(seen) > 5, "the curve must bring the rate down several times"


def rest(plateau: Plateau, points: list[float]) -> list[float]:
    """The factors after each of these points."""
    factors = []
    for bound in points:
        plateau.observe(bound)
        factors.append(plateau(0))
    return factors


def test_a_plateau_goes_on_from_its_state() -> None:
    def make() -> Plateau:
        return Plateau(patience=8, smallest=0.0)

    points = curve(0)
    expected = rest(make(), points)
    for cut in range(len(points)):
        first, second = make(), make()
        rest(first, points[:cut])
        # Through JSON: plain numbers alone, as a checkpoint that runs no code needs them.
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert rest(second, points[cut:]) == expected[cut:]
    with pytest.raises(ValueError, match=r"Plateau state: got keys \['best'\], expected \['best', 'current', 'waited'"):
        make().load_state_dict({"best": 0.0})


def test_a_plateau_refuses_a_bound_that_is_not_finite_and_stays_as_it_was() -> None:
    plateau = Plateau(patience=0)
    for bound in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"got a bound of {bound}, expected a finite number of nats"):
            plateau.observe(bound)
    assert plateau == Plateau(patience=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cosine(0), "Cosine steps: got 0"),
        (lambda: Cosine(10, warmup=10), "Cosine warmup: got 10"),
        (lambda: Cosine(10, warmup=-1), "Cosine warmup: got -1"),
        (lambda: Cosine(10, end=1.5), "Cosine end: got 1.5"),
        (lambda: Cosine(10, end=math.nan), "Cosine end: got nan"),
        (lambda: StepDecay(0, 0.5), "StepDecay every: got 0"),
        (lambda: StepDecay(5, 1.0), "StepDecay factor: got 1.0"),
        (lambda: StepDecay(5, 0.0), "StepDecay factor: got 0.0"),
        (lambda: Burda(0), "Burda steps_per_pass: got 0"),
        (lambda: Plateau(factor=2.0), "Plateau factor: got 2.0"),
        (lambda: Plateau(patience=-1), "Plateau patience: got -1"),
        (lambda: Plateau(threshold=-0.1), "Plateau threshold: got -0.1"),
        (lambda: Plateau(threshold=math.inf), "Plateau threshold: got inf"),
        (lambda: Plateau(smallest=1.1), "Plateau smallest: got 1.1"),
    ],
)
def test_bad_arguments(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}.*expected"):
        make()


PARSED = {
    "constant": Constant(),
    "cosine": Cosine(1000),
    "cosine:500": Cosine(1000, warmup=500),
    "step:100:0.5": StepDecay(100, 0.5),
    "step:100:1e-1": StepDecay(100, 0.1),
    "step:2p:0.5": StepDecay(120, 0.5),
    "cosine:0.5p": Cosine(1000, warmup=30),
    "plateau": Plateau(),
    "plateau:0.3:4": Plateau(factor=0.3, patience=4),
    "burda": Burda(60),
}


@pytest.mark.parametrize(("text", "expected"), PARSED.items(), ids=PARSED)
def test_texts(text: str, expected: Callable[[int], float]) -> None:
    schedule = parse(text, steps=1000, steps_per_pass=60)
    assert schedule == expected and type(schedule) is type(expected)
    again = pickle.loads(pickle.dumps(schedule))
    assert again == schedule and [again(t) for t in (0, 70, 999)] == [schedule(t) for t in (0, 70, 999)]


@pytest.mark.parametrize(
    "text",
    ["", "linear", "Cosine", "cosine:", "cosine:1.5", "cosine:5:5", "step", "step:5", "step:0.5:5", "step:a:0.5",
     "plateau:0.5", "plateau:0.5:1.5", "burda:3", "constant:1:1"],
)  # fmt: skip
def test_an_unknown_text_is_told_what_is_expected(text: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(text, steps=1000, steps_per_pass=60)
    assert str(error.value).startswith(f"schedule: got {text!r}, expected one of {', '.join(FORMS)}")


@pytest.mark.parametrize(
    ("text", "message"),
    [("cosine:1000", "Cosine warmup: got 1000"), ("step:0:0.5", "StepDecay every: got 0"), ("plateau:2:3", "got 2")],
)
def test_numbers_that_a_schedule_refuses(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"schedule '{text}': .*{message}.*expected"):
        parse(text, steps=1000, steps_per_pass=60)


def test_fit_follows_a_schedule() -> None:
    torch.manual_seed(0)
    pair, schedule = VAE((1, 4, 4), 2, (3,)), Cosine(10, warmup=3)
    optim, x = torch.optim.SGD(pair.parameters(), lr=1e-5), torch.zeros(8, 1, 4, 4)
    seen: list[float] = []
    fit(
        pair, x, steps=10, batch_size=4, optim=optim, schedule=schedule, compile="off", progress=False,
        on_record=lambda record: seen.append(optim.param_groups[0]["lr"] / 1e-5),
    )  # fmt: skip
    assert seen == pytest.approx([schedule(t) for t in range(10)], rel=1e-9)
