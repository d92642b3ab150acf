"""Captions read in both directions, and looked at word by word."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Alignment", "SentenceEncoder", "SentenceReader", "Words"]

PADDING = 0


class Words(NamedTuple):
    """A batch of captions as a network has read them.

    states     (B, L, 2 H): at each word what was read up to it, from the left and from the right.
    is_word    (B, L) bool: False behind a caption's end.
    whole      (B, 2 H): the two directions where they end, at the last word and at the first.
    """

    states: Tensor
    is_word: Tensor
    whole: Tensor


class SentenceReader(nn.Module):
    """Word numbers (B, L), padded with 0 on the right -> `Words`, by an LSTM in each direction.

    The one from the right begins with each caption's own last word: what stands behind it is not read.

    Args:
        vocabulary: how many numbers there are, that of the padding among them.
        size: H, of each direction.
        embedding: size of a word's vector; `size` by default.

    References:
        Generating images from captions with attention, Mansimov et al. 2016, section 3.1.

    Example:
        >>> SentenceReader(23, size=4)(torch.tensor([[3, 1, 2], [5, 0, 0]])).states.shape
        torch.Size([2, 3, 8])
    """

    def __init__(self, vocabulary: int, size: int, embedding: int | None = None) -> None:
        super().__init__()
        embedding = embedding or size
        self.vocabulary = vocabulary
        self.embed = nn.Embedding(vocabulary, embedding, padding_idx=PADDING)
        self.forwards = nn.LSTM(embedding, size, batch_first=True)
        self.backwards = nn.LSTM(embedding, size, batch_first=True)

    def forward(self, captions: Tensor) -> Words:
        """Read captions (B, L) int64."""
        is_word = captions != PADDING
        length = is_word.sum(-1, keepdim=True)
        place = torch.arange(captions.shape[-1], device=captions.device)
        # Each caption turned round by itself; the padding stays behind it. Its own inverse.
        turned = torch.where(place < length, length - 1 - place, place)
        x = self.embed(captions)
        ahead = self.forwards(x)[0]
        back = self.backwards(_taken(x, turned))[0]
        last = (length - 1).clamp(min=0)
        whole = torch.cat([_taken(states, last).squeeze(1) for states in (ahead, back)], -1)
        return Words(torch.cat([ahead, _taken(back, turned)], -1), is_word, whole)


class SentenceEncoder(nn.Module):
    """Word numbers (B, L), padded with 0 on the right -> where a `SentenceReader` ends in its two directions, (B, 2 H).

    The condition of a `ConditionalVAE` on captions.

    Args:
        vocabulary, size, embedding: as for `SentenceReader`.

    Example:
        >>> SentenceEncoder(23, size=4)(torch.tensor([[3, 1, 2], [5, 0, 0]])).shape
        torch.Size([2, 8])
    """

    def __init__(self, vocabulary: int, size: int, embedding: int | None = None) -> None:
        super().__init__()
        self.reader = SentenceReader(vocabulary, size, embedding)

    def forward(self, captions: Tensor) -> Tensor:
        """Read captions (B, L) int64."""
        return self.reader(captions).whole


class Alignment(nn.Module):
    """How much each word counts for what is painted next, and the words so weighted.

    e_k = v . tanh(U s_k + W h + b),  alpha = softmax(e) over the words of the caption,  s = sum_k alpha_k s_k.

    Args:
        words: size of a word's state s_k.
        hidden: size of h.
        size: of the space in which they meet.

    References:
        Generating images from captions with attention, Mansimov et al. 2016, eq. 3 and 4.
        Neural machine translation by jointly learning to align and translate, Bahdanau et al. 2015.
    """

    def __init__(self, words: int, hidden: int, size: int) -> None:
        super().__init__()
        self.of_words, self.of_hidden = nn.Linear(words, size, bias=False), nn.Linear(hidden, size)
        self.score = nn.Linear(size, 1, bias=False)

    def keys(self, words: Words) -> Tensor:
        """U s_k, (B, L, size): the same at every step, so computed once."""
        return self.of_words(words.states)

    def forward(self, words: Words, keys: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The weights alpha (..., B, L) and the weighted words (..., B, 2 H), for h (..., B, hidden)."""
        e = self.score((keys + self.of_hidden(h).unsqueeze(-2)).tanh()).squeeze(-1)
        # Finite: a caption without a word must not make NaN.
        alpha = e.masked_fill(~words.is_word, torch.finfo(e.dtype).min).softmax(-1)
        return alpha, (alpha.unsqueeze(-2) @ words.states).squeeze(-2)


def _taken(states: Tensor, places: Tensor) -> Tensor:
    """The states (B, L, S) at places (B, M): (B, M, S)."""
    return states.gather(1, places.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
