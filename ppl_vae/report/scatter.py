"""Data as points of a plane, coloured by class."""

from collections.abc import Mapping
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure
from torch import Tensor

from ppl_vae.report.figures import _DPI, _TEXT, _save

__all__ = ["class_scatter"]


def class_scatter(points: Mapping[str, Tensor], labels: Tensor, path: str | Path, title: str | None = None) -> Path:
    """A PNG of planes side by side, one for each name, each with its own axes; a colour for each class.

    Args:
        points: name -> (N, 2).
        labels: classes of the N points, whole numbers from 0.
        path: of the PNG.
        title: above the planes.

    Raises:
        ValueError: no planes, or points of another shape.
    """
    if not points:
        raise ValueError("points: got none, expected at least one plane: name -> (N, 2)")
    for name, plane in points.items():
        if tuple(plane.shape) != (len(labels), 2):
            raise ValueError(f"points {name!r}: got shape {tuple(plane.shape)}, expected ({len(labels)}, 2)")
    figure = Figure(figsize=(4 * len(points) + 0.8, 4.2), dpi=_DPI, layout="constrained")
    planes = figure.subplots(1, len(points), squeeze=False)[0]
    colours = matplotlib.colormaps["tab10" if labels.max() < 10 else "tab20"]
    for axes, (name, plane) in zip(planes, points.items(), strict=True):
        for label in labels.unique().tolist():
            x, y = plane[labels == label].double().cpu().unbind(1)
            axes.scatter(x, y, s=4, linewidths=0, alpha=0.7, color=colours(label % colours.N), label=str(label))
        axes.set_title(name, fontsize=_TEXT, loc="left")
        axes.set_xticks([])
        axes.set_yticks([])
    handles, names = planes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=_TEXT, markerscale=4)
    if title:
        figure.suptitle(title, fontsize=_TEXT + 1, x=0.01, ha="left")
    return _save(figure, path)
