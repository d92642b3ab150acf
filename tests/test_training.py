"""`fit`: reproducible, counted in steps, and clear about bad input."""

import math
import platform
import subprocess
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import Pair, data, fit
from ppl_vae.nonfinite import NonFiniteError
from ppl_vae.objectives import IWAE, LinearWarmup, Trace_ELBO
from ppl_vae.pairs import VAE
from ppl_vae.training import Record, resolve_device, steps_of


def small(seed: int = 0) -> VAE:
    torch.manual_seed(seed)
    return VAE((1, 8, 8), 5, (20,))


def weights(pair: Pair) -> Tensor:
    return torch.cat([p.detach().flatten() for p in pair.parameters()])


def test_same_seed_gives_same_weights_and_leaves_the_random_state_alone() -> None:
    digits = data.load("digits")
    first, second, other = small(), small(), small()
    before = torch.get_rng_state()
    fit(first, digits, IWAE(2), steps=20, progress=False)
    assert torch.equal(torch.get_rng_state(), before) is True
    torch.manual_seed(99)
    fit(second, digits, IWAE(2), steps=20, progress=False)
    fit(other, digits, IWAE(2), steps=20, seed=1, progress=False)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


def test_the_bound_rises_on_digits() -> None:
    history = fit(small(), data.load("digits"), Trace_ELBO(), steps=300, progress=False)
    assert history.steps == 300 and len(history.records) == 100
    assert history.records[-1].bound > history.records[0].bound + 10
    assert history.ms_per_step > 0 and history.records[-1].seconds <= history.seconds


def test_records_average_the_loss_per_datum() -> None:
    x = torch.bernoulli(torch.full((12, 1, 8, 8), 0.5))
    seen: list[Record] = []
    fit(small(), x, steps=7, batch_size=4, learning_rate=0.0, progress=False, on_record=seen.append)
    assert [record.step for record in seen] == list(range(1, 8))
    pair = small()
    mean = torch.stack([Trace_ELBO().bound(pair.model, pair.guide, x).mean() for _ in range(50)]).mean().item()
    # A mean of 28 ELBO draws of a fresh pair has a standard deviation below 1 nat: 10 nats are over 10 sigma.
    assert abs(sum(record.bound for record in seen) / 7 - mean) < 10


def test_schedule_multiplies_the_learning_rate() -> None:
    x = torch.bernoulli(torch.full((12, 1, 8, 8), 0.5))
    pair = small()
    start = weights(pair)
    fit(pair, x, steps=3, batch_size=4, schedule=lambda step: 0.0, progress=False)
    assert torch.equal(weights(pair), start)
    optim = torch.optim.SGD(pair.parameters(), lr=1e-6)
    fit(pair, x, steps=3, batch_size=4, schedule=lambda step: [1.0, 0.5, 0.25][step], optim=optim, progress=False)
    assert optim.param_groups[0]["lr"] == pytest.approx(0.25e-6)


def test_kl_warm_up_is_counted_in_steps() -> None:
    objective = Trace_ELBO(kl_weight=LinearWarmup(10))
    x = torch.bernoulli(torch.full((12, 1, 8, 8), 0.5))
    for _ in range(2):  # a second fit starts the schedule anew
        fit(small(), x, objective, steps=4, batch_size=4, progress=False)
        assert objective.step == 4 and objective.current_kl_weight == pytest.approx(0.4)


def test_compiled_training_equals_eager() -> None:
    digits, pairs = data.load("digits"), [small(), small()]
    for pair, how in zip(pairs, ("off", "inductor"), strict=True):
        history = fit(pair, digits, Trace_ELBO(), steps=30, compile=how, progress=False)
        assert history.compile == how
    # The same noise and minibatches: only rounding differs.
    torch.testing.assert_close(weights(pairs[0]), weights(pairs[1]), rtol=1e-3, atol=1e-4)


DENORMALS = """
import torch
from ppl_vae import fit
from ppl_vae.pairs import VAE

torch.set_num_threads(2)
tiny = torch.full((1 << 20,), 1e-39)
assert (tiny * 1.0 > 0).all()  # the thread pool has started, and keeps denormal numbers
torch.set_flush_denormal(True)
assert ((tiny * 1.0).view(2, -1) == 0).all(1).tolist() == [True, False]  # not enough
fit(VAE((1, 4, 4), 2, (3,)), torch.zeros(4, 1, 4, 4), steps=1, batch_size=2, progress=False)
halves = (tiny * 1.0).view(2, -1)
assert (halves == 0).all(1).tolist() == [True, True], halves[:, :3]
assert not (torch.ones(300, 300) @ torch.full((300, 300), 1e-42)).any()
"""


def test_denormals_are_flushed_on_threads_that_started_before() -> None:
    subprocess.run([sys.executable, "-c", DENORMALS], check=True, timeout=100)


PAGE_FAULTS = """
import resource
import torch
from ppl_vae import fit
from ppl_vae.pairs import VAE

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        several = [torch.zeros(500_000) for _ in range(8)]  # 2 MB each
        del several
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

without = faults()
fit(VAE((1, 4, 4), 2, (3,)), torch.zeros(4, 1, 4, 4), steps=1, batch_size=2, progress=False)
faults()  # once, to get the memory
assert faults() < 100 < 1000 < without, (faults(), without)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone hands memory back")
def test_freed_memory_is_used_again() -> None:
    subprocess.run([sys.executable, "-c", PAGE_FAULTS], check=True, timeout=100)


def test_steps_of_passes() -> None:
    assert steps_of(2, torch.zeros(25, 1), 10) == 4
    assert steps_of(50, data.load("digits"), 100) == 50 * 14


class Overflowing(Pair):
    """A guide whose scale overflows once its parameter grows."""

    def __init__(self, log_scale: float) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(log_scale))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x.new_zeros(()), self.log_scale.exp()))


def test_a_nan_names_step_site_and_rows() -> None:
    pair = Overflowing(0.0)

    def jump(step: int) -> float:
        return 1e6 if step == 2 else 0.0

    optim = torch.optim.SGD(pair.parameters(), lr=1.0, maximize=True)
    with pytest.raises(NonFiniteError, match=r"step 3: .*site 'z' of the guide: Normal's parameter 'scale'.*Rows"):
        fit(pair, torch.zeros(10), steps=10, batch_size=5, schedule=jump, optim=optim, progress=False)
    assert math.isfinite(pair.log_scale.item())


def test_an_overflowed_parameter_is_named() -> None:
    pair = Overflowing(math.inf)
    svi_data = torch.zeros(10)
    with pytest.raises((NonFiniteError, ValueError), match="scale"):
        fit(pair, svi_data, steps=2, batch_size=5, progress=False)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 1, 8, 8), "0 rows"),
        (torch.full((20, 1, 8, 8), math.nan), "non-finite|NaN"),
        (torch.full((20, 1, 8, 8), 0.5), "outside the support of Bernoulli.*Binarise"),
        (torch.zeros(20, 1, 8, 7), r"\(20?1?0?, 1, 8, 7\)|expected \(..., 1, 8, 8\)"),
        (torch.zeros(20, 1, 8, 8, dtype=torch.float64), "float64"),
        (torch.zeros(20, 1, 8, 8, dtype=torch.uint8), "uint8"),
    ],
    ids=["empty", "nan", "grey", "shape", "float64", "uint8"],
)
def test_bad_data_is_refused(x: Tensor, message: str) -> None:
    pair = small()
    start = weights(pair)
    with pytest.raises(ValueError, match=message):
        fit(pair, x, steps=3, batch_size=10, progress=False)
    assert torch.equal(weights(pair), start)


def test_a_missing_device_is_refused() -> None:
    with pytest.raises(ValueError, match="got 'cuda:99'"):
        resolve_device("cuda:99")
    with pytest.raises(ValueError, match="expected 'auto'"):
        resolve_device("tpu-please")
    with pytest.raises(ValueError, match="steps"):
        fit(small(), torch.zeros(20, 1, 8, 8), steps=-1, progress=False)
