"""The LSTM cell: its equations by hand, leading dims, and its learned start."""

import torch

from ppl_vae.nn import LSTM, Memory


def test_one_step_by_hand():
    """i, f, o = sigmoid(.), g = tanh(.) of W x + V h + b: cell = f cell + i g, h = o tanh(cell)."""
    lstm, x = LSTM(3, 4).double(), torch.randn(2, 3, dtype=torch.float64)
    memory = Memory(*torch.randn(2, 2, 4, dtype=torch.float64))
    cell = lstm.update
    gates = x @ cell.weight_ih.T + cell.bias_ih + memory.h @ cell.weight_hh.T + cell.bias_hh
    i, f, g, o = gates.chunk(4, -1)
    expected = f.sigmoid() * memory.cell + i.sigmoid() * g.tanh()
    got = lstm(x, memory)
    torch.testing.assert_close(got.cell, expected)
    torch.testing.assert_close(got.h, o.sigmoid() * expected.tanh())


def test_leading_dims_are_broadcast():
    lstm, x = LSTM(3, 4), torch.randn(5, 2, 3)
    memory = lstm(torch.randn(2, 3), lstm.start())
    got = lstm(x, memory)
    for k in range(5):
        one = lstm(x[k], memory)
        torch.testing.assert_close(got.h[k], one.h)
        torch.testing.assert_close(got.cell[k], one.cell)


def test_the_start_is_learned():
    lstm = LSTM(3, 4)
    lstm(torch.randn(5, 3), lstm.start()).h.sum().backward()
    assert lstm.h.grad is not None and lstm.cell.grad is not None
    assert bool(lstm.h.grad.any()) and bool(lstm.cell.grad.any())
