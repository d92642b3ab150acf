"""Train a pair in stages, one after the other: a VQ-VAE's codes, then the prior over them; or an autoencoder first."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ppl_vae.lagging import guide_parameters
from ppl_vae.objectives import BetaELBO, Objective
from ppl_vae.pair import Pair
from ppl_vae.training import Data, History, Record, first_batch, fit

__all__ = ["fit_stages", "joined", "pretrain"]

PRETRAINING = "pretraining"
"""Name of the stage before all others."""


def fit_stages(
    pair: Pair,
    data: Data,
    objective: Objective | None = None,
    *,
    steps: int | Mapping[str, int],
    pretrain_steps: int = 0,
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
        pretrain_steps: so many steps as an autoencoder before the first stage, which leaves the guide alone trained:
            see `pretrain`; for pairs of one stage.
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
    if pretrain_steps and len(stages) > 1:
        raise ValueError(
            f"pretrain_steps: got {pretrain_steps} for a pair of {len(stages)} stages, expected 0: its codes come first"
        )
    if (pretrain_steps or len(stages) > 1) and not isinstance(resume, bool):
        raise ValueError(f"resume: got {resume} for a run of several stages, expected the run as a whole; name that")
    done: dict[str, History] = {}

    def place(name: str) -> dict[str, Any]:
        """What differs from stage to stage."""
        result: dict[str, Any] = {"checkpoints": None if checkpoints is None else Path(checkpoints) / name}
        if (report := on_record) is not None:
            before = joined(done)
            result["on_record"] = lambda record: report(_after(record, before))
        return {**result, "resume": resume, **options}

    if pretrain_steps:
        done[PRETRAINING] = pretrain(pair, data, steps=pretrain_steps, **place(PRETRAINING))
    for name, stage in stages.items():
        done[name] = fit(stage, data, objective, steps=number[name], **place(name))
    return done


def pretrain(pair: Pair, data: Data, *, steps: int, batch_size: int = 100, **options: Any) -> History:
    """Train a pair as an autoencoder, and keep of it what the guide has learnt: against posterior collapse.

    The loss is that of the ELBO without its KL term. All parameters that the guide does not use then get back the
    values that they had before, so that the model comes to learn again, from a z that tells of x. Train with `FreeBits`
    behind it, or a rising KL weight: the ELBO alone would forget z again.

    Args:
        pair: fresh; one that is taken up again must begin with the same weights.
        data, batch_size: as for `fit`.
        steps: how many.
        options: all others of `fit`.

    Raises:
        ValueError: a guide without parameters; what `fit` raises.

    References:
        A surprisingly effective fix for deep latent variable modeling of text, Li, He, Neubig, Berg-Kirkpatrick & Yang
        2019, section 3.
    """
    begun = {name: value.clone() for name, value in pair.named_parameters()}
    history = fit(pair, data, BetaELBO(0.0), steps=steps, batch_size=batch_size, **{**options, "aggressive": False})
    kept = {id(p) for p in guide_parameters(pair, *first_batch(pair, data, batch_size))}
    with torch.no_grad():
        for name, parameter in pair.named_parameters():
            if id(parameter) not in kept:
                parameter.copy_(begun[name])
    return history


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
