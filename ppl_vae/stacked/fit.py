"""`fit_stacked`: what `fit` does with each of several pairs, for all of them at once."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor
from tqdm import tqdm

from ppl_vae.checks import check_batch
from ppl_vae.data import Dataset, Minibatches
from ppl_vae.denormals import flush_denormals
from ppl_vae.heap import keep_freed_memory
from ppl_vae.loop import saver_of
from ppl_vae.objectives import Objective, Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.quiet import private_stream
from ppl_vae.records import History, Record
from ppl_vae.seeds import check_seed
from ppl_vae.stacked.loop import StackedLoop
from ppl_vae.stacked.loss import StackedLoss
from ppl_vae.stacked.steps import StackedSteps
from ppl_vae.svi import Compile
from ppl_vae.training import COMPILE_FROM, Data, resolve_device

__all__ = ["fit_stacked"]


def fit_stacked(
    pairs: Sequence[Pair],
    data: Data,
    objective: Objective | None = None,
    *,
    steps: int,
    seeds: Sequence[int] | None = None,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    schedule: Callable[[int], float] | None = None,
    optim: Callable[[list[Tensor]], torch.optim.Optimizer] | None = None,
    device: str | torch.device = "auto",
    compile: Compile = "auto",
    checkpoints: str | Path | None = None,
    checkpoint_every: int | None = None,
    resume: bool | str | Path = False,
    progress: bool = True,
    on_record: Callable[[int, Record], object] | None = None,
) -> list[History]:
    """Train pairs of one architecture in place, all of them in each step: what `fit` does with each, up to rounding.

    Run s is `fit(pairs[s], data, objective, seed=seeds[s], ...)`: the same minibatches in the same order, the same
    noise, the same steps of Adam. The loss and its gradients are recorded once and mapped over the stacked parameters
    (`torch.vmap`), so that S runs are as many operations as one: for hardware that idles at the size of one run.
    Weights, Adam's state and all that a step keeps for its backward pass are there S times.

    Args:
        pairs: S pairs of one class and one architecture, each with its initial weights; moved to the device.
        data, objective, steps, batch_size, learning_rate, schedule: as for `fit`.
        seeds: S seeds of minibatches and noise; 0, 1, ... by default.
        optim: makes the optimiser, instead of Adam, from the stacked parameters, (S, ...) each; one that treats each
            number by itself (all of Adam's kin and SGD do).
        device: "auto" takes CUDA where there is one.
        compile: "off" runs the recorded operations one by one, "inductor" compiles them; "cudagraph", on CUDA alone,
            captures the whole step ("inductor" is captured there as well). "auto" takes "inductor" from 10,000 steps
            on a CPU, and "cudagraph" on CUDA.
        checkpoints, checkpoint_every, resume: as for `fit`; a checkpoint is of all runs, and they go on bit for bit on
            a CPU.
        progress: show one bar.
        on_record: called with s and the newest point of the learning curve of run s, whose pair has its weights then.

    Returns:
        The histories, in the order of the pairs; their times are those of all runs together.

    Raises:
        ValueError: other numbers of seeds than of pairs, a pair given twice, pairs of different classes, shapes or
            losses; buffers that training changes; a loss that can't be recorded or mapped, or that draws random
            numbers depending on parameters; an objective with averages of its own, a schedule that goes by the bound;
            or what `fit` refuses.
        NonFiniteError: a loss became NaN or infinite; names step, run and site.
        CheckpointError, Stopped: as `fit`.

    Example:
        >>> from ppl_vae.data import load
        >>> from ppl_vae.pairs import VAE
        >>> pairs = [VAE((1, 8, 8), 2, (20,)) for _ in range(3)]
        >>> histories = fit_stacked(pairs, load("digits"), steps=2, batch_size=20, device="cpu", progress=False)
        >>> [history.steps for history in histories]
        [2, 2, 2]
    """
    objective = objective or Trace_ELBO()
    seeds = range(len(pairs)) if seeds is None else seeds
    _check_settings(pairs, seeds, objective, steps, learning_rate, schedule)
    settings = {"steps": steps, "batch_size": batch_size, "seeds": list(seeds), "objective": repr(objective.describe())}
    saver, state = saver_of(checkpoints, checkpoint_every, resume)
    place = resolve_device(device)
    how = _resolve_compile(compile, steps, place)
    flush_denormals()
    keep_freed_memory()
    for pair in pairs:
        pair.to(place).train()
    batches = _minibatches(pairs[0], data, batch_size, seeds, place)
    objective.step = 0
    histories = [History(compile=how, device=str(place)) for _ in pairs]
    with (
        private_stream(seeds[0], place),
        tqdm(total=steps, disable=not progress, unit="step", mininterval=0.5) as bar,
    ):
        loss = StackedLoss([objective(pair) for pair in pairs], batches, seeds, inductor=how == "inductor")
        make = optim or partial(torch.optim.Adam, lr=learning_rate, fused=True)
        taken = StackedSteps(loss, batches, seeds, make(loss.trained), schedule, capture=how != "off")
        loop = StackedLoop(taken, steps, settings, histories, bar, saver, on_record)
        if state is not None:
            loop.load_state_dict(state)
        try:
            loop.run()
        finally:
            loss.write()
    return histories


def _resolve_compile(compile: Compile, steps: int, place: torch.device) -> Compile:
    if compile not in get_args(Compile):
        raise ValueError(f"compile: got {compile!r}, expected one of {get_args(Compile)}")
    if compile == "cudagraph" and place.type != "cuda":
        raise ValueError(f"compile: got 'cudagraph' on {place}, expected a CUDA device; use 'inductor' or 'auto'")
    if compile != "auto":
        return compile
    if place.type == "cuda":
        return "cudagraph"
    return "inductor" if steps >= COMPILE_FROM else "off"


def _minibatches(
    pair: Pair, data: Data, batch_size: int, seeds: Sequence[int], place: torch.device
) -> list[Minibatches]:
    draw = data.draw if isinstance(data, Dataset) else None
    rows = data.train if isinstance(data, Dataset) else data
    if not isinstance(rows, Tensor | tuple | list):
        raise ValueError(
            f"data: got {type(rows).__name__}, which is read or composed as it is asked for, expected tensors; train "
            "these pairs one by one with fit"
        )
    tensors = tuple(t.to(place) for t in ((rows,) if isinstance(rows, Tensor) else rows))
    check_batch(pair, *tensors)
    return [Minibatches(tensors, batch_size, seed, draw) for seed in seeds]


def _check_settings(
    pairs: Sequence[Pair],
    seeds: Sequence[int],
    objective: Objective,
    steps: int,
    learning_rate: float,
    schedule: Callable[[int], float] | None,
) -> None:
    if not pairs or len(seeds) != len(pairs):
        raise ValueError(f"seeds: got {len(seeds)} for {len(pairs)} pairs, expected one for each of at least one pair")
    for seed in seeds:
        check_seed("seeds", seed)
    if steps < 0:
        raise ValueError(f"steps: got {steps}, expected at least 0")
    if not 0 <= learning_rate < math.inf:
        raise ValueError(f"learning_rate: got {learning_rate}, expected a finite number of at least 0")
    if hasattr(schedule, "observe"):
        raise ValueError(
            f"schedule: got {type(schedule).__name__}, which goes by the bound of one run, expected a function of the "
            "step; train these pairs one by one with fit"
        )
    if set(objective.state_dict(pairs[0])) != {"step"}:
        raise ValueError(
            f"objective: got {type(objective).__name__}, which keeps averages of each run, expected one that keeps "
            "nothing; train these pairs one by one with fit"
        )
    _check_pairs(pairs)


def _check_pairs(pairs: Sequence[Pair]) -> None:
    owners: dict[int, int] = {}
    for run, pair in enumerate(pairs):
        for parameter in pair.parameters():
            if (other := owners.setdefault(id(parameter), run)) != run:
                raise ValueError(f"pairs[{run}]: got parameters of pairs[{other}], expected its own; make each afresh")
        if type(pair) is not type(pairs[0]):
            got, expected = type(pair).__name__, type(pairs[0]).__name__
            raise ValueError(f"pairs[{run}]: got a {got}, expected a {expected} as pairs[0]; train each class apart")
        differ = _tensors(pair).items() ^ _tensors(pairs[0]).items()
        if differ:
            name = sorted(differ)[0][0]
            got, expected = (_tensors(p).get(name, "nothing") for p in (pair, pairs[0]))
            raise ValueError(
                f"pairs[{run}]: got {got} for {name!r}, expected {expected} as in pairs[0]; make all alike"
            )


def _tensors(pair: Pair) -> dict[str, str]:
    """Shape, dtype and whether it is trained, of each tensor by name."""
    named = [*pair.named_parameters(), *pair.named_buffers()]
    return {n: f"{tuple(v.shape)} of {v.dtype}{', trained' if v.requires_grad else ''}" for n, v in named}
