"""`fit`: train a pair for a number of steps."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence, Sized
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset as MapStyle
from tqdm import tqdm

from ppl_vae.averages import WeightAverage
from ppl_vae.checks import check_batch
from ppl_vae.data import Dataset, LoadedMinibatches, Minibatches, Source
from ppl_vae.denormals import flush_denormals
from ppl_vae.heap import keep_freed_memory
from ppl_vae.lagging import AggressiveGuide
from ppl_vae.loop import Loop, saver_of
from ppl_vae.objectives import Objective, Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.parallel import Ranks
from ppl_vae.precision import Precision
from ppl_vae.precision import precision as reduced_precision
from ppl_vae.quiet import private_stream
from ppl_vae.records import History, Record, every
from ppl_vae.steps import CapturedSteps, Steps
from ppl_vae.svi import SVI, Compile, OnNonFinite
from ppl_vae.validation import Validation

__all__ = ["Compile", "Data", "History", "OnNonFinite", "Record", "first_batch", "fit", "resolve_device", "steps_of"]

B = TypeVar("B", Minibatches, LoadedMinibatches)
Data = Dataset[Any] | Source | Tensor | Sequence[Tensor] | MapStyle[Any]

COMPILE_FROM, CAPTURE_FROM = 10_000, 100
"""Steps of a run from which compiling pays on a CPU (5 to 20 seconds), and capturing on CUDA (about one)."""


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
    clip_norm: float | None = None,
    accumulate: int = 1,
    ema: float | None = None,
    valid: Tensor | Sequence[Tensor] | None = None,
    patience: int | None = None,
    aggressive: bool = False,
    seed: int = 0,
    device: str | torch.device = "auto",
    compile: Compile = "auto",
    precision: Precision = "float32",
    deterministic: bool = False,
    num_workers: int = 0,
    on_nonfinite: OnNonFinite = "stop",
    checkpoints: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool | str | Path = False,
    progress: bool = True,
    on_step: Callable[[int], object] | None = None,
    on_record: Callable[[Record], object] | None = None,
) -> History:
    """Train a pair in place.

    Data in memory live as tensors on the training device; data on disk are read batch by batch. Each pass is shuffled
    anew and its incomplete last batch dropped. Minibatches and noise follow `seed` alone, and the global random state
    is left as it was: the same call on equal weights gives equal weights. Denormal numbers are flushed to zero from
    here on, in this process (normalised importance weights underflow to denormals, which make a step several times
    slower), and memory that a step frees stays with the process (up to 512 MiB).

    Where `torch.distributed` is initialised (see `torchrun`), each process takes its part of every batch, with noise of
    its own, and the gradients are added up: what one process does with the whole batch. The first one writes.

    With `checkpoints` a run survives: taken up again after whatever ended it (`resume=True`), it ends with the same
    weights, bit for bit, as if nothing had happened: on a CPU with as many threads, with "off" and with "inductor", and
    on a GPU with "off". SIGINT and SIGTERM write a checkpoint before they end the run.

    Args:
        pair: the model and the guide; moved to the device.
        data: a data set (its training part, binarised as it says; of `data.scenes` and `data.coco` images and
            captions), a tensor of N rows, several tensors of N rows each, one for each argument of the programs; or,
            where they don't fit into memory, `data.load_folder(...)` or any map-style data set of torch (of Hugging
            Face, torchvision, your own): see `LoadedMinibatches`.
        objective: `Trace_ELBO()` by default.
        steps: how many gradient steps; see `steps_of` for passes over the data.
        batch_size: B.
        learning_rate: of Adam.
        schedule: from the step to a factor on the learning rate, e.g. one of `ppl_vae.rates`.
        optim: an optimiser over `pair.parameters()` instead of Adam; `learning_rate` is then unused.
        clip_norm, accumulate: as for `SVI`.
        ema: decay of an exponential moving average of the weights, such as 0.999: the pair ends with the average.
        valid: data held out, as `data` but binarised: their bound is part of the learning curve, with KL, mutual
            information and active units of the first thousand (`Aggregate`), and the pair ends with the weights of its
            best point.
        patience: stop after so many points of the learning curve without a better bound on `valid`.
        aggressive: train the guide to convergence before each step of the model, as long as the mutual information on
            `valid` rises (see `AggressiveGuide`): against posterior collapse. Steps are then eager.
        seed: of the minibatches and the noise.
        device: "auto" takes CUDA where there is one.
        compile: how the steps are run, as for `SVI`; "auto" goes by the length of the run: "inductor" from 10,000
            steps on a CPU, "cudagraph" from 100 on CUDA, where drawing the batch and the schedules are captured too
            and ten steps are one launch.
        precision: "bf16" computes products and convolutions in bfloat16, and all else, log-probabilities above all,
            in float32.
        deterministic: refuse operations that are not deterministic (on CUDA; on a CPU all are).
        num_workers: processes that read data on disk ahead; 0 reads in this one.
        on_nonfinite: "stop" or "skip", as for `SVI`.
        checkpoints: a folder for them; the newest three are kept.
        checkpoint_every: steps; by default by the clock, so that they take under one percent of the time.
        resume: go on from the newest checkpoint (from the start where there is none), or from the file named.
        progress: show a bar with the bound and the time left.
        on_step: called with the number of steps taken after each step (on CUDA, captured: each launch).
        on_record: called with the newest point of the learning curve: a hundred times, and every 1,000 steps at least.

    Raises:
        ValueError: an empty or non-finite data set, a wrong dtype or shape, values outside the
            likelihood's support, a device that is not there; checkpoints of an earlier run without `resume`, or of
            a run with other settings; `aggressive` without `valid`, or compiled.
        NonFiniteError: the loss became NaN or infinite; names step, site and the batch's rows.
        CheckpointError: a checkpoint is damaged, foreign, or can't be written.
        Stopped: a `KeyboardInterrupt`: SIGINT or SIGTERM came, and a checkpoint is written.
    """
    if steps < 0:
        raise ValueError(f"steps: got {steps}, expected at least 0")
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate: got {learning_rate}, expected a finite number of at least 0")
    if accumulate < 1:
        raise ValueError(f"accumulate: got {accumulate}, expected at least 1")
    objective = objective or Trace_ELBO()
    settings = {"steps": steps, "batch_size": batch_size, "accumulate": accumulate, "seed": seed}
    if aggressive and valid is None:
        raise ValueError(
            "aggressive: got True without data held out, expected valid=... beside it, to know when to end"
        )
    settings |= {"precision": precision, "ema": ema, "clip_norm": clip_norm, "aggressive": aggressive}
    settings |= {"objective": repr(objective.describe())}
    saver, state = saver_of(checkpoints, checkpoint_every, resume)
    flush_denormals()
    keep_freed_memory()
    place, ranks = resolve_device(device), Ranks()
    pair.to(place)
    batches = _minibatches(pair, data, batch_size * accumulate, seed, place, (ranks.rank, ranks.size), num_workers)
    validation = _validation(pair, valid, batch_size, seed, place, patience)
    optim = optim or torch.optim.Adam(pair.parameters(), lr=learning_rate, fused=True)
    if state is None:
        _begin(pair, batches, seed)
    ranks.share(pair)
    how = _resolve_compile("off" if aggressive and compile == "auto" else compile, steps, place, ranks)
    guards: dict[str, Any] = {"clip_norm": clip_norm, "accumulate": accumulate, "on_nonfinite": on_nonfinite}
    svi = SVI(pair, optim, objective, compile=how, ranks=ranks, **guards)
    objective.step = 0
    history = History(compile=how, device=str(place))
    average = None if ema is None else WeightAverage(pair, ema)
    captured = place.type == "cuda" and how != "off"
    with (
        private_stream(ranks.seed(seed), place),
        reduced_precision(pair, precision),
        _determinism(deterministic),
        closing(batches),
        tqdm(total=steps, disable=not (progress and ranks.is_first), unit="step", mininterval=0.5) as bar,
    ):
        pair.train()
        after = average and average.update
        lead = AggressiveGuide(svi, batches) if aggressive else None
        if captured and isinstance(batches, Minibatches) and batches.is_uniform:
            taken: Steps[Any] = CapturedSteps(svi, batches, schedule, after, longest=every(steps))
        else:
            taken = Steps(svi, batches, schedule, after, lead.before_step if lead else nullcontext)
        loop = Loop(taken, steps, settings, history, bar, validation, average, saver, lead, on_step, on_record)
        if state is not None:
            loop.load_state_dict(state)
        loop.run()
    return history


def steps_of(passes: float, data: Data, batch_size: int) -> int:
    """How many steps make so many passes over the data."""
    if isinstance(data, Source):
        return round(passes * data.minibatches(batch_size).steps_per_pass)
    rows = data.train if isinstance(data, Dataset) else data[0] if isinstance(data, tuple | list) else data
    return round(passes * (len(cast(Sized, rows)) // batch_size))


def first_batch(pair: Pair, data: Data, batch_size: int) -> tuple[Tensor, ...]:
    """Some batch of the training data, as the pair's programs take it, on the pair's device."""
    batches = _minibatches(pair, data, batch_size, 0, pair.reference().device, (0, 1), 0)
    with private_stream(0, batches.device), closing(batches):
        return batches.next()


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of a name; "auto" takes CUDA where there is one.

    Raises:
        ValueError: the device is not there, the name is unknown, or it is of a kind that nothing here is trained on.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: got {device!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from error
    if place.type not in ("cpu", "cuda") and not (place.type == "mps" and torch.backends.mps.is_available()):
        raise ValueError(
            f"device: got {device!r}, expected one that is there and can train; use 'auto', 'cpu' or 'cuda:N'"
        )
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device: got {device!r}, expected one of the {torch.cuda.device_count()} CUDA devices usable here; "
            "use 'cpu' or 'auto', or install a CUDA build of torch and its driver"
        )
    return place


def _resolve_compile(compile: Compile, steps: int, place: torch.device, ranks: Ranks) -> Compile:
    if ranks.size > 1 and place.type == "cuda":
        if compile not in ("auto", "off"):
            raise ValueError(f"compile: got {compile!r} for {ranks.size} processes on CUDA, expected 'off' or 'auto'")
        return "off"
    if compile == "cudagraph" and place.type != "cuda":
        raise ValueError(f"compile: got 'cudagraph' on {place}, expected a CUDA device; use 'inductor' or 'auto'")
    if compile != "auto":
        return compile
    if place.type == "cuda":
        return "cudagraph" if steps >= CAPTURE_FROM else "off"
    return "inductor" if steps >= COMPILE_FROM else "off"


def _minibatches(
    pair: Pair, data: Data, batch_size: int, seed: int, place: torch.device, part: tuple[int, int], num_workers: int
) -> Minibatches | LoadedMinibatches:
    if isinstance(data, Source):
        return _checked(pair, _all_used(data.to(place).minibatches(batch_size, seed, part)))
    draw = data.draw if isinstance(data, Dataset) else None
    rows = data.train if isinstance(data, Dataset) else data
    if not isinstance(rows, Tensor | tuple | list):
        return _checked(pair, LoadedMinibatches(rows, batch_size, seed, draw, part, device=place, workers=num_workers))
    if num_workers:
        raise ValueError(f"num_workers: got {num_workers} for data in memory, expected 0; they read data on disk")
    tensors = tuple(t.to(place) for t in ((rows,) if isinstance(rows, Tensor) else rows))
    check_batch(pair, *tensors)
    return Minibatches(tensors, batch_size, seed, draw, part)


def _all_used(batches: Minibatches) -> Minibatches:
    """The batches; a warning where some rows are never in one."""
    if batches.unused:
        warnings.warn(
            f"ppl_vae: {batches.unused} of {batches.num_data} training data are never used: their groups (texts of "
            f"one width) have fewer than batch_size={batches.batch_size}; choose a smaller batch, or larger groups",
            stacklevel=3,
        )
    return batches


def _checked(pair: Pair, batches: B) -> B:
    """The batches, of which the first has been checked."""
    start = batches.state_dict()
    with private_stream(0, batches.device), closing(batches):
        check_batch(pair, *batches.next())
    batches.load_state_dict(start)
    return batches


def _begin(pair: Pair, batches: Minibatches | LoadedMinibatches, seed: int) -> None:
    """Let the pair look at the first batch, which the first step sees again."""
    if type(pair).begin is Pair.begin:
        return  # nothing to read data for
    start = batches.state_dict()
    with private_stream(seed, batches.device), closing(batches):
        pair.begin(*batches.next())
    batches.load_state_dict(start)


def _validation(
    pair: Pair,
    valid: Tensor | Sequence[Tensor] | None,
    batch_size: int,
    seed: int,
    place: torch.device,
    patience: int | None,
) -> Validation | None:
    if valid is None:
        if patience is not None:
            raise ValueError(f"patience: got {patience} without data held out, expected valid=... beside it")
        return None
    if patience is not None and patience < 1:
        raise ValueError(f"patience: got {patience}, expected at least 1")
    tensors = tuple(t.to(place) for t in ((valid,) if isinstance(valid, Tensor) else valid))
    check_batch(pair, *tensors)
    return Validation(list(zip(*(t.split(batch_size) for t in tensors), strict=True)), seed, patience)


@contextmanager
def _determinism(wanted: bool) -> Iterator[None]:
    """Within, torch refuses operations whose result may differ from call to call."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
