"""Sentences: batches of one width that lose no word, exact resume, frequencies, and rows that are refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae import specs
from ppl_vae.data import DataError, Text, Vocabulary, as_batch
from ppl_vae.data.text import num_tokens
from ppl_vae.training import steps_of

WORDS = Vocabulary(("<eos>", "<unk>", "a", "b", "c"), unknown="<unk>", split="spaces", end="<eos>")
BUCKETS = (3, 5, 8)


def rows(number: int, seed: int) -> Tensor:
    """Sentences of 1 to 7 words."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (number, 1), generator=generator)
    ids = torch.randint(2, len(WORDS), (number, 8), generator=generator)
    places = torch.arange(8)
    return ids * (places < lengths) + 1 * (places == lengths)


@pytest.fixture(scope="module")
def data() -> Text:
    return Text(name="plain", train=rows(60, 0), test=rows(9, 1), valid=rows(5, 2), vocabulary=WORDS, buckets=BUCKETS)


def test_a_batch_has_one_width_and_all_words(data: Text) -> None:
    """Against rows by hand: words up to the padding, the narrowest bucket that fits."""
    batches, widths = data.minibatches(4, seed=1), Counter[int]()
    for _ in range(2 * batches.steps_per_pass):
        (x,) = batches.next()
        assert batches.indices is not None and x.dtype == torch.int64 and x.is_contiguous()
        whole = data.train[batches.indices]
        assert data.words(x) == data.words(whole) and torch.equal(num_tokens(x), num_tokens(whole))
        for row in whole.tolist():
            assert x.shape == (4, min(width for width in BUCKETS if width >= 8 - row.count(0)))
        widths[x.shape[1]] += 1
    counts = Counter(data.widths().tolist())
    assert widths == {width: 2 * (count // 4) for width, count in counts.items()} and set(widths) == set(BUCKETS)
    assert steps_of(2, data, 4) == 2 * batches.steps_per_pass


def test_a_batch_is_the_same_in_parts(data: Text) -> None:
    whole, *parts = (data.minibatches(4, seed=2, part=part) for part in ((0, 1), (0, 2), (1, 2)))
    for _ in range(whole.steps_per_pass + 2):
        assert torch.equal(whole.next()[0], torch.cat([part.next()[0] for part in parts]))


@pytest.mark.parametrize("after", [0, 3, 14, 30])
def test_order_goes_on_where_it_stood(data: Text, after: int) -> None:
    first, second = data.minibatches(4, seed=3), data.minibatches(4, seed=99)
    for _ in range(after):
        first.next()
    second.load_state_dict(first.state_dict())
    for _ in range(20):
        assert torch.equal(first.next()[0], second.next()[0])


def test_a_draw_is_recorded_by_the_tracer(data: Text) -> None:
    """A word to the host would raise."""
    trace = make_fx(lambda x: data.draw(x, 5), tracing_mode="fake")(data.train[:4])
    assert not any("lift_fresh" in str(node.target) for node in trace.graph.nodes)
    assert torch.equal(data.draw(data.train[:4]), data.train[:4])


def test_evaluation_and_samples_take_one_tensor(data: Text) -> None:
    assert as_batch(data.test_batch()) == (data.test,) and data.shape == (8,)
    (blank,) = data.blank(3)
    assert blank.shape == (3, 8) and blank.dtype == torch.int64 and num_tokens(blank).tolist() == [8, 8, 8]
    assert replace(data, test=blank).told == {"vocabulary": 6} and data.levels == len(WORDS)
    assert all(torch.equal(a, b) for a, b in zip(data.to("cpu").test_batch(), data.test_batch(), strict=True))


def test_output_starts_at_the_frequencies_of_words(data: Text) -> None:
    counts = Counter(i for row in data.train.tolist() for i in row if i)
    total = sum(counts.values()) + 5
    expected = torch.tensor([0.0, *((counts[i] + 1) / total for i in range(1, 6))])
    torch.testing.assert_close(data.output_mean, expected)
    small = replace(data, train=WORDS.encode("a a", 8))
    torch.testing.assert_close(small.output_mean, torch.tensor([0, 2, 1, 3, 1, 1]) / 8)


def test_a_pair_is_told_the_vocabulary_and_its_frequencies(data: Text, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from ppl_vae import Pair\nclass Words(Pair):\n    def __init__(self, data_shape, vocabulary):\n"
        "        super().__init__()\n        self.sizes = (*data_shape, vocabulary)\n"
        "    def set_output_mean(self, mean):\n        self.mean = mean\n"
        "    def model(self, x): ...\n    def guide(self, x): ...\n"
    )
    pair: Any = specs.maker(f"{file}:Words", data)()
    assert pair.sizes == (8, 6) and torch.equal(pair.mean, data.output_mean)


def test_subset_says_so_and_what_is_held_out_is_gone(data: Text) -> None:
    small = replace(data, note="ours").subset(num_train=7, num_test=9)
    assert small.note == "ours; only the first 7 of 60 train sentences" and torch.equal(small.train, data.train[:7])
    without = replace(data, valid=None)
    rest, held_out = without.hold_out(10)
    assert len(held_out) == 1 and torch.equal(torch.cat([rest.train, held_out[0]]), data.train)
    assert rest.note == "only the first 50 of 60 train sentences"
    with pytest.raises(DataError, match="plain: got num_test=10; expected 1 to 9, the sentences there are"):
        data.subset(num_test=10)
    with pytest.raises(DataError, match="plain: got 60 sentences to hold out; expected 1 to 59"):
        without.hold_out(60)


def test_what_is_held_out_is_of_the_part_for_it(data: Text) -> None:
    assert data.valid is not None
    rest, (held_out,) = data.hold_out(3)
    assert rest is data and torch.equal(held_out, data.valid[:3])
    with pytest.raises(DataError, match="plain: got 6 sentences to hold out; expected 1 to 5, those of valid"):
        data.hold_out(6)


def test_description_counts_words_and_goes_to_json(data: Text) -> None:
    described = json.loads(json.dumps(data.describe()))
    assert described == data.describe() and repr(data).startswith("Text(name='plain', num_train=60")
    words = [row.split() for row in data.words(data.test)]
    expected = {
        "num_valid": 5,
        "test_words": sum(map(len, words)),
        "test_tokens": sum(map(len, words)) + 9,
        "train_tokens": int((data.train != 0).sum()),
        "unknown_in_test": sum(row.count("<unk>") for row in words) / sum(map(len, words)),
        "vocabulary": 6,
        "buckets": [3, 5, 8],
    }
    assert expected.items() <= described.items() and described["train_words"] == described["train_tokens"] - 60


def test_what_someone_writes_is_read(data: Text) -> None:
    assert data.read(["a zebra c", "b"]).tolist() == [[3, 2, 5, 1, 0, 0, 0, 0], [4, 1, 0, 0, 0, 0, 0, 0]]
    assert data.words(data.read("a zebra c")) == ["a <unk> c"] and data.read("a " * 7).shape == (1, 8)
    with pytest.raises(DataError, match=r"got the empty sentence ' ', expected 1 to 7 words; write another"):
        data.read(["a", " "])
    with pytest.raises(DataError, match=r"got a sentence of 8 words 'a a .*', expected 1 to 7 words; write another"):
        data.read("a " * 8)
    with pytest.raises(DataError, match="got the end mark '<eos>' in 'a <eos>', expected none"):
        data.read("a <eos>")
    with pytest.raises(DataError, match="got no captions"):
        data.read([])


ROWS = torch.tensor([[3, 4, 1, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": ROWS.int()}, r"plain: train: got \(1, 8\) torch.int32, expected \(number, L\) torch.int64"),
        ({"test": ROWS[0]}, r"plain: test: got \(8,\) torch.int64"),
        ({"valid": ROWS[:0]}, r"plain: valid: got \(0, 8\)"),
        ({"test": ROWS[:, :4]}, "plain: got rows of 8 words in train and of 4 in test, expected the same"),
        ({"train": ROWS * 2}, "plain: train: got word ids 0 to 8, expected 0 to 5"),
        ({"train": -ROWS}, "plain: train: got word ids -4 to 0"),
        ({"train": torch.cat([ROWS, ROWS.flip(1)])}, "plain: train: got 1 bad rows, the first of them 1, expected wor"),
        ({"train": ROWS.where(ROWS != 1, 0)}, "got 1 bad rows"),
        ({"train": torch.tensor([[3, 1, 1, 0, 0, 0, 0, 0]])}, "got 1 bad rows"),
        ({"train": torch.tensor([[3, 0, 1, 4, 0, 0, 0, 0]])}, "got 1 bad rows"),
        ({"train": torch.tensor([[3, 1, 4, 0, 0, 0, 0, 0]])}, "got 1 bad rows"),
        ({"train": torch.tensor([[1, 0, 0, 0, 0, 0, 0, 0]])}, "got 1 bad rows"),
        ({"train": ROWS * 0}, "got 1 bad rows"),
        (
            {"buckets": (3, 5)},
            r"plain: got buckets \(3, 5\), expected ascending numbers of words, .* 8; end them with 8",
        ),
        ({"buckets": (5, 3, 8)}, "plain: got buckets"),
        ({"vocabulary": Vocabulary(WORDS.words, "<unk>", "spaces")}, r"begins with \('<eos>', '<unk>'\), expected its"),
        ({"vocabulary": Vocabulary(WORDS.words[1:], "<unk>")}, "got a vocabulary that begins with"),
        ({"vocabulary": Vocabulary(("<eos>", "a"), end="<eos>")}, "got a vocabulary that begins with"),
    ],
)
def test_what_is_no_text_is_refused(data: Text, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(data, **fields)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_gpu_draws_the_same(data: Text) -> None:
    here, there = data.minibatches(4, seed=3), data.to("cuda").minibatches(4, seed=3)
    for _ in range(here.steps_per_pass):
        assert torch.equal(here.next()[0], there.next()[0].cpu())
