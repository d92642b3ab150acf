"""What is measured of images and captions without a judge: how alike images are, which words a painter attends to."""

from typing import Any

import pyro
import torch
import torch.nn.functional as F
from torch import Tensor

from ppl_vae import generation
from ppl_vae.data import Scenes
from ppl_vae.data.captions import PADDING
from ppl_vae.data.scene_facts import FACTS, TWO
from ppl_vae.pair import Pair
from ppl_vae.quiet import undisturbed

__all__ = ["attention_mass", "ssim"]

CHUNK = 500
"""Captions at a time."""

SIZE, SIGMA = 11, 1.5
"""Pixels to a side of the window, and the standard deviation of its weights."""

C1, C2 = 0.01**2, 0.03**2
"""(K1 L)^2 and (K2 L)^2 for the range L = 1."""


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of images, 1 where they are the same: the mean over windows and channels.

        (2 m_a m_b + C1) (2 cov_ab + C2) / ((m_a^2 + m_b^2 + C1) (var_a + var_b + C2)),

    means, variances and covariance under the Gaussian weights of a window; windows that stick out do not count.

    Args:
        a: images (B, C, H, W) in [0, 1], at least 11 pixels high and wide.
        b: as many of the same shape.

    Returns:
        (B,), in (-1, 1].

    Raises:
        ValueError: images of two shapes, or smaller than the window.

    References:
        Image quality assessment: from error visibility to structural similarity, Wang, Bovik, Sheikh & Simoncelli
        2004, eq. 13 to 17; what its authors' code shrinks beforehand is not shrunk here.

    Example:
        >>> x = torch.rand(2, 1, 16, 16)
        >>> ssim(x, x).tolist()
        [1.0, 1.0]
    """
    if a.shape != b.shape or a.dim() != 4:
        raise ValueError(f"got images {tuple(a.shape)} and {tuple(b.shape)}, expected (B, C, H, W) twice; reshape them")
    if min(a.shape[-2:]) < SIZE:
        raise ValueError(
            f"got images of {a.shape[-2]} by {a.shape[-1]} pixels, expected at least {SIZE} by {SIZE}, the window; "
            "take larger ones, or compare pixels"
        )
    x, y = a.double(), b.double()  # variances are differences of squares
    m_x, m_y, xx, yy, xy = _blurred(torch.stack([x, y, x * x, y * y, x * y]))
    var_x, var_y, cov = xx - m_x * m_x, yy - m_y * m_y, xy - m_x * m_y
    luminance = (2 * m_x * m_y + C1) / (m_x * m_x + m_y * m_y + C1)
    structure = (2 * cov + C2) / (var_x + var_y + C2)
    return (luminance * structure).mean((1, 2, 3)).to(a.dtype)


def attention_mass(pair: Pair, scenes: Scenes, facts: Tensor, *, seed: int = 0) -> dict[str, float]:
    """How much more than evenly a pair that paints from the prior attends to the words that tell each attribute.

    The mean weight of these words, over steps and the scenes that have the attribute, over the same mean of the weight
    that they get if all words of a caption get the same: 1 is no preference.

    Args:
        pair: its `painting(x, caption)` yields states with the weights alpha (B, L) of a caption's words.
        scenes: say what the captions are; their templates are the places that words could tell.
        facts: (B, 6).
        seed: of the paintings.

    Raises:
        ValueError: the pair does not align what it paints with words.
    """
    captions = scenes.captions(facts)
    alpha = torch.cat([_attention(pair, part, seed + i) for i, part in enumerate(captions.split(CHUNK))])
    alpha, even = alpha.to(captions.device).double(), (captions != PADDING).double()
    even = even / even.sum(1, keepdim=True)
    masses = {}
    for name in scenes.attributes(facts):
        telling = _telling(scenes, facts, name)
        if bool(telling.any()):
            masses[name] = (alpha[telling].sum() / even[telling].sum()).item()
    return masses


def _blurred(x: Tensor) -> Tensor:
    """Means over windows, (..., H, W) -> (..., H - 10, W - 10)."""
    steps = torch.arange(SIZE, dtype=x.dtype, device=x.device) - SIZE // 2
    weights = torch.softmax(-0.5 * (steps / SIGMA) ** 2, 0)
    planes = x.flatten(0, -3).unsqueeze(1)
    means = F.conv2d(F.conv2d(planes, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1))
    return means.squeeze(1).unflatten(0, x.shape[:-2])


def _attention(pair: Pair, captions: Tensor, seed: int) -> Tensor:
    """The weights of the captions' words, (B, L), mean over the steps of one painting each."""
    painting: Any = getattr(pair, "painting", lambda x, caption: [])
    x = generation.blank(pair, len(captions))
    with undisturbed(pair, seed), pyro.plate("data", len(x), dim=-1):
        states: list[Any] = list(painting(x, captions.to(x.device)))
    alphas = [state.alpha for state in states if state.alpha is not None]
    if not alphas:
        raise ValueError(
            f"{type(pair).__name__}: got no weights of words, expected a painting(x, caption) whose states have alpha; "
            "take a pair with alignment, AlignDRAW(..., align=512), say"
        )
    return torch.stack([alpha.expand(captions.shape) for alpha in alphas]).mean(0)


def _telling(scenes: Scenes, facts: Tensor, name: str) -> Tensor:
    """Whether each word of the captions would be another one for some other class of an attribute, (B, L)."""
    captions, column = scenes.captions(facts), list(FACTS).index(name)
    telling = torch.zeros_like(captions, dtype=torch.bool)
    for value in scenes.templates if name == "place" else range(len(FACTS[name])):
        changed = facts.clone()
        changed[:, column] = value
        may = (changed[:, 0] < TWO) == (facts[:, 0] < TWO)
        telling |= (scenes.captions(changed) != captions) & may[:, None]
    return telling
