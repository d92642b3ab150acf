"""Pictures of how images are painted step by step, and of what one word changes."""

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from ppl_vae.films import Film
from ppl_vae.report.figures import _COLOURS, _DPI, _INK, _TEXT, _at_most, _mosaic, _save, _tiles
from ppl_vae.report.files import write_bytes

__all__ = ["alignment_figure", "film_gif", "film_strip", "flip_grid"]

_SIDE = 112  # pixels of a tile, at least: a window's frame must be seen
_LETTER, _LINE = 9, 20  # pixels of _TEXT, a little more than most take
_FRAME, _BAR = (tuple(round(255 * part) for part in to_rgb(colour)) for colour in (_COLOURS[1], _INK))
_LAST = 1_500  # milliseconds


def film_strip(
    film: Film,
    path: str | Path,
    captions: Sequence[str] | None = None,
    frames: int = 8,
    title: str | None = None,
) -> Path:
    """A PNG of canvases from the start to the last, a row for each image, with a frame where a step has written.

    What of a window lies outside of the image is drawn at the edge, where its filters write.

    Args:
        film: of images with 1 or 3 channels.
        path: of the PNG.
        captions: left of the rows.
        frames: canvases of a row, evenly spaced, both ends among them; at most one for each.
        title: above the images.

    Raises:
        ValueError: fewer than 2 frames; another number of captions than of images.
    """
    number, steps = _length(film)
    if frames < 2:
        raise ValueError(f"frames: got {frames}, expected at least 2, the start and the last")
    if captions is not None and len(captions) != number:
        raise ValueError(f"got {len(captions)} captions and {number} images, expected as many: one for each row")
    times = torch.linspace(0, steps, min(frames, steps + 1)).round().long().tolist()
    tiles = _tiles(film.canvases[:, times].flatten(0, 1))
    framed = _framed(tiles, _windows(film)[:, times].reshape(-1, 4), _factor(tiles))
    heads = ["start", *(f"step {t}" for t in times[1:])]
    return _save_table(_mosaic(framed, len(times), 1), path, title, captions or [""] * number, heads)


def film_gif(
    film: Film,
    path: str | Path,
    scale: int | None = None,
    milliseconds: int = 120,
    windows: bool = True,
    columns: int | None = None,
) -> Path:
    """An animated GIF of all images in rows, from the start to the last canvas, which stays for 1.5 seconds.

    A bar below tells how far they are.

    Args:
        film: of images with 1 or 3 channels.
        path: of the GIF.
        scale: pixels of the GIF along a pixel of an image; by default such that an image has 112 or more on its
            longer side.
        milliseconds: from frame to frame, in steps of 10 as the format has it.
        windows: draw a frame where a step has written.
        columns: images in a row; as many as rows by default.

    Raises:
        ValueError: a scale or columns below 1, or less than 10 milliseconds.
    """
    for name, value, least in (("scale", scale, 1), ("milliseconds", milliseconds, 10)):
        if value is not None and value < least:
            raise ValueError(f"{name}: got {value}, expected at least {least}")
    number = len(film.canvases)
    columns = math.ceil(math.sqrt(number)) if columns is None else _at_most(number, columns)
    first, *others = _frames(film, scale, windows, columns)
    content = io.BytesIO()
    durations = [milliseconds] * len(others) + [_LAST]
    first.save(content, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return write_bytes(content.getvalue(), path)


def alignment_figure(film: Film, words: str | Sequence[str], path: str | Path, row: int = 0) -> Path:
    """A PNG of the weight of each word at each step, for one image.

    Args:
        film: of a pair with alignment.
        words: of this image's caption, as text or one by one, without the padding.
        path: of the PNG.
        row: of the film.

    Raises:
        ValueError: a film without alignment, a row that it does not have, or another number of words than have
            weights.
    """
    words = words.split() if isinstance(words, str) else list(words)
    alpha = _alpha(film, row, len(words))
    number, steps = alpha.shape
    figure = Figure(figsize=(2.4 + max(0.14 * steps, 3.6), 1.1 + 0.24 * number), dpi=_DPI, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(alpha, cmap="Blues", vmin=0, aspect="auto", extent=(0.5, steps + 0.5, number - 0.5, -0.5))
    axes.set_yticks(range(number), words)
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True))
    axes.set_xlabel("step", fontsize=_TEXT)
    axes.tick_params(labelsize=_TEXT - 1)
    bar = figure.colorbar(image, ax=axes)
    bar.set_label("weight", fontsize=_TEXT)
    bar.ax.tick_params(labelsize=_TEXT - 1)
    return _save(figure, path)


def flip_grid(
    images: Tensor, path: str | Path, rows: Sequence[str], columns: Sequence[str], title: str | None = None
) -> Path:
    """A PNG of images as a table, say of captions in which one word is changed.

    Args:
        images: (R, C, channels, H, W) with 1 or 3 channels, first row on top.
        path: of the PNG.
        rows: R labels, at the left.
        columns: C labels, above.
        title: above the table.

    Raises:
        ValueError: images of another shape, or another number of labels.
    """
    if images.dim() != 5 or images.shape[:2] != (len(rows), len(columns)):
        raise ValueError(
            f"got images {tuple(images.shape)}, {len(rows)} rows and {len(columns)} columns, expected (rows, columns, "
            "channels, height, width); give a label for each"
        )
    tiles = _tiles(images.flatten(0, 1))
    return _save_table(_mosaic(_enlarged(tiles, _factor(tiles)), len(columns), 1), path, title, rows, columns)


def _length(film: Film) -> tuple[int, int]:
    """B and T."""
    return film.canvases.shape[0], film.canvases.shape[1] - 1


def _windows(film: Film) -> np.ndarray:
    """Corners at t = 0..T, (B, T + 1, 4), NaN where there are none."""
    number, steps = _length(film)
    corners = np.full((number, steps + 1, 4), np.nan)
    if film.windows is not None:
        corners[:, 1:] = film.windows.detach().float().cpu().numpy()
    return corners


def _alpha(film: Film, row: int, words: int) -> np.ndarray:
    """Weights of a row's words, (words, T)."""
    if film.alpha is None:
        raise ValueError("got a film without alpha, expected one of a pair with alignment, AlignDRAW(align=...)")
    if not 0 <= row < len(film.alpha):
        raise ValueError(f"row: got {row}, expected 0 to {len(film.alpha) - 1}, the images of the film")
    alpha = film.alpha[row].detach().float().cpu()
    weighed = int((alpha != 0).any(0).sum())
    if not 0 < words <= alpha.shape[1] or alpha[:, words:].any():
        raise ValueError(f"got {words} words, expected {weighed}: those of the caption of row {row}, without padding")
    return alpha[:, :words].T.numpy()


def _factor(tiles: np.ndarray) -> int:
    return math.ceil(_SIDE / max(tiles.shape[1:3]))


def _enlarged(tiles: np.ndarray, factor: int) -> np.ndarray:
    return tiles.repeat(factor, 1).repeat(factor, 2)


def _framed(tiles: np.ndarray, windows: np.ndarray, factor: int) -> np.ndarray:
    """Tiles enlarged by a whole factor, each with a frame through its corners, (N, 4), unless these are NaN."""
    tiles = _enlarged(tiles, factor)
    line = min(2, factor)
    ends = np.array([size - line for size in tiles.shape[1:3]] * 2)
    for tile, window in zip(tiles, windows, strict=True):
        if np.isnan(window).any():
            continue
        # The middle of pixel i is at (i + 1/2) factor, and there the middle of the line.
        start = np.rint((window + 0.5) * factor - line / 2)
        top, left, bottom, right = start.clip(0, ends).astype(int)
        for y in (top, bottom):
            tile[y : y + line, left : right + line] = _FRAME
        for x in (left, right):
            tile[top : bottom + line, x : x + line] = _FRAME
    return tiles


def _frames(film: Film, scale: int | None, windows: bool, columns: int) -> Iterator[Image.Image]:
    (_, steps), corners = _length(film), _windows(film)
    for t in range(steps + 1):
        tiles = _tiles(film.canvases[:, t])
        factor = _factor(tiles) if scale is None else scale
        tiles = _framed(tiles, corners[:, t], factor) if windows else _enlarged(tiles, factor)
        mosaic = _mosaic(tiles, columns, 1)
        bar = np.full_like(mosaic[:4], 255)
        bar[:, : round(mosaic.shape[1] * t / max(steps, 1))] = _BAR
        # Not dithered: noise would move from frame to frame.
        yield Image.fromarray(np.concatenate([mosaic, bar])).quantize(256, dither=Image.Dither.NONE)


def _save_table(
    mosaic: np.ndarray, path: str | Path, title: str | None, rows: Sequence[str], columns: Sequence[str]
) -> Path:
    """Put a mosaic on a figure pixel by pixel, with labels left of its rows and above its columns."""
    high, wide = mosaic.shape[0] / len(rows), mosaic.shape[1] / len(columns)
    rows = [textwrap.fill(text.replace(" ,", ",").replace(" .", "."), 24) for text in rows]  # captions as one writes
    columns = [textwrap.fill(text, max(int(wide / _LETTER), 1), break_long_words=False) for text in columns]
    longest = max(len(line) for text in rows for line in text.split("\n"))
    left = 16 + _LETTER * longest if longest else 0
    width = max(left + mosaic.shape[1], 360 if title else 0)
    lines = textwrap.wrap(title or "", width // 11)
    above = 10 + _LINE * max(text.count("\n") + 1 for text in columns)
    height = mosaic.shape[0] + above + (24 * len(lines) + 8 if lines else 0)
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI)
    axes = figure.add_axes((left / width, 0, mosaic.shape[1] / width, mosaic.shape[0] / height), frameon=False)
    axes.imshow(mosaic, interpolation="nearest", aspect="auto")
    axes.set_xticks([(i + 0.5) * wide - 0.5 for i in range(len(columns))], columns)
    axes.set_yticks([(i + 0.5) * high - 0.5 for i in range(len(rows))], rows)
    axes.tick_params(length=0, labelsize=_TEXT, labelcolor=_INK, top=True, labeltop=True, labelbottom=False)
    figure.text(8 / width, 1 - 6 / height, "\n".join(lines), va="top", size=_TEXT + 1, linespacing=1.2)
    return _save(figure, path)
