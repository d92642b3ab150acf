"""Batch normalisation: over all leading dims, with running averages that training moves alone."""

import pytest
import torch
from torch import nn

from ppl_vae.nn import MLP, BatchNorm


def test_particles_are_rows() -> None:
    """(K, B, D) by hand, over K * B rows; the running variance is the unbiased one."""
    norm, x = BatchNorm(3).double(), 2 + 3 * torch.randn(4, 5, 3, dtype=torch.float64)
    rows = x.reshape(20, 3)
    variance = rows.var(0, correction=0)
    torch.testing.assert_close(norm(x), (x - rows.mean(0)) / (variance + 1e-5).sqrt())
    mean, running = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    torch.testing.assert_close(mean, 0.1 * rows.mean(0))
    torch.testing.assert_close(running, 0.9 + 0.1 * rows.var(0))
    torch.testing.assert_close(norm.eval()(x), (x - mean) / (running + 1e-5).sqrt())


def test_it_is_torchs_where_there_are_only_rows() -> None:
    ours, torchs, x = BatchNorm(3), nn.BatchNorm1d(3), torch.randn(7, 3)
    torch.testing.assert_close(ours(x), torchs(x))
    torch.testing.assert_close(ours.state_dict(), torchs.state_dict())


def test_without_gradient_nothing_moves() -> None:
    norm, x = BatchNorm(3), torch.randn(4, 5, 3)
    with torch.no_grad():
        alone = norm(x)
    assert norm.get_buffer("num_batches_tracked") == 0 and not norm.get_buffer("running_mean").any()
    torch.testing.assert_close(alone, norm(x).detach())
    assert norm.get_buffer("num_batches_tracked") == 1


@pytest.mark.parametrize("leading", [(6,), (2, 3)])
def test_mlp(leading: tuple[int, ...]) -> None:
    """Linear maps without a bias, each normalised before the activation."""
    trunk, x = MLP(4, (2, 5), (7, 6), nn.Tanh, batch_norm=True), torch.randn(*leading, 4)
    assert [type(layer).__name__ for layer in trunk.hidden] == ["Linear", "BatchNorm", "Tanh"] * 2
    assert [tuple(p.shape) for p in trunk.parameters()] == [(7, 4), (7,), (7,), (6, 7), (6,), (6,), (10, 6), (10,)]
    h = x.reshape(6, 4)
    for linear in (trunk.hidden[0], trunk.hidden[3]):
        assert isinstance(linear, nn.Linear)
        h = h @ linear.weight.T
        h = torch.tanh((h - h.mean(0)) / (h.var(0, correction=0) + 1e-5).sqrt())
    torch.testing.assert_close(trunk.features(x), h.reshape(*leading, 6))
    torch.testing.assert_close(trunk(x), trunk.output(h).reshape(*leading, 2, 5))
