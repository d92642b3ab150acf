"""A grammar's closed forms against the list of all its sentences, and its draws against its probabilities."""

import math
from collections import Counter

import pytest
from scipy.stats import chi2, norm

from ppl_vae.data import DataError
from ppl_vae.data.animals import ANIMALS
from ppl_vae.data.grammar import Grammar

RATE = 1e-5
"""How often a statistical test would fail by chance, had it no fixed seed."""

DRAWN = ANIMALS.draw(20_000, seed=5)


@pytest.fixture(scope="module")
def every() -> dict[str, float]:
    """All sentences with their probabilities; none is made in two ways, or the closed forms were wrong."""
    sentences = list(ANIMALS.sentences())
    assert len(dict(sentences)) == len(sentences) == 54_432
    return dict(sentences)


def test_entropy_is_that_of_all_sentences(every: dict[str, float]) -> None:
    assert math.fsum(every.values()) == pytest.approx(1.0, abs=1e-12)
    assert ANIMALS.entropy() == pytest.approx(-math.fsum(p * math.log(p) for p in every.values()), rel=1e-12)
    assert len(ANIMALS.words) == 51 and set(ANIMALS.words) == {word for x in every for word in x.split()}


def test_log_prob_is_that_of_the_list(every: dict[str, float]) -> None:
    for sentence, p in list(every.items())[::97]:
        assert ANIMALS.log_prob(sentence) == pytest.approx(math.log(p), abs=1e-12)


def test_a_verb_agrees_with_its_subject_and_not_with_its_neighbour() -> None:
    assert ANIMALS.log_prob("a small dog near the cows sleeps and eats hay") > -math.inf
    for wrong in (
        *("a small dog near the cows sleep and eats hay", "a small dog near the cows sleeps and eat hay"),
        *("a dogs sleep", "the dog swims", "the dog near the seal sleeps", "the dog", "the dog sleeps sleeps", "", "x"),
    ):
        assert ANIMALS.log_prob(wrong) == -math.inf


def test_topics_share_no_noun_and_no_verb(every: dict[str, float]) -> None:
    """Each word is of all three topics, or of one: that is what a latent variable can tell."""
    topics = ("FARM", "SEA", "AIR")
    words = [{word for x, _ in Grammar(ANIMALS.rules, topic).sentences() for word in x.split()} for topic in topics]
    shared = set.intersection(*words)
    assert len(shared) == 9 and all(a & b == shared for a in words for b in words if a is not b)


def test_the_mean_surprise_of_draws_is_the_entropy(every: dict[str, float]) -> None:
    second = math.fsum(p * math.log(p) ** 2 for p in every.values())
    error = math.sqrt((second - ANIMALS.entropy() ** 2) / len(DRAWN))
    mean = -math.fsum(math.log(every[sentence]) for sentence in DRAWN) / len(DRAWN)
    assert abs(mean - ANIMALS.entropy()) < norm.isf(RATE / 2) * error


def test_draws_are_as_frequent_as_they_are_probable(every: dict[str, float]) -> None:
    """The hundred most probable sentences, and all others: chi-squared."""
    counts = Counter(DRAWN)
    frequent = sorted(every, key=every.__getitem__, reverse=True)[:100]
    expected = [every[sentence] * len(DRAWN) for sentence in frequent]
    found = [counts[sentence] for sentence in frequent]
    assert min(expected) > 5
    cells = [*zip(found, expected, strict=True), (len(DRAWN) - sum(found), len(DRAWN) - sum(expected))]
    assert sum((o - e) ** 2 / e for o, e in cells) < chi2.isf(RATE, len(cells) - 1)


def test_draws_go_on_from_fewer_of_the_same_seed() -> None:
    assert ANIMALS.draw(50, seed=5) == DRAWN[:50] and ANIMALS.draw(50, seed=6) != DRAWN[:50]


def test_an_ambiguous_sentence_has_all_its_probability() -> None:
    """By hand: "a a" is made as S -> T a and as S -> a T."""
    grammar = Grammar({"S": {("T", "a"): 0.5, ("a", "T"): 0.5}, "T": {("a",): 0.5, ("b",): 0.5}})
    assert grammar.log_prob("a a") == pytest.approx(math.log(0.5)) and len(list(grammar.sentences())) == 4


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"S": {("a",): 0.5, ("b",): 0.4}}, r"S: got probabilities \[0.5, 0.4\], expected positive ones of sum 1"),
        ({"S": {("a",): 1.5, ("b",): -0.5}}, "S: got probabilities"),
        ({"S": {("a", "T"): 1.0}, "T": {("S",): 0.5, (): 0.5}}, "got the recursive rules S -> T -> S, expected none"),
    ],
)
def test_rules_without_closed_forms_are_refused(rules: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Grammar(rules)
