"""Data with their classes: each label stays beside its image, in training, in what is held out, and on disk by name."""

import json
from typing import Any

import pytest
import torch

from ppl_vae.data import DataError, Dataset, Labelled, from_tensor, labelled, load, load_named


def dataset(number: int = 30, classes: int = 5, **fields: Any) -> Dataset:
    """Data that say their class: grey values label / 10 all over."""
    labels = torch.arange(number) % classes
    x = (labels / 10).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
    fields = {"train_labels": labels, "test_labels": labels[:10]} | fields
    return Dataset(name="plain", train=x, test=x[:10], **fields)


def matches(x: torch.Tensor, labels: torch.Tensor) -> bool:
    return torch.equal((x[:, 0, 0, 0] * 10).round().long(), labels)


def test_labels_go_with_their_data() -> None:
    data = labelled(dataset())
    batches = data.minibatches(7, seed=3)
    seen = [batches.next() for _ in range(12)]
    assert all(x.shape == (7, 1, 2, 2) and c.shape == (7,) and matches(x, c) for x, c in seen)
    assert matches(*data.test_batch()) and data.classes == 5 and data.told == {"classes": 5}
    rest, held_out = data.hold_out(8)
    assert matches(*held_out) and len(held_out[1]) == 8 and len(rest.train) == 22
    assert torch.equal(torch.cat([rest.train, held_out[0]]), data.train)


def test_bits_are_drawn_as_of_the_data_set() -> None:
    plain, data = dataset(binarisation="dynamic"), labelled(dataset(binarisation="dynamic"))
    assert torch.equal(data.test_batch()[0], plain.test_batch())
    assert torch.equal(data.hold_out(5)[1][0], plain.hold_out(5)[1])
    x, _ = data.minibatches(30).next()
    assert sorted(x.unique().tolist()) == [0.0, 1.0]


def test_a_subset_keeps_the_number_of_classes() -> None:
    data = labelled(dataset()).subset(num_train=3, num_test=2)
    assert data.classes == 5 and len(data.train) == 3 and "only the first 3" in data.note
    assert data.conditions(7).tolist() == [0, 1, 2, 3, 4, 0, 1]


def test_a_class_may_be_absent() -> None:
    assert labelled(dataset(classes=4), classes=6).read(5).tolist() == [5]


def test_description_goes_to_json() -> None:
    described = json.loads(json.dumps(labelled(dataset()).describe()))
    assert described["classes"] == 5 and described["num_train"] == 30
    assert repr(labelled(dataset())).startswith("Labelled(name='plain', num_train=30")


def test_named_data_are_the_same() -> None:
    data = load_named("labelled(digits, classes=12)", seed=3)
    assert isinstance(data, Labelled) and data.classes == 12
    assert torch.equal(data.test_batch()[0], load("digits", seed=3).test_batch())
    assert torch.equal(data.pixel_means, load("digits").pixel_means)
    assert load_named("labelled(digits)", binarisation="none").binarisation == "none"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: labelled(dataset(train_labels=None)), "plain: got no labels; expected the class of each datum"),
        (lambda: labelled(dataset(test_labels=None)), "plain: got no labels"),
        (lambda: labelled(dataset(), classes=4), "got classes 0 to 4 in train_labels; expected 0 to 3; renumber them"),
        (lambda: labelled(dataset(test_labels=torch.arange(10) - 1)), "got classes -1 to 8 in test_labels"),
        (lambda: labelled(from_tensor(torch.rand(5, 4))), "got no labels"),
        (lambda: labelled(dataset()).read(5), "got the class 5, expected 0 to 4, those of plain"),
        (lambda: labelled(dataset()).hold_out(30), "got 30 data to hold out; expected 1 to 29"),
        (lambda: load_named("labelled(digits, size=3)"), "no setting 'size'.*expected the name of a data set with cla"),
        (lambda: load_named("labelled(digits, classes='a')"), "data: got .*classes='a'"),
        (lambda: load_named("labelled(nothing)"), "got data set 'nothing'"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()
