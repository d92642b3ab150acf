"""Scenes from facts: images of digits by class, where they lie on the canvas, and their colours."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from ppl_vae.data.dataset import DataError
from ppl_vae.data.scene_facts import DIGITS, PLACES, scaled

RGB = ((1.0, 0.0, 0.0), (1.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0))  # of red, yellow, green and blue


@dataclass(frozen=True, eq=False)
class DigitImages:
    """Images sorted by class, to draw from.

    Args:
        images: (n, h, h) float32 in [0, 1], first all zeros, last all nines.
        counts: number of each class, (10,) int64.
    """

    images: Tensor
    counts: Tensor

    @classmethod
    def by_class(cls, x: Tensor, labels: Tensor | None, size: int | None, what: str) -> Self:
        """Of images (n, 1, h, h) with their classes; another size by area interpolation.

        Raises:
            DataError: images of another shape or on disk, no labels, or not some of each of the ten classes.
        """
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != 1 or x.shape[2] != x.shape[3]:
            raise DataError(
                f"{what}: got {type(x).__name__} {tuple(x.shape)}, expected a tensor of square grey images "
                "(number, 1, size, size); load 'digits' or 'mnist', say"
            )
        classes = [] if labels is None else labels.unique().tolist()
        if labels is None or classes != list(range(len(DIGITS))):
            raise DataError(f"{what}: got the classes {classes}, expected some of each of 0 to 9; give labelled digits")
        if size not in (None, x.shape[-1]):
            x = F.interpolate(x, size=(size, size), mode="area")
        return cls(x[labels.argsort(stable=True), 0], labels.bincount())

    @property
    def size(self) -> int:
        """Height and width h."""
        return self.images.shape[-1]

    def draw(self, classes: Tensor, u: Tensor) -> Tensor:
        """An image of each class, (*) int64, by uniform numbers (*), (*, h, h)."""
        counts = self.counts.index_select(0, classes.flatten())
        last = self.counts.cumsum(0).index_select(0, classes.flatten())
        chosen = last - counts + scaled(u.flatten(), counts)
        return self.images.index_select(0, chosen).unflatten(0, classes.shape)

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`."""
        return type(self)(self.images.to(device), self.counts.to(device))


class Placement:
    """Where a template's digits lie on the canvas: the published ranges at 60 and 28, to scale elsewhere.

    With a margin m = size - digit, boxes start m / 8 columns and m / 16 rows at most from their edge, and at
    m // 2 + 0 .. m / 16 in the middle. The digits of left and right share their row, those of top and bottom their
    column, as in the published code.

    Args:
        size: of the canvas.
        digit: size of a digit's box.
        device: of the tables.
    """

    def __init__(self, size: int, digit: int, device: torch.device) -> None:
        m = size - digit
        rows, columns = round(m / 16), round(m / 8)
        middle = (m // 2, min(m // 2 + rows, m))
        up, down, left, right = (0, rows), (m - rows, m), (0, columns), (m - columns, m)
        beside, above = ((middle, left), (middle, right)), ((up, middle), (down, middle))
        corners = ((up, left), (down, right), (up, right), (down, left))
        none = ((0, 0), (0, 0))
        boxes = [beside, beside[::-1], above, above[::-1], *((corner, none) for corner in corners)]
        table = torch.tensor(boxes, device=device)  # (8, 2, 2, 2): template, digit, (row, column), (first, last)
        self._first, self._number = table[..., 0], table[..., 1] - table[..., 0] + 1
        shared = [[i in (0, 1), i in (2, 3)] for i in range(len(PLACES))]
        self._shared = torch.tensor(shared, device=device)[:, None]  # (8, 1, 2)

    def draw(self, templates: Tensor, u: Tensor) -> Tensor:
        """Top rows and left columns.

        Args:
            templates: (B,).
            u: uniform on [0, 1), (B, 2, 2).

        Returns:
            (B, 2, 2) int64: for both digits row and column.
        """
        u = torch.where(self._shared.index_select(0, templates), u[:, :1], u)
        return self._first.index_select(0, templates) + scaled(u, self._number.index_select(0, templates))


class Painter:
    """Composes images of facts, without a word to or from the host.

        x = field;  for each digit in turn: x = x (1 - m) + ink m,   m its grey values, 0 off its box.

    Args:
        size: S, of the canvas.
        digit: size of a digit's box.
        coloured: C = 3, and colours by facts; otherwise C = 1, white ink on black.
        device: of the tables.
    """

    def __init__(self, size: int, digit: int, coloured: bool, device: torch.device) -> None:
        self.size = size
        self._placement = Placement(size, digit, device)
        colours = torch.tensor(RGB, device=device)
        self._inks = colours if coloured else torch.ones(1, 1, device=device)  # (colours, C)
        self._fields = colours / 2 if coloured else torch.zeros(1, 1, device=device)

    def paint(self, facts: Tensor, u: Tensor, digits: DigitImages) -> Tensor:
        """Images of facts (B, 6) by uniform numbers (B, 2, 3): for both digits which image, row and column.

        Returns:
            (B, C, S, S) in [0, 1].
        """
        masks = self._masks(facts, u, digits)
        classes = facts[:, 3:].clamp(min=0)  # -1: no second ink, or white on black
        inks, x = self._inks[classes[:, :2]], self._fields[classes[:, 2]][..., None, None]  # (B, 2, C), (B, C, 1, 1)
        for ink, m in zip(inks[..., None, None].unbind(1), masks[:, :, None].unbind(1), strict=True):
            x = x * (1 - m) + ink * m  # not lerp: this is exact at m = 0 and 1
        return x

    def _masks(self, facts: Tensor, u: Tensor, digits: DigitImages) -> Tensor:
        """Both digits' grey values on their canvas, (B, 2, S, S), none of a digit that is not there."""
        classes = facts[:, 1:3]
        glyphs = digits.draw(classes.clamp(min=0), u[..., 0]) * (classes >= 0)[..., None, None]
        corners = self._placement.draw(facts[:, 0], u[..., 1:])  # (B, 2, 2)
        step = torch.arange(digits.size, device=facts.device)
        rows, columns = (corners[..., None] + step).unbind(2)  # (B, 2, h)
        cells = rows[..., None] * self.size + columns[..., None, :]
        canvas = glyphs.new_zeros(len(facts), 2, self.size**2)
        return canvas.scatter_(2, cells.flatten(2), glyphs.flatten(2)).unflatten(2, (self.size, self.size))
