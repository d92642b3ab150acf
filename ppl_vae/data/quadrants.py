"""Images of which some quadrants are given, for models of the others."""

from typing import Literal

from torch import Tensor

from ppl_vae.data.dataset import DataError

__all__ = ["UNKNOWN", "Quadrants", "quadrants"]

UNKNOWN = -1.0
"""What stands where a datum is not given."""

Quadrants = Literal[1, 2, 3]


def quadrants(x: Tensor, number: Quadrants) -> tuple[Tensor, Tensor]:
    """The batch (y, c) of a model that completes images: y is x, and c is x where it is given, UNKNOWN elsewhere.

    Given are 1: the bottom left quadrant; 2: the left half; 3: all but the top right quadrant. Of an odd size the
    middle row is in the bottom half, and the middle column in the right.

    Args:
        x: images (N, ..., H, W) with values in [0, 1].
        number: of the quadrants that are given.

    Raises:
        DataError: another number; no images, or of sizes below 2; values below 0, or of a dtype without them.

    References:
        Learning structured output representation using deep conditional generative models, Sohn, Lee & Yan 2015,
        section 5.1. The mark -1 is that of Pyro's tutorial.

    Example:
        >>> import torch
        >>> y, c = quadrants(torch.ones(1, 2, 2), 1)
        >>> c
        tensor([[[-1., -1.],
                 [ 1., -1.]]])
    """
    if number not in (1, 2, 3) or isinstance(number, bool):
        raise DataError(f"number: got {number!r}; expected 1, 2 or 3 quadrants that are given")
    if x.dim() < 3 or min(x.shape[-2:]) < 2:
        raise DataError(f"x: got shape {tuple(x.shape)}; expected images (N, ..., H, W) with H and W of at least 2")
    if not x.is_floating_point():
        raise DataError(f"x: got {x.dtype}; expected floats, for the mark {UNKNOWN:g}; convert: x.float() / 255")
    if bool((x < 0).any()):
        raise DataError(f"x: got values down to {x.min():g}; expected [0, 1], as {UNKNOWN:g} marks what is unknown")
    top, left = x.shape[-2] // 2, x.shape[-1] // 2
    c = x.clone()
    if number < 3:
        c[..., left:] = UNKNOWN
    if number == 1:
        c[..., :top, :] = UNKNOWN
    if number == 3:
        c[..., :top, left:] = UNKNOWN
    return x, c
