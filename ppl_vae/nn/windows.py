"""A window of Gaussian filters over an image, which a network moves, zooms and reads or writes through."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_vae.nn.shapes import as_size
from ppl_vae.nn.trunks import MLP

__all__ = ["Window", "WindowHead", "filter_bank"]


def filter_bank(centre: Tensor, stride: Tensor, sigma: Tensor, size: int, length: int) -> Tensor:
    """N Gaussian filters along an axis of A pixels: F[i, a] proportional to exp(-(a - mu_i)^2 / 2 sigma^2).

    mu_i = centre + (i - N / 2 - 1 / 2) stride for i = 1..N, and pixels are counted a = 1..A: centre = (A + 1) / 2 is
    the middle of the image for even and odd N alike. Each row sums to one, also where its filter lies outside of the
    image (a Gaussian divided by its sum plus a small number would fade to nothing there, and its gradient with it): it
    then reads the edge.

    Args:
        centre: g, (...), in pixels.
        stride: delta, (...), in pixels.
        sigma: (...), in pixels.
        size: N.
        length: A.

    Returns:
        (..., N, A).

    References:
        DRAW: A recurrent neural network for image generation, Gregor et al. 2015, eq. 19, 20, 25 and 26.

    Example:
        >>> bank = filter_bank(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(0.1), size=3, length=3)
        >>> torch.equal(bank.round(), torch.eye(3)), bank.sum(-1).tolist()
        (True, [1.0, 1.0, 1.0])
    """
    i = torch.arange(1, size + 1, dtype=centre.dtype, device=centre.device)
    a = torch.arange(1, length + 1, dtype=centre.dtype, device=centre.device)
    mu = centre[..., None] + (i - size / 2 - 0.5) * stride[..., None]
    return (-0.5 * ((a - mu[..., None]) / sigma[..., None, None]).square()).softmax(-1)


@dataclass(frozen=True)
class Window:
    """N x N filters over images of H x W pixels, for each row of a batch.

    Args:
        rows: F_Y, (..., N, H).
        columns: F_X, (..., N, W).
        intensity: gamma, (...).
        centre: (g_Y, g_X), (..., 2), in pixels counted from 1.
        stride: delta, (...), in pixels between the filters' centres.
        sigma: (...), of the filters in pixels.
    """

    rows: Tensor
    columns: Tensor
    intensity: Tensor
    centre: Tensor
    stride: Tensor
    sigma: Tensor

    def read(self, images: Tensor) -> Tensor:
        """gamma F_Y x F_X^T of each channel: (..., C, H, W) -> (..., C, N, N)."""
        patches = self.rows[..., None, :, :] @ images @ self.columns[..., None, :, :].mT
        return self.intensity[..., None, None, None] * patches

    def write(self, patches: Tensor) -> Tensor:
        """F_Y^T w F_X / gamma of each channel: (..., C, N, N) -> (..., C, H, W)."""
        images = self.rows[..., None, :, :].mT @ patches @ self.columns[..., None, :, :]
        return images / self.intensity[..., None, None, None]

    def corners(self) -> Tensor:
        """Centres of the outermost filters, (top, left, bottom, right) in pixels counted from 0: (..., 4)."""
        reach = (self.rows.shape[-2] - 1) / 2 * self.stride[..., None]
        return torch.cat([self.centre - reach, self.centre + reach], -1) - 1


class WindowHead(nn.Module):
    """h -> a `Window`, by one linear map to (g~_Y, g~_X, log sigma^2, log delta~, log gamma).

    g = (A + 1) / 2 (g~ + 1) along each axis and delta = (max(H, W) - 1) / (N - 1) delta~: all zeros make a window in
    the middle that covers the whole image.

    Args:
        in_dim: size of h.
        size: N, filters along a side.
        height: H of the images.
        width: W of the images.

    Raises:
        ValueError: a size below 1.

    References:
        DRAW: A recurrent neural network for image generation, Gregor et al. 2015, eq. 21 to 24.

    Example:
        >>> WindowHead(8, size=5, height=28, width=28)(torch.zeros(3, 8)).read(torch.zeros(3, 1, 28, 28)).shape
        torch.Size([3, 1, 5, 5])
    """

    def __init__(self, in_dim: int, size: int, height: int, width: int) -> None:
        super().__init__()
        self.size, self.height, self.width = as_size(size, "size"), as_size(height, "height"), as_size(width, "width")
        self.parameters_of = MLP(in_dim, 5, hidden=())

    def forward(self, h: Tensor) -> Window:
        """The window that h, (..., in_dim), asks for."""
        y, x, log_variance, log_stride, log_intensity = self.parameters_of(h).unbind(-1)
        centre = [(length + 1) / 2 * (g + 1) for length, g in ((self.height, y), (self.width, x))]
        stride = (max(self.height, self.width) - 1) / max(self.size - 1, 1) * log_stride.exp()
        sigma = (log_variance / 2).exp()
        rows, columns = (
            filter_bank(g, stride, sigma, self.size, length)
            for g, length in zip(centre, (self.height, self.width), strict=True)
        )
        return Window(rows, columns, log_intensity.exp(), torch.stack(centre, -1), stride, sigma)
