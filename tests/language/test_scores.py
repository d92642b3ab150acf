"""BLEU against the paper's examples and counts by hand; both perplexities."""

import math
from typing import Any

import pytest
import torch

from ppl_vae.language import Perplexity, bleu, perplexity

# Papineni et al. 2002, examples 1 and 2.
GUIDE = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]
GOOD = "It is a guide to action which ensures that the military always obeys the commands of the party"
BAD = "It is to insure the troops forever hearing the activity guidebook that party direct"
CAT = ["the cat is on the mat", "there is a cat on the mat"]


def test_the_papers_clipped_counts() -> None:
    """2 of 7, for no reference has more than two; no bigram at all."""
    the = " ".join(["the"] * 7)
    assert bleu([the], [CAT], n=1) == pytest.approx(2 / 7)
    assert bleu([the], [CAT], n=2) == 0.0
    assert bleu([the], [CAT[1:]], n=1) == pytest.approx(1 / 7)


def test_the_papers_first_example() -> None:
    """Precisions 17/18 and 10/17, and 8/14 and 1/13; the second is shorter than the nearest reference, of 16 words."""
    assert bleu([GOOD], [GUIDE], n=1) == pytest.approx(17 / 18)
    assert bleu([GOOD], [GUIDE], n=2) == pytest.approx(math.sqrt(17 / 18 * 10 / 17))
    assert bleu([GOOD], [GUIDE]) == pytest.approx((17 / 18 * 10 / 17 * 7 / 16 * 4 / 15) ** 0.25)
    short = math.exp(1 - 16 / 14)
    assert bleu([BAD], [GUIDE], n=1) == pytest.approx(short * 8 / 14)
    assert bleu([BAD], [GUIDE], n=2) == pytest.approx(short * math.sqrt(8 / 14 * 1 / 13))
    assert bleu([BAD], [GUIDE]) == 0.0


def test_of_the_papers_short_candidate_the_penalty_is_what_is_left() -> None:
    """Section 2.2: "of the" has all its words and its bigram in the references."""
    assert bleu(["of the"], [GUIDE], n=2) == pytest.approx(math.exp(1 - 16 / 2))


def test_a_corpus_is_counted_together() -> None:
    """Sums of counts, not a mean of sentences; r is 4 + 3, of the nearest lengths, and c 4 + 2."""
    candidates = ["a b c d", "e x"]
    references = [["a b c e"], ["e f g", "e f g h"]]
    assert bleu(candidates, references, n=1) == pytest.approx(math.exp(1 - 7 / 6) * 4 / 6)
    assert bleu(candidates, references, n=2) == pytest.approx(math.exp(1 - 7 / 6) * math.sqrt(4 / 6 * 2 / 4))


def test_of_two_lengths_equally_near_the_shorter_counts() -> None:
    assert bleu(["a b c"], [["a b", "a b c d"]], n=1) == 1.0
    assert bleu(["a b c"], [["a b c d", "a b c d e"]], n=1) == pytest.approx(math.exp(1 - 4 / 3))


def test_longer_candidates_pay_by_precision_alone() -> None:
    assert bleu(["a b a b"], [["a b"]], n=1) == pytest.approx(0.5)


def test_a_sentence_is_like_itself_in_its_own_order_alone() -> None:
    assert bleu(GUIDE, [[text] for text in GUIDE]) == pytest.approx(1.0)
    turned = " ".join(reversed(GOOD.split()))
    assert bleu([turned], [[GOOD]], n=1) == pytest.approx(1.0) and bleu([turned], [[GOOD]], n=2) == 0.0


def test_too_short_for_any_n_gram_is_zero_and_texts_are_their_words() -> None:
    assert bleu(["a b c"], [["a b c"]]) == 0.0 and bleu([""], [["a"]], n=1) == 0.0
    assert bleu(["", "a b"], [["a"], ["a b"]], n=2) == pytest.approx(math.exp(1 - 3 / 2))
    lists: list[Any] = [[text.split() for text in GUIDE]]
    assert bleu([GOOD.split()], lists) == bleu([GOOD], [GUIDE])


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ([], [], "got 0 candidates"),
        ("a b", ["a b"], "got one text"),
        (["a b"], [["a b"], ["a"]], "got 1 candidates and references of 2"),
        (["a b"], [[]], r"references\[0\]: got \[\]"),
        (["a b"], ["a b"], r"references\[0\]: got 'a b', expected a list"),
        ([["a", "b"]], [["a", "b"]], "texts beside lists of words"),
        (["a b", ["a"]], [["a b"], ["a b"]], "texts beside lists of words"),
    ],
)
def test_corpora_that_can_only_be_slips_are_refused(candidates: Any, references: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bleu(candidates, references)
    with pytest.raises(ValueError, match="n: got 0"):
        bleu(["a"], [["a"]], n=0)


def test_perplexity_of_even_words() -> None:
    """Each of 9 words and the end has probability 1/10: 10 with the ends, more without."""
    tokens = torch.tensor([5, 1, 4])
    found = perplexity(tokens * math.log(10), tokens)
    assert found.with_end == pytest.approx(10) and found.without_end == pytest.approx(10 ** (10 / 7))
    assert (found.tokens, found.words, found.sentences) == (10, 7, 3)
    assert found.as_dict()["without_end"] == found.without_end
    assert (
        str(found)
        == found.describe()
        == ("10.0 per word, end marks counted (10 words); 26.8 per word, end marks not counted (7 words)")
    )


def test_perplexity_of_nothing_and_beyond_all_numbers() -> None:
    assert Perplexity(3.0, 2, 2).without_end == math.inf and Perplexity(1e6, 2, 1).with_end == math.inf
    for nll, tokens, message in (
        (torch.zeros(3), torch.ones(2), r"got nll \(3,\) and tokens \(2,\)"),
        (torch.zeros(0), torch.ones(0), r"got nll \(0,\)"),
        (torch.zeros(2), torch.tensor([3, 0]), "got a sentence of 0 words"),
    ):
        with pytest.raises(ValueError, match=message):
            perplexity(nll, tokens)
