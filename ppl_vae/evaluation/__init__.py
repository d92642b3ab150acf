"""Numbers of any pair: log-likelihood, bounds, active units, KL terms, in nats per datum; noise of gradients."""

from ppl_vae.evaluation.annealing import (
    BDMC,
    AnnealedSampling,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
)
from ppl_vae.evaluation.classes import classification_error, linear_probe
from ppl_vae.evaluation.codes import CodeUsage, code_usage
from ppl_vae.evaluation.gradients import (
    GradientMoments,
    gradient_moments,
    gradient_snr,
    gradient_variance,
    parameter_groups,
)
from ppl_vae.evaluation.latents import ActiveUnits, active_units, kl_per_site
from ppl_vae.evaluation.likelihood import ImportanceSampling, bound, importance_sampling, log_likelihood
from ppl_vae.evaluation.prior import prior_sampling
from ppl_vae.evaluation.share import Share
from ppl_vae.evaluation.summary import GREY, LOG_LIKELIHOOD, RECONSTRUCTION, TWO_PART, Evaluation, evaluate
from ppl_vae.evaluation.weights import WeightDiagnostics, pareto_k, weight_diagnostics

__all__ = [
    "BDMC",
    "GREY",
    "LOG_LIKELIHOOD",
    "RECONSTRUCTION",
    "TWO_PART",
    "ActiveUnits",
    "AnnealedSampling",
    "CodeUsage",
    "Evaluation",
    "GradientMoments",
    "ImportanceSampling",
    "Share",
    "WeightDiagnostics",
    "active_units",
    "annealed_importance_sampling",
    "bidirectional_monte_carlo",
    "bound",
    "classification_error",
    "code_usage",
    "evaluate",
    "gradient_moments",
    "gradient_snr",
    "gradient_variance",
    "importance_sampling",
    "kl_per_site",
    "linear_probe",
    "log_likelihood",
    "parameter_groups",
    "pareto_k",
    "prior_sampling",
    "weight_diagnostics",
]
