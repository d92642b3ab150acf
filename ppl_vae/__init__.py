"""Variational autoencoders as plain Pyro model/guide pairs, trained by SVI and compared in nats."""

from ppl_vae import (
    data,
    distributions,
    evaluation,
    finetune,
    generation,
    language,
    mcem,
    nn,
    objectives,
    pairs,
    pretrain,
)
from ppl_vae.comparison import Comparison, compare
from ppl_vae.pair import Pair
from ppl_vae.stacked import fit_stacked
from ppl_vae.stages import fit_stages
from ppl_vae.svi import SVI
from ppl_vae.training import History, fit

__all__ = [
    "SVI",
    "Comparison",
    "History",
    "Pair",
    "compare",
    "data",
    "distributions",
    "evaluation",
    "finetune",
    "fit",
    "fit_stacked",
    "fit_stages",
    "generation",
    "language",
    "mcem",
    "nn",
    "objectives",
    "pairs",
    "pretrain",
]
