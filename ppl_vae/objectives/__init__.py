"""Bounds on log p(x) and the losses that train for them: one class a bound, each a `pyro.infer.ELBO`."""

from ppl_vae.objectives.base import Objective, PairLoss
from ppl_vae.objectives.elbo import Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.objectives.renyi import IWAE, RenyiELBO
from ppl_vae.objectives.schedules import LinearWarmup, Schedule

__all__ = [
    "IWAE",
    "LinearWarmup",
    "Objective",
    "PairLoss",
    "RenyiELBO",
    "Schedule",
    "TraceMeanField_ELBO",
    "Trace_ELBO",
]
