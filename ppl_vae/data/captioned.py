"""Images with captions: what all data for text-to-image have in common, and images that are kept as bytes."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from ppl_vae.data.album import Album
from ppl_vae.data.buckets import check_ascending, widths_in
from ppl_vae.data.captions import Vocabulary, tokens
from ppl_vae.data.conditioned import Conditioned
from ppl_vae.data.dataset import Binarisation, DataError
from ppl_vae.data.minibatch import Minibatches
from ppl_vae.data.parts import number_left, shortened


class Captioned(Conditioned):
    """Data whose batches are images and captions: x (B, C, S, S) float32 and word ids (B, L) int64, padded with 0.

    For pairs whose programs take (x, caption), such as `pairs.AlignDRAW`. Attributes: as of `Scenes`; the first tensor
    of `minibatches` is `train`.
    """

    vocabulary: Vocabulary
    parts: ClassVar[tuple[str, str]]
    """The fields that hold training and test data, of which `subset` and `hold_out` take slices."""
    unit: ClassVar[str]
    """What those count."""

    @property
    def told(self) -> Mapping[str, int]:
        """A pair must know how many word numbers there are."""
        return {"vocabulary": len(self.vocabulary)}

    @property
    @abstractmethod
    def caption_length(self) -> int:
        """L, words of the longest caption."""

    @abstractmethod
    def _held_out(self, part: Any) -> tuple[Tensor, Tensor]:
        """A piece of the training part as evaluation sees it."""

    def read(self, texts: str | Sequence[str]) -> Tensor:
        """Captions that someone wrote, for a model of these data, (B, L) int64.

        Raises:
            DataError: an empty one, one of more than L words, or a word that is not in the vocabulary: it is never
                replaced, and the nearest are named.
        """
        texts, length = [texts] if isinstance(texts, str) else list(texts), self.caption_length
        for text in texts:
            if not 1 <= (words := len(tokens(text))) <= length:
                got = f"a caption of {words} words" if words else "the empty caption"
                raise DataError(f"got {got} {text[:200]!r}, expected 1 to {length} words; write another")
        return self.vocabulary.encode(texts, length, strict=True)

    def subset(self, num_train: int | None = None, num_test: int | None = None) -> Self:
        """The first `num_train` and `num_test` of what `unit` says (None: all), said so in the note.

        Raises:
            DataError: a number below 1, or above what there is.
        """
        return shortened(self, self.parts, self.unit, num_train, num_test)

    def hold_out(self, number: int) -> tuple[Self, tuple[Tensor, Tensor]]:
        """The data without their last `number` of what `unit` says, and those as evaluation sees them, always the same.

        Raises:
            DataError: a number below 1, or not below what there is.
        """
        whole = getattr(self, self.parts[0])
        left = number_left(self.name, len(whole), number, self.unit)
        return self.subset(num_train=left), self._held_out(whole[left:])


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CaptionedImages(Captioned):
    """Images, kept as bytes where training runs, each with one caption or several; a datum is a pair of them.

    Batches are bucketed: all captions of a batch have the same width, so that little of it is padding, and none of
    them loses a word. Subsets, and what is held out, count images, which take all their captions with them.

    Args:
        name: what the data are called in tables.
        train_album: images and captions to train on.
        test_album: images and captions for evaluation.
        vocabulary: the words of the captions.
        buckets: widths of captions, ascending, the last L: a caption goes to the first that it fits into.
        note: provenance and comparability, shown with every number.

    Attributes:
        train: the training pairs, caption rows 0 .. M - 1, (M,) int64 on the device: what `draw` takes.
        binarisation: "none": grey values.
        levels: number of grey levels, 256.

    Raises:
        DataError: parts of different shapes or widths, word ids beyond the vocabulary, or other buckets.

    Example:
        >>> words = Vocabulary(("red", "green", "very"))
        >>> images = torch.tensor([[255, 0, 0], [0, 255, 0]], dtype=torch.uint8).view(2, 3, 1, 1).expand(2, 3, 4, 4)
        >>> album = Album(images, words.encode(["red", "very very red", "green"]), torch.tensor([0, 0, 1]))
        >>> data = CaptionedImages(name="plain", train_album=album, test_album=album, vocabulary=words, buckets=(1, 3))
        >>> x, captions = data.draw(data.train[:1], 1)
        >>> x[0, :, 0, 0].tolist(), words.decode(captions)
        ([1.0, 0.0, 0.0], ['red'])
    """

    name: str
    train_album: Album
    test_album: Album
    vocabulary: Vocabulary
    buckets: tuple[int, ...]
    note: str = ""
    train: Tensor = field(init=False)
    binarisation: Binarisation = field(init=False, default="none")
    levels: int = field(init=False, default=256)

    parts = ("train_album", "test_album")
    unit = "images"

    def __post_init__(self) -> None:
        _check(self)
        album = self.train_album
        object.__setattr__(self, "train", torch.arange(len(album.captions), device=album.captions.device))

    @property
    def caption_length(self) -> int:
        """L, words of the longest caption that there may be."""
        return self.buckets[-1]

    @property
    def shape(self) -> torch.Size:
        """Event shape of an image, (C, S, S)."""
        return self.train_album.images.shape[1:]

    @property
    def pixel_means(self) -> Tensor:
        """Mean grey values of the training images, (C, S, S): an exact sum, the same on every device."""
        total = self.train_album.images.sum(0, dtype=torch.int64)
        return (total.double() / (255 * len(self.train_album))).float()

    def widths(self) -> Tensor:
        """The bucket of each training pair, (M,) int64 on the CPU."""
        return widths_in(self.buckets, self.train_album.lengths)

    def draw(self, pairs: Tensor, length: int | None = None) -> tuple[Tensor, Tensor]:
        """A batch as the model sees it in training: one gather each, and no word to the host.

        Args:
            pairs: some of `train`, (B,).
            length: width of their captions, those of one bucket; None keeps all L columns.

        Returns:
            (B, C, S, S) float32 in [0, 1] and (B, length) int64.
        """
        return self.train_album.pairs(pairs, length)

    def minibatches(self, batch_size: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> Minibatches:
        """The training pairs in batches without end, each of one bucket, on the device of the data."""
        return Minibatches((self.train,), batch_size, seed, self.draw, part, self.widths())

    def test_batch(self) -> tuple[Tensor, Tensor]:
        """Test images with the first caption of each, always the same; `test_album.captions_of` has the others."""
        return self.test_album.grey(), self.test_album.first_captions()

    def conditions(self, number: int) -> Tensor:
        """The captions of `test_batch` from the first, and once more where there are fewer, (number, L) int64."""
        captions = self.test_album.first_captions()
        return captions[torch.arange(number) % len(captions)]

    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`."""
        return replace(self, train_album=self.train_album.to(device), test_album=self.test_album.to(device))

    def describe(self) -> dict[str, Any]:
        """What a number on these data depends on, ready for JSON."""
        return {
            "name": self.name,
            "num_train": len(self.train_album),
            "num_test": len(self.test_album),
            "train_captions": len(self.train_album.captions),
            "test_captions": len(self.test_album.captions),
            "shape": list(self.shape),
            "vocabulary": len(self.vocabulary),
            "buckets": list(self.buckets),
            "binarisation": self.binarisation,
            "levels": self.levels,
            "note": self.note,
        }

    def _held_out(self, part: Album) -> tuple[Tensor, Tensor]:
        return part.grey(), part.first_captions()


def _check(data: CaptionedImages) -> None:
    albums = {"train": data.train_album, "test": data.test_album}
    shapes = {part: (tuple(a.images.shape[1:]), a.captions.shape[1]) for part, a in albums.items()}
    if shapes["train"] != shapes["test"]:
        raise DataError(
            f"{data.name}: got (images, words of a caption) {shapes['train']} in train and {shapes['test']} in test, "
            "expected the same; resize the images, and encode all captions with one length"
        )
    check_ascending(data.name, data.buckets, shapes["train"][1])
    for part, album in albums.items():
        low, high = (int(bound) for bound in album.captions.aminmax())
        if low < 0 or high >= len(data.vocabulary):
            raise DataError(
                f"{data.name}: got word ids {low} to {high} in {part}, expected 0 to {len(data.vocabulary) - 1}; "
                "encode the captions with the vocabulary of the data"
            )
