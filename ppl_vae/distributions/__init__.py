"""Distributions of pixels, codes and sentences that Pyro lacks; each a real `TorchDistribution`."""

from ppl_vae.distributions.autoregressive import Autoregressive, Conditionals
from ppl_vae.distributions.codebook import Codebook, nearest_codes, vectors_of
from ppl_vae.distributions.discretised_logistic import DiscretisedLogistic, GreyLevels
from ppl_vae.distributions.flat import Flat
from ppl_vae.distributions.grey_bernoulli import GreyBernoulli
from ppl_vae.distributions.grey_categorical import GreyCategorical
from ppl_vae.distributions.logistic_mixture import DiscretisedLogisticMixture
from ppl_vae.distributions.precision import at_least_float32
from ppl_vae.distributions.sentence import Sentence, WordLaws

__all__ = [
    "Autoregressive",
    "Codebook",
    "Conditionals",
    "DiscretisedLogistic",
    "DiscretisedLogisticMixture",
    "Flat",
    "GreyBernoulli",
    "GreyCategorical",
    "GreyLevels",
    "Sentence",
    "WordLaws",
    "at_least_float32",
    "nearest_codes",
    "vectors_of",
]
