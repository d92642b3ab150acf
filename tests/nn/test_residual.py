"""Residual encoders and decoders: shapes, leading dims, the output bias, errors."""

import pytest
import torch

from ppl_vae.nn import ResidualDown, ResidualUp


@pytest.mark.parametrize(
    ("shape", "halvings", "grid"),
    [((1, 28, 28), 2, (7, 7)), ((3, 32, 16), 3, (4, 2)), ((1, 64), 3, (8,)), ((2, 5, 3), 0, (5, 3))],
)
def test_there_and_back(shape: tuple[int, ...], halvings: int, grid: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    down = ResidualDown(shape, 6, 8, halvings, blocks=1)
    assert down.out_shape == (6, *grid)
    x = torch.randn(2, 3, *shape)
    h = down(x)
    torch.testing.assert_close(h[1, 2], down(x[1, 2]))
    up = ResidualUp((6, *grid), (2, *shape), 8, halvings, blocks=1)
    raw = up(h)
    assert raw.shape == (2, 3, 2, *shape)
    torch.testing.assert_close(raw[1, 2], up(h[1, 2]))
    for parameter in up.layers.parameters():
        torch.nn.init.zeros_(parameter)
    wanted = torch.randn(2, *shape)
    up.set_output_bias(wanted)
    torch.testing.assert_close(up(h)[0, 0], wanted)


def test_every_pixel_counts() -> None:
    """The features depend on all pixels, and all raw parameters on the features."""
    torch.manual_seed(0)
    x = torch.randn(1, 1, 8, 8, requires_grad=True)
    down, up = ResidualDown((1, 8, 8), 4, 8, 2, 1), ResidualUp((4, 2, 2), (1, 1, 8, 8), 8, 2, 1)
    h = down(x)
    assert (torch.autograd.grad(h.square().sum(), x, retain_graph=True)[0] != 0).all()
    assert (torch.autograd.grad(up(h).square().sum(), h)[0] != 0).all()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"halvings: got 2 for sizes \(8, 6\), expected multiples of 4"):
        ResidualDown((1, 8, 6), 4)
    with pytest.raises(ValueError, match=r"in_shape: got \(8,\)"):
        ResidualDown((8,), 4)
    with pytest.raises(ValueError, match=r"out_shape: got \(1, 1, 16, 16\)"):
        ResidualUp((4, 2, 2), (1, 1, 16, 16))
