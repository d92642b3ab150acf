"""Sentences of a trained pair: reconstructions, samples, paths between two, and the rest of one that has begun.

All come back as ids, (N, L) int64, padded with 0: `data.Vocabulary.decode` makes words of them. Arguments that
functions share:

    choose    how each word is chosen: `greedy` or a `sampled(...)`.
    width     of a beam search for the likeliest sentence, instead.
    seed      of a private random stream: the same sentences every time, and the global stream is left alone. None draws
              from the global stream.

Nothing records gradients, and all modules are in eval mode meanwhile.
"""

from contextlib import AbstractContextManager
from typing import cast

import torch
import torch.nn.functional as F
from pyro import poutine
from torch import Tensor

from ppl_vae import generation, quiet
from ppl_vae.language.beam import beam, check_given
from ppl_vae.language.choices import Choose, greedy, sampled
from ppl_vae.language.protocols import LanguagePair, TextPair
from ppl_vae.nn import as_size
from ppl_vae.pair import Pair
from ppl_vae.seeds import check_seed
from ppl_vae.sites import sample_sites

__all__ = ["impute", "path", "reconstructions", "samples"]


def reconstructions(
    pair: TextPair,
    x: Tensor,
    *,
    at_means: bool = True,
    num: int | None = None,
    choose: Choose | None = None,
    width: int | None = None,
    seed: int | None = 0,
) -> Tensor:
    """z ~ q(z | x), then the sentence that the model says of it, (N, L), or (num, N, L) where `num` is given.

    Args:
        pair: the model and the guide.
        x: sentences (N, L).
        at_means: z is the mean of q(z | x); False draws it.
        num: so many for each sentence, each of a z of its own.
        choose: greedy by default.

    Raises:
        ValueError: both `choose` and `width`; x of another shape or type; a pair without a latent site "z".

    References:
        Generating sentences from a continuous space, Bowman et al. 2016, table 7: greedy, once from the mean and three
        times from draws.

    Example:
        >>> from ppl_vae.pairs import TextVAE
        >>> pair, x = TextVAE((4,), vocabulary=9, latent_dim=2, embedding=3, hidden=4), torch.tensor([[5, 3, 1, 0]])
        >>> reconstructions(pair, x, at_means=False, num=3).shape
        torch.Size([3, 1, 4])
    """
    _check_sentences("x", x, pair)
    rows = x if num is None else x.repeat(as_size(num, "num"), 1)
    with _undisturbed(pair, seed):
        words = _said(pair, len(rows), _latent(pair, rows, at_means), choose, width)
    return words if num is None else words.unflatten(0, (num, len(x)))


def samples(
    pair: LanguagePair,
    num: int = 64,
    *,
    choose: Choose | None = None,
    width: int | None = None,
    seed: int | None = 0,
) -> Tensor:
    """z ~ p(z), then words, (num, L): of the model's law where words are drawn at temperature 1, as by default.

    Args:
        pair: the model, with or without z, and the guide (which plays no part).
        num: how many.
        choose: `sampled()` by default. `greedy` shows what is said of z alone.

    Raises:
        ValueError: both `choose` and `width`; `num` below 1.

    Example:
        >>> from ppl_vae.pairs import TextVAE
        >>> samples(TextVAE((4,), vocabulary=9, latent_dim=2, embedding=3, hidden=4), 5).shape
        torch.Size([5, 4])
    """
    program = _program(pair)
    # Observed, so that the model draws z and no words.
    blank = generation.blank(program, num).long()
    with _undisturbed(pair, seed):
        nodes = sample_sites(poutine.trace(program.model).get_trace(blank))
        z = nodes["z"]["value"] if "z" in nodes else None
        return _said(pair, num, z, sampled() if choose is None and width is None else choose, width)


def path(
    pair: TextPair,
    first: Tensor,
    second: Tensor,
    steps: int = 5,
    *,
    choose: Choose | None = None,
    width: int | None = None,
    seed: int | None = 0,
) -> Tensor:
    """What the model says along the straight line between the posterior means of two sentences, (steps + 2, L).

    Args:
        pair: the model and the guide.
        first: where the line starts, (L,).
        second: where it ends, (L,).
        steps: points between the two, at equal distances; the ends are there besides.
        choose: greedy by default.

    Raises:
        ValueError: `steps` below 1; both `choose` and `width`; sentences of another shape or type; a pair without a
            latent site "z".

    References:
        Generating sentences from a continuous space, Bowman et al. 2016, table 8 (homotopies).

    Example:
        >>> from ppl_vae.pairs import TextVAE
        >>> pair, x = TextVAE((4,), vocabulary=9, latent_dim=2, embedding=3, hidden=4), torch.tensor([5, 3, 1, 0])
        >>> path(pair, x, x.roll(1), steps=2).shape
        torch.Size([4, 4])
    """
    for name, sentence in (("first", first), ("second", second)):
        if sentence.dim() != 1:
            raise ValueError(f"{name}: got {tuple(sentence.shape)}, expected one sentence, (L,); take a row")
        _check_sentences(name, sentence.unsqueeze(0), pair)
    t = torch.linspace(0, 1, as_size(steps, "steps") + 2).unsqueeze(-1)
    with _undisturbed(pair, seed):
        start, end = _latent(pair, torch.stack([first, second]), at_means=True).unsqueeze(1)
        return _said(pair, len(t), torch.lerp(start, end, t.to(start)), choose, width)


def impute(pair: LanguagePair, given: Tensor, *, rounds: int = 5, width: int = 5) -> Tensor:
    """The rest of sentences of which the first words are known, (N, L), those among them.

    Iterated conditional modes: the likeliest words given z, by a beam search, and z of the whole sentence, its
    posterior mean, by turns, until no sentence changes or the rounds are over. The first z is that of the given words
    alone. A pair without z needs no turns: that is one beam search.

    Args:
        pair: the model and the guide.
        given: the first words of each, (N, P) int64, padded with 0 on the right.
        rounds: the most.
        width: of the beam search.

    Raises:
        ValueError: `rounds` or `width` below 1; `given` of another shape or type, with padding between words, words
            behind an end, or ids that are no words.

    References:
        Generating sentences from a continuous space, Bowman et al. 2016, section 5: they begin with unknown words in
        the place of the missing ones.
        On the statistical analysis of dirty pictures, Besag 1986.

    Example:
        >>> from ppl_vae.pairs import LanguageModel
        >>> impute(LanguageModel((4,), vocabulary=9, embedding=3, hidden=4), torch.tensor([[5, 3], [4, 0]])).shape
        torch.Size([2, 4])
    """
    (length,) = pair.data_shape
    check_given(given, len(given), length, pair.network.vocabulary)
    x = F.pad(given, (0, length - given.shape[1]))
    with _undisturbed(pair, 0):
        for _ in range(as_size(rounds, "rounds")):
            z = _posterior(pair, x, at_means=True)
            before, x = x, beam(pair.network, len(x), _context(pair, z), length=length, width=width, given=given).best
            if z is None or torch.equal(x, before):
                break
    return x


def _said(pair: LanguagePair, number: int, z: Tensor | None, choose: Choose | None, width: int | None) -> Tensor:
    """N sentences, (N, L), of z (N, D) where there is one."""
    if choose is not None and width is not None:
        raise ValueError(f"got choose and width={width}, expected one of them; a beam search chooses no single words")
    (length,) = pair.data_shape
    told = _context(pair, z)
    if width is not None:
        return beam(pair.network, number, told, length=length, width=width).best
    return pair.network.draw(number, told, length=length, choose=choose or greedy)


def _context(pair: LanguagePair, z: Tensor | None) -> Tensor | None:
    if z is None:
        return None
    # Asked for by name: from Python 3.12 on, isinstance of a protocol sees no submodules.
    context = getattr(pair, "context", None)
    if not callable(context):
        raise ValueError(
            f"{type(pair).__name__}: got a site 'z' and no method context(z), expected what its network is told; write "
            "it, or return z"
        )
    return cast(TextPair, pair).context(z)


def _latent(pair: LanguagePair, x: Tensor, at_means: bool) -> Tensor:
    z = _posterior(pair, x, at_means)
    if z is None:
        raise ValueError(
            f"{type(pair).__name__}: got a guide without a site 'z', expected one to decode from; look at samples"
        )
    return z


def _posterior(pair: LanguagePair, x: Tensor, at_means: bool) -> Tensor | None:
    return generation.posterior(_program(pair), x, at_means=at_means, seed=None).get("z")


def _undisturbed(pair: LanguagePair, seed: int | None) -> AbstractContextManager[None]:
    if seed is not None:
        check_seed("seed", seed)
    return quiet.undisturbed(_program(pair), seed)


def _program(pair: LanguagePair) -> Pair:
    if not isinstance(pair, Pair):
        raise ValueError(f"pair: got {type(pair).__name__}, expected a ppl_vae.Pair of sentences; subclass it")
    if not hasattr(pair, "network"):
        raise ValueError(
            f"{type(pair).__name__}: got no network of words, expected one that goes word by word; take a pair such as "
            "pairs.TextVAE, or set network in its __init__"
        )
    return pair


def _check_sentences(name: str, x: Tensor, pair: LanguagePair) -> None:
    shape = tuple(pair.data_shape)
    if x.dim() != 2 or x.shape[1:] != shape or x.dtype != torch.int64:
        raise ValueError(
            f"{name}: got {tuple(x.shape)} {x.dtype}, expected (N, {shape[0]}) torch.int64, padded with 0 to the "
            "length of the pair's sentences; encode them to it"
        )
