"""Networks of words: step by step is all at once, what is dropped are words, and what is read is the last state."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae.nn import END, UNKNOWN, Highway, WordNetwork, WordReader

V, D = 7, 3
Z_LIMIT = 4.42
"""Two-sided failure rate 1e-5."""

WAYS = [
    {"told": told, "cell": cell, "highway": highway}
    for told, cell, highway in (("first", "lstm", 0), ("every", "gru", 1), ("both", "lstm", 2), ("both", "gru", 0))
]


def network(**options) -> WordNetwork:
    return WordNetwork(V, embedding=4, hidden=5, context_dim=D, **options).double()


def some_words(rows: int, length: int) -> Tensor:
    return torch.randint(2, V, (rows, length))


@pytest.mark.parametrize("options", [*WAYS, {"keep": 0.0}], ids=str)
def test_step_by_step_is_all_at_once(options):
    net, words, z = network(**options).eval(), some_words(6, 5), torch.randn(6, D).double()
    whole, state, last = net(words, z), net.begin(6, z), torch.zeros(6, dtype=torch.int64)
    for t in range(5):
        logits, state = net.step(last, state)
        torch.testing.assert_close(logits, whole[:, t], rtol=1e-12, atol=1e-12)
        last = words[:, t]


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_a_law_depends_on_the_words_before_it_and_on_the_context(options):
    net, words, z = network(**options), some_words(1, 5), torch.randn(1, D).double()
    before = net(words, z)
    for t in range(5):
        changed = words.clone()
        changed[0, t] = words[0, t] % (V - 1) + 1
        differs = (net(changed, z) != before).any(-1)[0]
        assert not differs[: t + 1].any() and differs[t + 1 :].all()
    assert (net(words, z + 1) != before).any(-1).all()


def test_leading_dimensions_are_broadcast():
    net, words, z = network(), some_words(4, 5), torch.randn(3, 2, 4, D).double()
    got = net(words, z)
    assert got.shape == (3, 2, 4, 5, V - 1)
    torch.testing.assert_close(got[1, 0], net(words, z[1, 0]), rtol=1e-12, atol=1e-12)


def test_without_inputs_the_words_do_not_count():
    net, z = network(keep=0.0), torch.randn(2, D).double()
    for mode in (net.train(), net.eval()):
        assert torch.equal(mode(some_words(2, 5), z), mode(some_words(2, 5), z))


def test_words_are_dropped_whole_at_the_stated_rate_and_in_training_alone():
    net, words, keep = network(keep=0.7), some_words(2000, 21).clamp(min=3), 0.7
    seen = net._seen(words)
    assert (seen[:, 0] == 0).all(), "nothing is said before the first word, and it is not dropped"
    kept = seen[:, 1:] == words[:, :-1]
    assert ((seen[:, 1:] == UNKNOWN) | kept).all(), "a word, or the unknown one, never a part of either"
    number = kept.numel()
    assert abs(kept.sum().item() - keep * number) < Z_LIMIT * math.sqrt(number * keep * (1 - keep))
    # Each for itself: the variance over sentences of the number kept is that of independent draws.
    counts = kept.sum(1).double()
    ratio = counts.var().item() / (20 * keep * (1 - keep))
    assert abs(ratio - 1) < Z_LIMIT * math.sqrt(2 / 2000) * 1.5
    assert torch.equal(net.eval()._seen(words)[:, 1:], words[:, :-1])


def test_dropped_words_are_what_the_network_sees():
    """A network whose words are all dropped by chance is one that is given unknown words."""
    net, words, z = network(keep=1e-12), some_words(3, 5), torch.randn(3, D).double()
    unknown = torch.full_like(words, UNKNOWN)
    got = net.train()(words, z)
    torch.testing.assert_close(got, net.eval()(unknown, z))


def test_draws_end_and_are_cut():
    net = network()
    words = net.draw(400, torch.zeros(400, D).double(), length=6)
    ended = (words == END).cumsum(1)
    assert ((words == 0) == (ended - (words == END).long() > 0)).all(), (
        "padding stands behind the end, and nowhere else"
    )
    assert (ended[:, -1] <= 1).all() and (ended[:, -1] == 0).any() and (ended[:, -1] == 1).any()


def test_words_given_are_kept():
    net, given = network(), torch.tensor([[3, 4], [5, 0]])
    words = net.draw(2, torch.zeros(2, D).double(), length=6, given=given)
    assert words[0, :2].tolist() == [3, 4] and words[1, 0] == 5


@pytest.mark.parametrize("summary", ["last", "mean"])
def test_what_is_read_does_not_depend_on_the_padding(summary):
    reader = WordReader(V, embedding=4, hidden=5, highway=1, summary=summary).double()
    words = torch.tensor([[3, 4, 1, 0, 0], [5, 6, 4, 3, 1]])
    both = reader(words)
    torch.testing.assert_close(both[0], reader(words[:1, :3])[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(both[1], reader(words[1:])[0], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(reader(torch.tensor([[3, 4, 1]])), reader(torch.tensor([[4, 3, 1]])))


def test_what_is_read_is_the_last_state_or_the_mean():
    words = torch.tensor([[3, 4, 1]])
    ways: Any = {"last": lambda states: states[:, -1], "mean": lambda states: states.mean(1)}
    for summary, expected in ways.items():
        reader = WordReader(V, embedding=4, hidden=5, cell="gru", summary=summary).double()
        states = reader.cell(reader.embed(words))[0]
        torch.testing.assert_close(reader(words), expected(states), rtol=1e-12, atol=1e-12)


def test_a_closed_gate_carries():
    highway: Any = Highway(4, layers=3).double()
    x = torch.randn(5, 4).double()
    for layer in highway.layers:
        layer.weight.data[4:], layer.bias.data[4:] = 0.0, -80.0
    torch.testing.assert_close(highway(x), x)
    for layer in highway.layers:
        layer.bias.data[4:] = 80.0
    expected = x
    for layer in highway.layers:
        expected = (expected @ layer.weight[:4].T + layer.bias[:4]).relu()
    torch.testing.assert_close(highway(x), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 1.5}, "keep: got 1.5, expected a probability"),
        ({"told": "last"}, "told: got 'last', expected one of first, every, both"),
        ({"cell": "rnn"}, "cell: got 'rnn', expected one of lstm, gru"),
    ],
)
def test_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


def test_a_context_is_asked_for():
    with pytest.raises(ValueError, match="context: got size None, expected 3"):
        network()(some_words(2, 3))
    with pytest.raises(ValueError, match="context: got size 2, expected None"):
        WordNetwork(V, 4, 5).begin(3, torch.zeros(3, 2))


@pytest.mark.parametrize("block", [1, 40, 10**6])
def test_in_blocks_and_without_the_padding_it_is_the_same(monkeypatch, block):
    monkeypatch.setattr("ppl_vae.nn.words.BLOCK", block)
    net, z = network(), torch.randn(3, 4, D).double()
    words = torch.tensor([[3, 4, 1, 0], [1, 0, 0, 0], [2, 3, 4, 5], [6, 1, 0, 0]])
    whole = net.log_prob(words, z)
    logits = net(words, z).log_softmax(-1)
    by_hand = logits.gather(-1, (words - 1).clamp(min=0).expand(3, 4, 4).unsqueeze(-1)).squeeze(-1) * (words > 0)
    torch.testing.assert_close(whole, by_hand, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(net.log_prob(words, z), whole.detach(), rtol=1e-12, atol=1e-12)
