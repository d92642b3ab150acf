"""Widths of batches: the least padding of all choices, and none that too few rows have."""

from itertools import combinations

import pytest
import torch

from ppl_vae.data import DataError
from ppl_vae.data.buckets import buckets_of, ending_with, widths_in


def padding(lengths: torch.Tensor, buckets: tuple[int, ...]) -> int:
    return int((widths_in(buckets, lengths) - lengths).sum())


def skewed(number: int, seed: int) -> torch.Tensor:
    """As of sentences: many of some 20 words, few of many more."""
    generator = torch.Generator().manual_seed(seed)
    return (3.0 + 0.5 * torch.randn(number, generator=generator)).exp().ceil().long()


@pytest.mark.parametrize("seed", range(20))
def test_no_other_widths_pad_less(seed: int) -> None:
    """Against all choices of at most three widths that leave each bucket its rows."""
    lengths = torch.randint(1, 12, (40,), generator=torch.Generator().manual_seed(seed))
    longest, least = int(lengths.max()), 1 + seed % 7
    found = buckets_of(lengths, number=3, least=least)
    allowed = [(*rest, longest) for n in range(3) for rest in combinations(range(1, longest), n)]
    allowed = [b for b in allowed if all(int((widths_in(b, lengths) == w).sum()) >= least for w in b)]
    assert found in allowed and padding(lengths, found) == min(padding(lengths, b) for b in allowed)


def test_little_of_skewed_sentences_is_padding() -> None:
    """Measured: 0.146 with eight widths, where quantiles leave 0.38 and one width 0.85."""
    lengths = skewed(20_000, seed=0)
    found = buckets_of(lengths)
    assert len(found) == 8 and found[-1] == int(lengths.max()) and list(found) == sorted(set(found))
    assert padding(lengths, found) / int(widths_in(found, lengths).sum()) < 0.16
    assert widths_in(found, lengths).unique(return_counts=True)[1].min() >= 256


def test_too_few_rows_share_the_next_width() -> None:
    assert buckets_of(skewed(200, seed=0)) == (int(skewed(200, seed=0).max()),)
    assert buckets_of([2] * 300 + [5] * 255 + [9] * 300) == (5, 9)
    assert buckets_of([2] * 300 + [9] * 255) == (9,)
    assert buckets_of([4] * 10) == (4,) and buckets_of([3, 4], number=8, least=1) == (3, 4)
    assert buckets_of(skewed(5000, seed=1), number=1) == (int(skewed(5000, seed=1).max()),)


def test_wanted_widths_end_with_the_longest_row() -> None:
    assert ending_with((20, 9, 9), 11) == (9, 11) and ending_with((), 4) == (4,) and ending_with((4,), 4) == (4,)


@pytest.mark.parametrize(("lengths", "options"), [([], {}), ([0, 2], {}), ([2], {"number": 0}), ([2], {"least": 0})])
def test_rows_without_words_are_refused(lengths: list[int], options: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"buckets: got number=.*, expected numbers from 1 and rows of words"):
        buckets_of(lengths, **options)
