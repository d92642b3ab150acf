"""Captions: read like torch's packed sequences, padding without influence, the words looked at by hand."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from ppl_vae.nn import Alignment, SentenceReader

CAPTIONS = torch.tensor([[3, 1, 2, 4, 1], [5, 2, 0, 0, 0], [1, 4, 4, 0, 0], [2, 0, 0, 0, 0]])
LENGTHS = (CAPTIONS != 0).sum(1)


@pytest.fixture
def reader() -> SentenceReader:
    return SentenceReader(6, size=3).double()


def test_as_torchs_bidirectional_lstm_on_packed_captions(reader):
    lstm = nn.LSTM(3, 3, batch_first=True, bidirectional=True).double()
    ours = reader.forwards.state_dict() | {f"{k}_reverse": v for k, v in reader.backwards.state_dict().items()}
    lstm.load_state_dict(ours)
    packed = pack_padded_sequence(reader.embed(CAPTIONS), LENGTHS, batch_first=True, enforce_sorted=False)
    states, (ends, _) = lstm(packed)
    expected = pad_packed_sequence(states, batch_first=True)[0]
    words = reader(CAPTIONS)
    torch.testing.assert_close(words.states[words.is_word], expected[words.is_word])
    torch.testing.assert_close(words.whole, torch.cat([ends[0], ends[1]], -1))


def test_a_caption_is_read_as_if_alone(reader):
    """Neither the padding nor the other captions of the batch are seen: the Jacobian says so."""
    words = reader(CAPTIONS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = reader(CAPTIONS[row : row + 1, :length])
        torch.testing.assert_close(words.states[row, :length], alone.states[0])
        torch.testing.assert_close(words.whole[row], alone.whole[0])


def test_jacobian(reader):
    """Every word of a caption reaches what is made of that caption; padding and other captions reach nothing."""
    alignment, is_word = Alignment(6, 2, 4).double(), CAPTIONS != 0
    vectors = reader.embed(CAPTIONS).detach()
    reader.embed = given = Given()

    def read(x: torch.Tensor) -> torch.Tensor:
        given.vectors = x
        words = reader(CAPTIONS)
        alpha, s = alignment(words, alignment.keys(words), torch.ones(4, 2, dtype=torch.float64))
        # What stands behind a caption's end has states of its own, at which nothing looks.
        return torch.cat([(words.states * is_word[..., None]).flatten(1), words.whole, alpha, s], -1)

    jacobian = torch.autograd.functional.jacobian(read, vectors)  # (caption, outputs, caption, L, 3)
    assert isinstance(jacobian, torch.Tensor)
    reached = jacobian.abs().sum((1, 4)) > 0
    wanted = torch.zeros(4, 4, 5, dtype=torch.bool)
    wanted[range(4), range(4)] = is_word
    assert torch.equal(reached, wanted)


class Given(nn.Module):
    """An embedding whose vectors are given."""

    vectors = torch.zeros(())

    def forward(self, captions: torch.Tensor) -> torch.Tensor:
        return self.vectors


def test_alignment_by_hand(reader):
    """e_k = v . tanh(U s_k + W h + b), a softmax over the caption's own words."""
    alignment, h = Alignment(6, 2, 4).double(), torch.randn(7, 4, 2, dtype=torch.float64)
    words = reader(CAPTIONS)
    alpha, s = alignment(words, alignment.keys(words), h)
    assert alpha.shape == (7, 4, 5) and s.shape == (7, 4, 6)
    u, w, b, v = (
        alignment.of_words.weight,
        alignment.of_hidden.weight,
        alignment.of_hidden.bias,
        alignment.score.weight,
    )
    for k in range(7):
        for row, length in enumerate(LENGTHS.tolist()):
            e = torch.stack([v[0] @ (u @ words.states[row, i] + w @ h[k, row] + b).tanh() for i in range(length)])
            torch.testing.assert_close(alpha[k, row, :length], e.softmax(0))
            assert bool((alpha[k, row, length:] == 0).all())
            torch.testing.assert_close(s[k, row], e.softmax(0) @ words.states[row, :length])


def test_a_caption_without_words_makes_no_nan(reader):
    alignment = Alignment(6, 2, 4).double()
    words = reader(torch.zeros(1, 3, dtype=torch.int64))
    alpha, s = alignment(words, alignment.keys(words), torch.zeros(1, 2, dtype=torch.float64))
    assert bool(alpha.isfinite().all()) and bool(s.isfinite().all()) and bool(words.whole.isfinite().all())
