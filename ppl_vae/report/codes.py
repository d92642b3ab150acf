"""Grids of codes as pictures."""

from pathlib import Path

import torch
from matplotlib import colormaps
from torch import Tensor

from ppl_vae.pairs.quantised import QuantisedPair
from ppl_vae.quiet import undisturbed
from ppl_vae.report.figures import image_rows

__all__ = ["code_figure", "code_maps"]


def code_maps(numbers: Tensor, codes: int, size: tuple[int, int]) -> Tensor:
    """Numbers of codes as colours, (N, 3, *size): each code has one of its own, neighbours in number unlike ones.

    Args:
        numbers: (N, h, w) int64, from 0.
        codes: K.
        size: (H, W) of the pictures, multiples of (h, w).
    """
    # Steps of the golden ratio: few codes are far apart in hue, many still differ.
    hues = torch.arange(codes, dtype=torch.float64) * 0.618034 % 1
    palette = torch.tensor(colormaps["turbo"](hues.numpy())[:, :3], dtype=torch.float32)
    maps = palette[numbers.cpu()].movedim(-1, 1)
    return maps.repeat_interleave(size[0] // maps.shape[2], 2).repeat_interleave(size[1] // maps.shape[3], 3)


def code_figure(pair: QuantisedPair, x: Tensor, path: str | Path, title: str | None = None) -> Path:
    """A PNG of images, the codes of each site in colours, and what the model makes of them.

    Args:
        pair: a VQ-VAE of images.
        x: images, (N, C, H, W) with C = 1 or 3.
        path: of the PNG.
        title: above the images.
    """
    with undisturbed(pair, seed=0):
        z = pair.codes(x)
        size = (x.shape[2], x.shape[3])
        maps = {
            f"codes, {site}": code_maps(n, pair.quantiser(site).number, size) for site, n in pair.numbers(z).items()
        }
        return image_rows({"data": x, **maps, "model": pair.decode(z).mean}, path, title=title)
