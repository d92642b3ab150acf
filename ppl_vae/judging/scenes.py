"""Does a model paint what its captions say? Scenes are read off samples by a classifier trained on real ones."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ppl_vae import generation
from ppl_vae.data import Scenes
from ppl_vae.data.scene_facts import FACTS, canonical
from ppl_vae.evaluation.share import Share
from ppl_vae.judging.network import CHUNK, FEATURES, features_of
from ppl_vae.objectives import Objective, Trace_ELBO
from ppl_vae.pair import Pair
from ppl_vae.quiet import private_stream, undisturbed

__all__ = ["Judge", "accuracy", "caption_gain", "flip_accuracy", "painted", "retrieval_ranks", "train_judge"]

TRAINING_FACTS = 100_000
"""Scenes that a judge sees images of, however few a model is trained on."""


class Judge(nn.Module):
    """Classes of every attribute of a scene from its image, p(attribute | x), by one convolutional network.

    "A on the left of B" and "B on the right of A" are one image: it is judged as the former, and top and bottom
    likewise (see `scene_facts.canonical`).

    Args:
        names: of the attributes, as in `Scenes.attributes`.
        shape: (C, H, W) of the images.

    Raises:
        ValueError: images of fewer than 8 pixels along a side, of which nothing is left after three halvings.
    """

    def __init__(self, names: Sequence[str], shape: Sequence[int]) -> None:
        super().__init__()
        self.trunk = features_of(shape)
        self.heads = nn.ModuleDict({name.replace(" ", "_"): nn.Linear(FEATURES, len(FACTS[name])) for name in names})
        self.names = tuple(names)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits of the classes of each attribute, (B, classes), for images (B, C, H, W)."""
        features = self.trunk(x)
        return {name: self.heads[name.replace(" ", "_")](features) for name in self.names}

    def loss(self, x: Tensor, facts: Tensor) -> Tensor:
        """Cross-entropy of the facts (B, 6), in nats per scene; attributes that a scene lacks do not count."""
        target = canonical(facts)
        losses = [
            F.cross_entropy(logits, target[:, list(FACTS).index(name)], ignore_index=-1, reduction="sum")
            for name, logits in self(x).items()
        ]
        return torch.stack(losses).sum() / len(x)

    @torch.no_grad()
    def right(self, x: Tensor, facts: Tensor) -> dict[str, Tensor]:
        """Whether each attribute reads as the facts say, (B,) bool; True where a scene lacks it."""
        target, parts = canonical(facts), [self(part) for part in x.split(CHUNK)]
        read: dict[str, Tensor] = {name: torch.cat([part[name].argmax(-1) for part in parts]) for name in self.names}
        wanted = {name: target[:, list(FACTS).index(name)] for name in self.names}
        return {name: (read[name] == wanted[name]) | (wanted[name] < 0) for name in self.names}


def train_judge(
    scenes: Scenes,
    *,
    steps: int = 3000,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> Judge:
    """A judge trained on freshly composed scenes of training digits, as grey values, before any binarisation.

    All combinations of facts are among them, also those held out: a judge that had never seen a digit in some place
    would read another one there, on real images too.

    Args:
        scenes: where they are, the judge is trained.
        steps: of Adam, whose learning rate falls to zero linearly.
        batch_size: scenes of a step.
        learning_rate: at the beginning.
        seed: of its weights and its scenes.
        progress: show a bar.
    """
    device = scenes.train.device
    with private_stream(seed, device), torch.enable_grad():
        judge = Judge(list(scenes.attributes(scenes.train[:1])), scenes.shape).to(device)
        optim = torch.optim.Adam(judge.parameters(), lr=learning_rate, fused=True)
        rate = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.0, steps)
        every = scenes.unrestricted(TRAINING_FACTS)
        for _ in tqdm(range(steps), disable=not progress, unit="step", desc="judge", mininterval=0.5):
            facts = every[torch.randint(len(every), (batch_size,), device=device)]
            optim.zero_grad()
            judge.loss(scenes.compose(facts), facts).backward()
            optim.step()
            rate.step()
    return judge.eval()


def accuracy(judge: Judge, images: Tensor, facts: Tensor) -> dict[str, Share]:
    """How often each attribute reads as the facts say, over the scenes that have it.

    Args:
        judge: reads it.
        images: (B, C, H, W) of grey values: what a model has `painted` for the captions of these facts, or real ones.
        facts: (B, 6).
    """
    right, target = judge.right(images, facts), canonical(facts)
    there = {name: target[:, list(FACTS).index(name)] >= 0 for name in right}
    return {name: Share.of(right[name][there[name]]) for name in right if bool(there[name].any())}


def flip_accuracy(pair: Pair, judge: Judge, scenes: Scenes, facts: Tensor, *, seed: int = 0) -> dict[str, Share]:
    """One word of each caption is changed: how often the sample shows the new value, and all else as it was said.

    The new value is drawn uniformly from those that the scene allows. Attributes that a scene lacks are left out, and
    places change only to others with as many digits. Flips that ask for the same image do not count: "a three on the
    left of a three" is one on its right.

    Args:
        pair: its programs take (x, caption).
        judge: reads the samples.
        scenes: say what the captions are.
        facts: (B, 6), before the flip.
        seed: of the flips and of the samples.
    """
    shares = {}
    for name in scenes.attributes(facts):
        flipped, rows = scenes.flips(facts, name, seed)
        flipped = flipped[(canonical(flipped) != canonical(facts[rows])).any(1)]
        if not len(flipped):
            continue
        right = judge.right(painted(pair, scenes, flipped, seed=seed), flipped)
        shares[name] = Share.of(torch.stack(list(right.values())).all(0))
    return shares


def painted(pair: Pair, scenes: Scenes, facts: Tensor, *, seed: int = 0) -> Tensor:
    """The mean of p(x | z, caption) at z ~ p(z | caption), for the caption of each row of facts, (B, C, H, W)."""
    device = pair.reference().device
    captions, parts = scenes.captions(facts).to(device), []
    for i, some in enumerate(captions.split(CHUNK)):
        blank = generation.blank(pair, len(some))
        parts.append(generation.samples(pair, blank, some, seed=seed + i))
    return torch.cat(parts).to(facts.device)


def caption_gain(
    pair: Pair, x: Tensor, captions: Tensor, *, objective: Objective | None = None, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """The bound with each image's own caption, and with that of another image, (B,) nats each.

    The other one is that of the nearest image before it, in a circle, whose caption is not the same.

    Args:
        pair: its programs take (x, caption).
        x: images (B, C, H, W).
        captions: (B, L).
        objective: whose bound; `Trace_ELBO()` by default.
        seed: of the noise, the same for both.

    Raises:
        ValueError: all captions are the same.
    """
    objective, others = objective or Trace_ELBO(), captions
    for shift in range(1, len(captions)):
        same = (others == captions).all(-1, keepdim=True)
        others = torch.where(same, captions.roll(shift, 0), others)
    if bool((others == captions).all(-1).any()):
        raise ValueError(f"captions: got {len(captions)}, all the same, expected two or more; give more images")
    return _bounds(pair, objective, x, captions, seed), _bounds(pair, objective, x, others, seed)


def retrieval_ranks(
    pair: Pair,
    x: Tensor,
    captions: Tensor,
    *,
    candidates: int = 100,
    objective: Objective | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Tensor:
    """The rank, 1 is best, of each image's own caption among others by the bound, (B,).

    The others are drawn for each image from the different captions of all images. Ties count half, and a bound that
    is NaN is worse than all. "A on the left of B" and "B on the right of A" are two captions of one scene, and no
    model can tell which is an image's own: give images whose facts are canonical, or take it into account.

    Args:
        pair: its programs take (x, caption).
        x: images (B, C, H, W).
        captions: (B, L), at least `candidates` different ones.
        candidates: captions to choose from, the image's own among them.
        objective: whose bound; `Trace_ELBO()` by default.
        seed: of the choice, and of the noise, the same for all candidates of an image.
        progress: show a bar.

    Raises:
        ValueError: fewer different captions than candidates.
    """
    distinct, own = captions.unique(dim=0, return_inverse=True)
    if not 2 <= candidates <= len(distinct):
        raise ValueError(
            f"candidates: got {candidates}, expected 2 to {len(distinct)}, the different captions there are; give more "
            "images, or fewer candidates"
        )
    objective = objective or Trace_ELBO()
    score = torch.rand(len(x), len(distinct), generator=torch.Generator().manual_seed(seed)).to(own.device)
    score.scatter_(1, own[:, None], -1.0)  # its own caption comes first
    chosen = score.argsort(1)[:, :candidates]
    # all images with one candidate each at a time, not one image with all: the noise is then the same for all
    columns = tqdm(chosen.unbind(1), disable=not progress, unit="candidate", desc="rank", mininterval=0.5)
    bounds = torch.stack([_bounds(pair, objective, x, distinct[column], seed) for column in columns], 1)
    bounds = torch.where(bounds.isnan(), -torch.inf, bounds)
    first, others = bounds[:, :1], bounds[:, 1:]
    return 1 + (others > first).sum(1) + (others == first).sum(1) / 2


@torch.no_grad()
def _bounds(pair: Pair, objective: Objective, x: Tensor, captions: Tensor, seed: int) -> Tensor:
    with undisturbed(pair, seed):
        parts: list[Any] = list(zip(x.split(CHUNK), captions.split(CHUNK), strict=True))
        return torch.cat([objective.bound(pair.model, pair.guide, *part) for part in parts])
