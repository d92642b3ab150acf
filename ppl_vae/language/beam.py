"""The likeliest sentences, by beam search."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ppl_vae.distributions.precision import at_least_float32
from ppl_vae.language.protocols import WordByWord
from ppl_vae.nn import as_size
from ppl_vae.nn.words import END, PADDING

__all__ = ["Beams", "beam", "check_given"]

CHECK = 4
"""Words between two looks at whether the search is over: on a GPU each waits for the device."""


class Beams(NamedTuple):
    """Sentences that a search has found, the best first.

    words      (N, W, L) int64, padded with 0. One without an end mark was cut after L words.
    log_prob   (N, W): of all words, the given ones and the end mark among them, nats. Where there are fewer than W
               sentences, those that are left are empty, and -inf.
    """

    words: Tensor
    log_prob: Tensor

    @property
    def best(self) -> Tensor:
        """(N, L)."""
        return self.words[:, 0]


@torch.no_grad()
def beam(
    network: WordByWord,
    number: int = 1,
    context: Tensor | None = None,
    *,
    length: int,
    width: int = 5,
    length_penalty: float = 0.0,
    given: Tensor | None = None,
) -> Beams:
    """The W likeliest sentences that a beam search finds, for each of N rows.

    Of all continuations of the W best unfinished sentences the 2 W best are looked at. Those of the first W that have
    ended are finished: the W best of them are kept. Of the others the W best go on. A row's search is over when none
    of these can become better than the worst that is kept; log-probabilities only fall. Sentences still unfinished
    after `length` words are cut there, and compete. With W = 1 and no penalty the sentence is the greedy one.

    The network runs as it is: put it into eval mode before.

    Args:
        network: the laws of words.
        number: N.
        context: what the network is told, (N, F).
        length: L, the most words, the end mark among them.
        width: W.
        length_penalty: sentences are ordered by log_prob / words^penalty; 0 is the log-probability itself, which
            favours short ones, and 1 the mean of a word. The idea of eq. 14 of Wu et al., without its constants and its
            coverage penalty.
        given: the first words of each, (N, P) int64, padded with 0 on the right.

    Raises:
        ValueError: sizes below 1; a negative penalty; a context of another number of rows; `given` of another shape or
            type, with padding between words, words behind an end, or ids that are no words.

    References:
        Sequence to sequence learning with neural networks, Sutskever, Vinyals & Le 2014, section 3.2.
        Google's neural machine translation system, Wu et al. 2016, section 7.

    Example:
        >>> from ppl_vae.nn import WordNetwork
        >>> found = beam(WordNetwork(9, embedding=3, hidden=4), 2, length=6, width=3)
        >>> found.words.shape, found.log_prob.shape
        (torch.Size([2, 3, 6]), torch.Size([2, 3]))
    """
    _check(number, context, length, width, length_penalty)
    reference = at_least_float32(next(iter(network.parameters())))
    if given is not None:
        check_given(given, number, length, network.vocabulary)
        given = given.to(reference.device)
    finished, running, last = _begin(reference, number, width, length)
    first = torch.arange(number, device=last.device).unsqueeze(-1)  # a row's W hypotheses stand together
    state = _selected(network.begin(number, context), first.expand(-1, width))
    for t in range(length):
        logits, state = network.step(last, state)
        log_p = at_least_float32(logits).log_softmax(-1).unflatten(0, (number, width))
        if given is not None and t < given.shape[1]:
            log_p = _forced(log_p, given[:, t])
        grown, parents = _grown(running, log_p, t)
        ended = grown.words[..., t] == END
        among_best = torch.arange(ended.shape[1], device=ended.device) < width
        finished = _best(finished, _only(grown, ended & among_best), length_penalty)
        picks = _only(grown, ~ended).log_prob.topk(width).indices
        running = _taken(_only(grown, ~ended), picks)
        state = _selected(state, first * width + parents.gather(1, picks))
        last = running.words[..., t].flatten()
        if t % CHECK == CHECK - 1 and _is_over(finished, running, length_penalty):
            break
    else:  # these are cut
        finished = _best(finished, running, length_penalty)
    return finished._replace(words=finished.words * (finished.log_prob > -math.inf).unsqueeze(-1))


def check_given(given: Tensor, number: int, length: int, vocabulary: int) -> None:
    """Refuse rows that are no beginnings of sentences.

    Args:
        given: (N, P), padded with 0 on the right.
        number: N.
        length: the most that P may be.
        vocabulary: V; ids are below.

    Raises:
        ValueError: another shape or type, padding between words, words behind an end, or ids that are no words.
    """
    if given.dim() != 2 or len(given) != number or given.shape[1] > length or given.dtype != torch.int64:
        raise ValueError(
            f"given: got {tuple(given.shape)} {given.dtype}, expected ({number}, P) torch.int64 with P up to {length}; "
            "a row for each sentence, cut to that length"
        )
    if ((given < 0) | (given >= vocabulary)).any():
        raise ValueError(
            f"given: got ids from {given.min().item()} to {given.max().item()}, expected 0 to {vocabulary - 1}; encode "
            "with the vocabulary that the network was trained on"
        )
    before, after = given[:, :-1], given[:, 1:]
    if ((after != PADDING) & ((before == PADDING) | (before == END))).any():
        raise ValueError(
            "given: got words behind padding or behind an end mark, expected first words and then padding alone; cut "
            "what comes behind"
        )


def _begin(reference: Tensor, number: int, width: int, length: int) -> tuple[Beams, Beams, Tensor]:
    """No finished sentences, an empty one for each row that may go on, and the padding before the first word."""
    words = torch.zeros(number, width, length, dtype=torch.int64, device=reference.device)
    nothing = reference.new_full((number, width), -math.inf)
    one = torch.where(torch.arange(width, device=reference.device) == 0, 0.0, nothing)
    return Beams(words, nothing), Beams(words, one), words.new_zeros(number * width)


def _forced(log_p: Tensor, words: Tensor) -> Tensor:
    """-inf for all ids but the given ones, where these are not padding: log_p (N, W, C), words (N,)."""
    words = words.view(-1, 1, 1)
    ids = torch.arange(1, log_p.shape[-1] + 1, device=log_p.device)
    return log_p.masked_fill((words != PADDING) & (ids != words), -math.inf)


def _grown(running: Beams, log_p: Tensor, t: int) -> tuple[Beams, Tensor]:
    """The 2 W best continuations by one word, the best first, and which hypotheses they continue, (N, 2 W).

    At most W of them end, one for each hypothesis: W that go on are among them.
    """
    width, choices = log_p.shape[1:]
    scores = (running.log_prob.unsqueeze(-1) + log_p).flatten(1)
    log_prob, index = scores.topk(min(2 * width, width * choices))
    parents = index // choices
    grown = _taken(running, parents)
    grown.words[..., t] = index % choices + 1
    return Beams(grown.words, log_prob), parents


def _only(beams: Beams, which: Tensor) -> Beams:
    return beams._replace(log_prob=beams.log_prob.masked_fill(~which, -math.inf))


def _taken(beams: Beams, picks: Tensor) -> Beams:
    """Those at picks (N, M), copied."""
    words = beams.words.gather(1, picks.unsqueeze(-1).expand(-1, -1, beams.words.shape[-1]))
    return Beams(words, beams.log_prob.gather(1, picks))


def _selected(state: tuple[Tensor, ...], rows: Tensor) -> tuple[Tensor, ...]:
    return tuple(part.index_select(0, rows.flatten()) for part in state)


def _scores(beams: Beams, penalty: float) -> Tensor:
    return beams.log_prob / (beams.words != PADDING).sum(-1).clamp(min=1) ** penalty


def _best(kept: Beams, others: Beams, penalty: float) -> Beams:
    """The W best of both, the best first."""
    both = Beams(torch.cat([kept.words, others.words], 1), torch.cat([kept.log_prob, others.log_prob], 1))
    return _taken(both, _scores(both, penalty).topk(kept.log_prob.shape[1]).indices)


def _is_over(finished: Beams, running: Beams, penalty: float) -> bool:
    """Whether no sentence that goes on, given words of probability 1 up to the last, would still be kept."""
    could = running.log_prob / running.words.shape[-1] ** penalty
    return bool((could.amax(1) <= _scores(finished, penalty).amin(1)).all())


def _check(number: int, context: Tensor | None, length: int, width: int, penalty: Any) -> None:
    for name, size in (("number", number), ("length", length), ("width", width)):
        as_size(size, name)
    if context is not None and len(context) != number:
        raise ValueError(f"context: got {len(context)} rows, expected {number}, as many as sentences; set number")
    if isinstance(penalty, bool) or not isinstance(penalty, int | float) or not 0 <= penalty < math.inf:
        raise ValueError(f"length_penalty: got {penalty!r}, expected a number from 0; 0 for none")
