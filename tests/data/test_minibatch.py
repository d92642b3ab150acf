"""Minibatches: every datum once a pass, and exact resume."""

from itertools import islice

import pytest
import torch

from ppl_vae.data import Minibatches, load

ROWS = torch.arange(10)


def test_a_pass_gives_every_datum_once_in_an_order_that_changes() -> None:
    batches = Minibatches((ROWS,), batch_size=5, seed=0)
    assert batches.steps_per_pass == 2
    passes = [torch.cat([batches.next()[0] for _ in range(2)]).tolist() for _ in range(3)]
    assert all(sorted(order) == ROWS.tolist() for order in passes)
    assert len({tuple(order) for order in passes}) == 3


def test_the_incomplete_batch_is_dropped_and_all_data_come_up() -> None:
    batches = Minibatches((ROWS,), batch_size=4, seed=0)
    drawn = [x for (x,) in islice(batches, 40)]
    assert {len(x) for x in drawn} == {4}
    assert all(len(set(torch.cat(drawn[i : i + 2]).tolist())) == 8 for i in range(0, 40, 2))
    assert set(torch.cat(drawn).tolist()) == set(ROWS.tolist())


def test_all_tensors_and_the_indices_are_of_the_same_rows() -> None:
    digits = load("digits")
    assert digits.train_labels is not None
    batches = Minibatches((digits.train, digits.train_labels), batch_size=32, seed=1)
    assert batches.indices is None
    for x, y in islice(batches, 3):
        assert batches.indices is not None
        assert torch.equal(x, digits.train[batches.indices])
        assert torch.equal(y, digits.train_labels[batches.indices])


def test_the_transform_maps_the_first_tensor_alone() -> None:
    batches = Minibatches((ROWS, ROWS), batch_size=5, seed=0, transform=lambda x: x + 100)
    x, y = batches.next()
    assert torch.equal(x, y + 100)


def test_the_order_depends_on_the_seed_and_not_on_the_global_stream() -> None:
    def order(seed: int) -> list[int]:
        return Minibatches((ROWS,), batch_size=10, seed=seed).next()[0].tolist()

    torch.manual_seed(1)
    first = order(0)
    torch.manual_seed(2)
    assert order(0) == first != order(1)


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 7])  # 3: the end of a pass
def test_resume_goes_on_exactly(steps: int) -> None:
    source = Minibatches((ROWS,), batch_size=3, seed=5)
    for _ in range(steps):
        source.next()
    state = source.state_dict()
    expected = [x.tolist() for (x,) in islice(source, 8)]  # after the state was taken: it must be a copy
    resumed = Minibatches((ROWS,), batch_size=3, seed=99)
    resumed.load_state_dict(state)
    assert [x.tolist() for (x,) in islice(resumed, 8)] == expected
    assert resumed.state_dict()["epoch"] == source.state_dict()["epoch"]


def test_state_survives_saving_and_fits_its_data_only(tmp_path) -> None:
    source = Minibatches((ROWS,), batch_size=3, seed=5)
    source.next()
    torch.save(source.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    with pytest.raises(ValueError, match=r"got a state of .* \(10, 3\); expected \(10, 2\)"):
        Minibatches((ROWS,), batch_size=2).load_state_dict(state)
    resumed = Minibatches((ROWS,), batch_size=3)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.next()[0], source.next()[0])


@pytest.mark.parametrize(
    ("tensors", "batch_size", "message"),
    [
        ((), 1, "got no tensors"),
        ((ROWS, ROWS[:9]), 1, r"\(10,\) on cpu', '\(9,\) on cpu'\]; expected one length"),
        ((ROWS, ROWS.to("meta")), 1, "one device"),
        ((ROWS,), 11, "got batch_size=11; expected 1 to 10"),
        ((ROWS,), 0, "got batch_size=0"),
    ],
)
def test_impossible_batches_are_refused(tensors: tuple[torch.Tensor, ...], batch_size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Minibatches(tensors, batch_size)


def test_the_transform_is_told_the_group() -> None:
    groups = [7] * 4 + [9] * 6
    told: list[object] = []
    batches = Minibatches((ROWS, ROWS), 2, transform=lambda x, group: (told.append(group), x)[1], groups=groups)
    assert batches.steps_per_pass == 5 and not batches.is_uniform
    for _ in range(5):
        x, y = batches.next()
        assert torch.equal(x, y) and {groups[i] for i in x.tolist()} == {told[-1]} and type(told[-1]) is int
        again, _ = batches.again()
        assert torch.equal(again, x) and told[-1] == told[-2]


def test_groups_go_on_after_saving(tmp_path) -> None:
    source = Minibatches((ROWS,), 2, seed=5, groups=[0, 1] * 5)
    for _ in range(3):
        source.next()
    torch.save(source.state_dict(), tmp_path / "state.pt")
    resumed = Minibatches((ROWS,), 2, groups=[0, 1] * 5)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [x.tolist() for (x,) in islice(resumed, 9)] == [x.tolist() for (x,) in islice(source, 9)]


def test_a_captured_step_needs_one_group() -> None:
    several = Minibatches((ROWS,), 5, groups=[0] * 5 + [1] * 5)
    with pytest.raises(ValueError, match="got batches of several groups; expected those of one shape"):
        several.gather(torch.tensor([0]))
    one = Minibatches((ROWS,), 5, transform=lambda x, group: x + group, groups=[100] * 9 + [2])
    assert one.is_uniform and one.unused == 1
    assert torch.equal(one.gather(torch.tensor([0]))[0], one.next()[0])
