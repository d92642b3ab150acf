"""Numbers of any pair: log-likelihood, bounds, active units, KL terms, in nats per datum; noise of gradients."""

from ppl_vae.evaluation.annealing import (
    BDMC,
    AnnealedSampling,
    annealed_importance_sampling,
    bidirectional_monte_carlo,
)
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
from ppl_vae.evaluation.summary import GREY, LOG_LIKELIHOOD, TWO_PART, Evaluation, evaluate
from ppl_vae.evaluation.weights import WeightDiagnostics, pareto_k, weight_diagnostics

__all__ = [
    "BDMC",
    "GREY",
    "LOG_LIKELIHOOD",
    "TWO_PART",
    "ActiveUnits",
    "AnnealedSampling",
    "CodeUsage",
    "Evaluation",
    "GradientMoments",
    "ImportanceSampling",
    "WeightDiagnostics",
    "active_units",
    "annealed_importance_sampling",
    "bidirectional_monte_carlo",
    "bound",
    "code_usage",
    "evaluate",
    "gradient_moments",
    "gradient_snr",
    "gradient_variance",
    "importance_sampling",
    "kl_per_site",
    "log_likelihood",
    "parameter_groups",
    "pareto_k",
    "weight_diagnostics",
]
