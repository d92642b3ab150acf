"""What is trained: four architectures with batch size and particles, their data, and proof that rivals are equal."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import rivals
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppl_vae import Pair
from ppl_vae.data import load
from ppl_vae.objectives import Objective, RenyiELBO, Trace_ELBO
from ppl_vae.pairs import VAE, HierarchicalVAE

Hand = rivals.OneLayer | rivals.TwoLayers
SHAPE = (1, 28, 28)


class UnavailableError(Exception):
    """A contestant can't run here; says why."""


@dataclass(frozen=True)
class Workload:
    """A model, B data a step, and K particles of each: the ELBO for K = 1, the importance-weighted bound above."""

    name: str
    about: str
    batch: int
    k: int
    pair: Callable[[], Pair]
    hand: Callable[[int], Hand]

    def objective(self) -> Objective:
        return Trace_ELBO() if self.k == 1 else RenyiELBO(alpha=0, num_particles=self.k)

    def describe(self) -> dict[str, Any]:
        bound = "ELBO" if self.k == 1 else f"importance-weighted bound, k = {self.k}"
        return {"about": self.about, "batch": self.batch, "k": self.k, "bound": bound}


WORKLOADS = {
    w.name: w
    for w in (
        Workload(
            "mlp",
            "784-400-400-20, ReLU",
            128,
            1,
            lambda: VAE(SHAPE, 20, (400, 400), activation=nn.ReLU),
            partial(rivals.one_layer, (400, 400), 20, nn.ReLU),
        ),
        Workload(
            "burda1",
            "784-200-200-50, tanh (Burda et al. 2015, one layer)",
            20,
            50,
            lambda: VAE(SHAPE, 50, (200, 200)),
            partial(rivals.one_layer, (200, 200), 50, nn.Tanh),
        ),
        Workload(
            "burda2",
            "784-200-200-100-100-100-50, tanh (Burda et al. 2015, two layers)",
            20,
            50,
            lambda: HierarchicalVAE(SHAPE, (100, 50), ((200, 200), (100, 100))),
            rivals.two_layers,
        ),
        Workload(
            "conv",
            "convolutions 1-32-64 of stride 2, then 20 latents, and back; ReLU",
            64,
            1,
            lambda: VAE(SHAPE, 20, (32, 64), trunk="conv", activation=nn.ReLU),
            partial(rivals.conv, 20),
        ),
    )
}


@dataclass(frozen=True)
class Task:
    """A workload with its batches, (N, B, 1, 28, 28), on the device, and the weights that all start from."""

    workload: Workload
    batches: Tensor
    weights: dict[str, Tensor]
    learning_rate: float = 1e-3

    @classmethod
    def of(cls, workload: Workload, images: Tensor, weights: dict[str, Tensor] | None = None) -> "Task":
        """Batches of the images; fresh weights from seed 0 with the output bias at the pixel means, unless given."""
        if weights is None:
            torch.manual_seed(0)
            pair = workload.pair()
            cast(Any, pair).set_output_mean(images.mean(0).cpu())
            weights = pair.state_dict()
        return cls(workload, batched(images, workload.batch), weights)

    @property
    def device(self) -> torch.device:
        return self.batches.device

    def pair(self) -> Pair:
        pair = self.workload.pair()
        pair.load_state_dict(self.weights)
        return pair.to(self.device)

    def hand(self) -> Hand:
        hand = self.workload.hand(self.workload.k)
        rivals.copy_weights(self.pair().cpu(), hand)
        return hand.to(self.device)


def batched(images: Tensor, batch: int) -> Tensor:
    """Shuffled batches of one pass, (N, B, 1, 28, 28); a batch larger than the data repeats them."""
    number = max(1, len(images) // batch)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    rows = order[torch.arange(number * batch) % len(images)]
    return images[rows.to(images.device)].unflatten(0, (number, batch)).contiguous()


def load_images(data_root: str | Path | None) -> tuple[Tensor, str]:
    """Binary images (N, 1, 28, 28), and what they are: MNIST where there is a folder, else scikit-learn's digits.

    The digits, 8 x 8, are scaled up bilinearly and cut at 0.5: black on white strokes of the right size, on which
    training goes its usual way, denormal numbers included; the bounds reached are not MNIST's.
    """
    if data_root is not None:
        return load("mnist", root=data_root, binarisation="static").train, "MNIST, binarised once (seed 0)"
    grey = F.interpolate(load("digits").train, size=SHAPE[1:], mode="bilinear")
    return (grey > 0.5).float(), "scikit-learn's digits, 8 x 8, scaled up to 28 x 28 bilinearly, cut at 0.5"


def agreement(workload: Workload, x: Tensor) -> dict[str, Any]:
    """Loss and gradients by hand and ours, on one set of weights and one seed, in float64.

    Args:
        workload: which model, and how many particles.
        x: some images.
    """
    torch.manual_seed(0)
    pair = workload.pair().double()
    hand = workload.hand(workload.k).double()
    rivals.copy_weights(pair, hand)
    x, objective = x.double(), workload.objective()
    objective.prepare(pair.model, pair.guide, x)
    losses = []
    for loss in (partial(objective.differentiable_loss, pair.model, pair.guide), hand.loss):
        torch.manual_seed(1)
        losses.append(loss(x))
        losses[-1].backward()
    gradients = workload.hand(workload.k).double()  # of ours, brought into the order of those by hand
    rivals.copy_weights(_gradients(pair), gradients)
    difference = max(
        ((a - b.grad).abs().max() / b.grad.abs().max()).item()
        for a, b in zip(gradients.parameters(), hand.parameters(), strict=True)
        if b.grad is not None
    )
    return {
        "parameters": {"ours": _count(pair), "hand": _count(hand)},
        "loss": {"ours": losses[0].item(), "hand": losses[1].item()},
        "largest_relative_difference_of_gradients": difference,
    }


def _gradients(module: nn.Module) -> nn.Module:
    """The gradients as a module's parameters."""
    return nn.ParameterList([nn.Parameter(p.grad) for p in module.parameters() if p.grad is not None])


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
