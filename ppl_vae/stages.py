"""Train a pair in stages, one after the other: a VQ-VAE's codes, then the prior over them."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppl_vae.objectives import Objective
from ppl_vae.pair import Pair
from ppl_vae.training import Data, History, Record, fit

__all__ = ["fit_stages", "joined"]


def fit_stages(
    pair: Pair,
    data: Data,
    objective: Objective | None = None,
    *,
    steps: int | Mapping[str, int],
    checkpoints: str | Path | None = None,
    resume: bool | str | Path = False,
    on_record: Callable[[Record], object] | None = None,
    **options: Any,
) -> dict[str, History]:
    """`fit` each of `pair.stages()` in turn; the pair has learnt what they have, for they share its parameters.

    With `checkpoints` each stage has a folder of its own in there, and a run that is taken up again goes through the
    stages that are done without a step.

    Args:
        pair: any; most have one stage, themselves, and this is `fit`.
        data, objective: as for `fit`; the objective begins anew at each stage.
        steps: of each stage, or by its name.
        checkpoints: a folder.
        resume: as for `fit`; of several stages the checkpoint can't be chosen.
        on_record: called with the newest point of the learning curve, as `joined` has it.
        options: all others of `fit`.

    Returns:
        Stage -> its learning curve.

    Raises:
        ValueError: steps for other stages than there are, one checkpoint for several stages; what `fit` raises.

    Example:
        >>> import torch
        >>> from ppl_vae.pairs import VQVAE
        >>> pair = VQVAE((1, 4, 4), codes=4, code_dim=2, hidden=4, prior_hidden=4, prior_layers=1)
        >>> x = torch.zeros(10, 1, 4, 4)
        >>> done = fit_stages(pair, x, steps={"codes": 2, "prior": 1}, batch_size=5, device="cpu", progress=False)
        >>> {name: history.steps for name, history in done.items()}
        {'codes': 2, 'prior': 1}
    """
    stages = pair.stages()
    number = dict.fromkeys(stages, steps) if isinstance(steps, int) else dict(steps)
    if number.keys() != stages.keys():
        raise ValueError(f"steps: got those of {list(number)}, expected those of the stages {list(stages)}; name these")
    if len(stages) > 1 and not isinstance(resume, bool):
        raise ValueError(
            f"resume: got {resume} for a pair of {len(stages)} stages, expected the run as a whole; name that"
        )
    done: dict[str, History] = {}
    for name, stage in stages.items():
        place: dict[str, Any] = {"checkpoints": None if checkpoints is None else Path(checkpoints) / name}
        if on_record is not None:
            before = joined(done)
            place["on_record"] = lambda record, before=before: on_record(_after(record, before))
        done[name] = fit(stage, data, objective, steps=number[name], resume=resume, **place, **options)
    return done


def joined(stages: Mapping[str, History]) -> History:
    """Learning curves of stages as one: steps and seconds are counted on from stage to stage."""
    whole = History()
    for history in stages.values():
        whole.records += [_after(record, whole) for record in history.records]
        whole.resumed += [step + whole.steps for step in history.resumed]
        whole.compile, whole.device, whole.best = history.compile, history.device, history.best
        whole.finish(whole.steps + history.steps, whole.seconds + history.seconds)
    return whole


def _after(record: Record, before: History) -> Record:
    return replace(record, step=record.step + before.steps, seconds=record.seconds + before.seconds)
