"""Greedy layer-wise pre-training: a deep network one layer at a time, each with those below it held fast."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.data import Labelled, PartlyLabelled
from ppl_vae.nn import Frozen
from ppl_vae.pairs import Autoencoder, Classifier
from ppl_vae.pairs.autoencoder import linear_of
from ppl_vae.quiet import private_stream
from ppl_vae.training import Data, History, fit

__all__ = ["greedy", "with_classes"]


def greedy(
    pair: Autoencoder,
    data: Data,
    *,
    steps: int,
    supervised: bool = False,
    optimiser: Callable[[Iterable[Tensor]], torch.optim.Optimizer] | None = None,
    checkpoints: str | Path | None = None,
    **options: Any,
) -> dict[str, History]:
    """Train the layers of an autoencoder's encoder one after the other, from the data upwards, in place.

    Unsupervised, each layer is the encoder of an autoencoder of one hidden layer, which reconstructs what the layers
    below make of x; its decoder is that of `pair`, so that all of the pair is trained. Supervised, it is the hidden
    layer of a classifier, whose last layer is thrown away. Layers below are held fast. `finetune.classifier` goes on.

    Args:
        pair: in any state; a fresh one.
        data: as for `fit`; supervised, with classes: `data.labelled(...)`, whose classes are left out elsewhere.
        steps: of each layer.
        supervised: see above.
        optimiser: from the parameters of a layer to an optimiser; Adam by default.
        checkpoints: a folder, in which each layer has its own.
        options: all others of `fit`, the same for each layer.

    Returns:
        The learning curve of each layer, "layer 1" and so on, in nats per datum.

    Raises:
        ValueError: supervised without classes; one optimiser, or one checkpoint, for all layers; what `fit` raises.

    References:
        Greedy layer-wise training of deep networks, Bengio, Lamblin, Popovici & Larochelle 2007, sections 4 and 5.

    Example:
        >>> import torch
        >>> pair = Autoencoder((4,), latent_dim=2, hidden=(3,))
        >>> curves = greedy(pair, torch.rand(10, 4), steps=2, batch_size=5, device="cpu", progress=False)
        >>> {name: history.steps for name, history in curves.items()}
        {'layer 1': 2, 'layer 2': 2}
    """
    if wrong := [name for name in ("optim", "resume") if not isinstance(options.get(name, False), bool)]:
        raise ValueError(
            f"{wrong[0]}: got it for all layers, expected one for each; give optimiser=..., which makes one, and "
            "resume=True"
        )
    if supervised:
        classes = with_classes(data).classes
        with private_stream(options.get("seed", 0), torch.device("cpu")):
            stages: list[Any] = _classifiers(pair, classes)
    else:
        stages = list(pair.layers())
        data = data.dataset if isinstance(data, Labelled) else data
    done: dict[str, History] = {}
    for number, stage in enumerate(stages, 1):
        settings: dict[str, Any] = {} if optimiser is None else {"optim": optimiser(stage.parameters())}
        if checkpoints is not None:
            settings["checkpoints"] = Path(checkpoints) / f"layer-{number}"
        done[f"layer {number}"] = fit(stage, data, steps=steps, **options, **settings)
    return done


def with_classes(data: object) -> Labelled:
    """The data, if a classifier can learn from all of them.

    Raises:
        ValueError: they have no classes, or few of them are known.
    """
    if isinstance(data, PartlyLabelled):
        raise ValueError("data: got some whose class is not known, expected those that are; use data.labelled_only()")
    if not isinstance(data, Labelled):
        raise ValueError(f"data: got {type(data).__name__}, expected data with classes: data.labelled(...)")
    return data


def _classifiers(pair: Autoencoder, classes: int) -> list[Classifier]:
    """For each layer a classifier that has it as its hidden layer, upon those below."""
    stages = []
    for i, layer in enumerate(pair.encoder):
        seen = nn.Sequential(Frozen(nn.Sequential(nn.Flatten(), *pair.encoder[:i])), layer)
        width = linear_of(layer).out_features
        stages.append(Classifier(pair.data_shape, classes, features=seen, num_features=width).to(pair.reference()))
    return stages
