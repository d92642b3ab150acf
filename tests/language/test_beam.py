"""Beam search against all sentences, greedy choices, and itself row by row."""

import math
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae.language import beam, greedy
from ppl_vae.nn import WordNetwork
from tests.language.tables import END, Table, drawn, log_prob, sentences

V, L = 4, 4
ALL = sentences(V, L)


def recurrent(vocabulary: int = V, context_dim: int | None = None) -> WordNetwork:
    """Of laws far from even."""
    network = WordNetwork(vocabulary, 3, 5, context_dim).double().eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0, 1.5)
    network.out.bias.data[0] += vocabulary / 4  # so that some sentences end
    return network


NETWORKS = {"table": lambda dim=None: Table(V, L, dim), "lstm": lambda dim=None: recurrent(V, dim)}


@pytest.fixture(params=NETWORKS)
def make(request: pytest.FixtureRequest) -> Any:
    return NETWORKS[request.param]


def scores(words: Tensor, log_p: Tensor, penalty: float) -> Tensor:
    return log_p / (words != 0).sum(-1) ** penalty


def test_the_sentences_are_all(make: Any) -> None:
    assert len(ALL) == 1 + 2 + 4 + 8 + 16
    torch.testing.assert_close(log_prob(make(), ALL).exp().sum().item(), 1.0)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_beam_as_wide_as_all_sentences_finds_them_in_order(make: Any, penalty: float) -> None:
    network, context = make(2), torch.randn(3, 2, dtype=torch.float64)
    found = beam(network, 3, context, length=L, width=40, length_penalty=penalty)
    for row in range(3):
        log_p = log_prob(network, ALL, context[row].expand(len(ALL), -1))
        order = scores(ALL, log_p, penalty).argsort(descending=True)
        assert found.words[row, : len(ALL)].equal(ALL[order])
        torch.testing.assert_close(found.log_prob[row, : len(ALL)], log_p[order])
    assert (found.log_prob[:, len(ALL) :] == -math.inf).all() and not found.words[:, len(ALL) :].any()


def test_a_beam_as_wide_as_all_beginnings_finds_the_likeliest(make: Any) -> None:
    """Each of at most 8 beginnings that go on, by 3 words: no candidate is ever left out."""
    for _ in range(20):
        network = make()
        found, log_p = beam(network, length=L, width=24), log_prob(network, ALL)
        assert found.best[0].equal(ALL[log_p.argmax()])
        assert found.log_prob[0, 0].item() == pytest.approx(log_p.max().item())


def test_of_width_one_it_is_greedy(make: Any) -> None:
    ended = 0
    for _ in range(20):
        network, context = make(2), torch.randn(5, 2, dtype=torch.float64)
        words = drawn(network, 5, context, L, greedy)
        assert beam(network, 5, context, length=L, width=1).best.equal(words)
        ended += int((words == END).any(-1).sum())
    assert 10 < ended < 90  # both kinds were met


def by_lists(network: WordNetwork, length: int, width: int, penalty: float) -> tuple[list[list[int]], list[float]]:
    """The same search of one row in plain Python, without an early stop: all words, by how they score."""
    running: list[tuple[float, list[int]]] = [(0.0, [])]
    finished: list[tuple[float, list[int]]] = []
    for _ in range(length):
        rows = torch.tensor([[*words, 0] for _, words in running])
        laws = network(rows)[:, -1].log_softmax(-1).tolist()
        grown = [
            (p + q, [*words, i]) for (p, words), law in zip(running, laws, strict=True) for i, q in enumerate(law, 1)
        ]
        grown.sort(reverse=True)
        finished += [one for one in grown[:width] if one[1][-1] == END]
        running = [one for one in grown if one[1][-1] != END][:width]
    order = sorted(finished + running, key=lambda one: one[0] / len(one[1]) ** penalty, reverse=True)[:width]
    return [words + [0] * (length - len(words)) for _, words in order], [p for p, _ in order]


@pytest.mark.parametrize(("width", "penalty"), [(1, 1.0), (2, 0.0), (3, 0.6), (5, 0.0), (5, 1.0)])
def test_a_narrow_beam_is_the_search_by_lists(width: int, penalty: float) -> None:
    for _ in range(5):
        network = recurrent(7)
        found = beam(network, length=9, width=width, length_penalty=penalty)
        words, log_p = by_lists(network, 9, width, penalty)
        assert found.words[0].tolist() == words and found.log_prob[0].tolist() == pytest.approx(log_p)


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_rows_together_are_rows_one_by_one(penalty: float) -> None:
    """Also over more words than lie between two looks at whether the search is over."""
    network, context = recurrent(7, 2), torch.randn(6, 2, dtype=torch.float64)
    options: dict[str, Any] = {"length": 13, "width": 3, "length_penalty": penalty}
    given = torch.tensor([[3, 4], [5, 0], [0, 0], [2, 1], [1, 0], [6, 6]])
    together = beam(network, 6, context, given=given, **options)
    for row in range(6):
        alone = beam(network, 1, context[row, None], given=given[row, None], **options)
        assert alone.words[0].equal(together.words[row])
        torch.testing.assert_close(alone.log_prob[0], together.log_prob[row])


@pytest.mark.parametrize("penalty", [0.0, 0.7])
def test_log_prob_is_that_of_the_words_the_best_first_each_once(penalty: float) -> None:
    ends = []
    for _ in range(10):
        network, context = recurrent(7, 2), torch.randn(6, 2, dtype=torch.float64)
        found = beam(network, 6, context, length=13, width=4, length_penalty=penalty)
        again = log_prob(network, found.words.flatten(0, 1), context.repeat_interleave(4, 0)).view(6, 4)
        torch.testing.assert_close(found.log_prob, again)
        assert (scores(found.words, again, penalty).diff() <= 1e-12).all()
        for row in found.words:
            assert len({tuple(words) for words in row.tolist()}) == 4
        ended = (found.words == END).cumsum(-1)
        assert found.words[..., 0].all() and (found.words[..., 1:] == 0).equal(ended[..., :-1] == 1)
        ends += ended[..., -1].flatten().tolist()
    assert set(ends) == {0, 1}  # both kinds were met


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_an_early_stop_changes_nothing(penalty: float, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[bool] = []
    for seed in range(10):
        torch.manual_seed(seed)
        network = recurrent(7)
        options: dict[str, Any] = {"length": 40, "width": 3, "length_penalty": penalty}
        steps = count_steps(network, monkeypatch)
        early = beam(network, **options)
        looks.append(steps[0] < 40)
        with monkeypatch.context() as patch:
            # Not by its dotted name: there the package has the function.
            patch.setattr(import_module("ppl_vae.language.beam"), "_is_over", lambda *_: False)
            late = beam(network, **options)
        assert early.words.equal(late.words) and early.log_prob.equal(late.log_prob)
    assert any(looks)


def count_steps(network: WordNetwork, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps, step = [0], network.step

    def counted(*arguments: Any) -> Any:
        steps[0] += 1
        return step(*arguments)

    monkeypatch.setattr(network, "step", counted)
    return steps


def test_given_words_are_kept_and_the_rest_is_the_likeliest(make: Any) -> None:
    network = make()
    given = torch.tensor([[3, 2], [2, 0], [0, 0], [3, 1]])
    found, log_p = beam(network, 4, length=L, width=24, given=given), log_prob(network, ALL)
    for row, first in enumerate(given):
        fits = ((ALL[:, :2] == first) | (first == 0)).all(-1)
        order = log_p.where(fits, -math.inf).argsort(descending=True)
        number = min(24, int(fits.sum()))
        assert found.words[row, :number].equal(ALL[order[:number]])
        assert (found.log_prob[row, number:] == -math.inf).all()
    narrow = beam(network, 4, length=L, width=2, given=given)
    assert ((narrow.best[:, :2] == given) | (given == 0)).all()


class Told(Table):
    """The laws of the table that it is given, the same after every word of a kind."""

    def __init__(self, laws: list[list[float]]) -> None:
        super().__init__(len(laws[0]) + 1, 1)
        self.table.data = torch.tensor(laws, dtype=torch.float64).log()


def test_a_penalty_prefers_longer_sentences_and_their_search_goes_on() -> None:
    """At the beginning an end has 0.5 and the word 0.5, then the end 0.6: by words that is 0.5, and sqrt(0.3)."""
    network = Told([[0.5, 0.01, 0.49], [0.5, 0.25, 0.25], [0.5, 0.25, 0.25], [0.6, 0.2, 0.2]])
    found = beam(network, length=30, width=2)
    assert found.best[0, :2].tolist() == [END, 0] and found.log_prob[0, 0].exp().item() == pytest.approx(0.5)
    by_word = beam(network, length=30, width=2, length_penalty=1.0)
    assert by_word.best[0, :3].tolist() == [3, END, 0]
    assert by_word.log_prob[0, 0].exp().item() == pytest.approx(0.49 * 0.6)


def test_a_finished_sentence_is_kept_when_better_ones_go_on_and_get_worse() -> None:
    """With W = 2 an end of 0.3 is second. Both words that go on would push it out of one common beam."""
    network = Told([[0.3, 0.25, 0.45], [1 / 3] * 3, [0.2, 0.4, 0.4], [0.1, 0.1, 0.8]])
    found = beam(network, length=3, width=2)
    assert [END, 0, 0] in found.words[0].tolist() and found.log_prob[0, 0].exp().item() == pytest.approx(0.3)


def test_half_precision_is_searched_in_single_and_no_gradient_is_recorded() -> None:
    network = recurrent().bfloat16()
    found = beam(network, length=L)
    assert found.log_prob.dtype == torch.float32 and not found.log_prob.requires_grad
    assert beam(recurrent().float(), length=L).log_prob.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width: got 0"),
        ({"length": 0}, "length: got 0"),
        ({"number": 0}, "number: got 0"),
        ({"length_penalty": -1.0}, "length_penalty: got -1.0"),
        ({"length_penalty": float("nan")}, "length_penalty: got nan"),
        ({"context": torch.zeros(3, 2)}, "context: got 3 rows, expected 2"),
        ({"given": torch.zeros(3, 2).long()}, r"given: got \(3, 2\) torch.int64, expected \(2, P\)"),
        ({"given": torch.zeros(2, 2)}, "torch.float32"),
        ({"given": torch.zeros(2, 9).long()}, "P up to 4"),
        ({"given": torch.tensor([[3, 9], [3, 3]])}, "ids from 3 to 9, expected 0 to 3"),
        ({"given": torch.tensor([[0, 3], [3, 3]])}, "words behind padding"),
        ({"given": torch.tensor([[1, 3], [3, 3]])}, "words behind padding or behind an end"),
    ],
)
def test_slips_are_refused(options: dict[str, Any], message: str) -> None:
    options = {"number": 2, "length": L} | options
    with pytest.raises(ValueError, match=message):
        beam(Table(V, L), **options)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_the_gpu_as_on_the_cpu() -> None:
    network, context = recurrent(7, 2), torch.randn(6, 2, dtype=torch.float64)
    given = torch.tensor([[3, 4], [5, 0], [0, 0], [2, 1], [1, 0], [6, 6]])
    here = beam(network, 6, context, length=13, given=given)
    there = beam(network.cuda(), 6, context.cuda(), length=13, given=given)
    assert there.words.is_cuda and there.words.cpu().equal(here.words)
    torch.testing.assert_close(there.log_prob.cpu(), here.log_prob)
