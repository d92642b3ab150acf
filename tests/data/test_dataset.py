"""The digits that every install has: validation, binarisation, what evaluation sees."""

import json
from dataclasses import replace

import pytest
import torch
from scipy.stats import norm
from torch.fx.experimental.proxy_tensor import make_fx

from ppl_vae.data import DataError, Dataset, binarise, load

GREY = torch.linspace(0, 1, 24).reshape(4, 1, 2, 3)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load("digits")


def grey(**fields: object) -> Dataset:
    return replace(Dataset(name="grey", train=GREY, test=GREY[:2]), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train": GREY[:0]}, "no size 0"),
        ({"train": GREY[:, 0, 0, 0]}, "expected \\(number, \\*event\\)"),
        ({"test": torch.where(GREY > 0.9, torch.nan, GREY)}, "test: got 3 NaN"),
        ({"train": torch.where(GREY > 0.9, torch.inf, GREY)}, r"values in \[0, inf\]"),
        ({"train": GREY * 255}, r"values in \[0, 255\]; expected \[0, 1\]; rescale"),
        ({"train": GREY - 0.5}, r"values in \[-0.5"),
        ({"train": GREY.double()}, "float64; expected torch.float32"),
        ({"test": GREY.reshape(4, 1, 3, 2)}, "train of event shape .1, 2, 3. and test of .1, 3, 2."),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "train_labels: got .3,."),
        ({"test_labels": torch.zeros(2)}, "test_labels: got .2,. torch.float32"),
        ({"binarisation": "random"}, "got binarisation 'random'; expected one of 'dynamic', 'static', 'none'"),
        ({"binarisation": "static"}, "got grey values"),
    ],
)
def test_unusable_data_are_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        grey(**fields)


def test_dynamic_draws_are_fresh_bits_with_the_pixel_means(digits: Dataset) -> None:
    """Per pixel, the mean over 100 draws of the training set; fails by chance once in 1e5 seeds."""
    torch.manual_seed(0)
    repeats = 100
    draws = [digits.draw(digits.train) for _ in range(repeats)]
    assert not torch.equal(draws[0], draws[1])
    assert all(((x == 0) | (x == 1)).all() for x in draws)
    ones = torch.stack([x.sum(0, dtype=torch.float64) for x in draws]).sum(0)
    p = digits.train.double()
    expected, deviation = repeats * p.sum(0), (repeats * (p * (1 - p)).sum(0)).sqrt()
    allowed = norm.isf(1e-5 / 2 / ones.numel())  # Bonferroni over the pixels; never-inked ones must be exact
    assert ((ones - expected).abs() <= allowed * deviation).all()
    torch.testing.assert_close(digits.pixel_means, p.mean(0).float())


def test_draw_is_recorded_by_the_tracer(digits: Dataset) -> None:
    graph = make_fx(lambda x: digits.draw(x), tracing_mode="fake")(digits.train[:5])
    assert [str(node.target) for node in graph.graph.nodes if node.op == "call_function"] == ["aten.bernoulli.default"]


def test_grey_draw_is_the_batch_itself() -> None:
    data = grey()
    assert data.draw(GREY) is GREY
    assert data.test_batch() is data.test


def test_every_run_is_evaluated_on_the_same_bits(digits: Dataset) -> None:
    first = digits.test_batch()
    torch.manual_seed(1234)
    state = torch.get_rng_state()
    assert torch.equal(digits.test_batch(), first)
    assert torch.equal(torch.get_rng_state(), state), "the global stream must not move"
    assert torch.equal(digits.subset(num_test=50).test_batch(), first[:50])
    assert not torch.equal(replace(digits, seed=1).test_batch(), first)
    transposed = digits.test.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)  # same values, other strides
    assert torch.equal(replace(digits, test=transposed).test_batch(), first)


def test_static_is_one_draw_that_shares_its_test_set_with_dynamic(digits: Dataset) -> None:
    static = binarise(digits, "static", seed=3)
    assert static.binarisation == "static" and static.seed == 3 and "not the fixed files" in static.note
    assert torch.equal(static.test_batch(), replace(digits, seed=3).test_batch())
    assert static.draw(static.train) is static.train
    assert torch.equal(static.train, binarise(digits, "static", seed=3).train)
    assert not torch.equal(static.train, binarise(digits, "static", seed=4).train)
    ink = digits.train
    assert (static.train[ink == 0] == 0).all() and (static.train[ink == 1] == 1).all()


def test_static_bits_do_not_become_grey_again(digits: Dataset) -> None:
    static = binarise(digits, "static", seed=3)
    assert binarise(static, "static") is static
    with pytest.raises(DataError, match=r"already binarised \(static, seed 3\); expected grey values"):
        binarise(static, "none")
    with pytest.raises(DataError, match="seed 4; load the data again"):
        binarise(static, "static", seed=4)


def test_description_goes_to_json_and_back(digits: Dataset) -> None:
    described = json.loads(json.dumps(digits.describe()))
    assert described == digits.describe()
    assert described | {"num_train": 1437, "num_test": 360, "shape": [1, 8, 8], "levels": 17} == described
    assert "binarisation='dynamic'" in repr(digits) and len(repr(digits)) < 300


def test_subset_is_the_first_so_many_and_says_so(digits: Dataset) -> None:
    small = digits.subset(num_train=10, num_test=360)
    assert torch.equal(small.train, digits.train[:10]) and len(small.test) == 360
    assert small.train_labels is not None and len(small.train_labels) == 10
    assert small.note.endswith("only the first 10 of 1,437 train data") and small.binarisation == "dynamic"
    with pytest.raises(DataError, match="num_test=361; expected 1 to 360"):
        digits.subset(num_test=361)
    with pytest.raises(DataError, match="num_train=0"):
        digits.subset(num_train=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_gpu_evaluates_on_the_same_bits(digits: Dataset) -> None:
    moved = digits.to("cuda")
    assert moved.train_labels is not None and moved.train_labels.is_cuda and moved.describe() == digits.describe()
    assert moved.test_batch().is_cuda and torch.equal(moved.test_batch().cpu(), digits.test_batch())
    assert torch.equal(binarise(moved, "static").train.cpu(), binarise(digits, "static").train)
    assert moved.draw(moved.train).is_cuda


def test_digits_are_the_real_ones_in_a_split_that_never_changes(digits: Dataset) -> None:
    assert digits.train_labels is not None and digits.test_labels is not None
    both = torch.cat([digits.train_labels, digits.test_labels])
    assert torch.bincount(both).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]  # as published
    assert torch.bincount(digits.test_labels).tolist() == [31, 35, 39, 33, 44, 29, 40, 40, 28, 41]
    everything = torch.cat([digits.train, digits.test])
    assert (everything * 16 == (everything * 16).round()).all()
    assert (everything * 16).double().sum().item() == 561718  # the sum of the source
    assert digits.test_labels[:10].tolist() == [7, 9, 4, 7, 0, 2, 6, 1, 3, 1]
