"""Row and diagonal LSTMs against torch's LSTM cell, where the image is one row or one column; skewed maps by hand."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from ppl_vae.nn import RowLSTM, skewed, unskewed
from ppl_vae.nn.pixel_rnn import _Gates, _Row, _Side


def cell_of(gates: _Gates, own: Tensor) -> nn.LSTMCell:
    """torch's cell with the same weights: its gates are i, f, g, o, ours o, f, i, g."""
    cell = nn.LSTMCell(gates.input.n_in, gates.hidden).double()
    order = torch.cat([torch.arange(gates.hidden) + gates.hidden * gate for gate in (2, 1, 3, 0)])
    with torch.no_grad():
        cell.weight_ih.copy_(gates.input.weight[:, :, 0, -1][order])
        cell.weight_hh.copy_(own[order])
        cell.bias_ih.copy_(gates.input.bias[order])
        cell.bias_hh.zero_()
    return cell


def by_torch(cell: nn.LSTMCell, gates: _Gates, inputs: Tensor) -> Tensor:
    """States (N, h, T) of inputs (N, 2 h, T)."""
    h, c = (part[..., 0] for part in gates.started(len(inputs), 1))
    states = []
    for x in inputs.unbind(-1):
        h, c = cell(x, (h, c))
        states.append(h)
    return torch.stack(states, -1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def started_anywhere(gates: _Gates) -> None:
    for part in gates.start:
        nn.init.normal_(part)


def test_down_one_column_a_row_lstm_is_an_lstm() -> None:
    row = _Row(3, 1, 1, None).double()
    started_anywhere(row.gates)
    x = torch.randn(4, 6, 5, 1, dtype=torch.float64)
    states = by_torch(cell_of(row.gates, row.above.weight[..., 1]), row.gates, x[..., 0])
    torch.testing.assert_close(row(x, None), row.up(states.unsqueeze(-1)))


def test_along_one_row_a_side_is_an_lstm() -> None:
    """The state above the first row is nothing."""
    side = _Side(3, 1, None).double()
    started_anywhere(side.gates)
    x = torch.randn(4, 6, 1, 5, dtype=torch.float64)
    torch.testing.assert_close(
        side(x, None)[:, :, 0], by_torch(cell_of(side.gates, side.own.weight[..., 0]), side.gates, x[:, :, 0])
    )


def test_down_one_column_a_side_sees_the_state_above() -> None:
    """And the first state on its left, which is all there is."""
    side = _Side(3, 1, None).double()
    x = torch.randn(4, 6, 5, 1, dtype=torch.float64)
    cell = cell_of(side.gates, side.above.weight[..., 0])
    torch.testing.assert_close(side(x, None)[..., 0, 0], by_torch(cell, side.gates, x[:, :, :1, 0])[..., 0])
    moved = x.clone()
    moved[:, :, 1] += 1
    difference = (side(moved, None) - side(x, None)).abs().sum((0, 1))[:, 0]
    assert difference[0] == 0 and (difference[1:] > 0).all()


@given(st.integers(1, 6), st.integers(1, 6))
def test_skewed_and_back(height: int, width: int) -> None:
    x = torch.rand(2, height, width)
    slanted = skewed(x)
    assert slanted.shape == (2, height, width + height - 1)
    for row in range(height):
        assert torch.equal(slanted[:, row, row : row + width], x[:, row])
    assert slanted.count_nonzero() == x.count_nonzero() and torch.equal(unskewed(slanted, width), x)


def test_even_kernels_are_refused() -> None:
    with pytest.raises(ValueError, match="kernel: got 2, expected an odd number"):
        RowLSTM((1, 1, 4, 4), kernel=2)
