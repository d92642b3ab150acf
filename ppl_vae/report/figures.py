"""Figures as PNG files.

Images are light on dark, as their values say: 0 is black, 1 is white. No display is needed, and nothing of
pyplot's global state is touched.
"""

import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter
from torch import Tensor

from ppl_vae.report.files import write_bytes

__all__ = [
    "Curve",
    "image_grid",
    "image_rows",
    "kl_curves",
    "learning_curves",
    "manifold_figure",
    "reconstruction_grid",
    "side_by_side",
]

Curve = Sequence[tuple[float, float]]
"""Points (step, value)."""

# A power of two, so that a size in pixels is the same number again after its way through inches.
_DPI = 128
_TEXT = 9  # points: 16 pixels
_INK = "#333333"
# Okabe & Ito's palette, which colour-blind readers tell apart; its yellow is too pale for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_LEAST = 1e-3  # nats: less is as good as nothing
_DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)))


def image_grid(images: Tensor, path: str | Path, columns: int | None = None, title: str | None = None) -> Path:
    """A PNG of images in rows.

    Args:
        images: (N, C, H, W) with C = 1 or 3, (N, H, W), or (N, D) with D a square; clipped to [0, 1]. NaN is
            magenta, so that it is seen.
        path: of the PNG.
        columns: images in a row; as many as rows by default.
        title: above the images.

    Raises:
        ValueError: images of another shape, or none; columns < 1.
    """
    tiles = _tiles(images)
    columns = math.ceil(math.sqrt(len(tiles))) if columns is None else columns
    return _save_mosaic(_mosaic(tiles, _at_most(len(tiles), columns), 64), path, title)


def side_by_side(
    left: Tensor, right: Tensor, path: str | Path, columns: int | None = None, title: str | None = None
) -> Path:
    """A PNG of two grids of images with a gap between them.

    Args:
        left: as in `image_grid`.
        right: as many, of the same shape.
        path: of the PNG.
        columns: images in a row of each grid; as many as rows by default.
        title: above the images.

    Raises:
        ValueError: two different shapes; what `image_grid` raises.
    """
    if left.shape != right.shape:
        raise ValueError(f"got {tuple(left.shape)} and {tuple(right.shape)}, expected one shape for both")
    columns = math.ceil(math.sqrt(len(left))) if columns is None else columns
    grids = [_mosaic(_tiles(images), _at_most(len(images), columns), 64) for images in (left, right)]
    gap = np.full_like(grids[0][:, :24], 255)
    return _save_mosaic(np.concatenate([grids[0], gap, grids[1]], axis=1), path, title)


def reconstruction_grid(
    originals: Tensor,
    reconstructions: Tensor,
    path: str | Path,
    columns: int = 10,
    title: str | None = None,
    labels: tuple[str, str] = ("data", "model"),
) -> Path:
    """A PNG of images, each above its reconstruction.

    Args:
        originals: as in `image_grid`.
        reconstructions: of the same shape.
        path: of the PNG.
        columns: images in a row.
        title: above the images.
        labels: of the rows of originals and of reconstructions.

    Raises:
        ValueError: two different shapes; what `image_grid` raises.
    """
    if originals.shape != reconstructions.shape:
        raise ValueError(
            f"got originals {tuple(originals.shape)} and reconstructions {tuple(reconstructions.shape)}, expected "
            "one shape for both"
        )
    return image_rows(dict(zip(labels, (originals, reconstructions), strict=True)), path, columns, title)


def image_rows(rows: Mapping[str, Tensor], path: str | Path, columns: int = 10, title: str | None = None) -> Path:
    """A PNG of images in labelled rows, one below the other; so many columns at a time.

    Args:
        rows: label -> images as in `image_grid`, of each label as many, of one height and width.
        path: of the PNG.
        columns: images in a row.
        title: above the images.

    Raises:
        ValueError: images of unlike sizes or numbers; what `image_grid` raises.
    """
    tiles = {label: _tiles(images) for label, images in rows.items()}
    shapes = {label: part.shape for label, part in tiles.items()}
    if len(set(shapes.values())) != 1:
        raise ValueError(f"got images of shapes {shapes}, expected one for all rows; resize or cut them")
    number = len(next(iter(tiles.values())))
    columns, lines, centres = _at_most(number, columns), [], []
    for i in range(0, number, columns):
        for label, part in tiles.items():
            line = _mosaic(part[i : i + columns], columns, 64)
            centres.append((sum(map(len, lines)) + len(line) / 2, label))
            lines.append(line)
        lines.append(np.full_like(lines[-1][:8], 255))
    return _save_mosaic(np.concatenate(lines[:-1]), path, title, labels=centres)


def manifold_figure(grid: Tensor, path: str | Path, title: str | None = None) -> Path:
    """A PNG of `generation.manifold`, its axes in quantiles of the prior.

    Args:
        grid: (S, S, C, H, W) or (S, S, D), first row on top.
        path: of the PNG.
        title: above the images.

    Raises:
        ValueError: images of another shape, or not as many rows as columns.
    """
    if grid.dim() < 3 or grid.shape[0] != grid.shape[1]:
        raise ValueError(f"got shape {tuple(grid.shape)}, expected (size, size, channels, height, width)")
    size = len(grid)
    mosaic = _mosaic(_tiles(grid.flatten(0, 1)), size, 800 // size)
    return _save_mosaic(mosaic, path, title, quantiles=True)


def learning_curves(
    curves: Mapping[str, Curve | Sequence[Curve]],
    path: str | Path,
    ylabel: str = "bound, nats per datum",
    xlabel: str = "step",
    title: str | None = None,
    log_x: bool = False,
) -> Path:
    """A PNG of curves: for each name one run, or several seeds as their mean in a band from lowest to highest.

    The first tenth of a curve's points does not set the range of the y axis: it would squash the rest.

    Args:
        curves: name -> the points of one run, or a list of runs; runs of a name share their steps.
        path: of the PNG.
        ylabel: of the y axis.
        xlabel: of the x axis.
        title: above the axes.
        log_x: a logarithmic x axis.

    Raises:
        ValueError: no curves, a name without points, or runs of a name without common steps.
    """
    if not curves:
        raise ValueError("got no curves, expected at least one: name -> [(step, value), ...]")
    bands = {name: _band(name, curve) for name, curve in curves.items()}
    figure = Figure(figsize=(7.5, 4.2), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (steps, low, mean, high)) in enumerate(bands.items()):
        colour, dashes = _COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)]
        axes.plot(steps, mean, label=name, color=colour, linewidth=1.6, linestyle=dashes)
        axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0)
    lines = sorted(axes.get_lines(), key=_height, reverse=True)  # the legend's order is that of the lines' ends
    figure.legend(handles=lines, loc="outside right upper", frameon=False, fontsize=_TEXT)
    axes.set_ylim(_limits(bands.values()))
    if log_x:
        axes.set_xscale("log")
    axes.set_xlabel(xlabel, fontsize=_TEXT)
    axes.set_ylabel(ylabel, fontsize=_TEXT)
    axes.set_title(textwrap.fill(title or "", 60), fontsize=_TEXT + 1, loc="left")  # beside the legend, not below it
    axes.tick_params(labelsize=_TEXT - 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#DDDDDD", linewidth=0.6)
    return _save(figure, path)


def kl_curves(runs: Mapping[str, Mapping[str, Curve]], path: str | Path, xlabel: str = "step") -> Path:
    """A PNG of the KL term of each layer while training, one panel for each run, on common axes.

    The KL axis is logarithmic from 0.001 nats on, where curves that are lower lie; a line marks 0.1 nats.

    Args:
        runs: name -> latent site -> points (step, nats per datum).
        path: of the PNG.
        xlabel: of the x axes.

    Raises:
        ValueError: no runs.
    """
    if not runs:
        raise ValueError("got no runs, expected at least one: name -> {site: [(step, value), ...]}")
    columns = min(len(runs), 2)
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(4.2 * columns + 0.8, 2.8 * rows), dpi=_DPI, layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).ravel()
    sites = sorted({site for curves in runs.values() for site in curves}, key=lambda site: (len(site), site))
    highest = max((value for curves in runs.values() for curve in curves.values() for _, value in curve), default=1.0)
    for axes, (name, curves) in zip(panels, runs.items(), strict=False):
        for site, curve in sorted(curves.items(), key=lambda item: sites.index(item[0])):
            i = sites.index(site)
            steps, values = zip(*curve, strict=True)
            colour, dashes = _COLOURS[i % len(_COLOURS)], _DASHES[i // len(_COLOURS) % len(_DASHES)]
            axes.plot(steps, np.maximum(values, _LEAST), color=colour, linestyle=dashes, linewidth=1.6, label=site)
        axes.axhline(0.1, color=_INK, linewidth=0.8, linestyle="dotted")
        axes.set_yscale("log")
        axes.set_ylim(_LEAST, 2 * max(highest, 1.0))
        axes.set_title(name, fontsize=_TEXT, loc="left")
        axes.tick_params(labelsize=_TEXT - 1)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[len(runs) :]:
        axes.set_visible(False)
    for axes in panels[max(0, len(runs) - columns) : len(runs)]:  # the lowest of each column
        axes.tick_params(labelbottom=True)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    figure.supxlabel(xlabel, fontsize=_TEXT)
    figure.supylabel("KL, nats per datum", fontsize=_TEXT)
    handles = {line.get_label(): line for axes in panels for line in axes.get_lines() if line.get_label() in sites}
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", frameon=False, fontsize=_TEXT)
    return _save(figure, path)


def _tiles(images: Tensor) -> np.ndarray:
    """Images as bytes (N, H, W, 3)."""
    x = images.detach().float().cpu()
    if x.dim() == 2 and (side := math.isqrt(x.shape[1])) ** 2 == x.shape[1]:
        x = x.unflatten(1, (1, side, side))
    x = x.unsqueeze(1) if x.dim() == 3 else x
    if x.dim() != 4 or x.shape[1] not in (1, 3) or not x.numel():
        raise ValueError(
            f"got images of shape {tuple(images.shape)}, expected (N, C, H, W) with C = 1 or 3, (N, H, W), or (N, D) "
            "with D a square; reshape them"
        )
    rgb = x.expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    rgb = np.where(np.isnan(rgb), (1.0, 0.0, 1.0), rgb.clip(0, 1))
    return (255 * rgb).round().astype(np.uint8)


def _at_most(number: int, columns: int) -> int:
    if columns < 1:
        raise ValueError(f"columns: got {columns}, expected at least 1")
    return min(number, columns)


def _mosaic(tiles: np.ndarray, columns: int, pixels: int) -> np.ndarray:
    """Tiles in rows on white, bytes (H, W, 3); small ones are enlarged, to at most `pixels`, by a whole factor."""
    gap, factor = 2, max(pixels // max(tiles.shape[1:3]), 1)
    tiles = tiles.repeat(factor, 1).repeat(factor, 2)
    h, w = (size + gap for size in tiles.shape[1:3])
    mosaic = np.full((math.ceil(len(tiles) / columns) * h + gap, columns * w + gap, 3), 255, np.uint8)
    for i, tile in enumerate(tiles):
        top, left = i // columns * h + gap, i % columns * w + gap
        mosaic[top : top + h - gap, left : left + w - gap] = tile
    return mosaic


def _save_mosaic(
    mosaic: np.ndarray,
    path: str | Path,
    title: str | None,
    labels: Sequence[tuple[float, str]] = (),
    quantiles: bool = False,
) -> Path:
    """Put a mosaic on a figure pixel by pixel, with a title, labels of rows (at a height), or the prior's quantiles."""
    left = 60 if quantiles else max((16 + 9 * len(text) for _, text in labels), default=0)
    right, bottom = (20, 54) if quantiles else (0, 0)
    width = max(left + mosaic.shape[1] + right, 360 if title else 0)
    lines = textwrap.wrap(title or "", (width - left) // 11)
    height = mosaic.shape[0] + bottom + (24 * len(lines) + 12 if lines else 12 if quantiles else 0)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    box = (left / width, bottom / height, mosaic.shape[1] / width, mosaic.shape[0] / height)
    axes = figure.add_axes(box, frameon=False)
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.set(xticks=[], yticks=[])
    if labels:
        axes.set_yticks(*zip(*labels, strict=True))
    if quantiles:
        _quantile_axes(axes, *mosaic.shape[:2])
    axes.tick_params(length=3 if quantiles else 0, labelsize=_TEXT, labelcolor=_INK, color=_INK)
    figure.text((left + 2) / width, 1 - 6 / height, "\n".join(lines), va="top", size=_TEXT + 1, linespacing=1.2)
    return _save(figure, path)


def _quantile_axes(axes: Axes, height: int, width: int) -> None:
    quantiles, names = (0, 0.25, 0.5, 0.75, 1), ["0", "¼", "½", "¾", "1"]
    axes.set_xticks([q * width - 0.5 for q in quantiles], names)
    axes.set_yticks([q * height - 0.5 for q in quantiles], names[::-1])
    axes.set_xlabel("quantile of $z_1$ under the prior", fontsize=_TEXT, color=_INK)
    axes.set_ylabel("quantile of $z_2$ under the prior", fontsize=_TEXT, color=_INK)


def _save(figure: Figure, path: str | Path) -> Path:
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)  # not savefig, whose size may depend on the user's matplotlibrc
    return write_bytes(content.getvalue(), path)


def _band(name: str, curve: Any) -> np.ndarray:
    """Steps, lowest, mean and highest value over the runs, (4, points)."""
    single = len(curve) > 0 and len(curve[0]) > 0 and np.ndim(curve[0][0]) == 0  # points, not runs
    runs = [dict(run) for run in ([curve] if single else curve)]
    steps = sorted(set.intersection(*map(set, runs))) if runs else []
    if not steps:
        raise ValueError(f"curve {name!r}: got {len(runs)} runs without common steps, expected points (step, value)")
    values = np.array([[float(run[step]) for step in steps] for run in runs])
    return np.stack([np.array(steps, float), values.min(0), values.mean(0), values.max(0)])


def _limits(bands: Iterable[np.ndarray]) -> tuple[float, float]:
    parts = [band[1:, min(math.ceil(band.shape[1] / 10), band.shape[1] - 1) :].ravel() for band in bands]
    values = np.concatenate(parts)
    values = values[np.isfinite(values)] if np.isfinite(values).any() else np.zeros(1)
    margin = 0.05 * np.ptp(values) or 1.0
    return float(values.min() - margin), float(values.max() + margin)


def _height(line: Line2D) -> float:
    y = np.asarray(line.get_ydata(), float)
    return float(np.nan_to_num(y[-1], nan=-np.inf))
