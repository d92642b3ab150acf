"""Choices of words against softmax, and filters against sets written by hand."""

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from ppl_vae.language import greedy, probabilities, sampled

LAW = torch.tensor([0.1, 0.4, 0.05, 0.25, 0.2], dtype=torch.float64)


def p_value(drawn: Tensor, law: Tensor) -> float:
    """Chi-squared: of draws (n,), those of probability 0 never."""
    counts = torch.bincount(drawn, minlength=len(law)).double()
    possible = law > 0
    assert not counts[~possible].any()
    expected = len(drawn) * law[possible]
    statistic = ((counts[possible] - expected) ** 2 / expected).sum().item()
    return float(stats.chi2.sf(statistic, int(possible.sum()) - 1))


@pytest.mark.parametrize(
    ("options", "law"),
    [
        ({}, LAW),
        ({"temperature": 0.5}, LAW**2),
        ({"temperature": 2}, LAW**0.5),
        ({"top_k": 3}, LAW * torch.tensor([0, 1, 0, 1, 1])),
        ({"top_p": 0.6}, LAW * torch.tensor([0, 1, 0, 1, 0])),
        ({"temperature": 0.5, "top_k": 3, "top_p": 0.7}, LAW**2 * torch.tensor([0, 1, 0, 1, 0])),
    ],
)
def test_draws_have_their_probabilities(options: dict[str, Any], law: Tensor) -> None:
    """All six fail once in 1e5 runs by chance."""
    law = law / law.sum()
    torch.testing.assert_close(probabilities(LAW.log(), **options), law)
    drawn = sampled(**options)(LAW.log().float().expand(20_000, -1))
    assert p_value(drawn, law) > 1e-5 / 6


def test_rows_are_drawn_each_by_its_own_law() -> None:
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf], [-torch.inf, 3.0, -torch.inf]])
    assert sampled()(logits.expand(100, 2, 3)).eq(torch.tensor([0, 1])).all()
    assert sampled()(torch.randn(7, 2, 3)).shape == (7, 2) and sampled()(torch.randn(3)).shape == ()


def test_a_word_far_down_is_drawn_as_seldom_as_it_should_be() -> None:
    """10^4 words of 1e-9 together: none is met in 1000 draws, but once in 1e6 runs by chance.

    Noise of single precision, one number for each word, would choose one of them every other run.
    """
    logits = torch.full((10_001,), -30.0)
    logits[7] = 0.0
    assert sampled()(logits.expand(1000, -1)).eq(7).all()


@pytest.mark.parametrize(("u", "expected"), [(0.0, 1), (1 - 2**-53, 3)])
def test_the_ends_of_the_unit_interval_choose_no_impossible_word(
    u: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.tensor([0.0, 0.3, 0.2, 0.5, 0.0]).log()
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, u, **options))
    assert sampled()(logits).item() == expected


@pytest.mark.parametrize(
    ("weights", "top_k", "top_p", "kept"),
    [
        ([1, 4, 3, 2], 1, None, [1]),
        ([1, 4, 3, 2], 3, None, [1, 2, 3]),
        ([1, 4, 3, 2], 9, None, [0, 1, 2, 3]),
        ([1, 4, 3, 2], None, 0.39, [1]),
        ([1, 4, 3, 2], None, 0.41, [1, 2]),
        ([1, 4, 3, 2], None, 0.69, [1, 2]),
        ([1, 4, 3, 2], None, 0.71, [1, 2, 3]),
        ([1, 4, 3, 2], None, 1.0, [0, 1, 2, 3]),
        ([1, 4, 3, 2], None, 1e-300, [1]),  # one at least
        ([1, 1, 1, 1], 2, None, [0, 1]),  # ties: those that come first
        ([1, 2, 2, 2], 2, None, [1, 2]),
        ([1, 1, 1, 1], None, 0.5, [0, 1]),  # just reached
        ([1, 1, 1, 1], None, 0.500001, [0, 1, 2]),
        ([1, 1, 1, 1], 3, 0.6, [0, 1]),  # of three thirds, not of four quarters
        ([1, 0, 1, 0], 3, None, [0, 2]),
    ],
)
def test_filters_keep_the_sets_written_here(
    weights: list[float], top_k: int | None, top_p: float | None, kept: list[int]
) -> None:
    law = torch.tensor(weights, dtype=torch.float64)
    expected = law * torch.tensor([i in kept for i in range(4)])
    torch.testing.assert_close(probabilities(law.log(), 1.0, top_k, top_p), expected / expected.sum())


def test_towards_no_temperature_and_with_one_word_the_choice_is_greedy() -> None:
    logits = 5 * torch.randn(500, 40)
    assert greedy(logits).equal(logits.max(-1).indices)
    for temperature in (1e-6, 1e-300):
        assert sampled(temperature)(logits).equal(greedy(logits))
    assert sampled(top_k=1)(logits).equal(greedy(logits)) and sampled(top_p=1e-9)(logits).equal(greedy(logits))
    assert sampled(1e-300)(1e30 * logits).equal(greedy(logits))
    ties = logits.round()
    assert sampled(top_k=1)(ties).equal(greedy(ties)) and sampled(top_p=1e-9)(ties).equal(greedy(ties))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature: got 0.0, expected a number above 0; for 0 take greedy"),
        ({"temperature": float("nan")}, "temperature: got nan"),
        ({"temperature": float("inf")}, "temperature: got inf"),
        ({"temperature": "1"}, "temperature: got '1'"),
        ({"top_k": 0}, "top_k: got 0"),
        ({"top_k": 2.5}, "top_k: got 2.5"),
        ({"top_p": 0.0}, "top_p: got 0.0, expected a probability above 0"),
        ({"top_p": 1.1}, "top_p: got 1.1"),
        ({"top_p": True}, "top_p: got True"),
    ],
)
def test_values_without_a_meaning_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampled(**options)
    with pytest.raises(ValueError, match=message):
        probabilities(LAW.log(), **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu_nothing_waits_for_the_device() -> None:
    choose, logits = sampled(0.7, top_k=5, top_p=0.9), torch.randn(4, 9, device="cuda")
    choose(logits)
    torch.cuda.set_sync_debug_mode("error")
    try:
        choose(logits)
        greedy(logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
