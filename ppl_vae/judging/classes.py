"""Are samples of a class of that class? They are read by a classifier trained on real data."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from ppl_vae.data import Labelled
from ppl_vae.evaluation.share import Share
from ppl_vae.judging.network import CHUNK, FEATURES, features_of
from ppl_vae.quiet import private_stream

__all__ = ["Classifier", "class_accuracy", "train_classifier"]


class Classifier(nn.Module):
    """Logits of the classes of images, by one convolutional network.

    Args:
        classes: K.
        shape: (C, H, W) of the images.

    Raises:
        ValueError: images of fewer than 8 pixels along a side.
    """

    def __init__(self, classes: int, shape: torch.Size) -> None:
        super().__init__()
        self.trunk, self.head = features_of(shape), nn.Linear(FEATURES, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) for images (B, C, H, W)."""
        return self.head(self.trunk(x))


def train_classifier(
    data: Labelled,
    *,
    steps: int = 1500,
    batch_size: int = 100,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = True,
) -> Classifier:
    """A classifier of real training data, as grey values and as their binarised draws, half of each batch.

    Args:
        data: where they are, the classifier is trained.
        steps: of Adam, whose learning rate falls to zero linearly.
        batch_size: data of a step, each of which is seen both ways.
        learning_rate: at the beginning.
        seed: of its weights and its batches.
        progress: show a bar.
    """
    device, labels = data.train.device, data.dataset.train_labels
    assert labels is not None
    with private_stream(seed, device), torch.enable_grad():
        classifier = Classifier(data.classes, data.shape).to(device)
        optim = torch.optim.Adam(classifier.parameters(), lr=learning_rate, fused=True)
        rate = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.0, steps)
        for _ in tqdm(range(steps), disable=not progress, unit="step", desc="classifier", mininterval=0.5):
            rows = torch.randint(len(data.train), (batch_size,), device=device)
            x = data.train[rows]
            optim.zero_grad()
            both = torch.cat([x, data.dataset.draw(x)])
            F.cross_entropy(classifier(both), labels[rows].repeat(2)).backward()
            optim.step()
            rate.step()
    return classifier.eval()


@torch.no_grad()
def class_accuracy(classifier: Classifier, images: Tensor, labels: Tensor) -> Share:
    """How often images (N, C, H, W) are read as of their classes (N,)."""
    read = torch.cat([classifier(part).argmax(-1) for part in images.split(CHUNK)])
    return Share.of(read == labels)
