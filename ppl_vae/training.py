"""`fit`: train a pair for a number of steps."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ppl_vae.checks import check_batch
from ppl_vae.data import Dataset, Minibatches
from ppl_vae.denormals import flush_denormals
from ppl_vae.heap import keep_freed_memory
from ppl_vae.objectives import Objective, Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.quiet import private_stream
from ppl_vae.steps import CapturedSteps, Steps
from ppl_vae.svi import SVI, Compile

__all__ = ["Compile", "Data", "History", "Record", "fit", "resolve_device", "steps_of"]

Data = Dataset | Tensor | Sequence[Tensor]

COMPILE_FROM, CAPTURE_FROM = 10_000, 100
"""Steps of a run from which compiling pays on a CPU (5 to 20 seconds), and capturing on CUDA (about one)."""


@dataclass(frozen=True)
class Record:
    """One point of the learning curve.

    Args:
        step: steps taken.
        bound: minus the loss, in nats per datum, averaged over the steps since the last record.
        seconds: wall time since the first step, evaluation and compilation included.
    """

    step: int
    bound: float
    seconds: float


@dataclass
class History:
    """What `fit` returns.

    Args:
        records: the learning curve.
        steps: steps taken.
        seconds: wall time.
        ms_per_step: median over the records of the wall time of a step, in milliseconds.
        compile: how the loss was run.
        device: where.
    """

    records: list[Record] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    ms_per_step: float = math.nan
    compile: str = "off"
    device: str = "cpu"

    @property
    def curve(self) -> list[tuple[float, float]]:
        """(step, bound) of the records."""
        return [(record.step, record.bound) for record in self.records]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def fit(
    pair: Pair,
    data: Data,
    objective: Objective | None = None,
    *,
    steps: int,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    schedule: Callable[[int], float] | None = None,
    optim: torch.optim.Optimizer | None = None,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: Compile = "auto",
    clip_norm: float | None = None,
    progress: bool = True,
    on_record: Callable[[Record], None] | None = None,
) -> History:
    """Train a pair in place.

    The data lives as tensors on the training device; each pass is shuffled anew and its incomplete
    last batch dropped. Minibatches and noise follow `seed` alone, and the global random state is
    left as it was: the same call on equal weights gives equal weights. Denormal numbers are flushed
    to zero from here on, in this process (normalised importance weights underflow to denormals, which
    make a step several times slower), and memory that a step frees stays with the process (up to 512 MiB).

    Args:
        pair: the model and the guide; moved to the device.
        data: a data set (its training part, binarised as it says), a tensor of N rows, or several
            tensors of N rows each, one for each argument of the programs.
        objective: `Trace_ELBO()` by default.
        steps: how many gradient steps; see `steps_of` for passes over the data.
        batch_size: B.
        learning_rate: of Adam.
        schedule: from the step to a factor on the learning rate.
        optim: an optimiser over `pair.parameters()` instead of Adam; `learning_rate` is then unused.
        seed: of the minibatches and the noise.
        device: "auto" takes CUDA where there is one.
        compile: how the steps are run, as for `SVI`; "auto" goes by the length of the run: "inductor" from 10,000
            steps on a CPU, "cudagraph" from 100 on CUDA, where drawing the batch and the schedules are captured too
            and ten steps are one launch.
        clip_norm: as for `SVI`.
        progress: show a bar with the bound and the time left.
        on_record: called about a hundred times with the newest point of the learning curve.

    Raises:
        ValueError: an empty or non-finite data set, a wrong dtype or shape, values outside the
            likelihood's support, a device that is not there.
        NonFiniteError: the loss became NaN or infinite; names step, site and the batch's rows.
    """
    if steps < 0:
        raise ValueError(f"steps: got {steps}, expected at least 0")
    flush_denormals()
    keep_freed_memory()
    place = resolve_device(device)
    pair.to(place)
    batches = _minibatches(pair, data, batch_size, seed, place)
    optim = optim or torch.optim.Adam(pair.parameters(), lr=learning_rate, fused=True)
    how = _resolve_compile(compile, steps, place)
    svi = SVI(pair, optim, objective or Trace_ELBO(), compile=how, clip_norm=clip_norm)
    svi.objective.step = 0
    history = History(compile=how, device=str(place))
    captured = place.type == "cuda" and how != "off"
    several = partial(CapturedSteps, longest=_every(steps)) if captured else Steps
    with (
        private_stream(seed, place),
        tqdm(total=steps, disable=not progress, unit="step", mininterval=0.5) as bar,
    ):
        pair.train()
        _run(several(svi, batches, schedule), history, steps, bar, on_record)
    return history


def steps_of(passes: float, data: Data, batch_size: int) -> int:
    """How many steps make so many passes over the data."""
    rows = len(data.train) if isinstance(data, Dataset) else len(data if isinstance(data, Tensor) else data[0])
    return round(passes * (rows // batch_size))


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" takes CUDA where there is one.

    Raises:
        ValueError: CUDA is asked for where there is none, or the name is unknown.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: got {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: got {device!r}, but {torch.cuda.device_count()} CUDA devices are usable here; "
            "use 'cpu' or 'auto', or install a CUDA build of torch and its driver"
        )
    return place


def _resolve_compile(compile: Compile, steps: int, place: torch.device) -> Compile:
    if compile == "cudagraph" and place.type != "cuda":
        raise ValueError(f"compile: got 'cudagraph' on {place}, expected a CUDA device; use 'inductor' or 'auto'")
    if compile != "auto":
        return compile
    if place.type == "cuda":
        return "cudagraph" if steps >= CAPTURE_FROM else "off"
    return "inductor" if steps >= COMPILE_FROM else "off"


def _minibatches(pair: Pair, data: Data, batch_size: int, seed: int, place: torch.device) -> Minibatches:
    if isinstance(data, Dataset):
        data = data.to(place)
        check_batch(pair, data.train)
        return Minibatches((data.train,), batch_size, seed, data.draw)
    tensors = (data,) if isinstance(data, Tensor) else tuple(data)
    tensors = tuple(t.to(place) for t in tensors)
    check_batch(pair, *tensors)
    return Minibatches(tensors, batch_size, seed)


def _run(
    steps: Steps,
    history: History,
    number: int,
    bar: "tqdm[Any]",
    on_record: Callable[[Record], None] | None,
) -> None:
    every, rows = _every(number), steps.batches.batch_size
    start, times, done = time.perf_counter(), [0.0], 0
    while done < number:
        count = min(every, number - done)
        loss = steps.take(count).item()
        done += count
        times.append(time.perf_counter() - start)
        steps.check(loss)
        record = Record(done, -loss / (count * rows), times[-1])
        history.records.append(record)
        bar.update(count)
        bar.set_postfix_str(f"bound {record.bound:.2f} nats", refresh=False)
        if on_record is not None:
            on_record(record)
    gaps = sorted((b - a) / every for a, b in pairwise(times))
    history.steps, history.seconds = number, times[-1]
    history.ms_per_step = 1e3 * gaps[len(gaps) // 2] if gaps else math.nan


def _every(steps: int) -> int:
    """Steps from one point of the learning curve to the next."""
    return max(1, steps // 100)
