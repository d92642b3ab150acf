"""Sentences as rows of word ids, in batches of one width."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from ppl_vae.data.buckets import check_ascending, widths_in
from ppl_vae.data.captions import PADDING, Vocabulary, tokens
from ppl_vae.data.dataset import Binarisation, DataError
from ppl_vae.data.minibatch import Minibatches
from ppl_vae.data.parts import number_left, shortened
from ppl_vae.data.source import Source

END, UNKNOWN = 1, 2
"""The ids of the end mark and of the word for all others, behind padding, 0."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Text(Source):
    """Sentences, kept as word ids where training runs: a batch is x (B, width) int64, padded with 0 on the right.

    Each sentence ends with the end mark, which a model has to predict too, and which counts as a word. Batches are
    bucketed: all sentences of one have the same width, so that little of it is padding, and none loses a word. A
    bucket of fewer sentences than a batch is never used (`fit` says so); `buckets_of` makes none of fewer than 256.

    For pairs whose programs take x alone. Build it by `text`.

    Args:
        name: what the data are called in tables.
        train: sentences to train on, (N, L) int64.
        test: sentences for evaluation, (M, L) int64.
        valid: sentences to choose settings by, (number, L) int64, or None.
        vocabulary: the words, with the end mark first (id 1), then the word for all others (id 2).
        buckets: widths, ascending, the last L: a sentence goes to the first that it fits into.
        note: provenance and comparability, shown with every number.

    Attributes:
        binarisation: "none".
        levels: V, number of ids, padding included.

    Raises:
        DataError: rows of other types, widths or ids, without their one end mark or with a word behind it, another
            vocabulary, or other buckets.

    Example:
        >>> words = Vocabulary(("<eos>", "<unk>", "a", "cat", "sat"), "<unk>", "spaces", "<eos>")
        >>> rows = words.encode(["a cat sat", "a cat"])
        >>> data = Text(name="cats", train=rows, test=rows, vocabulary=words, buckets=(4,))
        >>> data.words(data.read("a dog sat")), num_tokens(rows)
        (['a <unk> sat'], tensor([4, 3]))
    """

    name: str
    train: Tensor
    test: Tensor
    vocabulary: Vocabulary
    buckets: tuple[int, ...]
    valid: Tensor | None = None
    note: str = ""
    binarisation: Binarisation = field(init=False, default="none")
    levels: int = field(init=False)

    def __post_init__(self) -> None:
        _check(self)
        object.__setattr__(self, "levels", len(self.vocabulary))

    @property
    def shape(self) -> torch.Size:
        """Event shape of the longest sentence, (L,); that of a batch is its width."""
        return self.train.shape[1:]

    @property
    def output_mean(self) -> Tensor:
        """How frequent each id is in the training sentences, (V,) float32: one more of each word, and no padding."""
        counts = torch.bincount(self.train.flatten(), minlength=self.levels) + 1
        counts[PADDING] = 0
        return (counts.double() / counts.sum()).float()

    @property
    def told(self) -> Mapping[str, int]:
        """A pair must know how many word numbers there are."""
        return {"vocabulary": self.levels}

    def widths(self) -> Tensor:
        """The bucket of each training sentence, (N,) int64 on the CPU."""
        return widths_in(self.buckets, num_tokens(self.train))

    def draw(self, x: Tensor, width: int | None = None) -> Tensor:
        """A batch as the model sees it in training, without a word to the host.

        Args:
            x: some of `train`, (B, L).
            width: of their bucket; None keeps all columns.

        Returns:
            (B, width) int64.
        """
        return x[:, :width].contiguous()

    def minibatches(self, batch_size: int, seed: int = 0, part: tuple[int, int] = (0, 1)) -> Minibatches:
        """The training sentences in batches without end, each of one bucket, on the device of the data."""
        return Minibatches((self.train,), batch_size, seed, self.draw, part, self.widths())

    def test_batch(self) -> tuple[Tensor]:
        """The test sentences, (M, L)."""
        return (self.test,)

    def blank(self, num: int) -> tuple[Tensor]:
        """A batch for `num` samples, (num, L): sentences of L words, so that a model which minds padding draws all."""
        x = torch.full((num, *self.shape), UNKNOWN, device=self.train.device)
        x[:, -1] = END
        return (x,)

    def read(self, texts: str | Sequence[str]) -> Tensor:
        """Sentences that someone wrote, for a model of these data, (B, L) int64; unknown words are <unk>.

        Raises:
            DataError: no sentences, an empty one, one that with its end mark has more than L words, or one that has
                an end mark in it.
        """
        texts, most = [texts] if isinstance(texts, str) else list(texts), self.shape[0] - 1
        for text in texts:
            if not 1 <= (words := len(tokens(text, self.vocabulary.split))) <= most:
                got = f"a sentence of {words} words" if words else "the empty sentence"
                raise DataError(f"got {got} {text[:200]!r}, expected 1 to {most} words; write another")
        return self.vocabulary.encode(texts, most + 1).to(self.train.device)

    def words(self, ids: Tensor) -> list[str]:
        """Sentences of ids (B, width) as text, each up to its end mark.

        Raises:
            DataError: another shape or type, or an id that is no word's.
        """
        return self.vocabulary.decode(ids)

    def to(self, device: torch.device | str) -> Self:
        """The same data on `device`."""
        valid = None if self.valid is None else self.valid.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), valid=valid)

    def describe(self) -> dict[str, Any]:
        """What a number on these data depends on, ready for JSON: words without end marks, tokens with them."""
        train_tokens, test_tokens = (int(num_tokens(x).sum()) for x in (self.train, self.test))
        test_words = test_tokens - len(self.test)
        return {
            "name": self.name,
            "num_train": len(self.train),
            "num_valid": 0 if self.valid is None else len(self.valid),
            "num_test": len(self.test),
            "train_words": train_tokens - len(self.train),
            "train_tokens": train_tokens,
            "test_words": test_words,
            "test_tokens": test_tokens,
            "unknown_in_test": int((self.test == UNKNOWN).sum()) / test_words,
            "shape": list(self.shape),
            "vocabulary": self.levels,
            "buckets": list(self.buckets),
            "binarisation": self.binarisation,
            "levels": self.levels,
            "note": self.note,
        }

    def subset(self, num_train: int | None = None, num_test: int | None = None) -> Self:
        """The first `num_train` and `num_test` sentences (None: all), said so in the note.

        Raises:
            DataError: a number below 1, or above what there is.
        """
        return shortened(self, ("train", "test"), "sentences", num_train, num_test)

    def hold_out(self, number: int) -> tuple[Self, tuple[Tensor]]:
        """The first `number` sentences of `valid`, (number, L), beside the same data.

        Without `valid`: the last training sentences, beside the data without them.

        Raises:
            DataError: a number below 1, or above what there is.
        """
        if self.valid is not None:
            if not 1 <= number <= len(self.valid):
                raise DataError(
                    f"{self.name}: got {number} sentences to hold out; expected 1 to {len(self.valid)}, those of valid"
                )
            return self, (self.valid[:number],)
        left = number_left(self.name, len(self.train), number, "sentences")
        return self.subset(num_train=left), (self.train[left:],)


def num_tokens(x: Tensor) -> Tensor:
    """Words of each row, end mark included: (B, width) -> (B,) int64."""
    return (x != PADDING).sum(-1)


def _check(data: Text) -> None:
    vocabulary = data.vocabulary
    if vocabulary.words[: END + 1] != (vocabulary.end, vocabulary.unknown):
        raise DataError(
            f"{data.name}: got a vocabulary that begins with {vocabulary.words[:2]}, expected its end mark and the "
            "word for all others; make it by Vocabulary.from_texts(texts, unknown='<unk>', end='<eos>')"
        )
    parts = {"train": data.train, "test": data.test} | ({} if data.valid is None else {"valid": data.valid})
    for part, x in parts.items():
        _check_rows(f"{data.name}: {part}", x, len(vocabulary))
        if x.shape[1] != data.train.shape[1]:
            raise DataError(
                f"{data.name}: got rows of {data.train.shape[1]} words in train and of {x.shape[1]} in {part}, "
                "expected the same; encode all with one length"
            )
    check_ascending(data.name, data.buckets, data.train.shape[1])


def _check_rows(what: str, x: Tensor, levels: int) -> None:
    if x.dtype != torch.int64 or x.dim() != 2 or x.numel() == 0:
        raise DataError(
            f"{what}: got {tuple(x.shape)} {x.dtype}, expected (number, L) torch.int64 with no size 0; encode texts by "
            "a Vocabulary"
        )
    low, high = (int(bound) for bound in x.aminmax())
    if low < 0 or high >= levels:
        raise DataError(
            f"{what}: got word ids {low} to {high}, expected 0 to {levels - 1}; encode the sentences with the "
            "vocabulary of the data"
        )
    lengths, places = num_tokens(x).unsqueeze(1), torch.arange(x.shape[1], device=x.device)
    wrong = ((x != PADDING) != (places < lengths)) | ((x == END) != (places == lengths - 1)) | (lengths < 2)
    wrong = wrong.any(1)
    if number := int(wrong.sum()):
        raise DataError(
            f"{what}: got {number} bad rows, the first of them {int(wrong.int().argmax())}, expected words, then one "
            f"end mark ({END}), then padding ({PADDING}) alone; encode the sentences with the vocabulary of the data"
        )
