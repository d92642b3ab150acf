"""What the commands share: data and pairs by name, and how a likelihood is said."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ppl_vae import data, evaluation
from ppl_vae.data import Captioned, Dataset, Labelled, Source, Text, as_batch
from ppl_vae.evaluation.chunks import require_positive
from ppl_vae.seeds import check_seed

__all__ = [
    "about",
    "absolute",
    "batch_on",
    "check_evaluation",
    "check_steps",
    "default_pairs",
    "print_codes",
    "print_evaluation",
]


def absolute(name: str, root: str | None = None) -> str:
    """The name of a data set, or the absolute path of a file or folder: valid wherever a run is taken up again."""
    if data.is_composed(name):
        return data.with_absolute_paths(name, root)
    return name if name in data.names() else str(Path(name).resolve())


def batch_on(device: torch.device, batch: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The arguments of a pair's programs, on a device."""
    return tuple(part.to(device) for part in as_batch(batch))


def check_evaluation(seed: int, num_particles: int) -> None:
    """Refuse at once what the evaluation at the end would refuse.

    Raises:
        ValueError: a seed that torch can't take, or num_particles < 1.
    """
    check_seed("seed", seed)
    require_positive("num_particles", num_particles)


def check_steps(steps: int) -> None:
    """Refuse a run without a step: it has no learning curve to draw.

    Raises:
        ValueError: steps < 1.
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1")


def default_pairs(dataset: Dataset[Any] | Source) -> list[str]:
    """One- and two-layer pairs: Burda et al.'s sizes, smaller ones for small images; with captions alignDRAW.

    With classes a conditional VAE, of sentences a text VAE.
    """
    likelihood = f', likelihood="discretised-logistic", levels={dataset.levels}'
    tail = "" if dataset.binarisation != "none" else likelihood
    if isinstance(dataset, Captioned):
        sizes = "latent_dim=24, hidden=192, steps=8, words=32, align=64, read=12, write=12"
        return [f"AlignDRAW({sizes}{tail})"]
    if isinstance(dataset, Text):
        small = dataset.levels <= 500
        sizes = "latent_dim=8, embedding=32, hidden=64" if small else "latent_dim=32, embedding=200, hidden=200"
        return [f"TextVAE({sizes}, keep=0.7)"]
    if isinstance(dataset, Labelled):
        sizes = "20, hidden=(100, 100)" if dataset.shape.numel() <= 100 else "50, hidden=(200, 200)"
        return [f"ConditionalVAE(latent_dim={sizes}{tail})"]
    if dataset.shape.numel() <= 100:
        return [
            f"VAE(latent_dim=20, hidden=(100, 100){tail})",
            f"HierarchicalVAE(latent_dims=(20, 10), hidden=((100, 100), (50, 50)){tail})",
        ]
    return [
        f"VAE(latent_dim=50, hidden=(200, 200){tail})",
        f"HierarchicalVAE(latent_dims=(100, 50), hidden=((200, 200), (100, 100)){tail})",
    ]


def print_evaluation(reached: evaluation.Evaluation) -> None:
    """A few lines for a person."""
    print(f"NLL {reached.nll:.2f} (s.e. {reached.nll_se:.2f} over {reached.num_data} data) nats: {reached.label}")
    if reached.bound is not None:
        print(f"bound {reached.bound:.2f} nats, ESS {reached.ess:.0f} of {reached.num_particles}")
    for site, units in reached.active_units.items():
        print(f"{site}: {units.count} of {units.total} units active, KL {reached.kl[site]:.2f} nats")


def print_codes(usage: Mapping[str, evaluation.CodeUsage]) -> None:
    """A line for each site of codes."""
    for site, found in usage.items():
        print(f"{site}: {found.used} of {found.total} codes used, perplexity {found.perplexity:.1f}")


def about(dataset: Dataset[Any] | Source, num_particles: int, reached: Any) -> str:
    """What the likelihood is of: data, binarisation, estimator."""
    note = f"; {dataset.note}" if dataset.note else ""
    # Of a guide that leaves nothing to chance one particle was drawn, and there is nothing to sample.
    how = f" by importance sampling with {num_particles} particles" if reached.num_particles == num_particles else ""
    kind = "sentences" if isinstance(dataset, Text) else f"{dataset.binarisation} binarisation"
    return f"{dataset.name}, {kind}, {reached.num_data} test data; NLL in nats{how} ({reached.label}){note}"
