"""Causal attention against a masked softmax written out, its Jacobian, and itself pixel by pixel."""

import math

import pytest
import torch
from torch import Tensor

from ppl_vae.nn import CausalAttention
from ppl_vae.nn.causal_conv import stepwise


def made(hidden: int = 6, heads: int = 2) -> CausalAttention:
    """One whose weights, biases and norm are all random."""
    attention = CausalAttention(hidden, heads).double()
    for number, parameter in enumerate(attention.parameters()):
        torch.nn.init.normal_(parameter, 0, 0.5, generator=torch.Generator().manual_seed(number))
    return attention


def written_out(attention: CausalAttention, x: Tensor) -> Tensor:
    """Pixel by pixel, head by head."""
    number, hidden, height, width = x.shape
    pixels, size = x.permute(0, 2, 3, 1).reshape(number, -1, hidden), hidden // attention.heads
    centred = pixels - pixels.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    normed = normed * attention.norm.weight + attention.norm.bias
    q, k, v = (normed @ attention.before.weight.T + attention.before.bias).chunk(3, -1)
    out = torch.zeros_like(pixels)
    for i in range(height * width):
        for head in range(attention.heads):
            own = slice(head * size, (head + 1) * size)
            scores = torch.stack([(q[:, i, own] * k[:, j, own]).sum(-1) for j in range(i + 1)], -1) / math.sqrt(size)
            weights = scores.exp() / scores.exp().sum(-1, keepdim=True)
            out[:, i, own] = sum(weights[:, j, None] * v[:, j, own] for j in range(i + 1))
    out = out @ attention.after.weight.T + attention.after.bias
    return out.view(number, height, width, hidden).permute(0, 3, 1, 2)


@pytest.mark.parametrize("heads", [1, 2, 6])
@torch.no_grad()
def test_it_is_a_masked_softmax(heads: int) -> None:
    attention, x = made(6, heads), torch.randn(3, 6, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(attention(x), written_out(attention, x), rtol=0, atol=1e-12)
    expected = written_out(attention, x).float()
    torch.testing.assert_close(attention.float()(x.float()), expected, rtol=0, atol=1e-5)


def test_equal_scores_give_running_means() -> None:
    """No queries; values are the normed features, and so is what is added up of them."""
    attention, x = CausalAttention(4, 2).double(), torch.randn(2, 4, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        attention.before.weight.copy_(torch.eye(4).repeat(3, 1)).view(3, 4, 4)[0] = 0
        attention.after.weight.copy_(torch.eye(4))
        normed = torch.nn.functional.layer_norm(x.flatten(2).transpose(1, 2), (4,))
        means = normed.cumsum(1) / torch.arange(1, 10)[:, None]
        torch.testing.assert_close(attention(x).flatten(2).transpose(1, 2), means)


def test_nothing_after_a_pixel_moves_it_and_all_else_does() -> None:
    attention, x = made(), torch.randn(1, 6, 3, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(attention, x)
    assert isinstance(jacobian, Tensor)
    moves = (jacobian.view(6, 12, 6, 12) != 0).any(2).any(0)
    assert torch.equal(moves, torch.ones(12, 12, dtype=torch.bool).tril())


@torch.no_grad()
def test_pixel_by_pixel_it_is_the_same() -> None:
    """And does not see what is not there yet; afterwards it takes whole images again."""
    attention, x = made(), torch.randn(3, 6, 3, 4, dtype=torch.float64)
    whole, parts = attention(x), torch.full_like(x, torch.nan)
    with stepwise(attention, *x[:, 0].shape) as place:
        for place.row in range(3):
            for place.column in range(4):
                at = (slice(None), slice(None), slice(place.row, place.row + 1), slice(place.column, place.column + 1))
                parts[at] = attention(x[at])
    torch.testing.assert_close(parts, whole)
    assert torch.equal(attention(x), whole)


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="hidden: got 6 features, expected a multiple of the 4 heads; change hidden"):
        CausalAttention(6)
    with pytest.raises(ValueError, match="heads: got 0, expected a whole number of at least 1"):
        CausalAttention(6, 0)
