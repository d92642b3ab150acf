"""A small grammar of sentences about animals: text whose entropy is known, for tests and a first try."""

from collections.abc import Mapping, Sequence

from ppl_vae.data.grammar import Grammar, Rules

NUMBERS = ("ONE", "MANY")

_TOPICS: Mapping[str, tuple[float, Mapping[str, Sequence[str]]]] = {
    "FARM": (
        0.5,
        {
            "NOUN": ("dog dogs", "cow cows", "horse horses"),
            "VERB": ("sleeps sleep", "runs run"),
            "TAKE": ("eats eat",),
            "PREY": ("hay hay", "corn corn"),
        },
    ),
    "SEA": (
        0.3,
        {
            "NOUN": ("whale whales", "seal seals", "crab crabs"),
            "VERB": ("swims swim", "dives dive"),
            "TAKE": ("hunts hunt",),
            "PREY": ("squid squid", "plankton plankton"),
        },
    ),
    "AIR": (
        0.2,
        {
            "NOUN": ("crow crows", "hawk hawks", "swan swans"),
            "VERB": ("flies fly", "sings sing"),
            "TAKE": ("catches catch",),
            "PREY": ("worms worms", "beetles beetles"),
        },
    ),
}
"""How probable each topic is, and its words for one animal and for many."""


def _by_rank(words: Sequence[str]) -> dict[tuple[str, ...], float]:
    """One word each, as probable as its rank says: 1 / rank, as in natural text (Zipf)."""
    total = sum(1 / rank for rank in range(1, len(words) + 1))
    return {(word,): 1 / rank / total for rank, word in enumerate(words, start=1)}


def _topic_rules(topic: str, words: Mapping[str, Sequence[str]]) -> dict[str, dict[tuple[str, ...], float]]:
    """What a sentence of a topic is made of: all its nouns and verbs are the topic's own."""
    near = ("near", "the")
    rules: dict[str, dict[tuple[str, ...], float]] = {
        topic: {(f"{topic}-ANIMAL-ONE", f"{topic}-DOES-ONE"): 0.6, (f"{topic}-ANIMAL-MANY", f"{topic}-DOES-MANY"): 0.4},
        # Another animal between subject and verb, in either number: a model must remember which is the subject.
        f"{topic}-NEAR": {(*near, f"{topic}-NOUN-ONE"): 0.5, (*near, f"{topic}-NOUN-MANY"): 0.5},
    }
    for place, number in enumerate(NUMBERS):
        noun, act = (f"ARTICLE-{number}", "SIZE", f"{topic}-NOUN-{number}"), f"{topic}-ACT-{number}"
        take = (f"{topic}-TAKE-{number}", f"{topic}-PREY-{number}")
        rules |= {
            f"{topic}-ANIMAL-{number}": {noun: 0.6, (*noun, f"{topic}-NEAR"): 0.4},
            f"{topic}-DOES-{number}": {(act,): 0.6, (act, "and", act): 0.4},
            act: {(f"{topic}-VERB-{number}",): 0.4, (f"{topic}-VERB-{number}", "HOW"): 0.3, take: 0.3},
        }
        rules |= {f"{topic}-{kind}-{number}": _by_rank([w.split()[place] for w in ws]) for kind, ws in words.items()}
    return rules


def _rules() -> Rules:
    rules: dict[str, dict[tuple[str, ...], float]] = {
        "S": {(topic,): p for topic, (p, _) in _TOPICS.items()},
        "ARTICLE-ONE": {("the",): 0.5, ("a",): 0.5},
        "ARTICLE-MANY": {("the",): 0.5, ("some",): 0.5},
        "SIZE": {(): 0.6, ("small",): 0.25, ("big",): 0.15},
        "HOW": {("quietly",): 0.6, ("slowly",): 0.4},
    }
    for topic, (_, words) in _TOPICS.items():
        rules |= _topic_rules(topic, words)
    return rules


ANIMALS = Grammar(_rules())
"""54,432 sentences of 51 words on three topics: "some small cows near the horse sleep and eat hay".

The topic is for a latent variable to tell: its nouns and verbs are in no other. The verbs agree with their subject in
number, whatever stands between them.
"""
