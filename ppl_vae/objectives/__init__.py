"""Bounds on log p(x) and the losses that train for them: one class a bound, each a `pyro.infer.ELBO`."""

from ppl_vae.objectives.adapters import TraceEnum_ELBO, TraceGraph_ELBO
from ppl_vae.objectives.base import Objective, PairLoss
from ppl_vae.objectives.elbo import Trace_ELBO, TraceMeanField_ELBO
from ppl_vae.objectives.multiple import CIWAE, MIWAE, PIWAE, VRMax
from ppl_vae.objectives.path import STL, DReG
from ppl_vae.objectives.regularised import BetaELBO, CapacityELBO, FreeBits
from ppl_vae.objectives.renyi import IWAE, RenyiELBO
from ppl_vae.objectives.schedules import CyclicalWarmup, LinearWarmup, Schedule, SigmoidWarmup
from ppl_vae.objectives.score import VIMCO, ThermodynamicELBO
from ppl_vae.objectives.tail_adaptive import TailAdaptive
from ppl_vae.objectives.wake_sleep import ReweightedWakeSleep, WakeSleep

__all__ = [
    "CIWAE",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "STL",
    "VIMCO",
    "BetaELBO",
    "CapacityELBO",
    "CyclicalWarmup",
    "DReG",
    "FreeBits",
    "LinearWarmup",
    "Objective",
    "PairLoss",
    "RenyiELBO",
    "ReweightedWakeSleep",
    "Schedule",
    "SigmoidWarmup",
    "TailAdaptive",
    "ThermodynamicELBO",
    "TraceEnum_ELBO",
    "TraceGraph_ELBO",
    "TraceMeanField_ELBO",
    "Trace_ELBO",
    "VRMax",
    "WakeSleep",
]
