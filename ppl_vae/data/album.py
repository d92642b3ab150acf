"""Images as bytes, each with one caption or several."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ppl_vae.data.captions import PADDING
from ppl_vae.data.dataset import DataError


@dataclass(frozen=True, eq=False)
class Album:
    """N images and M captions of theirs, side by side on one device.

    Args:
        images: (N, C, S, S) uint8.
        captions: word ids, (M, L) int64, padded on the right with 0.
        image: of each caption, (M,) int64: ascending, each image at least once.

    Raises:
        DataError: another form, an image without a caption, an empty caption, padding before a word.

    Example:
        >>> images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
        >>> album = Album(images, torch.tensor([[1, 2], [2, 0], [1, 1]]), torch.tensor([0, 0, 1]))
        >>> album.captions_of(0).tolist(), album.first_captions().tolist()
        ([[1, 2], [2, 0]], [[1, 2], [1, 1]])
    """

    images: Tensor
    captions: Tensor
    image: Tensor

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_captions(self.captions)
        _check_order(self.image, len(self.images), len(self.captions))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, images: slice) -> Self:
        """Some images, without gaps, with all their captions."""
        start, stop, step = images.indices(len(self))
        assert step == 1
        is_in = (self.image >= start) & (self.image < stop)
        return type(self)(self.images[images], self.captions[is_in], self.image[is_in] - start)

    @property
    def lengths(self) -> Tensor:
        """Words of each caption, (M,) int64."""
        return (self.captions != PADDING).sum(1)

    def grey(self, images: Tensor | None = None) -> Tensor:
        """Images of row numbers (B,), or all, (B, C, S, S) float32 in [0, 1]."""
        pixels = (self.images if images is None else self.images.index_select(0, images)).float()
        # By a tensor of the device: a GPU multiplies by the reciprocal of a plain number, and rounds otherwise.
        return pixels.div_(pixels.new_full((), 255.0))

    def pairs(self, rows: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
        """Images and captions of caption rows (B,): (B, C, S, S) float32 and (B, length) int64."""
        return self.grey(self.image.index_select(0, rows)), self.captions[:, :length].index_select(0, rows)

    def first_captions(self) -> Tensor:
        """The first caption of each image, (N, L) int64."""
        starts = torch.searchsorted(self.image, torch.arange(len(self), device=self.image.device))
        return self.captions.index_select(0, starts)

    def captions_of(self, image: int) -> Tensor:
        """All captions of one image, (number, L) int64.

        Raises:
            DataError: there is no such image.
        """
        if not 0 <= image < len(self):
            raise DataError(f"got image {image}, expected 0 to {len(self) - 1}; give the number of one")
        return self.captions[self.image == image]

    def to(self, device: torch.device | str) -> Self:
        """The same on `device`."""
        return type(self)(self.images.to(device), self.captions.to(device), self.image.to(device))


def _check_images(images: Tensor) -> None:
    square = images.dim() == 4 and images.shape[2] == images.shape[3]
    if images.dtype != torch.uint8 or not square or images.numel() == 0:
        raise DataError(
            f"images: got {tuple(images.shape)} {images.dtype}, expected (number, C, S, S) torch.uint8 with no size 0; "
            "convert or cut them"
        )


def _check_captions(captions: Tensor) -> None:
    if captions.dtype != torch.int64 or captions.dim() != 2 or captions.numel() == 0:
        raise DataError(
            f"captions: got {tuple(captions.shape)} {captions.dtype}, expected (number, L) torch.int64 with no size 0; "
            "encode texts by a Vocabulary"
        )
    is_word = captions != PADDING
    if number := int((~is_word[:, 0]).sum()):
        raise DataError(f"captions: got {number} that are empty or begin with padding, expected words; drop them")
    if number := int((is_word[:, 1:] & ~is_word[:, :-1]).any(1).sum()):
        raise DataError(f"captions: got {number} with padding before a word, expected it on the right; move it there")


def _check_order(image: Tensor, images: int, captions: int) -> None:
    fits = image.shape == (captions,) and image.dtype == torch.int64
    if not fits or not torch.equal(image.unique_consecutive(), torch.arange(images, device=image.device)):
        raise DataError(
            f"image: got {tuple(image.shape)} {image.dtype}, expected ({captions},) torch.int64, the image of each "
            f"caption: ascending from 0 to {images - 1}, each at least once; sort the captions by image, and drop the "
            "images without any"
        )
