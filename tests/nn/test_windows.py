"""Windows: the paper's equations by hand, the identity, and gradients by finite differences."""

import pytest
import torch

from ppl_vae.nn import Window, WindowHead, filter_bank


def bank(centre: float, stride: float, sigma: float, size: int, length: int) -> torch.Tensor:
    g, delta, s = torch.tensor([centre, stride, sigma], dtype=torch.float64)
    return filter_bank(g, delta, s, size, length)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5])
def test_filters_by_hand(size):
    """exp(-(a - mu_i)^2 / 2 sigma^2), pixels and filters counted from 1, each row divided by its sum."""
    got = bank(4.2, 1.7, 0.8, size, 7)
    for i in range(1, size + 1):
        mu = 4.2 + (i - size / 2 - 0.5) * 1.7
        row = torch.tensor([-((a - mu) ** 2) / (2 * 0.8**2) for a in range(1, 8)], dtype=torch.float64).exp()
        torch.testing.assert_close(got[i - 1], row / row.sum())


@pytest.mark.parametrize("size", [1, 2, 5, 8])
@pytest.mark.parametrize("centre", [-1e4, -3.0, 0.0, 14.5, 1e4])
def test_rows_sum_to_one_wherever_the_window_is(size, centre):
    for sigma in (1e-3, 1.0, 1e3):
        rows = bank(centre, 3.0, sigma, size, 28).sum(-1)
        torch.testing.assert_close(rows, torch.ones_like(rows))


@pytest.mark.parametrize("length", [4, 5, 28])
def test_a_centred_window_as_large_as_the_image_is_the_identity(length):
    """N = A, stride 1, narrow filters: for even and odd sizes alike."""
    exact = bank((length + 1) / 2, 1.0, 1e-2, length, length)
    assert torch.equal(exact, torch.eye(length, dtype=torch.float64))


def test_zeros_ask_for_the_whole_image():
    """g = (A + 1) / 2 and delta = (max(H, W) - 1) / (N - 1): the outermost filters stand on the outermost pixels."""
    head = WindowHead(3, size=5, height=28, width=28).double()
    for parameter in head.parameters():
        torch.nn.init.zeros_(parameter)
    window = head(torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(window.corners(), torch.tensor([[0.0, 0.0, 27.0, 27.0]] * 2, dtype=torch.float64))
    assert window.intensity.tolist() == window.sigma.tolist() == [1.0, 1.0]


def test_parameters_of_a_window_by_hand():
    head, h = WindowHead(3, size=4, height=10, width=20).double(), torch.randn(6, 3, dtype=torch.float64)
    y, x, log_variance, log_stride, log_intensity = head.parameters_of(h).unbind(-1)
    window = head(h)
    torch.testing.assert_close(window.centre, torch.stack([11 / 2 * (y + 1), 21 / 2 * (x + 1)], -1))
    torch.testing.assert_close(window.sigma**2, log_variance.exp())
    torch.testing.assert_close(window.stride, 19 / 3 * log_stride.exp())
    torch.testing.assert_close(window.intensity, log_intensity.exp())
    rows = filter_bank(window.centre[:, 0], window.stride, window.sigma, 4, 10)
    torch.testing.assert_close(window.rows, rows)
    torch.testing.assert_close(window.columns, filter_bank(window.centre[:, 1], window.stride, window.sigma, 4, 20))


def some_window(size: int = 3, height: int = 6, width: int = 5) -> Window:
    return WindowHead(4, size, height, width).double()(torch.randn(2, 4, dtype=torch.float64))


def test_read_and_write_by_hand():
    """gamma F_Y x F_X^T and F_Y^T w F_X / gamma, channel by channel."""
    window, x = some_window(), torch.randn(2, 3, 6, 5, dtype=torch.float64)
    patch = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    read, written = window.read(x), window.write(patch)
    for b in range(2):
        for c in range(3):
            f_y, f_x, gamma = window.rows[b], window.columns[b], window.intensity[b]
            torch.testing.assert_close(read[b, c], gamma * f_y @ x[b, c] @ f_x.T)
            torch.testing.assert_close(written[b, c], f_y.T @ patch[b, c] @ f_x / gamma)


def test_particles_stand_to_the_left():
    """Windows (K, B) over images (B, C, H, W): each as if alone."""
    head, h = WindowHead(4, 3, 6, 5).double(), torch.randn(7, 2, 4, dtype=torch.float64)
    x = torch.randn(2, 1, 6, 5, dtype=torch.float64)
    together = head(h).read(x)
    for k in range(7):
        torch.testing.assert_close(together[k], head(h[k]).read(x))


def test_gradients_agree_with_finite_differences():
    def through(centre, stride, sigma, x):
        f = filter_bank(centre, stride, sigma, 3, 5)
        window = Window(f, f, sigma, torch.stack([centre, centre], -1), stride, sigma)
        return window.write(window.read(x))

    numbers = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in ([2.7, 9.0], [1.3, 0.4], [0.8, 2.0])]
    x = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(through, (*numbers, x))


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="size: got 0, expected a whole number of at least 1"):
        WindowHead(3, size=0, height=4, width=4)
