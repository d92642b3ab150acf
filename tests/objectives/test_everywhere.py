"""Every objective in every place: our SVI and stock SVI, as a module, recorded, and by name on the command line."""

import inspect
from collections.abc import Callable

import pytest
import torch
from pyro.optim import PyroOptim

from ppl_vae import SVI, Pair, objectives, specs
from ppl_vae.compile import loss_state, record
from ppl_vae.objectives import (
    CIWAE,
    IWAE,
    MIWAE,
    PIWAE,
    STL,
    VIMCO,
    BetaELBO,
    CapacityELBO,
    DReG,
    FreeBits,
    LinearWarmup,
    Objective,
    RenyiELBO,
    ReweightedWakeSleep,
    TailAdaptive,
    ThermodynamicELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    VRMax,
    WakeSleep,
)
from ppl_vae.pairs import VAE, HierarchicalVAE
from tests.helpers import assert_compiled_is_eager

ALL: list[Objective] = [
    Trace_ELBO(2),
    TraceMeanField_ELBO(2, fallback=True),
    RenyiELBO(0.5, 3),
    IWAE(3),
    STL(3),
    DReG(3, kl_weight=LinearWarmup(4, start=0.5)),
    MIWAE(2, 2),
    PIWAE(2, 2),
    CIWAE(3),
    VRMax(3),
    TailAdaptive(3),
    TraceEnum_ELBO(2, strict_enumeration_warning=False),
    TraceGraph_ELBO(2),
    BetaELBO(2.0),
    FreeBits(),
    FreeBits(per="dim"),
    CapacityELBO(LinearWarmup(4, end=3.0)),
    VIMCO(3),
    ThermodynamicELBO(4),
    ReweightedWakeSleep(3),
    ReweightedWakeSleep(3, insomnia=0.4),
    WakeSleep(2),
]
PAIRS: dict[str, Callable[[], Pair]] = {
    "vae": lambda: VAE((1, 4, 4), 3, (10,)),
    "conv": lambda: VAE((1, 4, 4), 3, (3, 4), trunk="conv"),
    "logistic": lambda: VAE((1, 4, 4), 3, (10,), likelihood="discretised-logistic", levels=2),
    "two layers": lambda: pair_and_batch()[0],
}
every = pytest.mark.parametrize("objective", ALL, ids=lambda o: type(o).__name__)


def pair_and_batch() -> tuple[HierarchicalVAE, torch.Tensor]:
    pair = HierarchicalVAE((1, 4, 4), (4, 3), ((10,), (6,)))
    return pair, torch.bernoulli(torch.full((8, 1, 4, 4), 0.3))


def test_none_is_forgotten() -> None:
    classes = {getattr(objectives, name) for name in objectives.__all__}
    concrete = {c for c in classes if inspect.isclass(c) and issubclass(c, Objective) and not inspect.isabstract(c)}
    assert concrete == {type(objective) for objective in ALL}


@every
def test_all_parameters_move_in_stock_svi_and_in_ours(objective: Objective) -> None:
    for stock in (True, False):
        pair, x = pair_and_batch()
        before = {name: p.detach().clone() for name, p in pair.named_parameters()}
        adam = torch.optim.Adam(pair.parameters(), lr=1e-3)
        svi = (
            pair.pyro_svi(PyroOptim(torch.optim.Adam, {"lr": 1e-3}), objective) if stock else SVI(pair, adam, objective)
        )
        assert all(torch.tensor(svi.step(x)).isfinite() for _ in range(2))
        assert not [name for name, p in pair.named_parameters() if torch.equal(p, before[name])]


@every
def test_recorded_gradients_are_the_eager_ones_on_shared_noise(objective: Objective) -> None:
    pair, x = pair_and_batch()
    objective.step = 2
    loss = objective(pair)
    recorded = record(loss, x)
    torch.manual_seed(1)
    eager = loss(x)
    gradients = torch.autograd.grad(eager, list(pair.parameters()))
    torch.manual_seed(1)
    weight = torch.as_tensor(objective.current_kl_weight)
    again, *others = recorded.graph(*loss_state(loss).values(), weight, x, *recorded.noise())
    torch.testing.assert_close(again, eager.detach(), rtol=1e-5, atol=1e-5)
    for got, expected in zip(others, gradients, strict=True):
        assert (got - expected).norm() <= 1e-5 * expected.norm() + 1e-6


@pytest.mark.parametrize("make", PAIRS.values(), ids=PAIRS)
@every
def test_compiled_gradients_are_the_eager_ones_on_shared_noise(make: Callable[[], Pair], objective: Objective) -> None:
    """Every pair with every objective, through Inductor."""
    objective.step = 2
    assert_compiled_is_eager(objective(make()), pair_and_batch()[1])


@every
def test_the_bound_has_one_number_for_each_datum_and_no_gradient(objective: Objective) -> None:
    pair, x = pair_and_batch()
    bound = objective.bound(pair.model, pair.guide, x)
    assert bound.shape == (8,) and not bound.requires_grad and bool(bound.isfinite().all())


@pytest.mark.parametrize("text", ["dreg:3", "MIWAE(2, 3)", "FreeBits(nats=0.1, per='dim')", "BetaELBO(beta=2)"])
def test_objectives_by_name(text: str) -> None:
    assert isinstance(specs.make_objective(text), Objective)
