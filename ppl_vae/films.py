"""How DRAW paints: the canvas after every step, where its windows were, and which words it looked at."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae import quiet
from ppl_vae.nn import Window
from ppl_vae.pair import Pair
from ppl_vae.seeds import check_seed

__all__ = ["Film", "film", "looks"]


@dataclass(frozen=True, eq=False)
class Film:
    """A batch of images while they are painted.

    Args:
        canvases: E p(x | c_t) for t = 0..T, (B, T + 1, C, H, W): the first is the start, the last the sample.
        windows: through which steps 1..T wrote, (top, left, bottom, right) in pixels counted from 0, (B, T, 4), see
            `nn.Window.corners`; None without attention.
        alpha: weights of the caption's words at steps 1..T, (B, T, L); None without alignment.
    """

    canvases: Tensor
    windows: Tensor | None = None
    alpha: Tensor | None = None


def film(pair: Pair, *batch: Any, seed: int | None = 0) -> Film:
    """The model's programme with nothing given, state by state; it ends with `generation.samples` of the same seed.

    Only means and corners are kept of the states, so that many steps of a large pair fit.

    Args:
        pair: one that paints: with `painting(*batch)`, `painter` and `rollout`, as `pairs.DRAW` has them.
        batch: as model and guide take it, B rows; the images' values are ignored, captions are not.
        seed: of a private random stream; None draws from the global one.

    Raises:
        ValueError: a pair that does not paint, or no batch.

    Example:
        >>> from ppl_vae.pairs import DRAW
        >>> made = film(DRAW((1, 8, 8), latent_dim=2, hidden=4, steps=3), torch.zeros(5, 1, 8, 8))
        >>> made.canvases.shape, made.windows.shape
        (torch.Size([5, 4, 1, 8, 8]), torch.Size([5, 3, 4]))
    """
    paints = _checked(pair, batch)
    canvases, windows, alphas = [], [], []
    with _undisturbed(pair, seed), pyro.plate("data", len(batch[0]), dim=-1):
        paints.rollout.begin(pair, keep=False)  # a guide that ran before must neither hand over nor keep states
        # Detached: the first canvas is a parameter, and what torch's distributions compute late records gradients.
        canvases.append(paints.painter.head(paints.painter.start().canvas.detach()).mean)
        for state in paints.painting(*batch):
            canvases.append(paints.painter.head(state.canvas).mean)
            windows.append(_corners(state.window))
            alphas.append(state.alpha)
    canvases[0] = canvases[0].expand_as(canvases[-1])
    return Film(torch.stack(canvases, 1), _stacked(windows, len(batch[0])), _stacked(alphas, len(batch[0])))


def looks(pair: Pair, *batch: Any, seed: int | None = 0) -> Tensor | None:
    """The windows through which the guide reads the images, while it draws what `generation.posterior` draws.

    Args:
        pair: one that paints, and whose `onlooker` returns (memory, window).
        batch: as model and guide take it, B rows.
        seed: of a private random stream; None draws from the global one.

    Returns:
        (top, left, bottom, right) in pixels counted from 0 at steps 1..T, (B, T, 4); None without attention.

    Raises:
        ValueError: a pair that does not paint, or no batch.
    """
    paints, windows = _checked(pair, batch), []
    hook = paints.onlooker.register_forward_hook(lambda _module, _inputs, out: windows.append(_corners(out[1])))
    try:
        with _undisturbed(pair, seed):
            pair.guide(*batch)
    finally:
        hook.remove()
    return _stacked(windows, len(batch[0]))


def _checked(pair: Pair, batch: Sequence[Any]) -> Any:
    if not hasattr(pair, "painting"):
        raise ValueError(
            f"{type(pair).__name__}: got no painting(*batch), expected a pair that paints step by step, as DRAW and "
            "AlignDRAW; see generation.samples for others"
        )
    if not batch:
        raise ValueError("got no batch, expected what the model takes; generation.blank gives images to be painted")
    return pair


def _undisturbed(pair: Pair, seed: int | None) -> AbstractContextManager[None]:
    if seed is not None:
        check_seed("seed", seed)
    return quiet.undisturbed(pair, seed)


def _corners(window: Window | None) -> Tensor | None:
    return None if window is None else window.corners()


def _stacked(parts: Sequence[Tensor | None], rows: int) -> Tensor | None:
    """Those of all steps, (B, T, n); of a first step before which the batch is one, as many."""
    there = [part.expand(rows, -1) for part in parts if part is not None]
    return torch.stack(there, 1) if there else None
