"""Sentences as a distribution: all of them add up to 1, and padding costs nothing."""

import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.distributions import Sentence
from ppl_vae.nn import WordNetwork

V, L, D = 5, 4, 2
Z_LIMIT = 4.42
"""Two-sided failure rate 1e-5."""


@pytest.fixture
def laws() -> WordNetwork:
    return WordNetwork(V, embedding=3, hidden=4, context_dim=D).double()


def everything() -> Tensor:
    """All sentences of at most L words, and all beginnings of exactly L."""
    rows = []
    for length in range(1, L + 1):
        for words in itertools.product(range(2, V), repeat=length - 1):
            rows.append([*words, 1] + [0] * (L - length))
    rows += [list(words) for words in itertools.product(range(2, V), repeat=L)]
    return torch.tensor(rows)


def test_all_rows_add_up_to_one(laws):
    for z in torch.randn(3, D).double():
        law = Sentence(laws, z, length=L, validate_args=True)
        torch.testing.assert_close(law.log_prob(everything()).logsumexp(0).exp().item(), 1.0, rtol=1e-12, atol=0)


def test_a_beginning_has_the_probability_of_all_that_begin_so(laws):
    z, words = torch.randn(D).double(), everything()
    begins = (words[:, 0] == 3) & (words[:, 1] == 2)
    whole = Sentence(laws, z, length=L).log_prob(words[begins]).logsumexp(0)
    torch.testing.assert_close(Sentence(laws, z, length=2).log_prob(torch.tensor([3, 2])), whole)


def test_padding_costs_nothing(laws):
    """A batch scores as its sentences do one by one, without padding."""
    z, rows = torch.randn(6, D).double(), [[1], [3, 1], [2, 4, 1], [4, 4, 4, 1], [3, 2, 3], [2]]
    padded = torch.tensor([row + [0] * (9 - len(row)) for row in rows])
    got = Sentence(laws, z, length=9).log_prob(padded)
    alone = [Sentence(laws, c, length=len(row)).log_prob(torch.tensor(row)) for row, c in zip(rows, z, strict=True)]
    torch.testing.assert_close(got, torch.stack(alone), rtol=1e-12, atol=1e-12)


def test_it_is_a_mask_over_words_in_pyro(laws):
    """The same as a plate of words under `poutine.mask`, in any Pyro program; the gradients too."""
    z, words = torch.randn(3, D).double(), torch.tensor([[3, 2, 1, 0, 0], [1, 0, 0, 0, 0], [4, 3, 2, 4, 1]])

    is_word: Any = words.T != 0

    def model() -> None:
        logits = laws(words, z).transpose(0, 1)
        with pyro.plate("data", 3, dim=-1), pyro.plate("words", 5, dim=-2), poutine.mask(mask=is_word):
            pyro.sample("x", dist.Categorical(logits=logits), obs=(words.T - 1).clamp(min=0))

    def gradients(value: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(value, [p for p in laws.parameters() if p.requires_grad]))

    expected = torch.as_tensor(poutine.trace(model).get_trace().log_prob_sum())
    got = Sentence(laws, z, length=5).log_prob(words).sum()
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=0)
    for a, b in zip(gradients(got), gradients(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_draws_are_as_frequent_as_they_are_probable(laws):
    z, number, rows = torch.randn(D).double(), 20_000, everything()
    law = Sentence(laws, z, length=L)
    drawn = law.sample((number,))
    p = law.log_prob(rows).exp()
    counts = torch.tensor([(drawn == row).all(1).sum().item() for row in rows]).double()
    assert counts.sum() == number, "nothing else is drawn"
    often = number * p > 20
    z_scores = (counts - number * p) / (number * p * (1 - p)).sqrt()
    # Each fails once in 1e5 / count: the union over all rows tested.
    limit = math.sqrt(2 * math.log(2 * int(often.sum()) / 1e-5))
    assert z_scores[often].abs().max() < limit


def test_shapes_and_views(laws):
    law = Sentence(laws, torch.randn(3, 1, D).double(), length=L)
    assert law.batch_shape == (3, 1) and law.event_shape == (L,)
    words = everything()[:2]
    assert law.log_prob(words).shape == (3, 2)
    wide = law.expand((7, 3, 2))
    assert wide.log_prob(words).shape == (7, 3, 2) and wide.sample((5,)).shape == (5, 7, 3, 2, L)
    alone = Sentence(WordNetwork(V, 3, 4), length=L, batch_shape=(6,))
    assert alone.log_prob(words[:1]).shape == (6,) and alone.expand((2, 6)).sample().shape == (2, 6, L)


@pytest.mark.parametrize("row", [[3, 1, 2, 0], [3, 0, 2, 1], [0, 0, 0, 0], [3, V, 1, 0], [-1, 1, 0, 0], [1, 1, 0, 0]])
def test_what_is_no_sentence_is_refused(laws, row):
    law = Sentence(laws, torch.zeros(D).double(), length=4, validate_args=True)
    with pytest.raises(ValueError, match=r"expected|support"):
        law.log_prob(torch.tensor(row))


def test_one_batch_shape():
    with pytest.raises(ValueError, match="beside a context, expected one of them"):
        Sentence(WordNetwork(V, 3, 4, context_dim=D), torch.zeros(3, D), length=L, batch_shape=(3,))
