"""A few classes known, as many of each; the others never given out, and each datum as often as it should come."""

import json
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from ppl_vae import fit
from ppl_vae.data import (
    UNLABELLED,
    DataError,
    Dataset,
    Labelled,
    PartlyLabelled,
    from_tensor,
    load,
    partly_labelled,
)
from ppl_vae.pairs import Classifier


def dataset(number: int = 60, classes: int = 5, **fields: Any) -> Dataset:
    """Data that say which row they are, and whose class is 7 times that, modulo the classes."""
    rows = torch.arange(number)
    x = (rows / 100).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    labels = 7 * rows % classes
    fields = {"train_labels": labels, "test_labels": labels[:10]} | fields
    return Dataset(name="plain", train=x, test=x[:10], **fields)


def rows_of(x: Tensor) -> Tensor:
    return (x[:, 0, 0, 0] * 100).round().long()


def counts(data: PartlyLabelled) -> Counter[int]:
    return Counter(data.train_labels.tolist())


@pytest.mark.parametrize("known", [5, 20, 60])
def test_as_many_of_each_class_are_known(known: int) -> None:
    data = partly_labelled(dataset(), known)
    expected = dict.fromkeys(range(5), known // 5) | ({UNLABELLED: 60 - known} if known < 60 else {})
    assert counts(data) == expected and data.classes == 5 and data.told == {"classes": 5}
    assert data.known_rows.shape == (known,) and len(set(data.known_rows.tolist())) == known
    assert torch.equal(data.train_labels[data.known_rows], 7 * data.known_rows % 5)
    assert torch.equal(data.train, dataset().train)


@pytest.mark.parametrize("repeat", [1, 4])
def test_a_pass_gives_each_datum_once_and_known_ones_more_often(repeat: int) -> None:
    data = partly_labelled(dataset(), 20, repeat=repeat)
    known = set(data.known_rows.tolist())
    batches = data.minibatches(10, seed=3)
    assert batches.steps_per_pass == (60 + 20 * (repeat - 1)) // 10
    for _ in range(2):
        seen: Counter[int] = Counter()
        for _ in range(batches.steps_per_pass):
            x, c = batches.next()
            assert x.shape == (10, 1, 2, 2) and c.shape == (10,) and c.dtype == torch.int64
            for row, label in zip(rows_of(x).tolist(), c.tolist(), strict=True):
                assert label == (7 * row % 5 if row in known else UNLABELLED)
                seen[row] += 1
        assert seen == {row: repeat if row in known else 1 for row in range(60)}


def test_the_most_repeats_cost_no_copies_of_the_data() -> None:
    batches = partly_labelled(dataset(), 20, repeat=300).minibatches(10)
    assert batches.num_data == 60 + 20 * 299
    assert sum(x.untyped_storage().nbytes() for x in batches.tensors) == 2 * 8 * batches.num_data  # a row and a class


def test_parts_of_batches_are_the_whole() -> None:
    data = partly_labelled(dataset(), 20, repeat=2)
    whole, *parts = (data.minibatches(10, seed=1, part=part).next() for part in ((0, 1), (0, 2), (1, 2)))
    for i in range(2):
        assert torch.equal(torch.cat([part[i] for part in parts]), whole[i])


def test_the_choice_is_the_seeds() -> None:
    state = torch.get_rng_state()
    rows = [partly_labelled(dataset(), 20, choice=choice).known_rows for choice in (0, 0, 1)]
    assert torch.equal(rows[0], rows[1]) and set(rows[0].tolist()) != set(rows[2].tolist())
    assert torch.equal(torch.get_rng_state(), state)
    # More known data are the same ones and others.
    assert set(rows[0].tolist()) < set(partly_labelled(dataset(), 40).known_rows.tolist())
    orders = [partly_labelled(dataset(), 20).minibatches(10, seed=seed).next()[0] for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])


def test_those_that_are_known_alone() -> None:
    data = partly_labelled(dataset(note="from here"), 20, repeat=3)
    alone = data.labelled_only()
    assert type(alone) is Labelled and alone.classes == 5 and len(alone.train) == 20
    labels = alone.dataset.train_labels
    assert labels is not None and sorted(rows_of(alone.train).tolist()) == sorted(data.known_rows.tolist())
    assert torch.equal(labels, 7 * rows_of(alone.train) % 5)
    assert alone.note == "from here; the 20 of known class alone" and data.note == "from here"
    x, c = alone.minibatches(20).next()
    assert torch.equal(c, 7 * rows_of(x) % 5)
    assert all(torch.equal(a, b) for a, b in zip(alone.test_batch(), data.test_batch(), strict=True))


def test_a_class_without_data_is_kept() -> None:
    assert partly_labelled(dataset(classes=1), 3, classes=1).labelled_only().classes == 1


def test_test_data_and_those_held_out_have_their_classes() -> None:
    data = partly_labelled(dataset(), 20)
    x, c = data.test_batch()
    assert torch.equal(c, 7 * rows_of(x) % 5)
    rest, (x, c) = data.hold_out(10)
    assert rows_of(x).tolist() == list(range(50, 60)) and torch.equal(c, 7 * rows_of(x) % 5)
    assert isinstance(rest, PartlyLabelled) and len(rest.train) == 50 and counts(rest)[UNLABELLED] == 30
    assert set(rest.known_rows.tolist()) <= set(range(50))


def test_a_subset_has_as_many_that_are_known() -> None:
    data = partly_labelled(dataset(), 20, repeat=3, choice=1).subset(num_train=30, num_test=4)
    assert isinstance(data, PartlyLabelled) and (data.known, data.repeat, data.choice) == (20, 3, 1)
    assert counts(data) == {UNLABELLED: 10} | dict.fromkeys(range(5), 4)
    assert "only the first 30" in data.note and len(data.test_batch()[1]) == 4
    with pytest.raises(DataError, match="got 20 known data, 4 of each class; expected no more than there are"):
        data.subset(num_train=19)


def test_on_another_device_the_same_are_known() -> None:
    data = partly_labelled(dataset(), 20, repeat=2, choice=1)
    moved = data.to("cpu")
    assert isinstance(moved, PartlyLabelled) and (moved.repeat, moved.choice) == (2, 1)
    assert torch.equal(moved.known_rows, data.known_rows) and torch.equal(moved.train_labels, data.train_labels)


def test_bits_are_drawn_anew_for_each_batch() -> None:
    data = partly_labelled(dataset(binarisation="dynamic"), 60)
    batches = data.minibatches(60)
    (x, c), (again, same) = batches.next(), batches.again()
    assert sorted(x.unique().tolist()) == [0.0, 1.0] and not torch.equal(x, again) and torch.equal(c, same)
    assert torch.equal(data.test_batch()[0], dataset(binarisation="dynamic").test_batch())
    assert data.labelled_only().binarisation == "dynamic"


def test_grey_values_are_drawn_in_proportion() -> None:
    """Means of 4 bits of each of 60 data in 400 batches: within 4.417 standard errors, so it fails with 1e-5."""
    data = partly_labelled(dataset(binarisation="dynamic"), 60)
    batches = data.minibatches(60)
    total = torch.stack([batches.next()[0].mean() for _ in range(400)]).double().mean()
    p = torch.arange(60).double() / 100
    error = ((p * (1 - p)).sum() / (400 * 60 * 60 * 4)).sqrt()
    assert (total - p.mean()).abs() < 4.417 * error


def test_description_goes_to_json() -> None:
    data = partly_labelled(dataset(), 20, repeat=3, choice=4)
    described = json.loads(json.dumps(data.describe()))
    assert described == {**dataset().describe(), "classes": 5, "known": 20, "repeat": 3, "choice": 4}
    assert repr(data).startswith("PartlyLabelled(name='plain', num_train=60")


def test_a_classifier_learns_from_what_is_known() -> None:
    data = partly_labelled(load("digits", binarisation="none"), 100)
    assert counts(data) == {UNLABELLED: 1337} | dict.fromkeys(range(10), 10)
    pair, alone = Classifier(data.shape, data.classes, hidden=(30,)), data.labelled_only()
    fit(pair, alone, steps=200, batch_size=50, learning_rate=1e-2, device="cpu", progress=False)
    x, y = data.test_batch()
    assert (pair.classify(x).logits.argmax(-1) == y).double().mean() > 0.6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: partly_labelled(dataset(), 7), "plain: got 7 known data of 5 classes; expected a multiple of 5"),
        (lambda: partly_labelled(dataset(), 0), "got 0 known data of 5 classes"),
        (lambda: partly_labelled(dataset(), -5), "got -5 known data of 5 classes"),
        (lambda: partly_labelled(dataset(), 65), "got 65 known data, 13 of each class; expected no more than there"),
        (lambda: partly_labelled(dataset(), 12, classes=6), "got 12 known data, 2 of each class; .* choose fewer"),
        (lambda: partly_labelled(dataset(), 20, repeat=0), "got repeat=0; expected a whole number of at least 1"),
        (lambda: partly_labelled(dataset(), 20, repeat=301), "got 20 known data, 301 times a pass; .* than 100 of"),
        (lambda: partly_labelled(dataset(), 20, classes=4), "got classes 0 to 4 in train_labels; expected 0 to 3"),
        (lambda: partly_labelled(dataset(train_labels=None), 20), "plain: got no labels"),
        (lambda: partly_labelled(from_tensor(torch.rand(5, 4)), 5), "got no labels"),
        (lambda: partly_labelled(dataset(), 20).hold_out(60), "got 60 data to hold out; expected 1 to 59"),
        (lambda: partly_labelled(dataset(), 40).hold_out(30), "got 40 known data, 8 of each class"),
        (lambda: partly_labelled(dataset(), 20).read(5), "got the class 5, expected 0 to 4, those of plain"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()
